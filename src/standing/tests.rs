//! What is known of a store that nodes share: late, twice, out of order, and sometimes too old.

use std::{sync::atomic::AtomicBool, sync::atomic::Ordering::SeqCst};

use tokio::time::advance;

use super::*;
use crate::{
    crypto::{keys::make, signing_keys::SigningKeysError},
    model::{FamilyId, KeyState, Kid, SigningKey, keyset::Algorithm},
};

const ISSUER: &str = "https://jeton.test";
const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const MAX: Duration = Duration::from_secs(5);
const MILLI: Duration = Duration::from_millis(1);

fn sealer(byte: u8) -> Arc<Sealer> {
    Arc::new(Sealer::new([byte; 32]))
}

fn keyset(sealer: &Sealer) -> Keyset {
    Keyset::first(NOW, sealer, || make(Algorithm::EdDsa, sealer, NOW))
}

/// The next revision, in which the signing key is revoked and another signs.
fn revoked(keyset: &Keyset, sealer: &Sealer) -> Keyset {
    let mut keys = keyset.keys.clone();
    for key in &mut keys {
        if matches!(key.state, KeyState::Active { .. }) {
            key.state = KeyState::Revoked { remove_at: NOW + Duration::from_secs(86_400) };
        }
    }
    keys.push(SigningKey {
        state: KeyState::Active { since: NOW },
        ..make(Algorithm::EdDsa, sealer, NOW)
    });
    Keyset { revision: keyset.revision + 1, keys, ..keyset.clone() }.with_mac(sealer)
}

fn over(keyset: &Keyset, sealer: &Arc<Sealer>) -> Standing {
    let judging =
        Judging { max_lifetime: Duration::from_secs(3_600), skew: Duration::from_secs(5) };
    Standing::new(keyset, Opening { sealer: sealer.clone(), issuer: ISSUER.into(), judging }, MAX)
        .unwrap()
}

fn standing() -> Standing {
    let sealer = sealer(5);
    over(&keyset(&sealer), &sealer)
}

fn claims(family: Option<FamilyId>) -> Claims {
    let iat = NOW.seconds();
    Claims {
        iss: ISSUER.to_owned(),
        sub: Subject::of_client(&"a".parse().unwrap()),
        aud: vec!["https://api".parse().unwrap()],
        client_id: "a".parse().unwrap(),
        scope: String::new(),
        iat,
        nbf: iat,
        exp: iat + 600,
        jti: Jti::new(),
        tenant: TenantId::operator(),
        roles: Vec::new(),
        fam: family,
        ep: Epochs::default(),
    }
}

fn signed(standing: &Standing, claims: &Claims) -> String {
    standing.signing_keys().sign(claims).unwrap()
}

fn epochs(standing: &Standing) -> Result<Epochs, Behind> {
    let id = "a".parse().unwrap();
    standing.epochs(&TenantId::operator(), &id, &Subject::of_client(&id))
}

/// A store that tells every change in the commit is never behind, however long it has nothing to
/// tell.
#[tokio::test(start_paused = true)]
async fn a_store_that_never_says_is_never_behind() {
    let standing = standing();
    let token = signed(&standing, &claims(None));
    advance(Duration::from_secs(86_400 * 365)).await;
    assert_eq!((standing.age(), standing.fresh()), (None, Ok(())));
    assert!(standing.judge(&token, NOW).unwrap().is_some() && epochs(&standing).is_ok());
}

