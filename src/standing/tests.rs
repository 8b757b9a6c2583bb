//! Tests of a store that nodes share: changes arrive late, twice, out of order, and the state is
//! sometimes too old.

use std::{sync::atomic::AtomicBool, sync::atomic::Ordering::SeqCst};

use tokio::time::advance;

use super::*;
use crate::{
    crypto::{
        jwk,
        keys::make,
        seal::Sealer,
        verifying_keys::{ClaimLimits, PublicKey, VerifyingKeys},
    },
    model::{
        Claims, ClientId, Epochs, FamilyId, Jti, KeyState, Kid, Revocation, Revoked, SigningKey,
        Subject, TenantId, keyset::Algorithm,
    },
};

const ISSUER: &str = "https://jeton.test";
const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const MAX: Duration = Duration::from_secs(5);
const MILLI: Duration = Duration::from_millis(1);
const LIMITS: ClaimLimits =
    ClaimLimits { max_lifetime: Duration::from_secs(3_600), skew: Duration::from_secs(5) };

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

fn node_over(keyset: &Keyset, sealer: &Arc<Sealer>) -> NodeState {
    NodeState::new(
        keyset,
        Opening { sealer: sealer.clone(), issuer: ISSUER.into(), claim_limits: LIMITS },
        MAX,
    )
    .unwrap()
}

