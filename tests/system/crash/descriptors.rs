//! Few descriptors.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use tokio::time::timeout;

use crate::{
    crash::callers::{Admin, Caller},
    support::process::{Home, PATIENCE, endpoint},
};

/// A caller without an answer by then counts as not admitted, where that is expected.
const SOON: Duration = Duration::from_secs(5);

/// S9: where descriptors are few the server keeps enough for the store, refuses further
/// connections, a tenth of them to one address, and goes on serving those that are open, durable
/// writes included; once some have closed it admits others again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_few_descriptors_open_connections_are_served() {
    let home = Home::patient().by_way_of(&["bash", "-c", r#"ulimit -n 64; exec "$0" "$@""#]);
    let server = home.start();
    let mut admin = Admin::new(server.secret.as_deref().unwrap(), server.connect().await).await;
    let caller = admin.registered().await;
    let token = admin.caller.token(&[]).await.unwrap().access_token;

    let try_from = async |caller: &Caller, from: u8| -> Option<Caller> {
        let from = endpoint(server.address)
            .local_address(Some(IpAddr::V4(Ipv4Addr::new(127, 0, 1, from))));
        let mut caller = caller.over(from.connect().await.ok()?);
        // Whoever is in the backlog of the kernel only believes to be connected.
        caller.token(&[]).await.ok()?;
        Some(caller)
    };
    let arrive = async |caller: &Caller, from: u8, patience: Duration| -> Option<Caller> {
        timeout(patience, try_from(caller, from)).await.ok()?
    };
    let mut guests = Vec::new();
    // A caller that is not served is refused: that needs no patience.
    while let Some(guest) =
        timeout(PATIENCE, try_from(&caller, 1)).await.expect("is neither served nor refused")
    {
        guests.push(guest);
        assert!(guests.len() < 64, "there is no limit to one address");
    }
    assert_eq!(guests.len(), 3, "of one address, a tenth of 32, were admitted");
    // A few less than there is room for: a port that is nearly full has idle connections make room
    // for others.
    for from in 2..22 {
        guests.push(
            arrive(&caller, from, PATIENCE)
                .await
                .expect("there is room for one of another address"),
        );
    }
    assert!(home.log().contains("open file limit is too low"), "{}", home.log());
    for guest in &mut guests {
        guest.token(&[]).await.unwrap();
    }
    assert!(admin.caller.introspect(&token).await.unwrap());
    admin.caller.revoke(&token).await.unwrap();
    assert!(!admin.caller.introspect(&token).await.unwrap());

    guests.drain(..guests.len() / 2);
    let back = timeout(PATIENCE, async { while arrive(&caller, 1, SOON).await.is_none() {} }).await;
    assert!(back.is_ok(), "nobody is admitted any more: {}", home.log());
    admin.verify(None).await;
    server.terminate();
    assert_eq!(server.ended(PATIENCE).await.code(), Some(0));
}
