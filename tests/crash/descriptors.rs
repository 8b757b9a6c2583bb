//! No descriptors left.

use std::time::Duration;

use tokio::time::timeout;

use crate::{
    callers::{Admin, Caller},
    process::{Home, endpoint},
};

/// S9: out of descriptors the server refuses who comes new and goes on serving, durable writes included, who is there; once some
/// have left it admits others again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_of_descriptors_those_who_are_there_are_served() {
    let home = Home::new().by_way_of(&["bash", "-c", r#"ulimit -n 64; exec "$0" "$@""#]);
    let server = home.start();
    let mut admin = Admin::new(server.secret.as_deref().unwrap(), server.connect().await).await;
    let caller = admin.registered().await;
    let token = admin.caller.token(&[]).await.unwrap().access_token;

    let arrive = async |caller: &Caller| -> Option<Caller> {
        let channel = timeout(Duration::from_secs(2), endpoint(server.address).connect()).await.ok()?.ok()?;
        let mut caller = caller.over(channel);
        // Whoever is in the backlog of the kernel only believes to be connected.
        timeout(Duration::from_secs(5), caller.token(&[])).await.ok()?.ok()?;
        Some(caller)
    };
    let mut guests = Vec::new();
    while let Some(guest) = arrive(&caller).await {
        guests.push(guest);
        assert!(guests.len() < 64, "there is no limit");
    }
    assert!(guests.len() > 5, "only {} were admitted", guests.len());
    assert!(home.log().contains("cannot accept connections"), "{}", home.log());
    for guest in &mut guests {
        guest.token(&[]).await.unwrap();
    }
    assert!(admin.caller.introspect(&token).await.unwrap());
    admin.caller.revoke(&token).await.unwrap();
    assert!(!admin.caller.introspect(&token).await.unwrap());

    guests.truncate(guests.len() / 2);
    let back = timeout(Duration::from_secs(10), async { while arrive(&caller).await.is_none() {} }).await;
    assert!(back.is_ok(), "nobody is admitted any more: {}", home.log());
    admin.verify(None).await;
    server.terminate();
    assert_eq!(server.ended(Duration::from_secs(15)).await.code(), Some(0));
}