fn node() -> NodeState {
    let sealer = sealer(5);
    node_over(&keyset(&sealer), &sealer)
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

fn signed(state: &NodeState, claims: &Claims) -> String {
    state.keys.signing_keys().sign(claims).unwrap()
}

fn epochs(state: &NodeState) -> Result<Epochs, Stale> {
    let id = "a".parse().unwrap();
    state.tokens.epochs(&TenantId::operator(), &id, &Subject::of_client(&id))
}

/// A state that gets every change in its commit is never stale, however long there is no change.
#[tokio::test(start_paused = true)]
async fn an_untracked_age_is_never_stale() {
    let state = node();
    let token = signed(&state, &claims(None));
    advance(Duration::from_secs(86_400 * 365)).await;
    assert_eq!((state.tokens.age(), state.tokens.ensure_fresh()), (None, Ok(())));
    assert!(state.tokens.verify_active(&token, NOW).unwrap().is_some() && epochs(&state).is_ok());
}

/// V04: beyond the bound no text is verified; within it, and as soon as changes arrive again, it
/// is.
#[tokio::test(start_paused = true)]
async fn a_stale_state_verifies_nothing() {
    let state = node();
    let token = signed(&state, &claims(None));
    let begun = Instant::now();
    let texts = [token.as_str(), "", "nonsense", &format!("{token}x")];
    state.knows_up_to(begun);
    let verified = state.tokens.verify_active(&token, NOW).unwrap().unwrap();
    advance(MAX).await;
    assert_eq!((state.tokens.age(), state.tokens.ensure_fresh()), (Some(MAX), Ok(())));
    assert!(state.tokens.verify_active(&token, NOW).unwrap().is_some());
    advance(MILLI).await;
    for text in texts {
        assert_eq!(state.tokens.verify_active(text, NOW).map(drop), Err(Stale), "{text}");
    }
    assert_eq!(
        (state.tokens.is_active(&verified, NOW), epochs(&state).map(drop)),
        (Err(Stale), Err(Stale))
    );
    // An earlier time does not lower the age.
    state.knows_up_to(begun);
    assert_eq!((state.tokens.age(), state.tokens.ensure_fresh()), (Some(MAX + MILLI), Err(Stale)));
    state.knows_up_to(Instant::now());
    assert_eq!((state.tokens.age(), state.tokens.ensure_fresh()), (Some(Duration::ZERO), Ok(())));
    state.knows_up_to(begun);
    assert_eq!(state.tokens.age(), Some(Duration::ZERO), "nor older");
    assert!(
        state.tokens.verify_active(&token, NOW).unwrap().is_some()
            && state.tokens.is_active(&verified, NOW).unwrap()
    );
    assert!(state.tokens.verify_active("nonsense", NOW).unwrap().is_none());
}

/// A first time before the creation of the state counts as its age, and not as "not tracked".
#[tokio::test(start_paused = true)]
async fn what_was_known_before_the_start_is_as_old_as_it_is() {
    let before = Instant::now();
    advance(MAX + MILLI * 2).await;
    let state = node();
    state.knows_up_to(before);
    assert_eq!(state.tokens.ensure_fresh(), Err(Stale));
    let age = state.tokens.age().unwrap();
    assert!((MAX + MILLI * 2..=MAX + MILLI * 3).contains(&age), "{age:?}");
}

/// V07: the later of two times is kept, in either order, so that a repeated change never shortens a
/// revocation.
#[test]
fn a_revocation_is_kept_until_the_later_time() {
    let later = NOW + Duration::from_secs(60);
    for times in [[NOW, later], [later, NOW]] {
        let state = node();
        let revoked = Revoked::Token(Jti::new());
        for until in times {
            state.apply(&Change::Revoked(Revocation { revoked, until }));
        }
        assert_eq!(state.sweep(NOW), 0);
        assert!(state.tokens.is_revoked(&revoked));
        assert_eq!(state.sweep(later), 1);
        assert!(!state.tokens.is_revoked(&revoked));
    }
}

/// V04, V06: the same changes from several threads, in any order and many times, have the same
/// result; a revoked token is never active in between.
#[test]
fn repeated_and_reordered_changes_have_the_same_result() {
    let sealer = sealer(5);
    let mut keysets = vec![keyset(&sealer)];
    for _ in 0..5 {
        keysets.push(revoked(keysets.last().unwrap(), &sealer));
    }
    let state = node_over(&keysets[0], &sealer);
    let family = FamilyId::new();
    let first =
        state.tokens.verify_active(&signed(&state, &claims(Some(family))), NOW).unwrap().unwrap();
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
        let senders = (0..4).map(|sender: usize| {
            let (state, changes) = (&state, &changes);
            scope.spawn(move || {
                for round in 0..50 {
                    for at in 0..changes.len() {
                        // 7 and 5 share no factor with the 86 changes: each sender visits all of
                        // them in an order of its own.
                        let step = if sender.is_multiple_of(2) { 7 } else { 5 };
                        state.apply(&changes[(at * step + sender * 11 + round) % changes.len()]);
                    }
                }
            })
        });
        let senders: Vec<_> = senders.collect();
        scope.spawn(|| {
            let (mut revision, mut epoch, mut ended) = (0, 0, false);
            while !done.load(SeqCst) {
                let seen =
                    (state.tokens.verifying_keys().revision(), epochs(&state).unwrap().tenant);
                assert!(seen.0 >= revision && seen.1 >= epoch, "went back to {seen:?}");
                (revision, epoch) = seen;
                let is_active = state.tokens.is_active(&first, NOW).unwrap();
                assert!(!(ended && is_active), "active again");
                ended |= !is_active;
            }
        });
        for sender in senders {
            sender.join().unwrap();
        }
        done.store(true, SeqCst);
    });
    assert_eq!(
        (state.tokens.verifying_keys().revision(), epochs(&state).unwrap().tenant),
        (newest, 40)
    );
    assert!(!state.tokens.is_active(&first, NOW).unwrap());
    assert_eq!((state.sweep(until(39)), state.sweep(until(40))), (0, 1));
}

/// K03: a repeated or late keyset does not undo the revocation of a key.
#[test]
fn keys_never_go_back() {
    let sealer = sealer(5);
    let old = Arc::new(keyset(&sealer));
    let new = Arc::new(revoked(&old, &sealer));
    let state = node_over(&old, &sealer);
    let token = signed(&state, &claims(None));
    assert!(state.tokens.verify_active(&token, NOW).unwrap().is_some());
    for keyset in [&new, &old, &new] {
        state.apply(&Change::Keyset(keyset.clone()));
        assert!(state.tokens.verify_active(&token, NOW).unwrap().is_none());
        assert_eq!(state.tokens.verifying_keys().revision(), new.revision);
    }
    // Equal is not higher: of two that claim the same revision, the first one known stays.
    let twin = Keyset { revision: new.revision, ..(*old).clone() }.with_mac(&sealer);
    state.apply(&Change::Keyset(Arc::new(twin)));
    assert!(state.tokens.verify_active(&token, NOW).unwrap().is_none());
}

