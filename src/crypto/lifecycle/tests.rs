//! Random lives of keysets, and the plain ones by hand.

use std::{collections::HashMap, time::Duration};

use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);
const TTL: Duration = Duration::from_secs(900);
const START: Timestamp = Timestamp::from_seconds(1_800_000_000);
const POLICY: KeyPolicy = KeyPolicy {
    rotate_every: Duration::from_secs(24 * 3_600),
    publish_ahead: Duration::from_secs(600),
    verify_after: Duration::from_secs(905),
};

/// A keyset with the clock it lives by and the last expiry of what each of its keys signed.
struct Life {
    keyset: Keyset,
    now: Timestamp,
    made: u32,
    expiries: HashMap<Kid, Timestamp>,
}

fn sealer() -> Sealer {
    Sealer::new([7; 32])
}

fn key(number: u32, created_at: Timestamp) -> SigningKey {
    let kid = format!("k{number}").parse().unwrap();
    SigningKey {
        kid,
        alg: Algorithm::EdDsa,
        state: KeyState::Prepared { activate_at: None },
        created_at,
        sealed: format!("private {number}"),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Advance,
    Rotate,
    Revoke(usize),
    RevokeActive,
}

impl Life {
    fn new() -> Self {
        let mut made = 0;
        let keyset = Keyset::first(START, &sealer(), || {
            made += 1;
            key(made, START)
        });
        Self { keyset, now: START, made, expiries: HashMap::new() }
    }

    /// Returns the keyset that a step at `at` would write.
    fn next(&mut self, step: &Step, at: Timestamp) -> Option<Keyset> {
        let active = self.active();
        let made = &mut self.made;
        let make = || {
            *made += 1;
            key(*made, at)
        };
        match step {
            Step::Advance => self.keyset.advance(at, &POLICY, &sealer(), make),
            Step::Rotate => Some(self.keyset.rotate(at, &POLICY, &sealer(), make)),
            Step::Revoke(which) => {
                let kid = self.keyset.keys[which % self.keyset.keys.len()].kid.clone();
                self.keyset.revoke(&kid, at, &POLICY, &sealer(), make)
            }
            Step::RevokeActive => self.keyset.revoke(&active, at, &POLICY, &sealer(), make),
        }
    }

    /// Takes a step at `at`, as the store would write and read it, and holds it against every
    /// promise.
    fn take(&mut self, step: &Step, at: Timestamp) {
        let before = self.keyset.clone();
        let Some(next) = self.next(step, at) else { return };
        assert_eq!(next.revision, before.revision + 1);
        let next: Keyset = serde_json::from_str(&serde_json::to_string(&next).unwrap()).unwrap();
        check_shape(&next);
        assert_eq!(next.check(&sealer()), Ok(()), "every step writes its MAC");
        let guarded = at.max(before.newest());
        for old in &before.keys {
            check_successor(old, next.keys.iter().find(|key| key.kid == old.kid), guarded);
        }
        let made = next.keys.iter().filter(|key| before.keys.iter().all(|old| old.kid != key.kid));
        made.for_each(|key| assert!(key.created_at >= guarded, "published before it was made"));
        let emergency = matches!(step, Step::Revoke(_) | Step::RevokeActive);
        let (was, is) = (before.active().unwrap(), next.active().unwrap());
        if was.kid != is.kid && !emergency {
            assert!(
                guarded >= is.created_at + POLICY.publish_ahead,
                "used before it was published long enough"
            );
            assert!(
                before.keys.iter().any(|key| key.kid == is.kid),
                "used before it was published at all"
            );
        }
        self.keyset = next;
    }

    fn active(&self) -> Kid {
        self.keyset.active().unwrap().kid.clone()
    }

    /// Signs a token of the longest life, and holds every key of a living token against what the
    /// service would do with it.
    fn sign_and_check(&mut self) {
        self.expiries.insert(self.active(), self.now + TTL);
        for (kid, expires) in self.expiries.iter().filter(|(_, expires)| self.now < **expires) {
            let state = self.keyset.keys.iter().find(|key| key.kid == *kid).map(|key| key.state);
            match state {
                Some(KeyState::Active { .. } | KeyState::Revoked { .. }) => {}
                Some(KeyState::Retiring { remove_at }) => {
                    assert!(remove_at >= *expires, "verifies too short")
                }
                Some(KeyState::Prepared { .. }) | None => {
                    panic!("{kid} is gone before its last token")
                }
            }
        }
    }
}

/// Exactly one active key, exactly one prepared, no id twice.
fn check_shape(keyset: &Keyset) {
    let count = |is: fn(&KeyState) -> bool| keyset.keys.iter().filter(|key| is(&key.state)).count();
    assert_eq!(count(|state| matches!(state, KeyState::Active { .. })), 1, "{keyset:?}");
    assert_eq!(count(|state| matches!(state, KeyState::Prepared { .. })), 1, "{keyset:?}");
    let kids: std::collections::HashSet<_> = keyset.keys.iter().map(|key| &key.kid).collect();
    assert_eq!(kids.len(), keyset.keys.len());
}

/// Life goes one way only.
fn check_successor(old: &SigningKey, new: Option<&SigningKey>, now: Timestamp) {
    use KeyState::{Active, Prepared, Retiring, Revoked};
    let lawful = match (old.state, new.map(|key| key.state)) {
        (Prepared { .. }, Some(Prepared { .. } | Active { .. } | Revoked { .. })) => true,
        (Active { since }, Some(Active { since: still })) => since == still,
        (Active { .. }, Some(Retiring { remove_at } | Revoked { remove_at })) => {
            remove_at == now + POLICY.verify_after
        }
        (
            Retiring { remove_at },
            Some(Retiring { remove_at: still } | Revoked { remove_at: still }),
        ) => remove_at == still,
        (Revoked { remove_at }, Some(Revoked { remove_at: still })) => remove_at == still,
        (Retiring { remove_at } | Revoked { remove_at }, None) => remove_at <= now,
        _ => false,
    };
    assert!(lawful, "{old:?} became {new:?} at {now}");
    if let Some(new) = new {
        let destroyed = matches!(new.state, Revoked { .. });
        assert_eq!(
            new.sealed.is_empty(),
            destroyed,
            "a revoked key has no private part, every other has: {new:?}"
        );
    }
}

fn steps() -> impl Strategy<Value = Vec<(Step, u64, bool)>> {
    let step = prop_oneof![
        6 => Just(Step::Advance),
        3 => Just(Step::Rotate),
        1 => (0..6_usize).prop_map(Step::Revoke),
        1 => Just(Step::RevokeActive),
    ];
    let seconds =
        prop_oneof![3 => 0..30_u64, 3 => 0..1_200_u64, 2 => 3_000..8_000_u64, 1 => 0..200_000_u64];
    proptest::collection::vec((step, seconds, prop::bool::weighted(0.8)), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// K01, K02, K03, K07: any steps at any times, forward jumps of hours among them, some never
    /// written because the process was killed in between: one active key always, none used too
    /// early, none gone before its last token.
    #[test]
    fn no_life_leaves_the_service_without_its_key(steps in steps()) {
        let mut life = Life::new();
        for (step, seconds, written) in steps {
            life.now = life.now + Duration::from_secs(seconds);
            if written {
                life.take(&step, life.now);
            } else {
                life.next(&step, life.now);
            }
            check_shape(&life.keyset);
            life.sign_and_check();
        }
    }

    /// K08: the same while the clock jumps back and forth by up to an hour: nothing is removed,
    /// used or replaced early.
    #[test]
    fn a_clock_that_jumps_breaks_no_promise(
        steps in steps(),
        jumps in proptest::collection::vec(-3_600_i64..3_600, 60),
    ) {
        let mut life = Life::new();
        for ((step, seconds, _), jump) in steps.iter().zip(jumps) {
            life.now = life.now + Duration::from_secs(*seconds);
            let at = Timestamp::from_millis(life.now.millis() + jump * 1_000);
            life.take(step, at);
        }
    }
}

#[test]
fn a_new_service_signs_at_once_and_has_a_key_to_go_to() {
    let life = Life::new();
    check_shape(&life.keyset);
    assert_eq!((life.keyset.revision, life.keyset.keys.len()), (1, 2));
    assert!(matches!(life.keyset.keys[0].state, KeyState::Active { since } if since == START));
}

/// K02: published, waited, used, retired, removed: in this order and at these times.
#[test]
fn an_automatic_rotation_takes_its_steps_in_order() {
    let mut life = Life::new();
    let (first, second) = (life.keyset.keys[0].kid.clone(), life.keyset.keys[1].kid.clone());
    let due = START + POLICY.rotate_every;
    assert!(life.next(&Step::Advance, due - Duration::from_millis(1)).is_none(), "nothing is due");
    life.take(&Step::Advance, due);
    assert_eq!(life.active(), second);
    assert_eq!(
        life.keyset.keys[0].state,
        KeyState::Retiring { remove_at: due + POLICY.verify_after }
    );
    assert_eq!(life.keyset.keys.len(), 3, "the next one is published");
    assert!(
        life.next(&Step::Advance, due + POLICY.verify_after - Duration::from_millis(1)).is_none()
    );
    life.take(&Step::Advance, due + POLICY.verify_after);
    assert!(life.keyset.keys.iter().all(|key| key.kid != first));
}

/// K02: a rotation that is requested before the prepared key was published long enough waits.
#[test]
fn a_manual_rotation_waits_until_the_key_was_published() {
    let mut life = Life::new();
    let (first, second) = (life.active(), life.keyset.keys[1].kid.clone());
    life.take(&Step::Rotate, START + Duration::from_secs(1));
    assert_eq!(life.active(), first);
    let at = START + POLICY.publish_ahead;
    assert_eq!(life.keyset.keys[1].state, KeyState::Prepared { activate_at: Some(at) });
    assert!(life.next(&Step::Advance, at - Duration::from_millis(1)).is_none());
    life.take(&Step::Rotate, START + Duration::from_secs(2));
    assert_eq!(
        life.keyset.keys[1].state,
        KeyState::Prepared { activate_at: Some(at) },
        "requested twice"
    );
    life.take(&Step::Advance, at);
    assert_eq!(life.active(), second);
    assert_eq!(life.keyset.keys.len(), 3);
}

/// K02: how long caches keep the set may be changed while a rotation waits.
#[test]
fn a_rotation_waits_for_the_longer_of_two_policies() {
    let mut life = Life::new();
    let first = life.active();
    life.take(&Step::Rotate, START);
    let longer = KeyPolicy { publish_ahead: HOUR, ..POLICY };
    assert_eq!(
        life.keyset.advance(START + POLICY.publish_ahead, &longer, &sealer(), || panic!(
            "nothing is made"
        )),
        None
    );
    let next =
        life.keyset.advance(START + HOUR, &longer, &sealer(), || key(9, START + HOUR)).unwrap();
    assert_ne!(next.active().unwrap().kid, first);
}

#[test]
fn a_manual_rotation_is_done_at_once_where_the_key_was_published() {
    let mut life = Life::new();
    let second = life.keyset.keys[1].kid.clone();
    life.take(&Step::Rotate, START + POLICY.publish_ahead);
    assert_eq!(life.active(), second);
}

/// K03: an emergency does not wait, and the key stays known as revoked.
#[test]
fn a_revoked_active_key_is_replaced_at_once() {
    let mut life = Life::new();
    let (first, second) = (life.active(), life.keyset.keys[1].kid.clone());
    life.take(&Step::RevokeActive, START);
    assert_eq!(life.active(), second);
    assert_eq!(
        life.keyset.keys[0].state,
        KeyState::Revoked { remove_at: START + POLICY.verify_after }
    );
    let again = life.keyset.revoke(&first, START, &POLICY, &sealer(), || panic!("nothing is made"));
    let unknown = life.keyset.revoke(&"nobody".parse().unwrap(), START, &POLICY, &sealer(), || {
        panic!("nothing is made")
    });
    assert_eq!((again, unknown), (None, None));
}

#[test]
fn a_revoked_prepared_key_is_replaced_by_a_fresh_one() {
    let mut life = Life::new();
    let first = life.active();
    life.take(&Step::Rotate, START);
    life.take(&Step::Revoke(1), START + Duration::from_secs(60));
    assert_eq!(life.active(), first);
    let fresh = life.keyset.keys.last().unwrap();
    assert_eq!(fresh.state, KeyState::Prepared { activate_at: None });
    assert_eq!(fresh.created_at, START + Duration::from_secs(60), "it has to wait anew");
}

#[test]
fn without_an_interval_nothing_rotates_by_itself() {
    let policy = KeyPolicy { rotate_every: Duration::ZERO, ..POLICY };
    let life = Life::new();
    assert_eq!(
        life.keyset
            .advance(START + HOUR * 100_000, &policy, &sealer(), || panic!("nothing is made")),
        None
    );
}

/// C1, K08: after a jump forward the rotation that is due is not skipped, after one back nothing
/// moves.
#[test]
fn a_jump_forward_rotates_and_a_jump_back_does_not() {
    let mut life = Life::new();
    let second = life.keyset.keys[1].kid.clone();
    life.take(&Step::Advance, START + HOUR * 1_000);
    assert_eq!(life.active(), second);
    let (keyset, back) = (life.keyset.clone(), START - HOUR);
    assert!(life.next(&Step::Advance, back).is_none());
    assert_eq!(life.keyset, keyset);
    life.take(&Step::Rotate, back);
    assert_eq!(life.active(), second, "a key made after the jump was not published before it");
}

/// OPERATORS 3.6: another algorithm signs as soon as its key was published long enough, whatever the
/// interval of rotations, and the change is made once.
#[test]
fn another_algorithm_signs_as_soon_as_it_may() {
    let es = |number, at| SigningKey { alg: Algorithm::Es256, ..key(number, at) };
    let policy = KeyPolicy { rotate_every: Duration::ZERO, ..POLICY };
    let first = Life::new().keyset;
    let adopt = |keyset: &Keyset, to, at| keyset.adopt(to, at, &policy, &sealer(), || es(10, at));
    assert_eq!(adopt(&first, Algorithm::EdDsa, START), None);
    let at = START + HOUR;
    let next = adopt(&first, Algorithm::Es256, at).unwrap();
    next.check(&sealer()).unwrap();
    assert_eq!(next.active().unwrap().alg, Algorithm::EdDsa, "no cache has the new key yet");
    let due = at + policy.publish_ahead;
    assert_eq!(next.signs_from(Algorithm::Es256), Some(due));
    assert_eq!(adopt(&next, Algorithm::Es256, at + TTL / 2), None, "once is enough");
    let early = due - Duration::from_secs(1);
    assert_eq!(next.advance(early, &policy, &sealer(), || es(11, early)), None);
    let then = next.advance(due, &policy, &sealer(), || es(11, due)).unwrap();
    assert_eq!(then.active().unwrap().alg, Algorithm::Es256);
    assert_eq!(adopt(&then, Algorithm::Es256, due), None);
    // Back again before it signed: the key that was never used is gone.
    let back = next.adopt(Algorithm::EdDsa, at, &policy, &sealer(), || key(12, at)).unwrap();
    assert_eq!(back.signs_from(Algorithm::Es256), None);
    assert!(back.keys.iter().all(|key| key.alg == Algorithm::EdDsa));
    // A prepared key that was published long enough signs at once, and has a successor.
    let mixed = then.revoke(&then.active().unwrap().kid, due, &policy, &sealer(), || es(13, due));
    let mixed = mixed.unwrap().adopt(Algorithm::EdDsa, due, &policy, &sealer(), || key(14, due));
    assert_eq!(mixed.unwrap().signs_from(Algorithm::EdDsa), Some(due + policy.publish_ahead));
    let waiting =
        Keyset { keys: vec![first.active().unwrap().clone(), es(15, START)], ..first.clone() };
    let at_once = waiting.adopt(Algorithm::Es256, at, &policy, &sealer(), || es(16, at)).unwrap();
    assert_eq!(at_once.active().unwrap().kid, es(15, START).kid);
    let prepared = |key: &&SigningKey| matches!(key.state, KeyState::Prepared { .. });
    assert_eq!(at_once.keys.iter().filter(prepared).count(), 1);
}

/// OPERATORS 3.2: after a clock that was ahead for a year the keys live by the right one, and none
/// that signed meanwhile verifies.
#[test]
fn keys_of_a_false_time_are_replaced_at_the_right_one() {
    let mut life = Life::new();
    let ahead = START + HOUR * 24 * 365;
    life.keyset = life.next(&Step::Advance, ahead).unwrap();
    life.keyset = life.next(&Step::Rotate, ahead + HOUR).unwrap();
    let mut made = 100;
    let replaced = life.keyset.replace_all(START, &POLICY, &sealer(), || {
        made += 1;
        key(made, START)
    });
    replaced.check(&sealer()).unwrap();
    assert_eq!(replaced.newest(), START);
    for old in &life.keyset.keys {
        let now = replaced.keys.iter().find(|key| key.kid == old.kid).unwrap();
        assert!(matches!(now.state, KeyState::Revoked { .. }) && now.sealed.is_empty());
    }
    life.keyset = replaced;
    let rotated = life.next(&Step::Advance, START + POLICY.rotate_every + POLICY.publish_ahead);
    assert_ne!(rotated.unwrap().active().unwrap().kid, life.active(), "and it rotates in time");
}
