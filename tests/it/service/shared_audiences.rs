//! AUDIT AZ12: a tenant has in its own trail which clients of other tenants list its audiences.

use jeton::proto::admin::{Client, DeleteClientRequest, ListEventsRequest};

use crate::service::{
    audiences::{PAY, aimed, scene, texts},
    harness::{World, bearer},
    lab::Lab,
};

impl World {
    /// Sharing of an audience, oldest first, as an administrator reads it: what happened and to
    /// which client.
    async fn sharing(&self, audience: &str, token: &str) -> Vec<(String, String)> {
        let request = bearer(ListEventsRequest { page_size: 1_000, ..Default::default() }, token);
        let events = self.audit().list_events(request).await.unwrap().into_inner().events;
        let sharing = events.into_iter().rev().filter(|event| {
            event.target == audience
                && ["audience.shared", "audience.unshared"].contains(&event.action.as_str())
        });
        sharing.map(|event| (event.action, event.reason)).collect()
    }
}

/// Listed on a new client, on one that is there, taken from it by its own tenant, and gone with a
/// deleted client: each is one record for the owner and none for the other tenant.
#[tokio::test]
async fn the_owner_of_an_audience_reads_whom_the_operator_shares_it_with() {
    let (Lab { world, .. }, globex, acme) = scene().await;
    let root = world.admin_token().await;
    let partner = |audiences: &[&str]| Client {
        tenant: "acme".to_owned(),
        serves: texts(audiences),
        ..aimed("partner", audiences)
    };
    world.create_as(&root, partner(&[PAY, "urn:acme"])).await.unwrap();
    world
        .create_as(&root, Client { tenant: "acme".to_owned(), ..aimed("second", &[]) })
        .await
        .unwrap();
    // In one field more, and in one less: it is shared all the same.
    world.change_as(&root, partner(&["urn:acme"]), &["serves"]).await.unwrap();
    world.change_as(&root, aimed("second", &[PAY]), &["audiences"]).await.unwrap();
    world.change_as(&acme, aimed("second", &[]), &["audiences"]).await.unwrap();
    let delete = DeleteClientRequest { client_id: "partner".to_owned(), etag: String::new() };
    world.clients().delete_client(bearer(delete, &acme)).await.unwrap();
    // An audience of its own is shared with nobody.
    world.create_as(&globex, aimed("own", &[PAY])).await.unwrap();

    let fate = |action: &str, client: &str| {
        (format!("audience.{action}"), format!("client {client} of tenant acme"))
    };
    assert_eq!(
        world.sharing(PAY, &globex).await,
        [
            fate("shared", "partner"),
            fate("shared", "second"),
            fate("unshared", "second"),
            fate("unshared", "partner"),
        ]
    );
    assert_eq!(world.sharing(PAY, &acme).await, []);
    assert_eq!(world.sharing("urn:acme", &acme).await, []);
    assert_eq!(world.verify_chain().await.intact, Some(true));
}
