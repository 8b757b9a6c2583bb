//! Bodies of fuzz targets, see `crate::fuzzing`: what this room reads of a peer's.

use std::sync::Arc;

use tokio::time::Instant;

use super::{control_frame_limit::Meter, stream_memory::StreamMemory};

/// The meter of HTTP/2 frames, over bytes of a connection behind one byte that says how they are
/// cut into reads. Where they are cut changes nothing, and what is received is bounded.
pub fn frames(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    let meter = || Meter::new(Instant::now(), Arc::<StreamMemory>::default());
    let (mut whole, mut parts) = (meter(), meter());
    let at_once = whole.receive(bytes);
    let in_parts =
        bytes.chunks(usize::from(*cut) + 1).map(|part| parts.receive(part)).find(Option::is_some);
    // The budget grows with time, so only connections within it are sure to be judged alike.
    if (at_once, in_parts) == (None, None) {
        assert_eq!(whole.goaway(""), parts.goaway(""), "the last stream");
    }
    for part in bytes.chunks(usize::from(*cut) + 1) {
        parts.send(part);
    }
}
