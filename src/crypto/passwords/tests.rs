//! The bounded pool, the cost of a comparison, and the hashes that may be imported.

use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};
use futures_util::{FutureExt, future::join_all};

use super::{argon::OWN_BLOCKS, *};

const HERE: Origin = Origin { network: None, failed_lately: false };
const REFUSAL: u64 = OWN_BLOCKS * MAX_LIVE_SECRETS as u64;

fn secret(text: &str) -> SecretString {
    text.to_owned().into()
}

fn phc(m: u32, t: u32, p: u32) -> String {
    format!("$argon2id$v=19$m={m},t={t},p={p}$c29tZXNhbHQ$RdescudvJCsgt3ub+b4dWRWJTmaaJObG")
}

fn kept(id: &str, phc: String) -> Kept {
    Kept { id: id.parse().unwrap(), phc }
}

/// A hash of a secret with other parameters than ours.
fn hashed(secret: &str, m: u32, t: u32, p: u32) -> String {
    let argon2 =
        Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(m, t, p, None).unwrap());
    argon2.hash_password_with_salt(secret.as_bytes(), b"some salt of it").unwrap().to_string()
}

async fn find(
    passwords: &Passwords,
    kept: &[Kept],
    presented: &str,
) -> Result<Option<Match>, Busy> {
    passwords.find(HERE, ClaimedAccount::client("orders"), kept.to_vec(), &secret(presented)).await
}

fn id(found: Result<Option<Match>, Busy>) -> Option<String> {
    found.unwrap().map(|found| found.id.as_str().to_owned())
}

#[tokio::test]
async fn a_secret_verifies_against_its_own_hash_only() {
    let passwords = Passwords::new(2, 8);
    let phc = passwords.hash(&TenantId::operator(), secret("correct horse")).await.unwrap();
    assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
    assert_eq!(check_import(&phc), Ok(()));
    assert_ne!(
        passwords.hash(&TenantId::operator(), secret("correct horse")).await.unwrap(),
        phc,
        "each has its own salt"
    );
    let kept = [
        kept("s1", passwords.hash(&TenantId::operator(), secret("another")).await.unwrap()),
        kept("s2", phc),
    ];
    let found = find(&passwords, &kept, "correct horse").await.unwrap().unwrap();
    assert_eq!((found.id.as_str(), found.rehashed), ("s2", None));
    assert_eq!(id(find(&passwords, &kept, "another").await).as_deref(), Some("s1"));
    for wrong in ["", "correct hors", "correct horse ", "Correct horse"] {
        assert_eq!(find(&passwords, &kept, wrong).await, Ok(None), "{wrong}");
    }
}

/// A04: what differs only after the 72nd byte differs.
#[tokio::test]
async fn secrets_that_differ_late_are_different() {
    let passwords = Passwords::new(2, 8);
    for length in [73, 128, 1_024] {
        let [one, other] = ["1", "2"].map(|end| format!("{}{end}", "x".repeat(length - 1)));
        let kept = [kept("s1", passwords.hash(&TenantId::operator(), secret(&one)).await.unwrap())];
        assert_eq!(find(&passwords, &kept, &other).await, Ok(None), "{length}");
        assert_eq!(find(&passwords, &kept, &one[..72]).await, Ok(None), "{length}");
        assert!(find(&passwords, &kept, &one).await.unwrap().is_some());
    }
}

/// A02, AZ8: a refusal fills as many blocks whether there is nothing to compare with, one hash,
/// two, cheap imported ones, or one that cannot be parsed.
#[tokio::test]
async fn every_refusal_costs_the_same() {
    let passwords = Passwords::new(1, 1);
    let own = passwords.hash(&TenantId::operator(), secret("right")).await.unwrap();
    let classes: Vec<Vec<String>> = vec![
        vec![],
        vec![own.clone()],
        vec![own.clone(), own],
        vec![phc(7_168, 5, 1)],
        vec![phc(12_288, 3, 1), phc(9_216, 4, 1)],
        vec![phc(38_912, 1, 1), phc(19_456, 2, 4)],
        vec!["damaged".to_owned()],
        vec![phc(65_536, 10, 1), phc(u32::MAX, 1, 1)],
    ];
    for class in classes {
        let kept: Vec<Kept> =
            class.iter().enumerate().map(|(n, phc)| kept(&format!("s{n}"), phc.clone())).collect();
        let before = passwords.work();
        assert_eq!(find(&passwords, &kept, "wrong").await, Ok(None), "{class:?}");
        assert_eq!(passwords.work() - before, REFUSAL, "{class:?}");
    }
}