/// V04: past the bound there is no judgement, of no text; within it, and as soon as the others have
/// been heard again, there is.
#[tokio::test(start_paused = true)]
async fn nothing_is_judged_by_what_is_too_old() {
    let standing = standing();
    let token = signed(&standing, &claims(None));
    let begun = Instant::now();
    let texts = [token.as_str(), "", "nonsense", &format!("{token}x")];
    standing.knows_up_to(begun);
    let verified = standing.judge(&token, NOW).unwrap().unwrap();
    advance(MAX).await;
    assert_eq!((standing.age(), standing.fresh()), (Some(MAX), Ok(())));
    assert!(standing.judge(&token, NOW).unwrap().is_some());
    advance(MILLI).await;
    for text in texts {
        assert_eq!(standing.judge(text, NOW).map(drop), Err(Behind), "{text}");
    }
    assert_eq!(
        (standing.stands(&verified, NOW), epochs(&standing).map(drop)),
        (Err(Behind), Err(Behind))
    );
    // What was said of an earlier moment makes nothing younger.
    standing.knows_up_to(begun);
    assert_eq!((standing.age(), standing.fresh()), (Some(MAX + MILLI), Err(Behind)));
    standing.knows_up_to(Instant::now());
    assert_eq!((standing.age(), standing.fresh()), (Some(Duration::ZERO), Ok(())));
    standing.knows_up_to(begun);
    assert_eq!(standing.age(), Some(Duration::ZERO), "nor older");
    assert!(
        standing.judge(&token, NOW).unwrap().is_some() && standing.stands(&verified, NOW).unwrap()
    );
    assert!(standing.judge("nonsense", NOW).unwrap().is_none());
}

/// A first word of a moment before this was made counts for what it says, and never as "nobody
/// said".
#[tokio::test(start_paused = true)]
async fn what_was_known_before_the_start_is_as_old_as_it_is() {
    let before = Instant::now();
    advance(MAX + MILLI * 2).await;
    let standing = standing();
    standing.knows_up_to(before);
    assert_eq!(standing.fresh(), Err(Behind));
    let age = standing.age().unwrap();
    assert!((MAX + MILLI * 2..=MAX + MILLI * 3).contains(&age), "{age:?}");
}

/// V07: of two times the later one is kept, whichever is told last, so that a change told again
/// never shortens a memory.
#[test]
fn a_revocation_is_kept_until_the_later_time() {
    let later = NOW + Duration::from_secs(60);
    for times in [[NOW, later], [later, NOW]] {
        let standing = standing();
        let revoked = Revoked::Token(Jti::new());
        for until in times {
            standing.apply(&Change::Revoked(Revocation { revoked, until }));
        }
        assert_eq!(standing.sweep(NOW), 0);
        assert!(standing.is_revoked(&revoked));
        assert_eq!(standing.sweep(later), 1);
        assert!(!standing.is_revoked(&revoked));
    }
}

/// V04, V06: the same changes, told by several at once and in any order, many times, come to the
/// same; what was revoked never stands again in between.
#[test]
fn changes_told_twice_and_out_of_order_come_to_the_same() {
    let sealer = sealer(5);
    let mut keysets = vec![keyset(&sealer)];
    for _ in 0..5 {
        keysets.push(revoked(keysets.last().unwrap(), &sealer));
    }
    let standing = over(&keysets[0], &sealer);
    let family = FamilyId::new();
    let first = standing.judge(&signed(&standing, &claims(Some(family))), NOW).unwrap().unwrap();
    let revoked = Revoked::Family(family);
    let until = |n: u64| NOW + Duration::from_secs(n);
    let of = EpochOf::Tenant(TenantId::operator());
    let mut changes: Vec<_> =
        keysets.iter().cloned().map(|keyset| Change::Keyset(Arc::new(keyset))).collect();
    changes.extend((1..=40).map(|n| Change::Revoked(Revocation { revoked, until: until(n) })));
    changes.extend((1..=40).map(|n| Change::Epoch(of.clone(), n)));
    let newest = keysets.last().unwrap().revision;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let tellers = (0..4).map(|teller: usize| {
            let (standing, changes) = (&standing, &changes);
            scope.spawn(move || {
                for round in 0..50 {
                    for at in 0..changes.len() {
                        // 7 and 5 share no factor with the 86 changes: each teller visits all of
                        // them in an order of its own.
                        let step = if teller.is_multiple_of(2) { 7 } else { 5 };
                        standing.apply(&changes[(at * step + teller * 11 + round) % changes.len()]);
                    }
                }
            })
        });
        let tellers: Vec<_> = tellers.collect();
        scope.spawn(|| {
            let (mut revision, mut epoch, mut ended) = (0, 0, false);
            while !done.load(SeqCst) {
                let seen =
                    (standing.verifying_keys().revision(), epochs(&standing).unwrap().tenant);
                assert!(seen.0 >= revision && seen.1 >= epoch, "went back to {seen:?}");
                (revision, epoch) = seen;
                let stands = standing.stands(&first, NOW).unwrap();
                assert!(!(ended && stands), "came back");
                ended |= !stands;
            }
        });
        for teller in tellers {
            teller.join().unwrap();
        }
        done.store(true, SeqCst);
    });
    assert_eq!(
        (standing.verifying_keys().revision(), epochs(&standing).unwrap().tenant),
        (newest, 40)
    );
    assert!(!standing.stands(&first, NOW).unwrap());
    assert_eq!((standing.sweep(until(39)), standing.sweep(until(40))), (0, 1));
}

