//! Output: data goes to stdout, as a table for people or as JSON for programs; messages go to
//! stderr. There are no colours, so nothing to turn off.

use std::{
    io::{self, Write},
    sync::mpsc,
    thread,
    time::Duration,
};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

use super::error::Failure;
use crate::telemetry::escape;

/// Time that a service waits for a reader of its stdout or stderr.
const READER_TIMEOUT: Duration = Duration::from_secs(2);

/// Writer of results and messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    /// JSON instead of tables.
    pub(super) json: bool,
}

impl Output {
    /// Prints a JSON document on one line; a stream is one document a line.
    pub(super) fn document(self, document: &Value) -> Result<(), Failure> {
        self.line(&document.to_string())
    }

    /// Prints a line on stdout, unescaped.
    #[expect(clippy::unused_self, reason = "called like the other methods")]
    pub(super) fn line(self, line: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{line}")
            .and_then(|()| stdout.flush())
            .map_err(Failure::io("cannot write to stdout"))
    }

    /// Prints rows under a header. The server's texts are escaped: another administrator may have
    /// written them.
    pub(super) fn table(self, header: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(header.iter().map(|title| title.to_uppercase()));
        for row in rows {
            table.add_row(row.iter().map(|cell| escape(cell)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        self.line(&table.trim_fmt())
    }

    /// Prints the properties of one record, one a line, without the empty ones.
    pub(super) fn record(self, properties: &[(&str, String)]) -> Result<(), Failure> {
        let shown = properties.iter().filter(|(_, value)| !value.is_empty());
        let width = shown.clone().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines: Vec<String> =
            shown.map(|(name, value)| format!("{name:width$}  {}", escape(value))).collect();
        self.line(&lines.join("\n"))
    }

    /// Prints a message for people on stderr; nothing with `--json`.
    pub(super) fn talk(self, text: &str) {
        if !self.json {
            warn(text);
        }
    }

    /// Prints a failure on stderr.
    pub(super) fn fail(self, failure: &Failure) {
        if failure.is_silent() {
            return;
        }
        if self.json {
            warn(&failure.json().to_string());
        } else {
            warn(&failure.text().lines().map(escape).collect::<Vec<_>>().join("\n"));
        }
    }
}

/// Runs a write of a service to stdout or stderr on a thread of its own, since a supervisor may read
/// neither. Returns `None` if it is not done in time.
pub(super) fn bounded<T: Send + 'static>(write: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, written) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("output".to_owned());
    thread.spawn(move || drop(done.send(write()))).ok()?;
    written.recv_timeout(READER_TIMEOUT).ok()
}

/// Prints a line on stderr. An error is ignored: there is no other channel to report it on.
pub(super) fn warn(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