/// DECISIONS 14: the first use of an imported hash rehashes it with our parameters; later uses cost
/// nothing.
#[tokio::test]
async fn a_cheaper_hash_is_made_anew_at_its_first_use() {
    let passwords = Passwords::new(1, 1);
    let brought = kept("s1", hashed("chosen elsewhere", 7_168, 5, 1));
    assert_eq!(check_import(&brought.phc), Ok(()));
    let found = find(&passwords, std::slice::from_ref(&brought), "chosen elsewhere")
        .await
        .unwrap()
        .unwrap();
    let anew = Kept { phc: found.rehashed.expect("a hash of our own"), ..brought.clone() };
    assert!(anew.phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
    passwords.remember(ClaimedAccount::client("orders"), &anew, &secret("chosen elsewhere"));
    let before = passwords.work();
    for kept in [&brought, &anew] {
        assert_eq!(
            passwords.recall(
                ClaimedAccount::client("orders"),
                std::slice::from_ref(kept),
                &secret("chosen elsewhere")
            ),
            Some(kept.id.clone())
        );
    }
    assert_eq!(passwords.work(), before);
    // And it is a hash of the same secret.
    let elsewhere = Passwords::new(1, 1);
    let found = find(&elsewhere, &[anew], "chosen elsewhere").await.unwrap().unwrap();
    assert_eq!(found.rehashed, None);
}

#[tokio::test]
async fn a_verified_secret_is_paid_for_once_and_a_wrong_one_every_time() {
    let passwords = Passwords::new(1, 0);
    let kept = [kept("s1", passwords.hash(&TenantId::operator(), secret("chosen")).await.unwrap())];
    let mut work = passwords.work();
    let mut paid =
        |passwords: &Passwords| passwords.work() - std::mem::replace(&mut work, passwords.work());
    assert_eq!(find(&passwords, &kept, "wrong").await, Ok(None));
    assert_eq!(paid(&passwords), REFUSAL);
    assert_eq!(passwords.recall(ClaimedAccount::client("orders"), &kept, &secret("chosen")), None);
    assert!(!passwords.remembers(ClaimedAccount::client("orders"), &kept));
    assert!(find(&passwords, &kept, "chosen").await.unwrap().is_some());
    assert_eq!(paid(&passwords), OWN_BLOCKS, "it is the first one compared");
    assert!(find(&passwords, &kept, "chosen").await.unwrap().is_some());
    assert!(
        passwords.recall(ClaimedAccount::client("orders"), &kept, &secret("chosen")).is_some()
            && passwords.remembers(ClaimedAccount::client("orders"), &kept)
    );
    assert_eq!(paid(&passwords), 0);
    assert_eq!(find(&passwords, &kept, "wrong").await, Ok(None));
    assert_eq!(paid(&passwords), REFUSAL, "failures are not remembered");
    // Another hash, client or secret id is another secret.
    let other = Kept { phc: phc(19_456, 2, 1), ..kept[0].clone() };
    assert!(
        passwords.remembers(ClaimedAccount::client("orders"), &[other.clone(), kept[0].clone()])
            && !passwords.remembers(ClaimedAccount::client("orders"), std::slice::from_ref(&other))
    );
    assert_eq!(
        passwords.recall(ClaimedAccount::client("orders"), &[other], &secret("chosen")),
        None
    );
    assert!(
        !passwords.remembers(ClaimedAccount::client("orders"), &[])
            && !passwords.remembers(ClaimedAccount::client("billing"), &kept)
    );
    assert_eq!(passwords.recall(ClaimedAccount::client("billing"), &kept, &secret("chosen")), None);
    let other = Kept { id: "s2".parse().unwrap(), ..kept[0].clone() };
    assert_eq!(
        passwords.recall(ClaimedAccount::client("orders"), &[other], &secret("chosen")),
        None
    );
}

/// A caller that waits for a core while another verifies the same secret does not pay once more:
/// this hash fits nothing.
#[tokio::test]
async fn a_secret_that_was_verified_meanwhile_is_not_paid_for_again() {
    let passwords = Passwords::new(1, 4);
    let kept = [kept("s1", phc(19_456, 2, 1))];
    let core = passwords.lanes.enter(None, Class::First).await.unwrap();
    let meanwhile = async {
        passwords.remember(ClaimedAccount::client("orders"), &kept[0], &secret("chosen"));
        drop(core);
    };
    let (one, ()) = tokio::join!(find(&passwords, &kept, "chosen"), meanwhile);
    assert_eq!(id(one).as_deref(), Some("s1"));
    assert_eq!(passwords.work(), 0);
}

/// L14: beyond the queue calls are refused at once; running and queued ones are not affected.
#[tokio::test]
async fn more_than_may_wait_are_refused_at_once() {
    let passwords = Arc::new(Passwords::new(1, 8));
    let core = passwords.lanes.enter(None, Class::First).await.unwrap();
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let passwords = Arc::clone(&passwords);
            tokio::spawn(async move { find(&passwords, &[], "x").await })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(find(&passwords, &[], "x").await, Err(Busy), "one peer has a quarter of the queue");
    drop(core);
    for one in waiting {
        assert_eq!(one.await.unwrap(), Ok(None));
    }
    assert_eq!(find(&passwords, &[], "x").await, Ok(None), "and there is room again");
}

/// AZ1: administration does not wait for strangers, and strangers not for administration.
#[tokio::test]
async fn administration_has_a_core_of_its_own() {
    let passwords = Passwords::new(1, 0);
    let core = passwords.lanes.enter(None, Class::First).await.unwrap();
    assert_eq!(find(&passwords, &[], "x").await, Err(Busy));
    assert!(passwords.hash(&TenantId::operator(), secret("chosen")).await.is_ok());
    drop(core);
    let _administration =
        passwords.administration.enter(TenantId::operator(), Class::First).await.unwrap();
    assert_eq!(find(&passwords, &[], "x").await, Ok(None));
}

/// AZ1: administrators of one tenant wait with half of what all tenants have and are refused past
/// it; another tenant's wait, and all of them do not fill what is the operator's.
#[tokio::test]
async fn one_tenants_administrators_leave_room_for_the_others() {
    let passwords = Passwords::new(1, 3);
    let tenant = |name: &str| name.parse::<TenantId>().unwrap();
    let core = passwords.administration.enter(tenant("acme"), Class::Second).await.unwrap();
    let hash = |name: &'static str| {
        let passwords = &passwords;
        let mut hash =
            Box::pin(
                async move { passwords.hash(&tenant(name), secret("chosen")).await.map(|_| name) },
            );
        (hash.as_mut().now_or_never(), hash)
    };
    let mut waiting = Vec::new();
    for (name, places) in [("acme", 2), ("globex", 2), ("initech", 0), ("default", 2)] {
        for n in 0..3 {
            let (now, hash) = hash(name);
            assert_eq!(now, (n >= places).then_some(Err(Busy)), "{name}, {n}");
            if n < places {
                waiting.push(hash);
            }
        }
    }
    drop(core);
    let mut hashed: Vec<&str> = join_all(waiting).await.into_iter().map(Result::unwrap).collect();
    hashed.sort_unstable();
    assert_eq!(hashed, ["acme", "acme", "default", "default", "globex", "globex"]);
}

