//! AUDIT AZ10: a client's write whose outcome is unknown, and that a store shared by nodes may make
//! later, behind every look at the audiences.

use jeton::{
    model::{Action, Audience, Stamp},
    store::{ClientStore, Write},
};
use tokio::join;

use crate::{
    audiences::{PAY, aimed, scene, texts},
    faulty::{Act, Kind, Side},
    harness::reason,
    lab::Lab,
};

/// A change of a client whose call gave up finds another revision once the answer is there, so it
/// cannot bring an audience to the client that another tenant has by then.
#[tokio::test]
async fn a_change_that_is_made_later_finds_another_revision() {
    let (Lab { world, store, .. }, globex, acme) = scene().await;
    world.create_as(&globex, aimed("old", &["urn:own"])).await.unwrap();
    let before = store.client(&"old".parse().unwrap()).await.unwrap().unwrap();
    store.plan_verb("spend", Act::FailBefore(Kind::Unavailable));
    // A store that is away does not end the attempt.
    store.plan_verb("replace_client", Act::FailBefore(Kind::Unavailable));
    let change = world.change_as(&globex, aimed("old", &["urn:own", PAY]), &["audiences"]).await;
    assert_eq!(reason(&change.unwrap_err()), "TEMPORARILY_UNAVAILABLE");

    world.assign(PAY, "acme").await.unwrap();
    let mut late = before.clone();
    late.revision += 1;
    late.audiences.push(PAY.parse::<Audience>().unwrap());
    let event = Stamp::internal(before.created_at).done(Action::ClientUpdated, "old");
    assert_eq!(store.replace_client(&late, event).await.unwrap(), Write::Stale);
    assert_eq!(world.get("old").await.audiences, texts(&["urn:own"]));
    world.create_as(&acme, aimed("theirs", &[PAY])).await.unwrap();
}

/// The same for a new client: its epoch is raised, which is what such a write is compared with.
#[tokio::test]
async fn a_registration_of_unknown_outcome_raises_the_clients_epoch() {
    let (Lab { world, store, .. }, globex, _) = scene().await;
    store.plan_verb("spend", Act::FailBefore(Kind::Unavailable));
    let refused = world.create_as(&globex, aimed("new", &[PAY])).await;
    assert_eq!(reason(&refused.unwrap_err()), "TEMPORARILY_UNAVAILABLE");
    assert_eq!(
        world.fate_of("new", &globex).await,
        [("revocation.client".to_owned(), "globex".to_owned())]
    );
    // The id is free for the next try, and its tokens are valid.
    let again = world.create_as(&globex, aimed("new", &[PAY])).await.unwrap();
    let token = world.token_for(&again, PAY).await.unwrap();
    assert!(world.is_active(&token).await);
}

/// What is taken back from a new client that another administrator has changed meanwhile is the
/// audience alone.
#[tokio::test]
async fn a_new_client_that_was_changed_by_another_is_kept() {
    let (Lab { world, store, .. }, globex, _) = scene().await;
    let written = store.hold("spend", Side::Before);
    let meanwhile = async {
        written.arrived().await;
        world.assign(PAY, "acme").await.unwrap();
        let confirmed = store.hold("audience", Side::Before);
        written.release();
        confirmed.arrived().await;
        let renamed =
            jeton::proto::admin::Client { display_name: "kept".to_owned(), ..aimed("new", &[]) };
        world.change_as(&globex, renamed, &["display_name"]).await.unwrap();
        confirmed.release();
    };
    let (refused, ()) = join!(world.create_as(&globex, aimed("new", &[PAY])), meanwhile);
    assert_eq!(reason(&refused.unwrap_err()), "FAILED_PRECONDITION");
    let kept = world.get("new").await;
    assert_eq!((kept.display_name.as_str(), kept.audiences), ("kept", Vec::new()));
}
