//! The port under attack: what strangers send, and what must come back. Over real sockets, mostly
//! with hand-made frames.

mod child;
mod drain;
mod floods;
mod guard;
mod limits;
mod pages;
mod proxies;
mod silence;
mod support;
mod tls;
mod unread;