/// K03, V04: a keyset that cannot be opened may revoke a key in use: no token is verified until a
/// later one can be opened, and an earlier one does not help.
#[tokio::test(start_paused = true)]
async fn an_undecodable_keyset_makes_the_state_stale() {
    let ours = sealer(5);
    let first = keyset(&ours);
    let second = revoked(&first, &ours);
    let mut unreadable = Keyset { revision: 3, ..first.clone() };
    unreadable.keys[0].alg = Algorithm::Es256;
    let unreadable = unreadable.with_mac(&ours);
    for says in [false, true] {
        let state = node_over(&first, &ours);
        let token = signed(&state, &claims(None));
        if says {
            state.knows_up_to(Instant::now());
        }
        state.apply(&Change::Keyset(Arc::new(unreadable.clone())));
        state.apply(&Change::Keyset(Arc::new(second.clone())));
        assert_eq!(state.tokens.verify_active(&token, NOW).map(drop), Err(Stale));
        if says {
            state.knows_up_to(Instant::now());
            assert_eq!(
                state.tokens.ensure_fresh(),
                Err(Stale),
                "changes of other nodes are not enough"
            );
        }
        state.apply(&Change::Keyset(Arc::new(
            Keyset { revision: 4, ..second.clone() }.with_mac(&ours),
        )));
        assert_eq!(state.tokens.ensure_fresh(), Ok(()));
        assert!(
            state.tokens.verify_active(&token, NOW).unwrap().is_none(),
            "the second one revoked its key"
        );
        // Received again, late: it no longer matters.
        state.apply(&Change::Keyset(Arc::new(unreadable.clone())));
        assert_eq!(state.tokens.ensure_fresh(), Ok(()));
    }
}

/// K03: a keyset that no holder of the master key wrote is never taken into use, whatever it says,
/// and neither stops the node nor hides a later genuine one.
#[tokio::test(start_paused = true)]
async fn a_forged_keyset_is_refused_and_the_last_genuine_one_stays() {
    let ours = sealer(5);
    let first = keyset(&ours);
    let second = revoked(&first, &ours);
    let state = node_over(&first, &ours);
    let token = signed(&state, &claims(None));
    state.apply(&Change::Keyset(Arc::new(second.clone())));
    let mut altered = Keyset { revision: 3, ..second.clone() };
    altered.keys[0] =
        SigningKey { state: KeyState::Retiring { remove_at: NOW + MAX }, ..first.keys[0].clone() };
    let mut twice = Keyset { revision: 3, ..second.clone() };
    twice.keys.insert(0, second.keys[2].clone());
    let foreign = Keyset { revision: u64::MAX, ..keyset(&sealer(6)) }.with_mac(&sealer(6));
    let kept = state.tokens.verifying_keys().jwks().clone();
    for forged in [altered, twice, foreign] {
        assert!(matches!(state.keys.admit(&forged), Err(Refused::Forged(_))), "{forged:?}");
        state.apply(&Change::Keyset(Arc::new(forged)));
        assert_eq!(state.tokens.ensure_fresh(), Ok(()), "the last genuine keys go on");
        assert_eq!(state.tokens.verifying_keys().jwks(), &kept);
        assert!(state.tokens.verify_active(&token, NOW).unwrap().is_none());
    }
    let third = Keyset { revision: 3, ..second }.with_mac(&ours);
    state.apply(&Change::Keyset(Arc::new(third)));
    assert_eq!(state.tokens.verifying_keys().revision(), 3);
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
        let state = node_over(if known_at_start { &second } else { &first }, &ours);
        state.apply(&Change::Keyset(Arc::new(second.clone())));
        assert!(matches!(state.keys.admit(&first), Err(Refused::Older { stored: 1, known: 2 })));
        for revision in [3, 4, 400] {
            let back = Keyset { revision, ..first.clone() }.with_mac(&ours);
            let Err(Refused::Unrevoked(unrevoked)) = state.keys.admit(&back) else {
                panic!("admitted")
            };
            assert_eq!(unrevoked, kid);
            state.apply(&Change::Keyset(Arc::new(back)));
            assert!(!state.tokens.verifying_keys().contains(&kid));
            assert_eq!(state.tokens.verifying_keys().revision(), 2);
        }
        assert!(state.keys.admit(&second).is_ok());
    }
}

