//! Tests in a process of their own.

use std::{env, process::Command};

/// Set in the process that runs one test.
const ISOLATED: &str = "JETON_TEST_ISOLATED";

/// Returns true in a process that runs the test of this path and nothing else. Elsewhere starts
/// that process, requires that it succeeds, and returns false.
pub(crate) fn isolated(test: &str) -> bool {
    if env::var_os(ISOLATED).is_some() {
        return true;
    }
    let ran = Command::new(env::current_exe().unwrap())
        .args([test, "--exact", "--include-ignored", "--nocapture"])
        .env(ISOLATED, "1")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success() && output.contains("1 passed"),
        "{output}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    false
}
