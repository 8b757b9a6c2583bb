//! Alert rules, runbooks and the dashboard: they name metrics and sections that exist.

use std::{collections::BTreeSet, fs, path::Path};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Names of metrics in a text.
fn named(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_')
        .filter(|word| word.starts_with("jeton_"))
        .collect()
}

/// Metrics of docs/metrics.md, which another test compares with the program.
fn listed(document: &str) -> BTreeSet<String> {
    let mut listed = BTreeSet::new();
    for row in document.lines().filter_map(|line| line.strip_prefix("| `jeton_")) {
        let (name, rest) = row.split_once('`').unwrap();
        let name = format!("jeton_{name}");
        if rest.starts_with(" | histogram |") {
            listed.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
        }
        listed.insert(name);
    }
    listed
}

#[test]
fn every_metric_in_rules_dashboard_and_runbooks_exists() {
    let document = read("docs/metrics.md");
    let listed = listed(&document);
    for path in ["deploy/prometheus-alerts.yaml", "deploy/grafana.json", "docs/runbooks.md"] {
        let text = read(path);
        let named = named(&text);
        assert!(named.len() > 5, "{path} names {named:?}");
        let unknown: Vec<_> = named.iter().filter(|name| !listed.contains(**name)).collect();
        assert!(unknown.is_empty(), "{path} names {unknown:?}");
    }
}

#[test]
fn every_alert_has_a_runbook() {
    let (rules, runbooks) = (read("deploy/prometheus-alerts.yaml"), read("docs/runbooks.md"));
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.split_once("- alert: ")).collect();
    let alerts: Vec<_> = alerts.into_iter().map(|(_, name)| name).collect();
    let sections = runbooks.lines().filter_map(|line| line.strip_prefix("## "));
    // Others begin with a symptom that no metric shows.
    let sections: Vec<_> = sections.filter(|section| section.starts_with("Jeton")).collect();
    assert_eq!(alerts, sections);
    for alert in alerts {
        let link = format!("runbook: docs/runbooks.md#{}\n", alert.to_lowercase());
        assert!(rules.contains(&link), "{link}");
    }
}
