//! AUDIT AZ10: a client's write whose outcome is unknown, and that a store shared by nodes may make
//! later, behind every look at the audiences.

use jeton::{
    model::{Action, Audience, Stamp},
    proto::admin::Client,
    store::{ClientStore, Write},
};
use tokio::join;

use crate::{
    service::audiences::{PAY, aimed, assert_foreign, scene},
    support::{
        faulty::{Act, Kind, Side},
        server::{TamperableServer, reason, texts},
    },
};

/// A change of a client whose call gave up finds another revision once the answer is there, so it
/// cannot bring an audience to the client that another tenant has by then.
#[tokio::test]
async fn a_change_that_is_made_later_finds_another_revision() {
    let (TamperableServer { server, store, .. }, globex, acme) = scene().await;
    server.create_as(&globex, aimed("old", &["urn:own"])).await.unwrap();
    let before = store.client(&"old".parse().unwrap()).await.unwrap().unwrap();
    store.plan_verb("spend", Act::FailBefore(Kind::Unavailable));
    // A store that is away does not end the attempt.
    store.plan_verb("replace_client", Act::FailBefore(Kind::Unavailable));
    let change = server.change_as(&globex, aimed("old", &["urn:own", PAY]), &["audiences"]).await;
    assert_eq!(reason(&change.unwrap_err()), "TEMPORARILY_UNAVAILABLE");

    server.assign(PAY, "acme").await.unwrap();
    let mut late = before.clone();
    late.revision += 1;
    late.audiences.push(PAY.parse::<Audience>().unwrap());
    let event = Stamp::internal(before.created_at).done(Action::ClientUpdated, "old");
    assert_eq!(store.replace_client(&late, event).await.unwrap(), Write::Stale);
    assert_eq!(server.get("old").await.audiences, texts(&["urn:own"]));
    server.create_as(&acme, aimed("theirs", &[PAY])).await.unwrap();
}

/// A new client is registered without audiences and then changed, so the same holds for it. What is
/// left of a registration that failed in between is taken away; an outcome that is unknown at first
/// leaves at most a client that lists nothing.
#[tokio::test]
async fn a_registration_that_fails_leaves_no_client_that_lists_anything() {
    let (TamperableServer { server, store, .. }, globex, acme) = scene().await;
    store.plan_verb("spend", Act::FailAfter(Kind::Unavailable));
    let refused = server.create_as(&globex, aimed("first", &[PAY])).await;
    assert_eq!(reason(&refused.unwrap_err()), "TEMPORARILY_UNAVAILABLE");
    assert_eq!(server.get("first").await.audiences, texts(&[]));

    for act in [Act::FailBefore, Act::FailAfter] {
        let registered = store.hold("spend", Side::After);
        let meanwhile = async {
            registered.arrived().await;
            store.plan_verb("spend", act(Kind::Unavailable));
            // The store is still away for what makes the outcome final.
            store.plan_verb("end_client", Act::FailAfter(Kind::Unavailable));
            store.plan_verb("delete_client", Act::FailAfter(Kind::Unavailable));
            registered.release();
        };
        let register = server.create_as(&globex, aimed("second", &[PAY]));
        let (refused, ()) = join!(register, meanwhile);
        assert_eq!(reason(&refused.unwrap_err()), "TEMPORARILY_UNAVAILABLE");
        assert_eq!(reason(&server.try_get("second").await.unwrap_err()), "NOT_FOUND");
        store.forget_plans();
    }
    server.assign(PAY, "acme").await.unwrap();
    server.create_as(&acme, aimed("theirs", &[PAY])).await.unwrap();
    server.create_as(&globex, aimed("second", &["urn:own"])).await.unwrap();
    assert_eq!(server.verify_chain().await.intact, Some(true));
}

/// The operator lists an audience that gets another owner before the client is written: the next
/// owner would have no record of the sharing, so it is taken back.
#[tokio::test]
async fn an_audience_that_moves_while_it_is_shared_is_taken_back() {
    let (TamperableServer { server, store, .. }, globex, acme) = scene().await;
    let root = server.admin_token().await;
    let partner = |audiences: &[&str]| Client {
        tenant: "partners".to_owned(),
        ..aimed("partner", audiences)
    };
    server.create_as(&root, partner(&[])).await.unwrap();
    let written = store.hold("spend", Side::Before);
    let meanwhile = async {
        written.arrived().await;
        server.assign(PAY, "acme").await.unwrap();
        written.release();
    };
    let change = server.change_as(&root, partner(&[PAY]), &["audiences"]);
    let (refused, ()) = join!(change, meanwhile);
    assert_foreign(&refused.unwrap_err(), "client.audiences", PAY);
    assert_eq!(server.get("partner").await.audiences, texts(&[]));
    let events = |fate: Vec<(String, String)>| -> Vec<String> {
        fate.into_iter()
            .map(|(action, _)| action)
            .filter(|action| action.ends_with("shared"))
            .collect()
    };
    let shared_and_back = ["audience.shared".to_owned(), "audience.unshared".to_owned()];
    assert_eq!(events(server.actions_about(PAY, &globex).await), shared_and_back);
    assert_eq!(events(server.actions_about(PAY, &acme).await), Vec::<String>::new());
}

/// An audience whose record cannot be read is taken away all the same.
#[tokio::test]
async fn an_audience_that_cannot_be_read_is_taken_away() {
    let (TamperableServer { server, store, .. }, globex, _) = scene().await;
    server.create_as(&globex, aimed("old", &[PAY])).await.unwrap();
    store.plan_verb("audience", Act::FailBefore(Kind::Corrupt));
    server.change_as(&globex, aimed("old", &[]), &["audiences"]).await.unwrap();
    assert_eq!(server.get("old").await.audiences, texts(&[]));
}

/// From a new client that another administrator has changed meanwhile is taken back the
/// audience alone.
#[tokio::test]
async fn a_new_client_that_was_changed_by_another_is_kept() {
    let (TamperableServer { server, store, .. }, globex, _) = scene().await;
    let written = store.hold("spend", Side::Before);
    let meanwhile = async {
        written.arrived().await;
        server.assign(PAY, "acme").await.unwrap();
        let confirmed = store.hold("audience", Side::Before);
        written.release();
        confirmed.arrived().await;
        let renamed = Client { display_name: "kept".to_owned(), ..aimed("new", &[]) };
        server.change_as(&globex, renamed, &["display_name"]).await.unwrap();
        confirmed.release();
    };
    let (refused, ()) = join!(server.create_as(&globex, aimed("new", &[PAY])), meanwhile);
    assert_eq!(reason(&refused.unwrap_err()), "FAILED_PRECONDITION");
    let kept = server.get("new").await;
    assert_eq!((kept.display_name.as_str(), kept.audiences), ("kept", Vec::new()));
}

/// The same between the two writes of a registration: what another administrator was answered
/// stays, and the registration is refused.
#[tokio::test]
async fn a_change_between_the_writes_of_a_registration_is_kept() {
    let (TamperableServer { server, store, .. }, globex, _) = scene().await;
    let registered = store.hold("spend", Side::After);
    let meanwhile = async {
        registered.arrived().await;
        let renamed = Client { display_name: "kept".to_owned(), ..aimed("new", &[]) };
        server.change_as(&globex, renamed, &["display_name"]).await.unwrap();
        registered.release();
    };
    let (refused, ()) = join!(server.create_as(&globex, aimed("new", &[PAY])), meanwhile);
    assert_eq!(reason(&refused.unwrap_err()), "STALE");
    let kept = server.get("new").await;
    assert_eq!((kept.display_name.as_str(), kept.audiences), ("kept", Vec::new()));
}
