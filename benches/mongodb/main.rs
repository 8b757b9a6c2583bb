//! Verbs of the MongoDB store against the plainest durable write: a majority and journalled
//! find-and-update of a document of the same size, by the same driver, on the same set, in turn.
//!
//! ```text
//! bash .ci/with-mongodb bash -c 'cargo bench --bench mongodb -- --uri "$JETON_TEST_MONGODB"'
//! ```
//!
//! Options: `--rounds 5`, `--seconds 3`, `--callers 1,64`. Each caller rotates, opens or ends
//! families of its own, one after the other. Printed are calls a second, the median time of a call,
//! and the ratio to the plain write of the same round.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a bench measures by the clock and stops at the first error"
)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, join_all};
use jeton::{
    crypto::chain::ChainKey,
    model::{
        Action, Epochs, Event, Family, FamilyId, Scopes, Stamp, Subject, Timestamp, family::Answers,
    },
    store::{Creation, FamilyStore, Rotate, Rotation, Store, mongo::Mongo},
};
use mongodb::{
    Client, Collection,
    bson::{Binary, Bson, Document, doc, spec::BinarySubtype},
    options::{Acknowledgment, ReturnDocument, WriteConcern},
};

/// Size of the payload that makes the plain document as large as a family.
const PAYLOAD: usize = 400;
const NOW: Timestamp = Timestamp::from_seconds(1_790_000_000);
const HOUR: Duration = Duration::from_secs(3_600);

struct Options {
    uri: String,
    rounds: usize,
    seconds: u64,
    callers: Vec<usize>,
}

fn options() -> Option<Options> {
    let mut options = Options { uri: String::new(), rounds: 5, seconds: 3, callers: vec![1, 64] };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        match name.as_str() {
            "--uri" => options.uri = arguments.next().unwrap(),
            "--rounds" => options.rounds = arguments.next().unwrap().parse().unwrap(),
            "--seconds" => options.seconds = arguments.next().unwrap().parse().unwrap(),
            "--callers" => {
                let list = arguments.next().unwrap();
                options.callers = list.split(',').map(|number| number.parse().unwrap()).collect();
            }
            // From cargo.
            _ => {}
        }
    }
    (!options.uri.is_empty()).then_some(options)
}

/// Kind of write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Rotate,
    Open,
    End,
}

const KINDS: [(Kind, &str); 4] = [
    (Kind::Plain, "plain find-and-update"),
    (Kind::Rotate, "rotate a family"),
    (Kind::Open, "open a family"),
    (Kind::End, "end a family"),
];

/// One caller's next call.
type Call = Box<dyn FnMut() -> BoxFuture<'static, ()> + Send>;

/// Result of one run.
#[derive(Clone, Copy)]
struct Run {
    rate: f64,
    median: Duration,
}

fn family() -> Family {
    let client = "bench".parse().unwrap();
    Family {
        id: FamilyId::new(),
        tenant: "default".parse().unwrap(),
        subject: Subject::of_client(&client),
        client,
        scopes: Scopes::parse(&["orders:read", "orders:write"]).unwrap(),
        audience: Vec::new(),
        salt: [7; 32],
        epochs: Epochs { tenant: 0, client: 0, subject: 0 },
        opened_at: NOW,
        expires_at: NOW + HOUR,
        idle: HOUR,
        generation: 0,
        rotated_at: NOW,
        answers: Answers::first(&"192.0.2.1".into()),
        ended_at: None,
    }
}

fn stamp() -> Stamp {
    Stamp { peer: "192.0.2.1".into(), request_id: "bench".into(), ..Stamp::internal(NOW) }
}

fn event(action: Action) -> Event {
    stamp().done(action, "bench")
}

async fn opened(store: &Mongo) -> Family {
    let family = family();
    let opened = store.open_family(&family, event(Action::TokenIssued)).await.unwrap();
    assert_eq!(opened, Creation::Created);
    family
}

async fn plain(documents: Collection<Document>) -> Call {
    let id = uuid::Uuid::new_v4().to_string();
    let payload = Binary { subtype: BinarySubtype::Generic, bytes: vec![7; PAYLOAD] };
    documents
        .insert_one(doc! { "_id": &id, "generation": 0_i64, "payload": payload })
        .await
        .unwrap();
    let mut generation = 0_i64;
    Box::new(move || {
        let (documents, id, before) = (documents.clone(), id.clone(), generation);
        generation += 1;
        Box::pin(async move {
            let filter = doc! { "_id": id, "generation": before };
            let update = doc! { "$set": { "generation": before + 1 } };
            let found = documents
                .find_one_and_update(filter, update)
                .return_document(ReturnDocument::After)
                .await
                .unwrap();
            assert!(
                found
                    .is_some_and(|found| found.get("generation") == Some(&Bson::Int64(before + 1)))
            );
        })
    })
}

