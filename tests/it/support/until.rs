//! Waits for events, with a bound that only a hang reaches.

use std::time::Duration;

/// Bound of a wait. No machine that makes progress reaches it.
pub(crate) const HANG: Duration = Duration::from_secs(120);

/// Waits until `condition` holds, for at most [`HANG`].
pub(crate) async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let holds = tokio::time::timeout(HANG, async {
        while !condition().await {
            tick.tick().await;
        }
    });
    holds.await.expect("the condition holds in the end");
}