/// Another master key: the process does not start.
#[test]
fn a_keyset_that_does_not_check_starts_nothing() {
    let ours = sealer(5);
    let altered = Keyset { revision: 2, ..keyset(&ours) };
    let opening = Opening { sealer: ours, issuer: ISSUER.into(), claim_limits: LIMITS };
    assert!(matches!(NodeState::new(&altered, opening, MAX), Err(SigningKeysError::Keyset(_))));
}

/// A reader that finds a raised epoch reads the client from the store, even if the client's own
/// change arrives last: a disabled client gets no token under the new epoch.
#[tokio::test]
async fn a_raised_epoch_takes_the_remembered_client_along() {
    let state = node();
    let id: ClientId = "a".parse().unwrap();
    state.clients.look_up_now(&id, async { Ok(None) }).await.unwrap();
    assert!(
        !state.clients.look_up_now(&id, async { Ok(None) }).await.unwrap().1,
        "it is remembered"
    );
    state.apply(&Change::Epoch(EpochOf::Client(id.clone()), 1));
    assert!(state.clients.look_up_now(&id, async { Ok(None) }).await.unwrap().1);
    state.apply(&Change::Missed);
    assert!(state.clients.look_up_now(&id, async { Ok(None) }).await.unwrap().1);
}

/// A client is not remembered for ever where another node may write it; where none may, there is no
/// reason to read it again.
#[tokio::test(start_paused = true)]
async fn clients_of_a_shared_store_are_read_again_after_a_while() {
    let state = node();
    let id: ClientId = "a".parse().unwrap();
    state.clients.look_up_now(&id, async { Ok(None) }).await.unwrap();
    for (says, read) in [(false, false), (true, true)] {
        if says {
            state.knows_up_to(Instant::now());
        }
        state.sweep(NOW);
        assert_eq!(state.clients.look_up_now(&id, async { Ok(None) }).await.unwrap().1, read);
    }
}

/// A token of a key that is not known is inactive while the state is fresh, and has no answer while
/// it is stale.
#[tokio::test(start_paused = true)]
async fn a_key_that_is_not_known_yet_is_no_reason_to_say_no() {
    let sealer = sealer(5);
    let old = keyset(&sealer);
    let new = Arc::new(revoked(&old, &sealer));
    let (here, there) = (node_over(&old, &sealer), node_over(&old, &sealer));
    there.apply(&Change::Keyset(new.clone()));
    let token = signed(&there, &claims(None));
    here.knows_up_to(Instant::now());
    advance(MAX + MILLI).await;
    assert_eq!(here.tokens.verify_active(&token, NOW).map(drop), Err(Stale));
    here.apply(&Change::Keyset(new));
    here.knows_up_to(Instant::now());
    assert!(here.tokens.verify_active(&token, NOW).unwrap().is_some());
    let signer: Kid = there.keys.signing_keys().kid().clone();
    assert!(here.tokens.verifying_keys().contains(&signer));
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
    let state = node();
    let budget = super::verified_cache::VerifiedCache::BYTES_MAX;
    let length = signed(&state, &large()).len();
    assert!(length > 6_500, "{length}");
    for n in 0..10_000 {
        let token = signed(&state, &large());
        assert!(state.tokens.verify_active(&token, NOW).unwrap().is_some());
        if n % 500 == 499 {
            let (counted, held) = state.tokens.verified().weights();
            assert!(counted == held && counted <= budget, "{n}: {counted}, {held}");
        }
    }
    let (counted, _) = state.tokens.verified().weights();
    assert!(counted > budget - 20_000, "the room is used: {counted}");
}

