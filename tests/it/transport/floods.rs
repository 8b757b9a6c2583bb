//! Frames in numbers. The server is a process of its own, so that what it keeps can be seen.

use std::{iter, time::Duration};

use tokio::io::AsyncWriteExt;

use crate::transport::{
    child::Child,
    support::{
        TOKEN,
        frames::{
            CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Frame, HEADERS, PING,
            PRIORITY, REFUSED_STREAM, RST_STREAM, Raw, SETTINGS, block, call, closes, frame,
        },
        http::token,
        until,
    },
};

/// Memory that a flood may leave behind.
const GROWTH: u64 = 16 << 20;
/// Frames written at once.
const BATCH: u32 = 100;

/// `count` parts, numbered from 0, written a batch at a time.
fn parts(
    count: u32,
    part: impl Fn(u32) -> Vec<u8> + Send + 'static,
) -> impl Iterator<Item = Vec<u8>> + Send + 'static {
    (0..count / BATCH)
        .map(move |batch| (batch * BATCH..(batch + 1) * BATCH).flat_map(&part).collect())
}

fn stream(number: u32) -> u32 {
    number * 2 + 1
}

/// Floods a server that served before and must serve after, with no more memory than before.
async fn survives(flood: impl Iterator<Item = Vec<u8>> + Send + 'static) -> Vec<Frame> {
    let child = Child::start(None);
    for _ in 0..50 {
        token(child.address, "").await.token();
    }
    let before = child.resident();
    let frames = Raw::open(child.address).await.flood(flood).await;
    token(child.address, "").await.token();
    let growth = child.resident().saturating_sub(before);
    assert!(growth < GROWTH, "grew by {growth} bytes");
    frames
}

fn is_calmed(frames: &[Frame]) -> bool {
    frames.iter().any(|frame| frame.goaway() == Some(ENHANCE_YOUR_CALM))
}

/// L01: rapid reset (CVE-2023-44487).
#[tokio::test]
async fn streams_opened_and_reset_at_once_end_the_connection() {
    let block = block(call(TOKEN));
    let frames = survives(parts(50_000, move |number| {
        let open = frame(HEADERS, END_HEADERS, stream(number), &block);
        [open, frame(RST_STREAM, 0, stream(number), &8_u32.to_be_bytes())].concat()
    }))
    .await;
    assert!(is_calmed(&frames), "{frames:?}");
}

/// L02: streams beyond the limit are refused, and refusing them costs nothing either.
#[tokio::test]
async fn streams_opened_and_left_are_refused() {
    let block = block(call(TOKEN));
    let frames =
        survives(parts(50_000, move |number| frame(HEADERS, END_HEADERS, stream(number), &block)))
            .await;
    assert!(
        is_calmed(&frames) || frames.iter().any(|frame| frame.reset() == Some(REFUSED_STREAM)),
        "{frames:?}"
    );
}

/// L02: the limit is told, and is the one that was set.
#[tokio::test]
async fn the_limit_on_streams_is_announced() {
    let child = Child::start(None);
    let mut raw = Raw::open(child.address).await;
    let block = block(call(TOKEN));
    for number in 0..201 {
        raw.send(&frame(HEADERS, END_HEADERS, stream(number), &block)).await;
    }
    let refused = raw.expect(|frame| frame.kind == RST_STREAM).await;
    assert_eq!((refused.stream, refused.reset()), (stream(200), Some(REFUSED_STREAM)));
}

/// L02: our own resets, for streams that are malformed, are bounded too (RUSTSEC-2024-0003).
#[tokio::test]
async fn malformed_streams_end_the_connection() {
    let block = block([call(TOKEN), vec![("connection", "close")]].concat());
    let frames = survives(parts(50_000, move |number| {
        frame(HEADERS, END_HEADERS | END_STREAM, stream(number), &block)
    }))
    .await;
    assert!(frames.iter().any(|frame| frame.goaway().is_some()), "{} frames", frames.len());
}

/// L03: frames that ask for work and carry none are bounded: the connection is cut long before the
/// flood is over. WINDOW_UPDATEs, which may come ten times as fast as PINGs, are held by a test of
/// `listen::frames`, for which no machine is too slow.
#[tokio::test]
async fn control_frames_without_calls_end_the_connection() {
    let setting = [0, 4, 0, 1, 0, 0];
    for (kind, stream, payload) in [
        (SETTINGS, 0, &setting[..]),
        (PING, 0, &[7; 8]),
        (PRIORITY, 1, &[0, 0, 0, 0, 9]),
        (0x42, 0, &[]),
        (RST_STREAM, 1, &[0, 0, 0, 8]),
    ] {
        let child = Child::start(None);
        token(child.address, "").await.token();
        let before = child.resident();
        let mut raw = Raw::open(child.address).await;
        // A stream that was answered: frames of it are of no effect.
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(call("/no/such")))).await;
        raw.expect(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0).await;
        let Raw { mut reader, mut writer } = raw;
        let flood = frame(kind, 0, stream, payload).repeat(200_000);
        let flooding = tokio::spawn(async move {
            // Most of it fits the buffers in between, so that what comes of it is seen at the other
            // end alone.
            let _ = writer.write_all(&flood).await;
            writer
        });
        assert!(closes(&mut reader).await, "kind {kind}: not cut");
        flooding.abort();
        token(child.address, "").await.token();
        assert!(child.resident().saturating_sub(before) < GROWTH);
    }
}

/// L03: another client's calls are answered all the while.
#[tokio::test]
async fn a_flood_does_not_stop_others() {
    let child = Child::start(None);
    let address = child.address;
    let flooding = tokio::spawn(async move {
        for _ in 0..10 {
            Raw::open(address)
                .await
                .flood(iter::repeat_n(frame(PING, 0, 0, &[7; 8]).repeat(1_000), 30))
                .await;
        }
    });
    for _ in 0..20 {
        token(address, "").await.token();
    }
    flooding.abort();
}

/// L04: empty DATA (RUSTSEC-2026-0258).
#[tokio::test]
async fn empty_data_without_end_ends_the_connection() {
    let open = frame(HEADERS, END_HEADERS, 1, &block(call(TOKEN)));
    let frames = survives(iter::once(open).chain(parts(200_000, |_| frame(DATA, 0, 1, &[])))).await;
    assert!(is_calmed(&frames), "{frames:?}");
}

/// L04: headers that go on and on (RUSTSEC-2024-0332).
#[tokio::test]
async fn continuation_without_end_ends_the_connection() {
    let open = frame(HEADERS, 0, 1, &block(call(TOKEN)));
    let header = block([("x-x", "x")]);
    let frames = survives(
        iter::once(open).chain(parts(50_000, move |_| frame(CONTINUATION, 0, 1, &header))),
    )
    .await;
    assert!(is_calmed(&frames), "{frames:?}");
}

/// L05: a client that asks and does not read is cut, and what it asked is not kept.
#[tokio::test]
async fn replies_that_are_not_read_do_not_pile_up() {
    let child = Child::start(None);
    token(child.address, "").await.token();
    let before = child.resident();
    let Raw { reader: _unread, mut writer } = Raw::open(child.address).await;
    let flood = frame(PING, 0, 0, &[7; 8]).repeat(1_000);
    until(async || {
        let written = writer.write_all(&flood);
        !matches!(tokio::time::timeout(Duration::from_millis(200), written).await, Ok(Ok(())))
    })
    .await;
    token(child.address, "").await.token();
    assert!(child.resident().saturating_sub(before) < GROWTH);
}
