//! I1, I2 and I4 of access tokens.

use super::script::{Script, access, refresh, refused, unknown};
use crate::fleet::history::{Outcome, Verb};

const NOTHING: [&str; 0] = [];

/// A quiet run: issued, judged everywhere, revoked, judged everywhere.
#[test]
fn a_run_that_keeps_every_promise_is_not_complained_of() {
    let mut run = Script::new();
    run.token(0, "node-1", "client", "a");
    run.judged(20, "node-2", "a", true);
    run.revoke(100, "node-1", access("a"), Outcome::Ok);
    run.judged(111, "node-1", "a", false);
    run.judged(500, "node-2", "a", true);
    run.judged(1_200, "node-2", "a", false);
    run.open(2_000, "node-1", "f", "b");
    run.refresh(2_100, "node-2", "f", 0, "c");
    run.refresh(2_200, "node-1", "f", 1, "d");
    for jti in ["b", "c", "d"] {
        run.judged(2_300, "node-2", jti, true);
    }
    run.chain(true);
    assert_eq!(run.verdict(), NOTHING);
}

/// I1: a token that nobody ended does not stand.
#[test]
fn a_lost_token_is_found() {
    let mut run = Script::new();
    run.token(0, "node-1", "client", "a");
    run.judged(20, "node-2", "a", false);
    assert_eq!(run.verdict(), ["I1"]);
}

/// I1: what came before the answer, after the end of its life, or of a token that may have been
/// ended, is no loss.
#[test]
fn a_token_may_be_dead_for_a_reason() {
    let mut run = Script::new();
    run.token(10, "node-1", "client", "a");
    run.judged(0, "node-2", "a", false);
    run.token(100, "node-1", "client", "b");
    run.judged(60_100, "node-2", "b", false);
    run.token(200, "node-1", "other", "c");
    run.fault(200, 400, 0, None);
    run.revoke_all(300, "node-1", "other", unknown("UNAVAILABLE"));
    run.record("revocation.client", "other", "");
    run.judged(400, "node-2", "c", false);
    assert_eq!(run.verdict(), NOTHING);
}

/// I2: on the node that took the revocation at once.
#[test]
fn a_revoked_token_that_stands_where_it_was_revoked_is_found() {
    let mut run = Script::new();
    run.token(0, "node-1", "client", "a");
    run.revoke(100, "node-1", access("a"), Outcome::Ok);
    run.judged(111, "node-1", "a", true);
    assert_eq!(run.verdict(), ["I2"]);
}

/// I2, V04: on another node after a second, while something is broken after five, and then always.
#[test]
fn a_revoked_token_that_stands_elsewhere_is_found() {
    let revoked = || {
        let mut run = Script::new();
        run.token(0, "node-1", "client", "a");
        run.revoke(100, "node-1", access("a"), Outcome::Ok);
        run
    };
    let mut run = revoked();
    run.judged(1_111, "node-2", "a", true);
    assert_eq!(run.verdict(), ["I2"]);
    let mut run = revoked();
    run.fault(50, 4_000, 1_000, None);
    run.judged(4_900, "node-2", "a", true);
    assert_eq!(run.verdict(), NOTHING, "it may not have heard");
    let mut run = revoked();
    run.fault(50, 9_000, 1_000, None);
    run.judged(5_111, "node-2", "a", true);
    assert_eq!(run.verdict(), ["I2"], "then it must not answer");
}

/// I2: also where nobody heard whether it was ended: once it is gone it is gone.
#[test]
fn a_token_that_comes_back_is_found() {
    let mut run = Script::new();
    run.token(0, "node-1", "client", "a");
    run.fault(90, 200, 0, None);
    run.revoke(100, "node-1", access("a"), unknown("UNAVAILABLE"));
    run.judged(300, "node-2", "a", false);
    run.judged(311, "node-2", "a", true);
    assert_eq!(run.verdict(), ["I2"]);
}

/// I2, V06: the end of a client covers what was issued before it, with the families opened before
/// it, and nothing after.
#[test]
fn what_outlives_its_client_is_found() {
    let mut run = Script::new();
    run.open(0, "node-1", "f", "a");
    run.revoke_all(100, "node-1", "client", Outcome::Ok);
    run.token(120, "node-1", "client", "b");
    run.judged(200, "node-1", "b", true);
    run.judged(210, "node-1", "a", false);
    run.refresh(1_000, "node-2", "f", 0, "c");
    assert_eq!(run.verdict(), NOTHING, "the other node may not have heard");
    let mut run = Script::new();
    run.token(0, "node-1", "client", "a");
    run.revoke_all(100, "node-1", "client", Outcome::Ok);
    run.judged(111, "node-1", "a", true);
    assert_eq!(run.verdict(), ["I2"]);
    let mut run = Script::new();
    run.open(0, "node-1", "f", "a");
    run.revoke_all(100, "node-1", "client", Outcome::Ok);
    run.refresh(1_200, "node-2", "f", 0, "b");
    assert_eq!(run.verdict(), ["I2"]);
}

/// I2: a client that was disabled gets nothing.
#[test]
fn a_disabled_client_that_gets_tokens_is_found() {
    let mut run = Script::new();
    run.administer(0, "node-1", Verb::DisableClient, "client", Outcome::Ok);
    run.token(900, "node-2", "client", "a");
    run.token_fails(950, "node-2", "client", refused("INVALID_CLIENT"));
    assert_eq!(run.verdict(), NOTHING);
    let mut run = Script::new();
    run.administer(0, "node-1", Verb::DisableClient, "client", Outcome::Ok);
    run.token(1_100, "node-2", "client", "a");
    assert_eq!(run.verdict(), ["I2"]);
}

/// I2, R05: after the end of a family is acknowledged none of its tokens stands, whenever they were
/// given out, and it gives nothing out.
#[test]
fn what_outlives_its_family_is_found() {
    let ended = || {
        let mut run = Script::new();
        run.open(0, "node-1", "f", "a");
        run.revoke(100, "node-1", refresh("f", 0), Outcome::Ok);
        run
    };
    let mut run = ended();
    run.refresh(95, "node-2", "f", 0, "b");
    run.judged(111, "node-1", "b", true);
    assert_eq!(run.verdict(), ["I2"]);
    let mut run = ended();
    run.refresh(111, "node-2", "f", 0, "b");
    assert_eq!(run.verdict(), ["I2"], "the store decides, there is nothing to hear of");
}

/// I4: a refresh token that is refused takes its family along.
#[test]
fn a_member_that_outlives_the_reuse_verdict_is_found() {
    let reused = || {
        let mut run = Script::new();
        run.open(0, "node-1", "f", "a");
        run.refresh(100, "node-1", "f", 0, "b");
        run.refresh(200, "node-1", "f", 1, "c");
        run.refresh_fails(300, "node-1", "f", 0, refused("INVALID_GRANT"));
        run.recorded = false;
        run
    };
    let mut run = reused();
    run.judged(900, "node-1", "c", true);
    run.judged(1_400, "node-1", "c", false);
    assert_eq!(run.verdict(), NOTHING);
    let mut run = reused();
    run.judged(1_400, "node-2", "c", true);
    assert_eq!(run.verdict(), ["I4"]);
    let mut run = reused();
    run.refresh(320, "node-2", "f", 2, "d");
    run.history.records.clear();
    let broken = run.verdict();
    assert!(broken.contains(&"I4"), "{broken:?}");
}
