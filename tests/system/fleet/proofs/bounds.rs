//! I5, I9 and I10.

use super::script::{Script, refused, unknown};
use crate::fleet::history::{Outcome, Verb};

const NOTHING: [&str; 0] = [];

/// I5, L12: more than the budget of a window.
#[test]
fn a_budget_that_was_overdrawn_is_found() {
    let limited = |calls: u64, apart: u64| {
        let mut run = Script::new();
        for n in 0..calls {
            run.token(1_000 + n * apart, "node-1", "limited", &format!("{n}"));
        }
        run.token_fails(9_000, "node-1", "limited", refused("SLOW_DOWN"));
        run.verdict()
    };
    assert_eq!(limited(3, 100), NOTHING);
    assert_eq!(limited(4, 100), ["I5"]);
    assert_eq!(limited(6, 4_000), NOTHING, "these are two windows");
}

/// I9: too much memory, descriptors that are not given back, memory that creeps.
#[test]
fn a_leak_is_found() {
    let sampled = |samples: &[(u64, u64, u64)]| {
        let mut run = Script::new();
        for &(ms, resident, descriptors) in samples {
            run.sample(ms, resident, descriptors);
        }
        run.verdict()
    };
    assert_eq!(sampled(&[(0, 50_000, 20), (1_000, 99_000, 200), (2_000, 90_000, 28)]), NOTHING);
    assert_eq!(sampled(&[(0, 50_000, 20), (1_000, 100_001, 20), (2_000, 90_000, 20)]), ["I9"]);
    assert_eq!(sampled(&[(0, 50_000, 20), (1_000, 50_000, 31)]), ["I9"]);
    let creeping =
        |by: u64| (0..60).map(|n| (n * 10_000, 40_000 + n * by / 6, 20)).collect::<Vec<_>>();
    assert_eq!(sampled(&creeping(1_000)), NOTHING);
    assert_eq!(sampled(&creeping(1_100)), ["I9"]);
}

/// I10: a call that hangs, whatever is broken.
#[test]
fn a_call_that_hangs_is_found() {
    let mut run = Script::new();
    run.fault(0, 10_000, 0, None);
    run.token_fails(100, "node-1", "client", unknown("UNAVAILABLE"));
    run.history.calls[0].end = run.history.calls[0].start + 2_500_000;
    assert_eq!(run.verdict(), NOTHING);
    let mut run = Script::new();
    run.fault(0, 10_000, 0, None);
    run.token_fails(100, "node-1", "client", unknown("UNAVAILABLE"));
    run.history.calls[0].end = run.history.calls[0].start + 2_500_001;
    assert_eq!(run.verdict(), ["I10"]);
}

/// I10: where the clock does not count a call may take long, and fail by its deadline at any time;
/// it is still told when to ask again.
#[test]
fn a_run_that_is_not_timed_judges_no_clock() {
    let failed = |outcome: Outcome| {
        let mut run = Script::new();
        run.history.run.timed = false;
        run.token_fails(100, "node-1", "client", outcome);
        run.history.calls[0].end = run.history.calls[0].start + 20_000_000;
        run.verdict()
    };
    assert_eq!(failed(unknown("DEADLINE_EXCEEDED")), NOTHING);
    assert_eq!(failed(unknown("INTERNAL")), ["I10"]);
    assert_eq!(failed(unknown("TRANSPORT")), ["I10"]);
    let (code, why) = ("UNAVAILABLE".to_owned(), "away".to_owned());
    assert_eq!(failed(Outcome::Unknown { code, why, retry: false }), ["I10"]);
}

/// I10: what may fail while something is broken, and what may not.
#[test]
fn a_failure_that_was_not_promised_is_found() {
    let failed = |ms: u64, node: &str, fault_of: Option<&str>, outcome: Outcome| {
        let mut run = Script::new();
        run.fault(1_000, 2_000, 500, fault_of);
        run.token_fails(ms, node, "client", outcome);
        run.verdict()
    };
    for code in ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"] {
        assert_eq!(failed(1_500, "node-1", None, unknown(code)), NOTHING);
        assert_eq!(failed(2_400, "node-1", None, unknown(code)), NOTHING, "it recovers");
        assert_eq!(failed(2_600, "node-1", None, unknown(code)), ["I10"], "it has recovered");
        assert_eq!(failed(900, "node-1", None, unknown(code)), ["I10"], "nothing was broken yet");
        assert_eq!(
            failed(1_500, "node-1", Some("node-2"), unknown(code)),
            ["I10"],
            "the other one was"
        );
    }
    assert_eq!(failed(1_500, "node-1", Some("node-1"), unknown("TRANSPORT")), NOTHING);
    assert_eq!(
        failed(1_500, "node-1", None, unknown("TRANSPORT")),
        ["I10"],
        "no fault of the store's stops a node"
    );
    for code in ["INTERNAL", "UNKNOWN", "CANCELLED", "DATA_LOSS"] {
        assert_eq!(failed(1_500, "node-1", None, unknown(code)), ["I10"]);
    }
    for reason in ["INVALID_CLIENT", "SLOW_DOWN", "NOT_FOUND", "INVALID_TOKEN"] {
        assert_eq!(failed(1_500, "node-1", None, refused(reason)), ["I10"], "{reason}");
    }
}

/// I10: a caller who is not told when to ask again, whatever is broken; who hears nothing from the
/// server is told nothing.
#[test]
fn a_failure_that_does_not_say_when_to_ask_again_is_found() {
    let failed = |code: &str, retry| {
        let mut run = Script::new();
        run.fault(1_000, 2_000, 500, Some("node-1"));
        let outcome = Outcome::Unknown { code: code.to_owned(), why: "away".to_owned(), retry };
        run.token_fails(1_500, "node-1", "client", outcome);
        run.verdict()
    };
    for code in ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"] {
        assert_eq!(failed(code, true), NOTHING);
        assert_eq!(failed(code, false), ["I10"], "{code}");
    }
    assert_eq!(failed("TRANSPORT", false), NOTHING);
}

/// I10, A08: a client is made once; who makes it again is told so, and nobody is told so before.
#[test]
fn a_client_that_is_taken_and_is_not_is_found() {
    let mut run = Script::new();
    run.administer(0, "node-1", Verb::CreateClient, "new", Outcome::Ok);
    run.administer(5, "node-2", Verb::CreateClient, "new", refused("ALREADY_EXISTS"));
    run.token_fails(100, "node-2", "new", refused("INVALID_CLIENT"));
    assert_eq!(run.verdict(), NOTHING, "the other node may not have heard");
    let mut run = Script::new();
    run.administer(0, "node-1", Verb::CreateClient, "new", refused("ALREADY_EXISTS"));
    assert_eq!(run.verdict(), ["I10"]);
    let mut run = Script::new();
    run.administer(0, "node-1", Verb::CreateClient, "new", Outcome::Ok);
    run.token_fails(1_100, "node-2", "new", refused("INVALID_CLIENT"));
    assert_eq!(run.verdict(), ["I10"]);
}
