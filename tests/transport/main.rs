//! The port under attack: what strangers send, and what must come back. Over real sockets, mostly
//! with hand-made frames.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod child;
mod drain;
mod floods;
mod guard;
mod limits;
mod pages;
mod silence;
mod support;
mod tls;
mod unread;
