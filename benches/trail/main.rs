//! Times of lists and of a verification over a long audit trail: writes records into a data directory
//! through the store, sealed and chained as a server's are, lists them with each filter, and verifies
//! them.
//!
//! `cargo bench --bench trail -- --records 10000000 --dir /var/tmp/trail` (or `--profile dev`); a
//! directory that has as many records is only read. `jeton serve --data-dir` serves it.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a bench measures by the clock and stops at the first error"
)]

use std::{path::PathBuf, time::Instant};

use jeton::{
    admin::audit::{Known, Step, Verification, VerifyRequest},
    crypto::{chain::ChainKey, master, seal::Sealer},
    model::{
        Action, Event, FamilyId, Principal, Stamp, Timestamp,
        event::{Filter, Outcome},
    },
    store::{AuditStore, Store, embedded::Embedded},
};
use uuid::{Builder, Uuid};

/// Time of the first record.
const FIRST: i64 = 1_790_000_000_000;

/// Records in a second.
const PER_SECOND: u64 = 100;

/// Record in how many that is not an issued token.
const OTHER: u64 = 50;

struct Options {
    records: u64,
    dir: PathBuf,
}

fn options() -> Options {
    let mut options = Options { records: 20_000, dir: PathBuf::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        match name.as_str() {
            "--records" => options.records = arguments.next().unwrap().parse().unwrap(),
            "--dir" => options.dir = arguments.next().unwrap().into(),
            // From cargo.
            _ => {}
        }
    }
    options
}

/// Event of a number: tokens of 200 clients in 5 tenants, some refreshed and some refused, and one
/// old record of a client, an action and a tenant that no other record has.
fn event(n: u64, last: u64) -> Event {
    let millis = n * 1_000 / PER_SECOND;
    let at = Timestamp::from_millis(FIRST + i64::try_from(millis).unwrap());
    let is_rare = n == last / 100 + 1;
    let (client, tenant) = if is_rare {
        ("quiet".to_owned(), "rare".to_owned())
    } else {
        (format!("client-{:03}", n * 7 % 200), format!("tenant-{}", n % 5))
    };
    let stamp = Stamp {
        tenant: Some(tenant.parse().unwrap()),
        actor: Some(Principal::Client(client.parse().unwrap())),
        request_id: id(millis, n).to_string().into(),
        peer: "10.0.0.1:40000".into(),
        ..Stamp::internal(at)
    };
    match n {
        _ if is_rare => stamp.refused(Action::ClientDisabled, "quiet", "invalid_grant"),
        n if n.is_multiple_of(OTHER) => stamp
            .done(Action::TokenRefreshed, id(millis, n).to_string())
            .in_family(FamilyId(id(millis / 1_000, n))),
        n if n % OTHER == 1 => stamp.refused(Action::AuthenticationFailed, client, "slow_down"),
        _ => stamp.done(Action::TokenIssued, id(millis, n).to_string()),
    }
}

fn id(millis: u64, n: u64) -> Uuid {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    let millis = FIRST.unsigned_abs() + millis;
    Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}