/// L14: a caller who hangs up does not free the core its hash still runs on.
#[tokio::test]
async fn a_caller_who_hangs_up_keeps_its_place_until_the_work_is_done() {
    let passwords = Passwords::new(1, 0);
    let (started, start) = std::sync::mpsc::channel();
    let (finish, finished) = std::sync::mpsc::channel::<()>();
    {
        let work = run(passwords.lanes.enter(None, Class::First).await.unwrap(), move || {
            started.send(()).unwrap();
            finished.recv().ok()
        });
        tokio::select! {
            biased;
            _ = work => panic!("it waits"),
            () = async { start.recv().unwrap() } => {}
        }
    }
    assert_eq!(find(&passwords, &[], "x").await, Err(Busy), "the work goes on");
    finish.send(()).unwrap();
    while find(&passwords, &[], "x").await == Err(Busy) {
        tokio::task::yield_now().await;
    }
}

#[test]
fn good_hashes_may_be_imported() {
    for good in [
        phc(19_456, 2, 1),
        phc(38_912, 1, 1),
        phc(7_168, 5, 1),
        phc(12_288, 3, 1),
        phc(9_216, 4, 4),
    ] {
        assert_eq!(check_import(&good), Ok(()), "{good}");
    }
}

/// K05, L14, AZ8: neither a hash that is quick to guess nor one that takes longer than ours.
#[test]
fn other_hashes_may_not() {
    let good = phc(19_456, 2, 1);
    let hash = "RdescudvJCsgt3ub+b4dWRWJTmaaJObG";
    let others = [
        phc(7_167, 10, 1),
        phc(7_168, 4, 1),
        phc(19_456, 1, 1),
        phc(8, 1, 1),
        phc(19_457, 2, 1),
        phc(38_913, 1, 1),
        phc(47_104, 1, 1),
        phc(65_536, 10, 1),
        phc(u32::MAX, 2, 1),
        phc(19_456, 3, 1),
        phc(7_168, 6, 1),
        phc(19_456, u32::MAX, 1),
        phc(19_456, 0, 1),
        phc(19_456, 2, 5),
        phc(19_456, 2, 0),
        good.replace("argon2id", "argon2i"),
        good.replace("argon2id", "argon2d"),
        good.replace("argon2id", "scrypt"),
        good.replace("v=19", "v=16"),
        good.replace("$v=19", ""),
        good.replace("m=19456,t=2,p=1", "m=19456,t=2"),
        good.replace("m=19456,t=2,p=1", "m=19456,t=2,p=1,keyid=AAAA"),
        good.replace("m=19456,t=2,p=1", "m=19456,t=2,p=1,data=AAAA"),
        good.replace("m=19456,t=2,p=1", "m=019456,t=2,p=1"),
        good.replace("m=19456", "m=99999999999999"),
        good.replace("c29tZXNhbHQ", "c29tZQ"),
        good.replace(&format!("${hash}"), ""),
        good.replace(hash, "RdescudvJCsgt3ub"),
        good.replace(hash, &hash[..21]),
        good.replace(hash, &"A".repeat(100)),
        format!("{good}$x"),
        format!(" {good}"),
        format!("{good}\n"),
        String::new(),
        "secret".to_owned(),
        "$2b$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy".to_owned(),
    ];
    for other in others {
        assert!(check_import(&other).is_err(), "{other}");
    }
}
