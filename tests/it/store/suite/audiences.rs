//! AUDIT AZ10: an audience belongs to one tenant, whoever comes at once.

use jeton::{
    model::{Action, Audience, AudienceRecord, Mac},
    store::{Creation, FoundAudience, Store, Write},
};

use crate::store::{
    backend::StoreCase,
    fixtures::{at, event, id, whole_chain},
};

fn uri(text: &str) -> Audience {
    text.parse().unwrap()
}

pub(crate) fn record(audience: &str, tenant: &str) -> AudienceRecord {
    AudienceRecord {
        audience: uri(audience),
        tenant: tenant.parse().unwrap(),
        claimed_by: id("root"),
        created_at: at(7),
        releasing: false,
        revision: 1,
        mac: Mac([7; 32]),
    }
}

async fn claim(store: &dyn Store, record: &AudienceRecord) -> Creation {
    store.claim_audience(record, event(Action::AudienceClaimed)).await.unwrap()
}

async fn find(store: &dyn Store, audience: &str) -> Option<FoundAudience> {
    store.audience(&uri(audience)).await.unwrap()
}

pub(crate) async fn a_record_of_an_audience_reads_back_as_it_was_written(case: &StoreCase) {
    let store = case.store();
    let longest = format!("https://{}", "a".repeat(248));
    for audience in [longest.as_str(), "urn:a.b$c", "https://a.example/$where?x=%00'--"] {
        assert_eq!(find(&*store, audience).await, None);
        let record = record(audience, &"t".repeat(64));
        assert_eq!(claim(&*store, &record).await, Creation::Created);
        assert_eq!(find(&*store, audience).await, Some(FoundAudience::Owned(record)));
    }
}

pub(crate) async fn an_audience_is_claimed_once(case: &StoreCase) {
    let store = case.store();
    assert_eq!(claim(&*store, &record("urn:a", "acme")).await, Creation::Created);
    let records = whole_chain(&*store).await.len();
    for tenant in ["acme", "globex"] {
        assert_eq!(claim(&*store, &record("urn:a", tenant)).await, Creation::Taken);
    }
    assert_eq!(whole_chain(&*store).await.len(), records, "what was not claimed is not on record");
    assert_eq!(find(&*store, "urn:a").await, Some(FoundAudience::Owned(record("urn:a", "acme"))));
    // Compared byte by byte.
    for other in ["urn:A", "urn:a/", "URN:a"] {
        assert_eq!(claim(&*store, &record(other, "globex")).await, Creation::Created);
    }
}

/// AUDIT AZ10: of any number of tenants that claim one audience at once, exactly one gets it.
pub(crate) async fn of_fifty_that_claim_one_audience_one_succeeds(case: &StoreCase) {
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let (store, record) = (case.store(), record("urn:a", &format!("tenant-{n}")));
            tokio::spawn(async move {
                (claim(&*store, &record).await == Creation::Created).then_some(record)
            })
        })
        .collect();
    let mut claimed = Vec::new();
    for task in tasks {
        claimed.extend(task.await.unwrap());
    }
    assert_eq!(claimed.len(), 1);
    assert_eq!(find(&*case.store(), "urn:a").await, claimed.pop().map(FoundAudience::Owned));
}

pub(crate) async fn a_change_of_a_record_needs_the_one_it_was_made_from(case: &StoreCase) {
    let store = case.store();
    let first = record("urn:a", "acme");
    let replace = async |record: &AudienceRecord| {
        store.replace_audience(record, event(Action::AudienceReleasing)).await
    };
    let release = async |record: &AudienceRecord| {
        store.release_audience(record, event(Action::AudienceReleased)).await
    };
    let second = AudienceRecord { releasing: true, revision: 2, ..first.clone() };
    assert_eq!(replace(&second).await.unwrap(), Write::Stale, "there is none");
    assert_eq!(release(&first).await.unwrap(), Write::Stale);
    claim(&*store, &first).await;
    let records = whole_chain(&*store).await.len();
    let others = [
        first.clone(),
        AudienceRecord { revision: 3, ..second.clone() },
        AudienceRecord { revision: 0, ..first.clone() },
        AudienceRecord { tenant: "globex".parse().unwrap(), ..second.clone() },
    ];
    for other in &others {
        assert_eq!(replace(other).await.unwrap(), Write::Stale, "{other:?}");
    }
    for other in &others[1..] {
        assert_eq!(release(other).await.unwrap(), Write::Stale, "{other:?}");
    }
    assert_eq!(whole_chain(&*store).await.len(), records);
    assert_eq!(replace(&second).await.unwrap(), Write::Done);
    assert_eq!(find(&*store, "urn:a").await, Some(FoundAudience::Owned(second.clone())));
    assert_eq!(release(&first).await.unwrap(), Write::Stale);
    assert_eq!(release(&second).await.unwrap(), Write::Done);
    assert_eq!(find(&*store, "urn:a").await, None);
    assert_eq!(release(&second).await.unwrap(), Write::Stale, "it is released once");
    // And is anybody's to claim from then on.
    assert_eq!(claim(&*store, &record("urn:a", "globex")).await, Creation::Created);
    assert_eq!(find(&*store, "urn:a").await, Some(FoundAudience::Owned(record("urn:a", "globex"))));
    assert_eq!(whole_chain(&*store).await.len(), records + 3, "each change left its record");
}

pub(crate) async fn pages_of_audiences_follow_their_bytes(case: &StoreCase) {
    let store = case.store();
    let all = ["https://A", "https://a", "https://a.b", "https://b", "urn:a"];
    for (n, audience) in all.iter().enumerate().rev() {
        claim(&*store, &record(audience, if n % 2 == 0 { "acme" } else { "globex" })).await;
    }
    claim(&*store, &record("urn:gone", "acme")).await;
    store
        .release_audience(&record("urn:gone", "acme"), event(Action::AudienceReleased))
        .await
        .unwrap();
    for (tenant, expected) in
        [(None, all.to_vec()), (Some("acme"), vec![all[0], all[2], all[4]]), (Some("none"), vec![])]
    {
        let tenant = tenant.map(|tenant| tenant.parse().unwrap());
        for limit in [1, 2, 100] {
            let (mut paged, mut after) = (Vec::new(), None);
            loop {
                let page = store.audiences(tenant.as_ref(), after.as_ref(), limit).await.unwrap();
                assert!(page.len() <= limit);
                let Some(last) = page.last() else { break };
                after = Some(last.audience().clone());
                paged.extend(page);
            }
            let paged: Vec<_> = paged.iter().map(|found| found.audience().as_str()).collect();
            assert_eq!(paged, expected, "{tenant:?} {limit}");
        }
    }
}
