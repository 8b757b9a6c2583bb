//! Load from the command line.

use crate::cli::home::{CliHome, Server};

/// Starts a server whose clients may make so many calls a second.
fn serve(home: &CliHome, calls: &str) -> Server {
    let mut command = home.command(&["serve", "--dev", "--json", "--listen", "127.0.0.1:0"]);
    for limit in ["PLANS__STANDARD", "PER_PEER"] {
        command.env(format!("JETON_LIMITS__{limit}__PER_SECOND"), calls);
        command.env(format!("JETON_LIMITS__{limit}__BURST"), calls);
    }
    home.serve_by(&mut command)
}

/// Each operation is measured against a real server: calls succeed, their times are in order, and
/// no refresh family is left behind.
#[test]
fn each_operation_is_measured() {
    let home = CliHome::new();
    let server = serve(&home, "1000000");
    for operation in
        ["refresh", "token", "introspect", "introspect-new", "batch", "revoke", "mixed"]
    {
        let ran = home.jeton(&[
            "bench",
            operation,
            "--connections",
            "2",
            "--in-flight",
            "4",
            "--duration",
            "1s",
            "--warm-up",
            "0s",
            "--json",
        ]);
        let told = ran.ok().json();
        assert_eq!(told["operation"], operation);
        assert_eq!((&told["failed"], &told["errors"]), (&0.into(), &serde_json::json!({})));
        assert!(told["calls"].as_u64() > Some(0), "{told}");
        assert!(told["calls_per_second"].as_f64() > Some(0.0), "{told}");
        let at = |name: &str| told["latency_ms"][name].as_f64().unwrap();
        assert!(at("p50") <= at("p99") && at("p99") <= at("max"), "{told}");
        if operation == "refresh" {
            let revoked = ["audit", "list", "--action", "token.revoked", "--json"];
            let revoked = home.jeton(&revoked).ok().json();
            assert_eq!(revoked["events"].as_array().unwrap().len(), 4, "no family is left");
        }
    }
    server.stop();
}

/// Calls that fail are counted by reason, and the exit code says that there were some; what is wrong
/// from the start is an error at once.
#[test]
fn failed_calls_are_counted_by_reason() {
    let home = CliHome::new();
    let server = serve(&home, "3");
    let wrong = home.jeton(&["bench", "token", "--scope", "no:such", "--duration", "1s"]);
    assert!(wrong.code == 3 && wrong.err.contains("invalid_scope"), "{wrong:?}");
    let ran = home.jeton(&[
        "bench",
        "token",
        "--in-flight",
        "8",
        "--duration",
        "1s",
        "--warm-up",
        "0s",
        "--json",
    ]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let told = ran.json();
    assert!(told["failed"].as_u64() > Some(0), "{told}");
    assert_eq!(told["errors"].as_object().unwrap().keys().next().unwrap(), "slow_down");
    for usage in [["--in-flight", "0"], ["--connections", "1001"], ["--duration", "0s"]] {
        let refused = home.jeton(&["bench", "token", usage[0], usage[1]]);
        assert_eq!(refused.code, 2, "{refused:?}");
    }
    server.stop();
}