/// K03: a keyset told again, or late, does not bring a revoked key back.
#[test]
fn keys_never_go_back() {
    let sealer = sealer(5);
    let old = Arc::new(keyset(&sealer));
    let new = Arc::new(revoked(&old, &sealer));
    let standing = over(&old, &sealer);
    let token = signed(&standing, &claims(None));
    assert!(standing.judge(&token, NOW).unwrap().is_some());
    for keyset in [&new, &old, &new] {
        standing.apply(&Change::Keyset(keyset.clone()));
        assert!(standing.judge(&token, NOW).unwrap().is_none());
        assert_eq!(standing.verifying_keys().revision(), new.revision);
    }
    // Equal is not higher: of two that claim the same revision, the first one known stays.
    let twin = Keyset { revision: new.revision, ..(*old).clone() }.with_mac(&sealer);
    standing.apply(&Change::Keyset(Arc::new(twin)));
    assert!(standing.judge(&token, NOW).unwrap().is_none());
}

/// K03, V04: a keyset that cannot be opened may have revoked what this node would let stand:
/// nothing is judged until there is one that can, and none before it counts.
#[tokio::test(start_paused = true)]
async fn keys_that_cannot_be_read_end_all_judgement() {
    let ours = sealer(5);
    let first = keyset(&ours);
    let second = revoked(&first, &ours);
    let mut unreadable = Keyset { revision: 3, ..first.clone() };
    unreadable.keys[0].alg = Algorithm::Es256;
    let unreadable = unreadable.with_mac(&ours);
    for says in [false, true] {
        let standing = over(&first, &ours);
        let token = signed(&standing, &claims(None));
        if says {
            standing.knows_up_to(Instant::now());
        }
        standing.apply(&Change::Keyset(Arc::new(unreadable.clone())));
        standing.apply(&Change::Keyset(Arc::new(second.clone())));
        assert_eq!(standing.judge(&token, NOW).map(drop), Err(Behind));
        if says {
            standing.knows_up_to(Instant::now());
            assert_eq!(standing.fresh(), Err(Behind), "hearing the others is not enough");
        }
        standing.apply(&Change::Keyset(Arc::new(
            Keyset { revision: 4, ..second.clone() }.with_mac(&ours),
        )));
        assert_eq!(standing.fresh(), Ok(()));
        assert!(standing.judge(&token, NOW).unwrap().is_none(), "the second one revoked its key");
        // Told again, late: it no longer matters.
        standing.apply(&Change::Keyset(Arc::new(unreadable.clone())));
        assert_eq!(standing.fresh(), Ok(()));
    }
}

