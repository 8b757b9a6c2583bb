//! Output: data goes to stdout, as a table for people or as JSON for programs; messages go to
//! stderr. There are no colours, so nothing to turn off.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    sync::mpsc,
    thread,
    time::Duration,
};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
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
        keep_words(&mut table);
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

    /// Asks a person at a terminal; programs and pipes are not asked.
    ///
    /// # Errors
    /// The answer is not yes.
    pub(super) fn confirm(self, question: &str) -> Result<(), Failure> {
        if self.json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Ok(());
        }
        // The question is the answer's only use: if it cannot be shown, nothing is answered.
        let _ = write!(io::stderr().lock(), "{} [y/N] ", escape(question));
        agreed(&mut io::stdin().lock())
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

/// Makes each column at least as wide as its longest word: a broken word cannot be copied.
fn keep_words(table: &mut Table) {
    const PADDING: u16 = 2;
    for column in table.column_iter_mut() {
        column.set_padding((0, PADDING));
    }
    let rows = table.row_iter().chain(table.header());
    let mut widths: Vec<u16> = Vec::new();
    for row in rows {
        for (index, cell) in row.cell_iter().enumerate() {
            let words = cell.content();
            let longest = words.split_whitespace().map(|word| word.chars().count()).max();
            let longest = u16::try_from(longest.unwrap_or(0)).unwrap_or(u16::MAX);
            let needed = longest.saturating_add(PADDING);
            match widths.get_mut(index) {
                Some(width) => *width = needed.max(*width),
                None => widths.push(needed),
            }
        }
    }
    for (column, width) in table.column_iter_mut().zip(widths) {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width)));
    }
}

/// Prints a line on stderr. An error is ignored: there is no other channel to report it on.
pub(super) fn warn(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Reads one line; only `y` and `yes` agree.
fn agreed(input: &mut impl BufRead) -> Result<(), Failure> {
    let mut answer = String::new();
    input.read_line(&mut answer).map_err(Failure::io("cannot read the answer"))?;
    if ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()) {
        return Ok(());
    }
    Err(Failure::Other("not confirmed: nothing was changed (--yes does not ask)".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_breaks_no_word() {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(80);
        let (long, uri) = ("a".repeat(43), "https://orders.example.com/a/long/path");
        table.set_header(["KID", "AUDIENCE", "SCOPES"]);
        table.add_row([long.as_str(), uri, "orders:read orders:write"]);
        keep_words(&mut table);
        let text = table.to_string();
        for word in [long.as_str(), uri, "orders:read", "orders:write", "AUDIENCE"] {
            assert!(text.contains(word), "{word}:\n{text}");
        }
    }

    #[test]
    fn only_a_yes_agrees() {
        for (answer, agrees) in
            [("y\n", true), ("YES\n", true), ("n\n", false), ("\n", false), ("", false)]
        {
            assert_eq!(agreed(&mut answer.as_bytes()).is_ok(), agrees, "{answer:?}");
        }
    }
}
