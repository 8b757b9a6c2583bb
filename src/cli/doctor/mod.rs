//! `doctor`: checks a deployment from this machine and suggests fixes. It changes nothing, except
//! for one document that it writes to a shared store and removes again.

mod any_certificate;
mod files;
mod network;
mod records;
#[cfg(feature = "mongodb")]
mod shared;
mod store;

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use serde_json::{Value, json};

use super::{args, error::Failure, output::Output, settings::Settings};
use crate::{
    config::{Config, check},
    model::Timestamp,
    server,
};

/// Remaining validity below which a certificate gets a note.
const RENEWAL_NOTICE: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// 2026-01-01T00:00:00Z: an earlier clock is wrong.
const EARLIEST_CLOCK: Timestamp = Timestamp::from_seconds(1_767_225_600);

/// `jeton doctor`
#[derive(Args, Debug)]
pub(super) struct Command {
    #[command(flatten)]
    settings: Settings,
    /// Check as for a server started with --dev
    #[arg(long)]
    dev: bool,
    /// Check only that the service answers and is healthy, for probes
    #[arg(long)]
    service_only: bool,
}

/// Result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// Subject of the check.
    subject: &'static str,
    verdict: Verdict,
    /// State of the subject.
    text: String,
    /// Suggested fix; empty if none is needed.
    advice: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    Note,
    Problem,
}

impl Verdict {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "problem",
        }
    }
}

impl Finding {
    fn ok(subject: &'static str, text: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Ok, text: text.into(), advice: String::new() }
    }

    fn note(subject: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Note, text: text.into(), advice: advice.into() }
    }

    fn problem(subject: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Problem, text: text.into(), advice: advice.into() }
    }
}

impl Command {
    pub(super) async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let findings = match Config::load(&self.settings.sources(environment)) {
            Ok((config, _)) if self.service_only => {
                network::service(&config, self.settings.names_a_port()).await
            }
            Ok((config, origins)) => {
                let judged =
                    check(&config, self.dev).map_err(|error| origins.blame(error).to_string());
                let mut findings = self.examine(&config, judged).await;
                findings.extend(origins.passed_over().iter().map(|variable| {
                    Finding::note(
                        "environment",
                        format!("{variable} is not a setting and is ignored"),
                        "remove it if it was meant as a setting",
                    )
                }));
                findings
            }
            Err(error) => vec![invalid_configuration(error.to_string())],
        };
        print(output, &findings)?;
        let problems = findings.iter().any(|finding| finding.verdict == Verdict::Problem);
        if problems { Err(Failure::Code(1)) } else { Ok(()) }
    }

    async fn examine(&self, config: &Config, judged: Result<(), String>) -> Vec<Finding> {
        let now = args::now();
        let mut findings = vec![match judged {
            Ok(()) => Finding::ok("configuration", "all settings are valid"),
            Err(problem) => invalid_configuration(problem),
        }];
        findings.push(clock(now));
        findings.push(open_files(server::open_files(), config.limits.connections));
        if !config.store.is_shared() {
            findings.extend(files::data_directory(&config.data_dir));
        }
        findings.push(files::master_key(config, self.dev));
        if !config.store.is_shared() {
            findings.extend(store::embedded(config, now));
        }
        findings.extend(files::certificate(&config.tls, now));
        findings.extend(records::clients(config).await);
        let service = network::service(config, self.settings.names_a_port()).await;
        #[cfg(feature = "mongodb")]
        if config.store.is_shared() {
            let answers = service.iter().all(|finding| finding.verdict == Verdict::Ok);
            findings.extend(shared::store(config, answers).await);
        }
        findings.extend(service);
        findings
    }
}

fn invalid_configuration(problem: String) -> Finding {
    Finding::problem(
        "configuration",
        problem,
        "change the setting; `jeton config show` shows its source",
    )
}

fn clock(now: Timestamp) -> Finding {
    if now < EARLIEST_CLOCK {
        return Finding::problem(
            "clock",
            format!("reads {now}"),
            "synchronize the clock with NTP: token expiry depends on it",
        );
    }
    Finding::ok("clock", format!("reads {now}"))
}

/// Checks the limit of this process; that of the service may differ.
fn open_files(limit: Option<u64>, connections: usize) -> Finding {
    const SUBJECT: &str = "open files";
    let Some(limit) = limit else { return Finding::ok(SUBJECT, "no limit") };
    let possible = server::connections_within(limit);
    if possible >= connections {
        return Finding::ok(
            SUBJECT,
            format!("limit {limit}, enough for {connections} connections"),
        );
    }
    let text = format!(
        "limit {limit}, enough for {possible} of {connections} connections; `serve` accepts no more"
    );
    Finding::note(
        SUBJECT,
        text,
        "raise the limit of the service (LimitNOFILE, ulimit -n), or lower limits.connections",
    )
}

fn print(output: Output, findings: &[Finding]) -> Result<(), Failure> {
    if output.json {
        let finding = |finding: &Finding| -> Value {
            json!({
                "subject": finding.subject,
                "verdict": finding.verdict.as_str(),
                "text": finding.text,
                "advice": finding.advice,
            })
        };
        return output
            .document(&json!({ "findings": findings.iter().map(finding).collect::<Vec<_>>() }));
    }
    let row = |finding: &Finding| {
        let advice = if finding.advice.is_empty() {
            String::new()
        } else {
            format!("-> {}", finding.advice)
        };
        vec![
            finding.verdict.as_str().to_owned(),
            finding.subject.to_owned(),
            finding.text.clone(),
            advice,
        ]
    };
    let header = ["", "what", "found", "what to do"];
    output.table(&header, &findings.iter().map(row).collect::<Vec<_>>(), &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_of_the_past_is_a_problem() {
        assert_eq!(clock(Timestamp::EPOCH).verdict, Verdict::Problem);
        assert_eq!(clock(Timestamp::from_seconds(1_800_000_000)).verdict, Verdict::Ok);
    }

    #[test]
    fn too_few_open_files_are_worth_a_note() {
        assert_eq!(open_files(Some(1_024), 20_000).verdict, Verdict::Note);
        assert_eq!(open_files(Some(65_536), 20_000).verdict, Verdict::Ok);
        assert_eq!(open_files(None, 20_000).verdict, Verdict::Ok);
    }
}
