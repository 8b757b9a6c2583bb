//! Files of `deploy/`: supervisors wait longer than the server takes to stop.

use std::{fs, path::Path};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns the first number after `key`.
fn number(text: &str, key: &str) -> Option<u64> {
    let (_, rest) = text.split_once(key)?;
    let digits: String =
        rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[test]
fn supervisors_wait_for_the_delay_and_the_drain() {
    let drain = number(&read("deploy/config.toml"), "\ndrain_seconds").unwrap();
    for (path, key, has_delay) in [
        ("deploy/jeton.service", "\nTimeoutStopSec", false),
        ("deploy/compose.yaml", "stop_grace_period", true),
        ("deploy/compose.single.yaml", "stop_grace_period", true),
        ("deploy/kubernetes.yaml", "terminationGracePeriodSeconds", true),
    ] {
        let text = read(path);
        let delay = number(&text, "SHUTDOWN_DELAY_SECONDS");
        assert_eq!(delay.is_some(), has_delay, "{path}");
        let (delay, wait) = (delay.unwrap_or(10), number(&text, key).unwrap());
        assert!(wait > delay + drain, "{path}: {wait} s for {delay} s and {drain} s");
    }
}
