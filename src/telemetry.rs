//! What is written to stderr: one line per event, as text or as JSON. Stdout belongs to the
//! commands.
//!
//! Whatever a caller sent arrives escaped (O02): no line break, no terminal sequence, no text that
//! turns round. A line has an upper length. A panic is an event like others, told by its place
//! alone: its message may quote what must not be written.

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

/// Bytes of one line; a longer one is cut.
const LONGEST_LINE: usize = 16 * 1024;

/// Bytes of one text within a JSON line that is too long.
const LONGEST_TEXT: usize = 1024;

/// Starts the log on stderr, for the whole process. A second start changes nothing.
///
/// # Errors
/// What is wrong with `log.level`.
pub fn init(log: &Log) -> Result<(), &'static str> {
    let filter = config::log_filter(&log.level)?;
    let json = log.format == LogFormat::Json;
    let stderr = Escaping { inner: io::stderr, colours: !json && colours(), json };
    // Fails only where a log was started before, as by tests of one process.
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
    Ok(())
}

/// Whether stderr takes colours: a terminal that is not `dumb`, and no `NO_COLOR`.
fn colours() -> bool {
    let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal()
        && !set("NO_COLOR")
        && env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes events with everything escaped that could pass for something else. The formatter is never
/// asked for colours: it lets terminal sequences through in fields recorded with `%`
/// (tracing-subscriber 0.3.23), and they could not be told from its own.
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
    /// The level whose name is to be coloured.
    level: Option<Level>,
    json: bool,
}

impl<W: Write> Write for EscapingWriter<W> {
    /// The formatter gives a whole event at once, with its line break.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let mut line = escape(text.strip_suffix('\n').unwrap_or(&text));
        if line.len() > LONGEST_LINE {
            line = if self.json { shorten_json(&line) } else { shorten(&line, LONGEST_LINE) };
        }
        if let Some(level) = self.level {
            // The first such word is the level: only the time stands before it.
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

/// The colour of a level, as terminals number them.
const fn colour(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    }
}

/// A text with every control character, and those that turn text round or do not show, as `\uXXXX`:
/// in JSON that is the same character escaped, elsewhere it is what a reader can see.
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

/// Keeps the line an object: its long texts are cut, not the line.
fn shorten_json(line: &str) -> String {
    let Ok(serde_json::Value::Object(mut event)) = serde_json::from_str(line) else {
        return format!(
            "{{\"level\":\"ERROR\",\"message\":\"a line of {} bytes was dropped\"}}",
            line.len()
        );
    };
    for value in event.values_mut() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if text.len() > LONGEST_TEXT {
            *value = shorten(&text, LONGEST_TEXT).into();
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
        assert!(text.len() < LONGEST_LINE + 64 && text.ends_with("bytes)\n"), "{}", text.len());
        let json =
            logged(true, false, || tracing::info!(agent = %long, client_id = "kept", "called"));
        assert!(json.len() < LONGEST_LINE, "{}", json.len());
        let event: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(event["client_id"], "kept");
        assert_eq!(event["message"], "called");
    }
}