/// TL6: the sweep removes tokens that are expired, revoked or without a valid key, and no others.
#[test]
fn the_sweep_removes_cached_tokens_that_are_inactive() {
    let sealer = sealer(5);
    let first = keyset(&sealer);
    let state = node_over(&first, &sealer);
    let weight = |state: &NodeState| {
        let (counted, held) = state.tokens.verified().weights();
        assert_eq!(counted, held);
        counted
    };
    let see = |state: &NodeState, claims: &Claims| {
        assert!(state.tokens.verify_active(&signed(state, claims), NOW).unwrap().is_some());
    };
    let (lives, expires) = (claims(None), Claims { exp: NOW.seconds() + 60, ..claims(None) });
    see(&state, &lives);
    let one = weight(&state);
    assert!(one > 400, "{one}");
    see(&state, &expires);
    state.sweep(NOW);
    assert!(weight(&state) > one, "both are active");
    state.sweep(NOW + Duration::from_secs(60));
    assert_eq!(weight(&state), one, "one has expired");

    let ended = claims(None);
    see(&state, &ended);
    state.apply(&Change::Revoked(Revocation {
        revoked: Revoked::Token(ended.jti),
        until: NOW + Duration::from_secs(900),
    }));
    state.sweep(NOW);
    assert_eq!(weight(&state), one, "one was revoked");

    state.apply(&Change::Keyset(Arc::new(revoked(&first, &sealer))));
    state.sweep(NOW);
    assert_eq!(weight(&state), 0, "the key of all others was revoked");
    assert!(state.tokens.verify_active(&signed(&state, &claims(None)), NOW).unwrap().is_some());
}

/// A sidecar has published keys, revocations and epochs, without master key, keyset and store.
#[tokio::test(start_paused = true)]
async fn a_sidecar_verifies_by_public_keys_alone() {
    let sealer = sealer(5);
    let first = keyset(&sealer);
    let node = node_over(&first, &sealer);
    let public = |node: &NodeState| {
        let keys = node.tokens.verifying_keys();
        let published = jwk::parse_set(&keys.jwks().to_string()).unwrap();
        let public = published.into_iter().map(|key| PublicKey::new(key, None).unwrap());
        VerifyingKeys::new(keys.revision(), ISSUER, LIMITS, public)
    };
    let sidecar = TokenState::new(public(&node), MAX);
    sidecar.advance_to(Instant::now());
    let family = FamilyId::new();
    let [one, other, third] =
        [claims(Some(family)), claims(None), claims(None)].map(|claims| signed(&node, &claims));
    let active = |token: &str| sidecar.verify_active(token, NOW).map(|found| found.is_some());
    assert_eq!([&one, &other, &third].map(|token| active(token)), [Ok(true); 3]);

    let until = NOW + Duration::from_secs(900);
    sidecar.revoke(&Revocation { revoked: Revoked::Family(family), until });
    assert_eq!([&one, &other, &third].map(|token| active(token)), [Ok(false), Ok(true), Ok(true)]);
    sidecar.raise_epoch(&EpochOf::Tenant(TenantId::operator()), 1);
    assert_eq!([&one, &other, &third].map(|token| active(token)), [Ok(false); 3]);
    let renewed = Claims { ep: Epochs { tenant: 1, ..Epochs::default() }, ..claims(None) };
    let renewed = signed(&node, &renewed);
    assert_eq!(active(&renewed), Ok(true));

    advance(MAX + MILLI).await;
    assert_eq!([&one, &renewed].map(|token| active(token)), [Err(Stale); 2]);
    sidecar.advance_to(Instant::now());
    assert_eq!(active(&renewed), Ok(true));
    node.apply(&Change::Keyset(Arc::new(revoked(&first, &sealer))));
    sidecar.replace_keys(public(&node));
    assert_eq!(active(&renewed), Ok(false), "its key was revoked");
    sidecar.disconnected();
    sidecar.advance_to(Instant::now());
    assert_eq!(active(&renewed), Err(Stale));
}

/// A sidecar holds the token state and its keys: neither may come to need a secret or a store.
#[test]
fn the_token_state_names_no_secret_and_no_store() {
    let files = [
        include_str!("token_state.rs"),
        include_str!("age.rs"),
        include_str!("verified_cache.rs"),
        include_str!("../crypto/verifying_keys/mod.rs"),
    ];
    for file in files {
        let code: Vec<&str> =
            file.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        assert!(code.len() > 40, "{}", code.len());
        for name in ["store", "seal", "master", "signing_keys", "Keyset", "root"] {
            assert_eq!(code.iter().find(|line| line.contains(name)), None, "{name}");
        }
    }
}