async fn rotating(store: Arc<Mongo>) -> Call {
    let family = opened(&store).await;
    let mut generation = 0;
    Box::new(move || {
        let store = store.clone();
        let rotate = Rotate {
            family: family.id,
            presented: generation,
            client: family.client.clone(),
            now: NOW,
            cluster_now: NOW,
            was_acceptable_on_arrival: true,
            grace: Duration::from_secs(10),
            retain_for: None,
        };
        generation += 1;
        Box::pin(async move {
            let rotated = store.rotate(&rotate, &stamp(), "jti").await.unwrap();
            assert!(matches!(rotated, Rotation::Rotated));
        })
    })
}

fn opening(store: Arc<Mongo>) -> Call {
    Box::new(move || {
        let store = store.clone();
        Box::pin(async move { drop(opened(&store).await) })
    })
}

/// Ends families that were opened before.
async fn ending(store: Arc<Mongo>, number: usize) -> Call {
    let mut families = Vec::new();
    for _ in 0..number.div_ceil(64) {
        families.extend(join_all((0..64).map(|_| opened(&store))).await);
    }
    Box::new(move || {
        let (store, family) = (store.clone(), families.pop());
        Box::pin(async move {
            // Families that are used up end the caller's part of the run.
            let Some(family) = family else { return std::future::pending().await };
            let ended = event(Action::FamilyRevoked);
            store.end_family(family.id, NOW, NOW + HOUR, ended).await.unwrap();
        })
    })
}

/// Runs the callers for this time.
async fn run(calls: Vec<Call>, time: Duration) -> Run {
    let began = Instant::now();
    let until = tokio::time::Instant::now() + time;
    let callers = calls.into_iter().map(|mut call| {
        tokio::spawn(async move {
            let mut times = Vec::new();
            while tokio::time::Instant::now() < until {
                let since = Instant::now();
                if tokio::time::timeout_at(until, call()).await.is_err() {
                    break;
                }
                times.push(since.elapsed());
            }
            times
        })
    });
    let mut times: Vec<Duration> =
        join_all(callers).await.into_iter().flat_map(Result::unwrap).collect();
    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
    times.sort_unstable();
    Run { rate, median: times.get(times.len() / 2).copied().unwrap_or_default() }
}

fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

#[tokio::main]
async fn main() {
    let Some(Options { uri, rounds, seconds, callers }) = options() else {
        println!("needs a MongoDB: --uri mongodb://HOSTS/?replicaSet=NAME");
        return;
    };
    let time = Duration::from_secs(seconds);
    let database = format!("bench-{}", uuid::Uuid::new_v4().simple());
    let (hosts, query) = uri.split_once('?').unwrap_or((&uri, ""));
    let hosts = hosts.trim_end_matches('/');
    let own = format!("{hosts}/{database}?{query}");
    let durable = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build();
    let client = Client::with_uri_str(&own).await.unwrap();
    let documents = client
        .database_with_options(
            &database,
            mongodb::options::DatabaseOptions::builder().write_concern(durable).build(),
        )
        .collection::<Document>("plain");
    let store = Arc::new(Mongo::open(&own, "bench", ChainKey::new([7; 32]), HOUR).await.unwrap());
    for &number in &callers {
        let mut runs: Vec<Vec<Run>> = vec![Vec::new(); KINDS.len()];
        for _ in 0..rounds {
            for (index, (kind, _)) in KINDS.iter().enumerate() {
                let mut calls = Vec::new();
                for _ in 0..number {
                    calls.push(match kind {
                        Kind::Plain => plain(documents.clone()).await,
                        Kind::Rotate => rotating(store.clone()).await,
                        Kind::Open => opening(store.clone()),
                        Kind::End => {
                            let each = usize::try_from(seconds).unwrap() * 3_000 / number.max(8);
                            ending(store.clone(), each).await
                        }
                    });
                }
                runs[index].push(run(calls, time).await);
            }
        }
        println!("{number} callers, {rounds} rounds of {seconds} s");
        for (index, (_, name)) in KINDS.iter().enumerate() {
            let rate = median(runs[index].iter().map(|run| run.rate).collect()).0;
            let millis = median(runs[index].iter().map(|run| run.median.as_secs_f64()).collect()).0;
            let pairs = || runs[index].iter().zip(&runs[0]);
            let (ratio, least, most) =
                median(pairs().map(|(run, plain)| run.rate / plain.rate).collect());
            let slower = median(
                pairs()
                    .map(|(run, plain)| run.median.as_secs_f64() / plain.median.as_secs_f64())
                    .collect(),
            )
            .0;
            println!(
                "{name:<24} {rate:>8.0}/s  ratio {ratio:.2} [{least:.2}..{most:.2}]  p50 {:>6.2} ms, {slower:.2} of the plain",
                millis * 1_000.0
            );
        }
    }
    store.close().await.unwrap();
    client.database(&database).drop().await.unwrap();
}
