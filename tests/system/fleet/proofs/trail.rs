//! I6 and I7 of the trail.

use super::script::{Script, access, refresh, refused, unknown};
use crate::fleet::history::{Outcome, Verb};

const NOTHING: [&str; 0] = [];

/// I6: each kind of change without its record.
#[test]
fn a_change_without_a_record_is_found() {
    let changes: [fn(&mut Script); 7] = [
        |run| run.token(0, "node-1", "client", "a"),
        |run| run.refresh(0, "node-1", "f", 0, "a"),
        |run| run.revoke(0, "node-1", access("a"), Outcome::Ok),
        |run| run.revoke(0, "node-1", refresh("f", 0), Outcome::Ok),
        |run| run.revoke_all(0, "node-1", "client", Outcome::Ok),
        |run| run.administer(0, "node-1", Verb::CreateClient, "new", Outcome::Ok),
        |run| run.administer(0, "node-1", Verb::DisableClient, "new", Outcome::Ok),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut run = Script::new();
        change(&mut run);
        assert_eq!(run.verdict(), NOTHING, "{number}");
        let mut run = Script::new();
        run.recorded = false;
        change(&mut run);
        let broken = run.verdict();
        assert!(broken.contains(&"I6"), "{number}: {broken:?}");
    }
}

/// I6: a chain that does not verify, a record that is missing in between, one too many, and one of
/// what was refused.
#[test]
fn a_trail_that_is_not_whole_is_found() {
    let mut run = Script::new();
    run.chain(false);
    assert_eq!(run.verdict(), ["I6"]);
    let mut run = Script::new();
    run.token(0, "node-1", "client", "a");
    run.token(10, "node-1", "client", "b");
    run.history.records[1].sequence = 3;
    assert_eq!(run.verdict(), ["I6"]);
    let mut run = Script::new();
    run.token(0, "node-1", "client", "a");
    run.record("token.issued", "a", "");
    assert_eq!(run.verdict(), ["I6"]);
    let mut run = Script::new();
    run.administer(0, "node-1", Verb::DisableClient, "client", Outcome::Ok);
    run.token_fails(100, "node-1", "client", refused("INVALID_CLIENT"));
    assert_eq!(run.history.records.len(), 1);
    run.record("token.issued", "a", "");
    assert_eq!(run.verdict(), ["I6"]);
}

/// I6: a token that was recorded and not handed out, since its client was disabled while the call
/// was on its way, is no loss.
#[test]
fn a_token_that_is_taken_back_is_no_loss() {
    let verdict = |disabled: u64, node: &str| {
        let mut run = Script::new();
        run.administer(disabled, node, Verb::DisableClient, "client", Outcome::Ok);
        run.token_fails(9_000, "node-1", "client", refused("INVALID_CLIENT"));
        run.record("token.issued", "a", "");
        run.verdict()
    };
    assert_eq!(verdict(8_000, "node-1"), ["I6"], "it was disabled before");
    assert_eq!(verdict(9_000, "node-1"), NOTHING);
    assert_eq!(verdict(8_000, "node-2"), NOTHING, "the other node may not have heard of it");
    assert_eq!(verdict(0, "node-2"), ["I6"]);
}

/// I7, M6: the end of a token that nobody was told of is recorded and does not hold, or holds and
/// is not recorded.
#[test]
fn half_an_ending_is_found() {
    let ended = |recorded, active| {
        let mut run = Script::new();
        run.token(0, "node-1", "client", "a");
        run.fault(90, 200, 100, None);
        run.revoke(100, "node-1", access("a"), unknown("UNAVAILABLE"));
        if recorded {
            run.record("token.revoked", "a", "");
        }
        run.judged(10_000, "node-2", "a", active);
        run.verdict()
    };
    assert_eq!(ended(true, false), NOTHING);
    assert_eq!(ended(false, true), NOTHING);
    assert_eq!(ended(true, true), ["I7"]);
    assert_eq!(ended(false, false), ["I7"]);
}

/// I7: the same of a client's end.
#[test]
fn half_an_end_of_a_client_is_found() {
    let mut run = Script::new();
    run.open(0, "node-1", "f", "a");
    run.fault(90, 200, 100, None);
    run.revoke_all(100, "node-1", "client", unknown("DEADLINE_EXCEEDED"));
    run.record("revocation.client", "client", "");
    run.judged(10_000, "node-2", "a", true);
    assert_eq!(run.verdict(), ["I7"]);
}
