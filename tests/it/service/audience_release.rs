//! AUDIT AZ10: what happens between a registration and a release or an assignment of one audience,
//! whatever comes first.

use jeton::proto::admin::{Client, CreateClientRequest, DeleteClientRequest};
use tokio::{
    join,
    time::{Duration, Instant, timeout},
};
use tonic::Code;

use crate::support::until::HANG;
use crate::{
    service::audiences::{PAY, aimed, assert_foreign, owner, scene},
    support::{
        faulty::{Act, Kind, Side},
        server::{TamperableServer, bearer, reason, texts},
    },
};

/// AUDIT AZ10, a release between steps 1 and 2 of a registration: the audience is claimed again in
/// step 3.
#[tokio::test]
async fn what_is_released_before_the_client_is_written_is_claimed_again() {
    let (TamperableServer { server, store, .. }, globex, acme) = scene().await;
    server.create_as(&globex, aimed("old", &[])).await.unwrap();
    for (n, is_new) in [true, false].into_iter().enumerate() {
        let held = store.hold("spend", Side::Before);
        let meanwhile = async {
            held.arrived().await;
            server.release(PAY).await.unwrap();
            held.release();
        };
        let register = async {
            if is_new {
                server.create_as(&globex, aimed("new", &[PAY])).await.map(drop)
            } else {
                server.change_as(&globex, aimed("old", &[PAY]), &["audiences"]).await.map(drop)
            }
        };
        let (answer, ()) = join!(register, meanwhile);
        answer.unwrap();
        assert_eq!(server.owners(&globex).await, [owner(PAY, "globex")]);
        assert_foreign(
            &server.create_as(&acme, aimed(&format!("a{n}"), &[PAY])).await.unwrap_err(),
            "client.audiences",
            PAY,
        );
        server
            .change_as(&globex, aimed(if is_new { "new" } else { "old" }, &[]), &["audiences"])
            .await
            .unwrap();
    }
}

/// AUDIT AZ10, a release and another tenant's claim between steps 1 and 2: the answer is a refusal,
/// a new client is gone, a changed one is without the audience, and what it was issued has ended.
#[tokio::test]
async fn what_another_tenant_has_by_then_is_taken_back_from_the_client() {
    let (TamperableServer { server, store, .. }, globex, acme) = scene().await;
    let old = server.create_as(&globex, aimed("old", &["urn:own"])).await.unwrap();
    let token = server.token_for(&old, "urn:own").await.unwrap();
    for is_new in [true, false] {
        let held = store.hold("spend", Side::Before);
        let meanwhile = async {
            held.arrived().await;
            server.release(PAY).await.unwrap();
            server.assign(PAY, "acme").await.unwrap();
            held.release();
        };
        let register = async {
            if is_new {
                server.create_as(&globex, aimed("new", &[PAY, "urn:own"])).await.map(drop)
            } else {
                let client = Client { serves: texts(&[PAY]), ..aimed("old", &["urn:own", PAY]) };
                server.change_as(&globex, client, &["audiences", "serves"]).await.map(drop)
            }
        };
        let (answer, ()) = join!(register, meanwhile);
        assert_foreign(&answer.unwrap_err(), "client.audiences", PAY);
        assert_eq!(server.owners(&acme).await, [owner(PAY, "acme")]);
        server.release(PAY).await.unwrap();
        server.assign(PAY, "globex").await.unwrap();
    }
    assert_eq!(reason(&server.try_get("new").await.unwrap_err()), "NOT_FOUND");
    server.create_as(&globex, aimed("new", &[])).await.unwrap();
    let old_now = server.get("old").await;
    assert_eq!((old_now.audiences, old_now.serves), (texts(&["urn:own"]), Vec::new()));
    assert!(!server.is_active(&token).await);
    assert!(
        server.token_for(&old, "urn:own").await.is_ok()
            && server.token_for(&old, PAY).await.is_err()
    );
    assert_eq!(server.verify_chain().await.intact, Some(true));
}

