//! Log on stderr: one line per event, as text or as JSON. Stdout is for data of commands. Lines are
//! written by a thread of their own: see [`LogQueue`].
//!
//! Texts of callers are escaped (O02): no line break, no terminal sequence, no change of the
//! direction of text. A line has a maximum length. A panic is logged as an event with its source
//! location only: its message may quote a secret.

use std::{
    env,
    io::{self, IsTerminal, Write},
    panic,
};

use tracing::{Level, Metadata};
use tracing_subscriber::{fmt::MakeWriter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    config::{self, Log, LogFormat},
    model::text::is_hidden,
};

mod log_queue;

pub use log_queue::LogQueue;

/// Maximum bytes of one line; a longer one is cut.
const LINE_MAX_BYTES: usize = 16 * 1024;

/// Maximum bytes of one text within a JSON line that is too long.
const TEXT_MAX_BYTES: usize = 1024;

/// Starts the log on stderr, for the whole process, and returns its queue. A second start changes
/// nothing.
///
/// # Errors
/// The problem with `log.level`, or that the log's thread cannot be started.
pub fn init(log: &Log) -> Result<LogQueue, &'static str> {
    let filter = config::log_filter(&log.level)?;
    let json = log.format == LogFormat::Json;
    let queue = LogQueue::start(io::stderr(), |lines| {
        tracing::error!(lines, "log lines were dropped, stderr was not read");
    })
    .map_err(|_| "cannot be followed: no thread can be started")?;
    let lines = queue.clone();
    let stderr = Escaping { inner: move || lines.clone(), colours: !json && colours(), json };
    // Fails only if a log was started before, as by tests of one process.
    let _ = if json {
        let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(stderr);
        tracing_subscriber::registry().with(filter).with(layer).try_init()
    } else {
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(stderr);
        tracing_subscriber::registry().with(filter).with(layer).try_init()
    };
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panicked");
    }));
    Ok(queue)
}

/// Returns true if stderr supports colours: a terminal that is not `dumb`, and no `NO_COLOR`.
fn colours() -> bool {
    let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal()
        && !set("NO_COLOR")
        && env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes events with all control characters escaped. The formatter's own colours are off: it does
/// not escape terminal sequences in fields recorded with `%` (tracing-subscriber 0.3.23), and they
/// cannot be distinguished from its own.
#[derive(Clone, Copy)]
struct Escaping<M> {
    inner: M,
    colours: bool,
    json: bool,
}

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Escaping<M> {
    type Writer = EscapingWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        EscapingWriter { inner: self.inner.make_writer(), level: None, json: self.json }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Self::Writer {
        let level = Some(*event.level()).filter(|_| self.colours);
        EscapingWriter { inner: self.inner.make_writer_for(event), level, json: self.json }
    }
}

struct EscapingWriter<W> {
    inner: W,
    /// Level whose name is coloured.
    level: Option<Level>,
    json: bool,
}

impl<W: Write> Write for EscapingWriter<W> {
    /// Writes one event: the formatter passes a whole event, with its line break.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let mut line = escape(text.strip_suffix('\n').unwrap_or(&text));
        if line.len() > LINE_MAX_BYTES {
            line = if self.json { shorten_json(&line) } else { shorten(&line, LINE_MAX_BYTES) };
        }
        if let Some(level) = self.level {
            // The first such word is the level: only the time is before it.
            line = line.replacen(
                level.as_str(),
                &format!("\u{1b}[{}m{level}\u{1b}[0m", colour(level)),
                1,
            );
        }
        line.push('\n');
        self.inner.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Returns the ANSI colour of a level.
const fn colour(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    }
}

/// Escapes control characters, invisible characters and those that change the direction of text as
/// `\uXXXX`: in JSON that is the same character, elsewhere a reader can see it.
pub fn escape(text: &str) -> String {
    let mut line = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if c.is_control() || is_hidden(c) {
            line.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            line.push(c);
        }
    }
    line
}

fn shorten(text: &str, most: usize) -> String {
    let end = text.floor_char_boundary(most);
    let kept = text.get(..end).unwrap_or_default();
    format!("{kept}... ({} bytes)", text.len())
}

/// Shortens a JSON line: its long texts are cut, so that the line stays an object.
fn shorten_json(line: &str) -> String {
    let Ok(serde_json::Value::Object(mut event)) = serde_json::from_str(line) else {
        return format!(
            "{{\"level\":\"ERROR\",\"message\":\"a line of {} bytes was dropped\"}}",
            line.len()
        );
    };
    for value in event.values_mut() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if text.len() > TEXT_MAX_BYTES {
            *value = shorten(&text, TEXT_MAX_BYTES).into();
        }
    }
    escape(&serde_json::Value::Object(event).to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool, colours: bool, event: impl FnOnce()) -> String {
        let kept = Kept::default();
        let inner = kept.clone();
        let writer = Escaping { inner: move || inner.clone(), colours, json };
        if json {
            let layer =
                tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer);
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), event);
        } else {
            let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), event);
        }
        String::from_utf8(kept.0.lock().unwrap().clone()).unwrap()
    }

    const NASTY: &str = "a\r\nb\x1b[31mc\u{2028}d\u{202e}e\x07\u{9b}f\0\x7f";

    fn forged(line: &str) -> bool {
        line.trim_end_matches('\n').chars().any(|c| c.is_control() || is_hidden(c))
    }

    /// O02: line breaks, terminal sequences and U+2028 arrive escaped, quoted or not, and an event
    /// is one line.
    #[test]
    fn control_characters_are_escaped_in_text() {
        let line = logged(
            false,
            false,
            || tracing::info!(client_id = NASTY, peer = %NASTY, "said {NASTY}"),
        );
        assert_eq!(line.matches('\n').count(), 1, "{line:?}");
        assert!(!forged(&line), "{line:?}");
        assert!(line.contains("\\u2028"), "{line:?}");
    }

    /// O02, CVE-2025-58160: where the log itself is coloured, only its own sequences reach the
    /// terminal.
    #[test]
    fn control_characters_are_escaped_in_coloured_text() {
        let line =
            logged(false, true, || tracing::info!(peer = %"\x1b[31mred", "\x1b]0;title\x07"));
        assert!(line.contains("\x1b[32mINFO\x1b[0m"), "{line:?}");
        assert_eq!(line.matches('\x1b').count(), 2, "{line:?}");
        assert!(!line.contains('\x07'), "{line:?}");
    }

    /// O02: in JSON too, and what is read back is what was logged.
    #[test]
    fn control_characters_are_escaped_in_json() {
        let line = logged(true, false, || tracing::info!(client_id = NASTY, peer = %NASTY, "said"));
        assert_eq!(line.matches('\n').count(), 1, "{line:?}");
        assert!(!forged(&line), "{line:?}");
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["client_id"], NASTY);
        assert_eq!(event["peer"], NASTY);
    }

    /// O02: a field of 1 MiB makes a line of bounded length that is still JSON.
    #[test]
    fn long_lines_are_cut() {
        let long = "x\u{2028}".repeat(256 * 1024);
        let text = logged(false, false, || tracing::info!(agent = %long, "called"));
        assert!(text.len() < LINE_MAX_BYTES + 64 && text.ends_with("bytes)\n"), "{}", text.len());
        let json =
            logged(true, false, || tracing::info!(agent = %long, client_id = "kept", "called"));
        assert!(json.len() < LINE_MAX_BYTES, "{}", json.len());
        let event: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(event["client_id"], "kept");
        assert_eq!(event["message"], "called");
    }
}
