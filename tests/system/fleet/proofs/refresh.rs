//! I3 and I7 of refresh tokens.

use super::script::{Script, refresh, refused, unknown};

const NOTHING: [&str; 0] = [];

/// I3, R02: two who present the same token get the same one.
#[test]
fn a_second_successor_is_found() {
    let mut run = Script::new();
    run.open(0, "node-1", "f", "a");
    run.refresh(100, "node-1", "f", 0, "b");
    run.refresh(101, "node-2", "f", 0, "c");
    assert_eq!(run.verdict(), NOTHING);
    let mut run = Script::new();
    run.open(0, "node-1", "f", "a");
    run.refresh(100, "node-1", "f", 0, "b");
    run.refresh(101, "node-2", "f", 0, "c");
    let mut other = refresh("f", 1);
    if let crate::fleet::history::Named::Refresh { print, .. } = &mut other {
        "another".clone_into(print);
    }
    run.history.calls[2].issued.as_mut().unwrap().refresh = Some(other);
    assert_eq!(run.verdict(), ["I3"]);
}

/// I3: a generation is not jumped over.
#[test]
fn a_jump_is_found() {
    let mut run = Script::new();
    run.open(0, "node-1", "f", "a");
    run.refresh(100, "node-1", "f", 0, "b");
    run.history.calls[1].issued.as_mut().unwrap().refresh = Some(refresh("f", 2));
    assert_eq!(run.verdict(), ["I3"]);
}

/// I3, M7: a write that was made twice leaves two records of one rotation.
#[test]
fn a_rotation_that_was_made_twice_is_found() {
    let mut run = Script::new();
    run.open(0, "node-1", "f", "a");
    run.refresh(100, "node-1", "f", 0, "b");
    run.record("token.refreshed", "unheard of", "f");
    assert_eq!(run.verdict(), ["I3"]);
    let mut run = Script::new();
    run.open(0, "node-1", "f", "a");
    run.refresh(100, "node-1", "f", 0, "b");
    run.fault(190, 300, 0, None);
    run.refresh_fails(200, "node-1", "f", 1, unknown("UNAVAILABLE"));
    run.record("token.refreshed", "unheard of", "f");
    assert_eq!(run.verdict(), NOTHING, "the answer was lost, the rotation was not");
}

/// I1, R04: the newest token of a family that nobody ended is refused.
#[test]
fn a_lost_family_is_found() {
    let mut run = Script::new();
    run.open(0, "node-1", "f", "a");
    run.refresh(100, "node-1", "f", 0, "b");
    run.refresh_fails(200, "node-2", "f", 1, refused("INVALID_GRANT"));
    assert_eq!(run.verdict(), ["I1"]);
}

/// I7: so is a retry after an unknown outcome, and so is the family that a late echo of an answered
/// attempt ended.
#[test]
fn a_retry_that_does_not_converge_is_found() {
    let lost = || {
        let mut run = Script::new();
        run.open(0, "node-1", "f", "a");
        run.fault(90, 200, 0, None);
        run.refresh_fails(100, "node-1", "f", 0, unknown("UNAVAILABLE"));
        run
    };
    let mut run = lost();
    run.refresh(300, "node-2", "f", 0, "b");
    run.refresh(400, "node-2", "f", 1, "c");
    assert_eq!(run.verdict(), NOTHING);
    for ms in [300, 20_000] {
        let mut run = lost();
        run.refresh_fails(ms, "node-2", "f", 0, refused("INVALID_GRANT"));
        assert_eq!(
            run.verdict(),
            ["I7"],
            "nobody was given the successor, however long ago that is"
        );
    }
    let mut run = lost();
    run.refresh(300, "node-2", "f", 0, "b");
    run.refresh(400, "node-2", "f", 1, "c");
    run.refresh_fails(500, "node-2", "f", 2, refused("INVALID_GRANT"));
    assert_eq!(run.verdict(), ["I7"]);
}

/// A spent token that comes after its successor was used, or when the grace is over, may end its
/// family.
#[test]
fn reuse_is_no_loss() {
    let mut run = Script::new();
    run.open(0, "node-1", "f", "a");
    run.refresh(100, "node-1", "f", 0, "b");
    run.refresh_fails(10_200, "node-2", "f", 0, refused("INVALID_GRANT"));
    run.refresh_fails(10_300, "node-2", "f", 1, refused("INVALID_GRANT"));
    run.open(20_000, "node-1", "g", "c");
    run.refresh(20_100, "node-1", "g", 0, "d");
    run.refresh(20_200, "node-1", "g", 1, "e");
    run.refresh_fails(20_205, "node-2", "g", 0, refused("INVALID_GRANT"));
    run.judged(25_000, "node-1", "e", false);
    run.open(30_000, "node-1", "h", "f");
    run.fault(30_090, 30_200, 0, Some("node-1"));
    run.refresh_fails(30_100, "node-1", "h", 0, unknown("TRANSPORT"));
    run.refresh_fails(40_200, "node-2", "h", 0, refused("INVALID_GRANT"));
    assert_eq!(run.verdict(), NOTHING);
}

/// AUDIT TL7: three repetitions are given the successor; a further one may be refused and ends
/// nothing, one of the first may not.
#[test]
fn a_repetition_too_many_is_no_loss() {
    let given = |times: u64| {
        let mut run = Script::new();
        run.open(0, "node-1", "f", "a");
        for n in 0..times {
            run.refresh(100 + n, "node-1", "f", 0, &format!("b{n}"));
        }
        run.refresh_fails(200, "node-2", "f", 0, refused("INVALID_GRANT"));
        run.refresh(300, "node-2", "f", 1, "c");
        run.verdict()
    };
    assert_eq!(given(4), NOTHING);
    assert_eq!(given(3), ["I1", "I4"]);
    // Where no call is known to have been answered, none was one too many.
    let mut run = Script::new();
    run.open(0, "node-1", "f", "a");
    run.fault(90, 200, 0, None);
    for n in 0..6 {
        run.refresh_fails(100 + n, "node-1", "f", 0, unknown("UNAVAILABLE"));
    }
    run.refresh_fails(300, "node-2", "f", 0, refused("INVALID_GRANT"));
    assert_eq!(run.verdict(), ["I7"]);
}

/// AUDIT TL7: a family that was repeated in three generations running may have been ended; in two
/// it may not.
#[test]
fn a_shared_family_is_no_loss() {
    let shared = |repeated: &[u32]| {
        let mut run = Script::new();
        run.open(0, "node-1", "f", "a");
        for generation in 0..3 {
            let ms = 1_000 * u64::from(generation) + 1_000;
            run.refresh(ms, "node-1", "f", generation, &format!("b{generation}"));
            if generation == 2 {
                run.refresh_fails(ms + 100, "node-2", "f", generation, refused("INVALID_GRANT"));
            } else if repeated.contains(&generation) {
                run.refresh(ms + 100, "node-2", "f", generation, &format!("c{generation}"));
            }
        }
        run.verdict()
    };
    assert_eq!(shared(&[0, 1]), NOTHING);
    assert_eq!(shared(&[1]), ["I1"]);
    assert_eq!(shared(&[0]), ["I1"]);
}
