//! One command that measures jeton against a bare tonic echo, on the same cores, in alternation,
//! and prints ratios:
//!
//! ```text
//! cargo bench --bench ratios -- [--only introspect,token,refresh,revoke,p99,scale] [--rounds 5] [--seconds 5] [--jeton PATH]
//!     [--store mongodb://HOST,HOST,HOST/?replicaSet=NAME] [--smoke]
//! ```
//!
//! `--smoke` runs everything once with little of it, in seconds: not for figures, but to see that
//! every part works and no call fails. Options after it change it.
//!
//! Needs `h2load` (Debian: nghttp2-client). Everything stays on the loopback interface and in
//! cargo's directory for temporary files; only processes started here are ended.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a program that measures real time and stops at the first surprise"
)]

mod echo;
mod generator;
mod h2load;
mod plan;
mod report;
mod scale;
mod scene;
mod servers;
mod talk;

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.first().map(String::as_str) {
        // The echo is a process of its own, as jeton is: this program, called again.
        Some("echo") => echo::run(arguments[1].as_ref()),
        _ => plan::run(&plan::Options::parse(arguments)),
    }
}