/// K03: a keyset that no holder of the master key wrote is never taken into use, whatever it says,
/// and neither stops the node nor hides a later genuine one.
#[tokio::test(start_paused = true)]
async fn a_forged_keyset_is_refused_and_the_last_genuine_one_stays() {
    let ours = sealer(5);
    let first = keyset(&ours);
    let second = revoked(&first, &ours);
    let standing = over(&first, &ours);
    let token = signed(&standing, &claims(None));
    standing.apply(&Change::Keyset(Arc::new(second.clone())));
    let mut altered = Keyset { revision: 3, ..second.clone() };
    altered.keys[0] =
        SigningKey { state: KeyState::Retiring { remove_at: NOW + MAX }, ..first.keys[0].clone() };
    let mut twice = Keyset { revision: 3, ..second.clone() };
    twice.keys.insert(0, second.keys[2].clone());
    let foreign = Keyset { revision: u64::MAX, ..keyset(&sealer(6)) }.with_mac(&sealer(6));
    let kept = standing.verifying_keys().jwks().clone();
    for forged in [altered, twice, foreign] {
        assert!(matches!(standing.admit(&forged), Err(Refused::Forged(_))), "{forged:?}");
        standing.apply(&Change::Keyset(Arc::new(forged)));
        assert_eq!(standing.fresh(), Ok(()), "the last genuine keys go on");
        assert_eq!(standing.verifying_keys().jwks(), &kept);
        assert!(standing.judge(&token, NOW).unwrap().is_none());
    }
    let third = Keyset { revision: 3, ..second }.with_mac(&ours);
    standing.apply(&Change::Keyset(Arc::new(third)));
    assert_eq!(standing.verifying_keys().revision(), 3);
}

/// K03: a revoked key is never taken back, whatever the revision, also where an older genuine
/// keyset was put back into the store and other nodes went on from it.
#[test]
fn a_revoked_key_is_never_taken_back() {
    let ours = sealer(5);
    let first = keyset(&ours);
    let second = revoked(&first, &ours);
    let kid = first.keys[0].kid.clone();
    for known_at_start in [true, false] {
        let standing = over(if known_at_start { &second } else { &first }, &ours);
        standing.apply(&Change::Keyset(Arc::new(second.clone())));
        assert!(matches!(standing.admit(&first), Err(Refused::Older { stored: 1, known: 2 })));
        for revision in [3, 4, 400] {
            let back = Keyset { revision, ..first.clone() }.with_mac(&ours);
            assert!(
                matches!(standing.admit(&back), Err(Refused::Unrevoked(unrevoked)) if unrevoked == kid)
            );
            standing.apply(&Change::Keyset(Arc::new(back)));
            assert!(!standing.verifying_keys().stands(&kid));
            assert_eq!(standing.verifying_keys().revision(), 2);
        }
        assert!(standing.admit(&second).is_ok());
    }
}

/// Another master key: the process does not start.
#[test]
fn a_keyset_that_does_not_check_starts_nothing() {
    let ours = sealer(5);
    let altered = Keyset { revision: 2, ..keyset(&ours) };
    let judging =
        Judging { max_lifetime: Duration::from_secs(3_600), skew: Duration::from_secs(5) };
    let opening = Opening { sealer: ours, issuer: ISSUER.into(), judging };
    assert!(matches!(Standing::new(&altered, opening, MAX), Err(SigningKeysError::Keyset(_))));
}

/// Whoever finds a raised epoch finds the client afresh, also where the client's own change is told
/// last: a disabled client gets no token under the new epoch.
#[tokio::test]
async fn a_raised_epoch_takes_the_remembered_client_along() {
    let standing = standing();
    let id: ClientId = "a".parse().unwrap();
    standing.clients.look_up_now(&id, async { Ok(None) }).await.unwrap();
    assert!(
        !standing.clients.look_up_now(&id, async { Ok(None) }).await.unwrap().1,
        "it is remembered"
    );
    standing.apply(&Change::Epoch(EpochOf::Client(id.clone()), 1));
    assert!(standing.clients.look_up_now(&id, async { Ok(None) }).await.unwrap().1);
    standing.apply(&Change::Missed);
    assert!(standing.clients.look_up_now(&id, async { Ok(None) }).await.unwrap().1);
}

/// A client is not remembered for ever where another node may write it; where none may, there is no
/// reason to read it again.
#[tokio::test(start_paused = true)]
async fn clients_of_a_shared_store_are_read_again_after_a_while() {
    let standing = standing();
    let id: ClientId = "a".parse().unwrap();
    standing.clients.look_up_now(&id, async { Ok(None) }).await.unwrap();
    for (says, read) in [(false, false), (true, true)] {
        if says {
            standing.knows_up_to(Instant::now());
        }
        standing.sweep(NOW);
        assert_eq!(standing.clients.look_up_now(&id, async { Ok(None) }).await.unwrap().1, read);
    }
}

