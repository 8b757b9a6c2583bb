//! The bounded pool and what may be brought along.

use std::time::Duration;

use super::*;

fn secret(text: &str) -> SecretString {
    text.to_owned().into()
}

fn phc(m: u32, t: u32, p: u32) -> String {
    format!("$argon2id$v=19$m={m},t={t},p={p}$c29tZXNhbHQ$RdescudvJCsgt3ub+b4dWRWJTmaaJObG")
}

#[tokio::test]
async fn a_secret_verifies_against_its_own_hash_only() {
    let passwords = Passwords::new(2, 8);
    let phc = passwords.hash(secret("correct horse")).await.unwrap();
    assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
    assert_eq!(check_import(&phc), Ok(()));
    assert_eq!(passwords.verify(&phc, secret("correct horse")).await, Ok(true));
    for wrong in ["", "correct hors", "correct horse ", "Correct horse"] {
        assert_eq!(passwords.verify(&phc, secret(wrong)).await, Ok(false), "{wrong}");
    }
    assert_ne!(passwords.hash(secret("correct horse")).await.unwrap(), phc, "each has its own salt");
}

/// A04: what differs only after the 72nd byte differs.
#[tokio::test]
async fn secrets_that_differ_late_are_different() {
    let passwords = Passwords::new(2, 8);
    for length in [73, 128, 1_024] {
        let [one, other] = ["1", "2"].map(|end| format!("{}{end}", "x".repeat(length - 1)));
        let phc = passwords.hash(secret(&one)).await.unwrap();
        assert_eq!(passwords.verify(&phc, secret(&one)).await, Ok(true));
        assert_eq!(passwords.verify(&phc, secret(&other)).await, Ok(false), "{length}");
        assert_eq!(passwords.verify(&phc, secret(&one[..72])).await, Ok(false), "{length}");
    }
}

/// A02: an unknown client costs the very hash that a known one costs.
#[tokio::test]
async fn the_decoy_costs_what_a_hash_costs() {
    let passwords = Passwords::new(1, 1);
    let [decoy, real] = [passwords.decoy.to_string(), passwords.hash(secret("x")).await.unwrap()];
    let cost = |phc: &str| phc.rsplitn(3, '$').nth(2).map(str::to_owned);
    assert_eq!(cost(&decoy), cost(&real));
    assert_eq!(decoy.len(), real.len());
    assert_eq!(passwords.burn(secret("x")).await, Ok(()));
}

/// L14: past the queue the answer comes at once; what runs and waits is unharmed.
#[tokio::test]
async fn more_than_may_wait_are_refused_at_once() {
    let passwords = Arc::new(Passwords::new(1, 2));
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let passwords = Arc::clone(&passwords);
            tokio::spawn(async move { passwords.burn(secret("x")).await })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(passwords.burn(secret("x")).await, Err(Busy));
    assert_eq!(passwords.hash(secret("x")).await, Err(Busy));
    for one in waiting {
        assert_eq!(one.await.unwrap(), Ok(()));
    }
    assert_eq!(passwords.burn(secret("x")).await, Ok(()), "and there is room again");
}

/// L14: a caller who hangs up does not free the core its hash still runs on.
#[tokio::test]
async fn a_caller_who_hangs_up_keeps_its_place_until_the_work_is_done() {
    let passwords = Passwords::new(1, 0);
    let (started, start) = std::sync::mpsc::channel();
    let (finish, finished) = std::sync::mpsc::channel::<()>();
    {
        let work = passwords.permits().await.unwrap().run(move || {
            started.send(()).unwrap();
            finished.recv().ok()
        });
        tokio::select! {
            biased;
            _ = work => panic!("it waits"),
            () = async { start.recv().unwrap() } => {}
        }
    }
    assert_eq!(passwords.burn(secret("x")).await, Err(Busy), "the work goes on");
    finish.send(()).unwrap();
    let place = tokio::time::timeout(Duration::from_secs(10), passwords.places.acquire()).await;
    assert!(place.is_ok(), "and ends");
}