/// AUDIT AZ10: neither a deadline, nor an outcome that is unknown, nor a store that is away for a
/// moment leaves a client that lists what another tenant got between steps 1 and 2.
#[tokio::test]
async fn a_registration_that_is_cut_off_is_confirmed_all_the_same() {
    let (TamperableServer { server, store, .. }, globex, _) = scene().await;
    let began = Instant::now();
    server.create_as(&globex, aimed("usual", &[PAY])).await.unwrap();
    let usual = began.elapsed();
    let delete = DeleteClientRequest {
        client_id: "usual".to_owned(),
        etag: String::new(),
        allow_no_administrator: false,
    };
    server.clients().delete_client(bearer(delete, &globex)).await.unwrap();
    for cut in 0..3 {
        let registered = store.hold("spend", Side::After);
        let request = CreateClientRequest { client: Some(aimed("new", &[PAY])), secret: None };
        let mut request = bearer(request, &globex);
        if cut == 0 {
            // Longer than the machine takes to come to the write.
            request.set_timeout(Duration::from_secs(3) + usual * 10);
        }
        let meanwhile = async {
            // A client is registered first, and then gets what it lists.
            registered.arrived().await;
            let written = store.hold("spend", Side::Before);
            registered.release();
            written.arrived().await;
            server.assign(PAY, "acme").await.unwrap();
            match cut {
                0 => {
                    let confirmed = store.hold("audience", Side::Before);
                    written.release();
                    confirmed.arrived().await;
                    Some(confirmed)
                }
                1 => {
                    store.plan_verb("spend", Act::FailAfter(Kind::Unavailable));
                    written.release();
                    None
                }
                _ => {
                    store.plan_verb("audience", Act::FailBefore(Kind::Unavailable));
                    store.plan_verb("end_client", Act::FailBefore(Kind::Unavailable));
                    written.release();
                    None
                }
            }
        };
        let mut clients = server.clients();
        let (answer, confirmed) = join!(clients.create_client(request), meanwhile);
        let refused = answer.unwrap_err();
        if let Some(confirmed) = confirmed {
            assert!(
                matches!(refused.code(), Code::DeadlineExceeded | Code::Cancelled),
                "{refused:?}"
            );
            assert!(
                server.try_get("new").await.is_ok(),
                "it is written, and nobody waits for the rest"
            );
            confirmed.release();
        } else {
            assert_eq!(
                refused.code(),
                if cut == 1 { Code::Unavailable } else { Code::FailedPrecondition },
                "{refused:?}"
            );
        }
        server.wait_until_deleted("new").await;
        server.assign(PAY, "globex").await.unwrap();
    }
}

/// AUDIT AZ10, a client that is written between the mark of a release and its second look: the
/// release takes the mark back.
#[tokio::test]
async fn a_release_that_finds_a_client_is_given_up() {
    let (TamperableServer { server, store, .. }, globex, acme) = scene().await;
    let written = store.hold("spend", Side::Before);
    let meanwhile = async {
        written.arrived().await;
        let marked = store.hold("spend", Side::After);
        let during = async {
            marked.arrived().await;
            // Nobody else gets what is being released, and no further client lists it.
            assert_foreign(
                &server.create_as(&acme, aimed("a", &[PAY])).await.unwrap_err(),
                "client.audiences",
                PAY,
            );
            let refused = server.create_as(&globex, aimed("late", &[PAY])).await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition);
            assert!(refused.message().contains("is being released"), "{refused:?}");
            let confirmed = store.hold("audience", Side::Before);
            written.release();
            confirmed.arrived().await;
            marked.release();
            confirmed
        };
        let (released, confirmed) = join!(server.release(PAY), during);
        confirmed.release();
        released
    };
    let (created, released) = join!(server.create_as(&globex, aimed("g", &[PAY])), meanwhile);
    created.unwrap();
    let refused = released.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("client g lists"), "{refused:?}");
    assert_eq!(server.owners(&globex).await, [owner(PAY, "globex")]);
    let fate =
        ["claimed", "releasing", "kept"].map(|what| owner(&format!("audience.{what}"), "globex"));
    assert_eq!(server.actions_about(PAY, &globex).await, fate);
}

