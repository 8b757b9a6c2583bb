//! Output: data goes to stdout, as a table for people or as JSON for programs; messages go to
//! stderr. There are no colours, so nothing to turn off.

use std::{
    fs::{self, File},
    io::{self, BufRead, IsTerminal, Write},
    os::{fd::AsFd, unix::fs::MetadataExt},
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
    /// Tables with all columns and no line broken, whatever the terminal's width.
    pub(super) wide: bool,
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

    /// Prints rows under a header. On a terminal that is too narrow for their words, columns of
    /// `spare` are left out, in its order. The server's texts are escaped: another administrator
    /// may have written them.
    pub(super) fn table(
        self,
        header: &[&str],
        rows: &[Vec<String>],
        spare: &[&str],
    ) -> Result<(), Failure> {
        // A width is known on a terminal only.
        let width = if self.wide { None } else { Table::new().width() };
        let (text, left_out) = arrange(header, rows, spare, width);
        self.line(&text)?;
        if !left_out.is_empty() {
            self.talk(&format!("left out at this width: {} (--wide)", left_out.join(", ")));
        }
        Ok(())
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

/// Returns true if what is written to stdout is discarded. A stdout that was closed is too: the
/// runtime opens it on the null device.
pub(super) fn is_stdout_discarded() -> bool {
    let stdout = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    let device = stdout.and_then(|file| file.metadata()).map(|data| data.rdev());
    let null = fs::metadata("/dev/null").map(|data| data.rdev());
    matches!((device, null), (Ok(device), Ok(null)) if device == null)
}

/// Runs a write of a service to stdout or stderr on a thread of its own, since a supervisor may read
/// neither. Returns `None` if it is not done in time.
pub(super) fn bounded<T: Send + 'static>(write: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, written) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("output".to_owned());
    thread.spawn(move || drop(done.send(write()))).ok()?;
    written.recv_timeout(READER_TIMEOUT).ok()
}

/// Blanks between two columns.
const PADDING: u16 = 2;

/// Arranges a table: no line is broken without a width, and no word with one, since a broken word
/// cannot be copied. Returns the columns that were left out, too.
fn arrange<'a>(
    header: &[&'a str],
    rows: &[Vec<String>],
    spare: &[&str],
    width: Option<u16>,
) -> (String, Vec<&'a str>) {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| escape(cell)).collect()).collect();
    let cells = |index: usize| rows.iter().filter_map(move |row| row.get(index));
    let needed: Vec<u16> = header
        .iter()
        .enumerate()
        .map(|(index, title)| {
            let words = cells(index).flat_map(|cell| cell.split_whitespace());
            let longest = words.chain(title.split_whitespace()).map(|word| word.chars().count());
            u16::try_from(longest.max().unwrap_or(0)).unwrap_or(u16::MAX).saturating_add(PADDING)
        })
        .collect();
    let mut shown = vec![true; header.len()];
    let mut left_out = Vec::new();
    // Columns without content go first, and are not worth a word.
    let is_empty = |index: &usize| !rows.is_empty() && cells(*index).all(String::is_empty);
    let empty = (0..header.len()).filter(is_empty).map(|index| (index, false));
    let spare = spare.iter().filter_map(|name| header.iter().position(|title| title == name));
    for (index, has_content) in empty.chain(spare.map(|index| (index, true))) {
        let sum = needed.iter().zip(&shown).filter(|(_, shown)| **shown);
        let sum = sum.fold(0_u16, |sum, (needed, _)| sum.saturating_add(*needed));
        if width.is_none_or(|width| sum.saturating_sub(PADDING) <= width) {
            break;
        }
        let (Some(shown), Some(title)) = (shown.get_mut(index), header.get(index)) else {
            continue;
        };
        if std::mem::take(shown) && has_content {
            left_out.push(*title);
        }
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    match width {
        Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    let kept = |index: &usize| shown.get(*index).copied().unwrap_or(true);
    let titles = header.iter().enumerate().filter(|(index, _)| kept(index));
    table.set_header(titles.map(|(_, title)| title.to_uppercase()));
    for row in &rows {
        let cells = row.iter().enumerate().filter(|(index, _)| kept(index));
        table.add_row(cells.map(|(_, cell)| cell));
    }
    let needed = needed.iter().enumerate().filter(|(index, _)| kept(index));
    for (column, (_, needed)) in table.column_iter_mut().zip(needed) {
        column.set_padding((0, PADDING));
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(*needed)));
    }
    (table.trim_fmt(), left_out)
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

    fn rows(cells: &[&[&str]]) -> Vec<Vec<String>> {
        cells.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect()
    }

    /// OPERATORS 4.17
    #[test]
    fn a_table_breaks_no_word() {
        let (long, uri) = ("a".repeat(43), "https://orders.example.com/a/long/path");
        let rows = rows(&[&[&long, uri, "orders:read orders:write"]]);
        let (text, left_out) = arrange(&["kid", "audience", "scopes"], &rows, &[], Some(80));
        for word in [long.as_str(), uri, "orders:read", "orders:write", "AUDIENCE"] {
            assert!(text.contains(word), "{word}:\n{text}");
        }
        assert!(left_out.is_empty());
    }

    #[test]
    fn columns_are_left_out_where_words_do_not_fit() {
        let header = ["kid", "alg", "state", "created", "signs from", "removed"];
        let (kid, time) = ("k".repeat(43), "2026-11-22T05:00:03Z");
        let full = rows(&[&[&kid, "EdDSA", "active", time, time, time]]);
        let spare = ["removed", "created", "alg"];
        let arranged = |rows: &[Vec<String>], width| arrange(&header, rows, &spare, width);
        let (text, left_out) = arranged(&full, Some(79));
        assert_eq!(left_out, spare);
        assert!(text.lines().all(|line| line.len() < 80), "{text}");
        assert!(text.contains(&kid) && text.contains("SIGNS") && !text.contains("EdDSA"), "{text}");
        let (text, left_out) = arranged(&full, Some(160));
        assert!(left_out.is_empty() && text.lines().count() == 2, "{text}");
        // Nothing is left out without a terminal, or with --wide.
        let (text, left_out) = arranged(&full, None);
        assert!(left_out.is_empty() && text.lines().count() == 2, "{text}");
        // An empty column goes before one with content.
        let partly = rows(&[&[&kid, "EdDSA", "active", "", time, ""]]);
        let (text, left_out) = arranged(&partly, Some(79));
        assert_eq!(left_out, ["alg"], "{text}");
        let (text, _) = arranged(&[], Some(20));
        assert!(text.contains("KID"), "{text}");
    }

    #[test]
    fn a_wide_table_has_a_line_for_each_row() {
        let scopes = "orders:read ".repeat(40);
        let rows = rows(&[&["c", &scopes], &["d", "x"]]);
        assert_eq!(arrange(&["client", "scopes"], &rows, &[], None).0.lines().count(), 3);
        assert!(arrange(&["client", "scopes"], &rows, &[], Some(80)).0.lines().count() > 3);
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