#[tokio::test]
async fn a_verified_secret_is_paid_for_once_and_a_wrong_one_every_time() {
    let passwords = Passwords::new(1, 0);
    let (client, id) = ("orders".parse().unwrap(), "s1".parse().unwrap());
    let phc = passwords.hash(secret("chosen")).await.unwrap();
    assert_eq!(passwords.verify_client(&client, &id, &phc, secret("wrong")).await, Ok(false));
    assert_eq!(passwords.verify_client(&client, &id, &phc, secret("chosen")).await, Ok(true));
    let other = passwords.hash(secret("other")).await.unwrap();
    // With no place left, only what is remembered is answered.
    let _all = Arc::clone(&passwords.places).acquire_owned().await.unwrap();
    assert_eq!(passwords.verify_client(&client, &id, &phc, secret("chosen")).await, Ok(true));
    assert_eq!(passwords.verify_client(&client, &id, &phc, secret("wrong")).await, Err(Busy), "failures are not remembered");
    assert_eq!(
        passwords.verify_client(&client, &id, &other, secret("chosen")).await,
        Err(Busy),
        "another hash is another secret"
    );
    assert_eq!(passwords.verify_client(&"billing".parse().unwrap(), &id, &phc, secret("chosen")).await, Err(Busy));
    assert_eq!(passwords.verify_client(&client, &"s2".parse().unwrap(), &phc, secret("chosen")).await, Err(Busy));
}

/// Who waits for a core while somebody else verifies the same secret does not pay once more: this hash fits nothing.
#[tokio::test]
async fn a_secret_that_was_verified_meanwhile_is_not_paid_for_again() {
    let passwords = Passwords::new(1, 2);
    let (client, id, phc) = ("orders".parse().unwrap(), "s1".parse().unwrap(), phc(19_456, 2, 1));
    let core = Arc::clone(&passwords.running).acquire_owned().await.unwrap();
    let verifies = |text: &str| passwords.verify_client(&client, &id, &phc, secret(text));
    let meanwhile = async {
        passwords.remembered.learn(passwords.remembered.digest(&client, &id, &phc, "chosen"));
        drop(core);
    };
    let (one, other, wrong, ()) = tokio::join!(verifies("chosen"), verifies("chosen"), verifies("wrong"), meanwhile);
    assert_eq!([one, other, wrong], [Ok(true), Ok(true), Ok(false)]);
}

#[test]
fn good_hashes_may_be_brought_along() {
    for good in [phc(19_456, 2, 1), phc(47_104, 1, 1), phc(7_168, 5, 1), phc(65_536, 3, 4), phc(65_536, 10, 4)] {
        assert_eq!(check_import(&good), Ok(()), "{good}");
    }
}

/// K05, L14: neither a hash that is quick to guess nor one that a single login could stop the service with.
#[test]
fn other_hashes_may_not() {
    let good = phc(19_456, 2, 1);
    let hash = "RdescudvJCsgt3ub+b4dWRWJTmaaJObG";
    let others = [
        phc(7_167, 10, 1),
        phc(7_168, 4, 1),
        phc(19_456, 1, 1),
        phc(8, 1, 1),
        phc(65_537, 2, 1),
        phc(u32::MAX, 2, 1),
        phc(19_456, 11, 1),
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

/// L14: a damaged row that asks for 4 TiB is answered, not obeyed.
#[tokio::test]
async fn a_hash_that_may_not_be_brought_along_fits_nothing() {
    let passwords = Passwords::new(1, 0);
    for bad in [phc(u32::MAX, 1, 1), phc(65_536, u32::MAX, 1), "".to_owned(), "x".repeat(10_000)] {
        assert_eq!(passwords.verify(&bad, secret("x")).await, Ok(false));
    }
}