/// What a kid stands for is in the keys that are known, and a token of one that is not is nobody's
/// while they are young.
#[tokio::test(start_paused = true)]
async fn a_key_that_is_not_known_yet_is_no_reason_to_say_no() {
    let sealer = sealer(5);
    let old = keyset(&sealer);
    let new = Arc::new(revoked(&old, &sealer));
    let (here, there) = (over(&old, &sealer), over(&old, &sealer));
    there.apply(&Change::Keyset(new.clone()));
    let token = signed(&there, &claims(None));
    here.knows_up_to(Instant::now());
    advance(MAX + MILLI).await;
    assert_eq!(here.judge(&token, NOW).map(drop), Err(Behind));
    here.apply(&Change::Keyset(new));
    here.knows_up_to(Instant::now());
    assert!(here.judge(&token, NOW).unwrap().is_some());
    let signer: Kid = there.signing_keys().kid().clone();
    assert!(here.verifying_keys().stands(&signer));
}

/// Claims as large as a client may have them.
fn large() -> Claims {
    let scopes: Vec<String> =
        (0..100).map(|scope| format!("scope-{scope:03}-{}", "s".repeat(34))).collect();
    let roles = (0..50).map(|role| format!("role-{role}").parse().unwrap()).collect();
    Claims { scope: scopes.join(" "), roles, ..claims(None) }
}

/// TL6: what a caller makes large takes the room of several: ten thousand of the largest tokens
/// stay within the same bytes as any others, and each is still judged right.
#[test]
fn seen_tokens_are_bounded_by_their_bytes() {
    let standing = standing();
    let budget = super::seen::Seen::BUDGET;
    let length = signed(&standing, &large()).len();
    assert!(length > 6_500, "{length}");
    for n in 0..10_000 {
        let token = signed(&standing, &large());
        assert!(standing.judge(&token, NOW).unwrap().is_some());
        if n % 500 == 499 {
            let (counted, held) = standing.seen.weights();
            assert!(counted == held && counted <= budget, "{n}: {counted}, {held}");
        }
    }
    let (counted, _) = standing.seen.weights();
    assert!(counted > budget - 20_000, "the room is used: {counted}");
}

/// TL6: the sweep forgets what has expired, what was revoked and what no key stands for, and
/// nothing else.
#[test]
fn the_sweep_forgets_seen_tokens_that_no_longer_stand() {
    let sealer = sealer(5);
    let first = keyset(&sealer);
    let standing = over(&first, &sealer);
    let weight = |standing: &Standing| {
        let (counted, held) = standing.seen.weights();
        assert_eq!(counted, held);
        counted
    };
    let see = |standing: &Standing, claims: &Claims| {
        assert!(standing.judge(&signed(standing, claims), NOW).unwrap().is_some());
    };
    let (lives, expires) = (claims(None), Claims { exp: NOW.seconds() + 60, ..claims(None) });
    see(&standing, &lives);
    let one = weight(&standing);
    assert!(one > 400, "{one}");
    see(&standing, &expires);
    standing.sweep(NOW);
    assert!(weight(&standing) > one, "both stand");
    standing.sweep(NOW + Duration::from_secs(60));
    assert_eq!(weight(&standing), one, "one has expired");

    let ended = claims(None);
    see(&standing, &ended);
    standing.apply(&Change::Revoked(Revocation {
        revoked: Revoked::Token(ended.jti),
        until: NOW + Duration::from_secs(900),
    }));
    standing.sweep(NOW);
    assert_eq!(weight(&standing), one, "one was revoked");

    standing.apply(&Change::Keyset(Arc::new(revoked(&first, &sealer))));
    standing.sweep(NOW);
    assert_eq!(weight(&standing), 0, "no key stands for what is left");
    assert!(standing.judge(&signed(&standing, &claims(None)), NOW).unwrap().is_some());
}