#[tokio::main]
async fn main() {
    let Options { records, mut dir } = options();
    let own = tempfile::tempdir().unwrap();
    if dir.as_os_str().is_empty() {
        dir = own.path().to_owned();
    }
    std::fs::create_dir_all(&dir).unwrap();
    let master = master::load_or_make(&dir.join("master.key"), true).unwrap();
    let key = ChainKey::new(Sealer::new(*master).derive("audit head"));
    let store = Embedded::open(&dir, "node-1", key.clone()).unwrap();
    let written = store.head("node-1").await.unwrap().map_or(0, |head| head.sequence);

    let began = Instant::now();
    for n in written + 1..=records {
        store.append_soon(event(n, records)).await.unwrap();
    }
    store.ready().await.unwrap();
    let count = records.saturating_sub(written);
    let size = std::fs::metadata(dir.join("jeton.db")).unwrap().len();
    println!(
        "{count} records written in {:.1} s; {records} records, {} MB",
        began.elapsed().as_secs_f64(),
        size / 1_000_000
    );

    let of = Filter::default;
    let actor = |client: &str| Some(Principal::Client(client.parse().unwrap()));
    let tenant = |tenant: &str| Some(tenant.parse().unwrap());
    let old = event(records / 100 + 7, records);
    let refreshed = event((records / 100).next_multiple_of(OTHER), records);
    let time = Timestamp::from_millis;
    let last = event(records, records).at.millis() - 1_000;
    println!("{:44} {:>10} {:>10}", "filter", "first, ms", "100, ms");
    for (name, filter) in [
        ("none", of()),
        ("client quiet (1 record)", Filter { actor: actor("quiet"), ..of() }),
        ("client client-007", Filter { actor: actor("client-007"), ..of() }),
        ("target, an old jti", Filter { target: Some(old.target), ..of() }),
        ("family, an old one", Filter { family: refreshed.family, ..of() }),
        ("about quiet (1 record)", Filter { about: Some("quiet".parse().unwrap()), ..of() }),
        ("about client-007", Filter { about: Some("client-007".parse().unwrap()), ..of() }),
        (
            "secret of client-007 (none)",
            Filter { secret: Some(("client-007".parse().unwrap(), "s1".parse().unwrap())), ..of() },
        ),
        ("action client.disabled (1 record)", action("client.disabled")),
        ("actions client.", action("client.")),
        ("action token.issued", action("token.issued")),
        ("outcome refused", Filter { outcome: Some(Outcome::Refused), ..of() }),
        ("tenant rare (1 record)", Filter { tenant: tenant("rare"), ..of() }),
        ("tenant tenant-3", Filter { tenant: tenant("tenant-3"), ..of() }),
        ("until the first minute", Filter { to: Some(time(FIRST + 60_000)), ..of() }),
        ("since the last second", Filter { from: Some(time(last)), ..of() }),
        (
            "client client-007, refused",
            Filter { actor: actor("client-007"), outcome: Some(Outcome::Refused), ..of() },
        ),
        (
            "client client-007, tenant tenant-3 (none)",
            Filter { actor: actor("client-007"), tenant: tenant("tenant-3"), ..of() },
        ),
        (
            "client quiet, tenant, action, time",
            Filter {
                actor: actor("quiet"),
                tenant: tenant("rare"),
                from: Some(time(FIRST)),
                ..action("client.disabled")
            },
        ),
    ] {
        let mut times = [0.0; 2];
        for (elapsed, limit) in times.iter_mut().zip([1, 100]) {
            // A list by a client or a secret is merged of several.
            for filter in filter.alternatives() {
                let began = Instant::now();
                let found = store.events(&filter, None, limit).await.unwrap();
                *elapsed += began.elapsed().as_secs_f64() * 1_000.0;
                assert!(found.iter().all(|record| filter.admits(&record.event)), "{name}");
            }
        }
        println!("{name:44} {:>10.2} {:>10.2}", times[0], times[1]);
    }

    println!("{:44} {:>10} {:>10}", "verification", "all, s", "records/s");
    let middle = store.chain("node-1", records / 2, 1).await.unwrap().remove(0);
    let middle = Known { chain: middle.chain, sequence: middle.sequence, hash: middle.hash };
    verify("in the store", &store, &key, Vec::new()).await;
    verify("in the store, from the middle", &store, &key, vec![middle]).await;
    store.close().await.unwrap();
    let stored = Embedded::stored_chains(&dir, key.clone()).unwrap();
    verify("without a server", &stored, &key, Vec::new()).await;
}

async fn verify<S: jeton::store::ChainReader>(
    name: &str,
    store: &S,
    key: &ChainKey,
    from: Vec<Known>,
) {
    let began = Instant::now();
    let request = VerifyRequest { from, ..VerifyRequest::default() };
    let mut verification = Verification::begin(store, key, request).await.unwrap();
    loop {
        match verification.step().await.unwrap() {
            Step::Records => {}
            Step::Chain(verdict) => assert_eq!(verdict.flaw, None),
            Step::End => break,
        }
    }
    let (seconds, (checked, _)) = (began.elapsed().as_secs_f64(), verification.progress());
    println!("{name:44} {seconds:>10.2} {:>10.0}", checked as f64 / seconds);
}

fn action(name: &str) -> Filter {
    Filter { action: Some(name.to_owned()), ..Filter::default() }
}