/// AUDIT AZ10, a client that is written behind the second look of a release or an assignment: it is
/// taken back, so that a tenant cannot keep an audience by registering clients.
#[tokio::test]
async fn a_registration_behind_the_last_look_is_taken_back() {
    let (TamperableServer { server, store, .. }, globex, _) = scene().await;
    for moved in [false, true] {
        let written = store.hold("spend", Side::Before);
        let meanwhile = async {
            written.arrived().await;
            let marked = store.hold("spend", Side::After);
            let during = async {
                marked.arrived().await;
                let looked = store.hold("clients", Side::After);
                marked.release();
                looked.arrived().await;
                written.release();
                let deleted = async {
                    while server.trail_of("client.deleted").await.len() <= usize::from(moved) {}
                };
                timeout(HANG, deleted).await.expect("the client is taken back");
                looked.release();
            };
            let take = async {
                if moved {
                    server.assign(PAY, "acme").await.map(drop)
                } else {
                    server.release(PAY).await
                }
            };
            join!(take, during).0
        };
        let (created, taken) = join!(server.create_as(&globex, aimed("g", &[PAY])), meanwhile);
        taken.unwrap();
        let refused = created.unwrap_err();
        assert!(refused.message().contains("is being released"), "{refused:?}");
        assert_eq!(reason(&server.try_get("g").await.unwrap_err()), "NOT_FOUND");
        assert_eq!(server.owners(&globex).await, []);
        server.assign(PAY, "globex").await.unwrap();
    }
}

/// AUDIT AZ10, a node that dies between the mark and the removal: the audience is the tenant's
/// still, no further client lists it, and the next release goes on, or an assignment to the tenant
/// ends it.
#[tokio::test]
async fn a_release_that_was_cut_off_leaves_the_audience_with_its_tenant() {
    let (TamperableServer { server, store, .. }, globex, acme) = scene().await;
    for goes_on in [false, true] {
        let marked = store.hold("spend", Side::After);
        let meanwhile = async {
            marked.arrived().await;
            store.always(Some(Act::FailBefore(Kind::Unavailable)));
            marked.release();
        };
        let (released, ()) = join!(server.release(PAY), meanwhile);
        assert_eq!(released.unwrap_err().code(), Code::Unavailable);
        store.always(None);
        assert_eq!(server.owners(&globex).await, [owner(PAY, "globex")]);
        assert_foreign(
            &server.create_as(&acme, aimed("a", &[PAY])).await.unwrap_err(),
            "client.audiences",
            PAY,
        );
        let refused = server.create_as(&globex, aimed("late", &[PAY])).await.unwrap_err();
        assert!(refused.message().contains("is being released"), "{refused:?}");
        if goes_on {
            server.release(PAY).await.unwrap();
            server.create_as(&acme, aimed("a", &[PAY])).await.unwrap();
        } else {
            server.assign(PAY, "globex").await.unwrap();
            server.create_as(&globex, aimed("g", &[PAY])).await.unwrap();
            server.change_as(&globex, aimed("g", &[]), &["audiences"]).await.unwrap();
        }
    }
}

/// AUDIT AZ10: each release reads all clients, so those of tenants take turns; the operator's waits
/// for none.
#[tokio::test]
async fn releases_by_tenants_take_turns() {
    let (TamperableServer { server, store, .. }, globex, acme) = scene().await;
    for (audience, tenant) in [("urn:g", "globex"), ("urn:a", "acme"), ("urn:b", "acme")] {
        server.assign(audience, tenant).await.unwrap();
    }
    let looks = store.hold("clients", Side::Before);
    let meanwhile = async {
        looks.arrived().await;
        assert_eq!(reason(&server.release_as(&acme, "urn:a").await.unwrap_err()), "SLOW_DOWN");
        server.release("urn:b").await.unwrap();
        looks.release();
    };
    let (released, ()) = join!(server.release_as(&globex, "urn:g"), meanwhile);
    released.unwrap();
    server.release_as(&acme, "urn:a").await.unwrap();
}
