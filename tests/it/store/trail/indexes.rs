//! Indexes that answer a list of the audit trail on a replica set, by the server's own profile.

mod mongodb {
    use futures_util::TryStreamExt as _;
    use jeton::{
        model::{Action, Event, FamilyId, Principal, Stamp, event::Filter, event::Outcome},
        store::AuditStore,
    };
    use mongodb::{
        Collection,
        bson::{Document, doc},
    };

    use crate::{
        store::{
            fixtures::{at, id, stamp},
            trail::mongodb::{node, raw},
        },
        support::database::Database as Own,
    };

    const RECORDS: i64 = 300;
    const FAMILY: FamilyId = FamilyId(uuid::Uuid::from_u128(7));

    fn frequent(n: i64) -> Event {
        let actor = Some(Principal::Client(id("busy")));
        let tenant = Some("t".parse().unwrap());
        Stamp { at: at(n), actor, tenant, ..stamp() }.done(Action::TokenIssued, n.to_string())
    }

    fn rare() -> Event {
        let actor = Some(Principal::Client(id("quiet")));
        let tenant = Some("u".parse().unwrap());
        let stamp = Stamp { at: at(7), actor, tenant, ..stamp() };
        stamp.refused(Action::ClientCreated, "rare", "invalid_grant").in_family(FAMILY)
    }

    /// B05: a list with any filter examines the records that it shows, and few others.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn every_filter_is_answered_from_an_index() {
        let own = Own::own();
        let store = node(own.uri(), "node").await;
        for n in 0..RECORDS {
            store.append_soon(frequent(n)).await.unwrap();
        }
        store.append(rare()).await.unwrap();
        let database = raw(&own).await;
        database.run_command(doc! { "profile": 2 }).await.unwrap();
        let profile: Collection<Document> = database.collection("system.profile");
        let namespace = format!("{}.audit_logs", database.name());
        let of = Filter::default;
        let actor = || Some(Principal::Client(id("quiet")));
        for (filter, index) in [
            (Filter { actor: actor(), ..of() }, "event.actor"),
            (Filter { tenant: Some("u".parse().unwrap()), ..of() }, "event.tenant"),
            (Filter { target: Some("rare".into()), ..of() }, "event.target"),
            (Filter { family: Some(FAMILY), ..of() }, "event.family"),
            (Filter { action: Some("client.created".into()), ..of() }, "event.action"),
            (Filter { action: Some("client.".into()), ..of() }, "event.action"),
            (Filter { outcome: Some(Outcome::Refused), ..of() }, "event.outcome"),
            (Filter { from: Some(at(7)), to: Some(at(8)), ..of() }, "event.at"),
            (
                Filter {
                    actor: actor(),
                    action: Some("client.".into()),
                    outcome: Some(Outcome::Refused),
                    ..of()
                },
                "event.",
            ),
        ] {
            let skipped = profile.count_documents(doc! { "ns": &namespace }).await.unwrap();
            let found = store.events(&filter, None, 5).await.unwrap();
            assert!(found.iter().any(|record| record.event == rare()), "{filter:?}");
            let reads = profile.find(doc! { "ns": &namespace, "op": "query" });
            let reads: Vec<Document> =
                reads.sort(doc! { "$natural": 1 }).await.unwrap().try_collect().await.unwrap();
            let reads = reads.get(usize::try_from(skipped).unwrap()..).unwrap();
            let plans: Vec<&str> =
                reads.iter().filter_map(|read| read.get_str("planSummary").ok()).collect();
            assert!(
                plans.first().is_some_and(|plan| plan.contains(index)),
                "{filter:?}: {plans:?}"
            );
            assert!(plans.iter().all(|plan| !plan.contains("COLLSCAN")), "{filter:?}: {plans:?}");
            let examined: i64 = reads
                .iter()
                .filter_map(|read| read.get("docsExamined"))
                .filter_map(|count| count.as_i64().or_else(|| count.as_i32().map(i64::from)))
                .sum();
            assert!(examined <= 12, "{filter:?}: {examined}, {plans:?}");
        }
    }
}
