//! Results of a verification as they are printed, and the place from which it can be continued.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::{
    cli::{error::Failure, output::Output, render},
    proto::admin::{ChainState, ChainVerdict, KnownHead, VerifyTrailRequest, VerifyTrailResponse},
    telemetry::escape,
};

/// State of a verification that was not completed.
pub(super) const NOT_COMPLETE: &str = "not complete";

/// Printed results of a verification, over all of its streams.
pub(super) struct Report {
    output: Output,
    bar: ProgressBar,
    /// Results for the one document of `--json`.
    documents: Vec<Value>,
    chains: usize,
    worst: ChainState,
    last_chain: String,
    /// Records of the chains that are done.
    completed: i64,
    /// Place reached in the chain that is being read, and the number of its records so far.
    reached: Option<(KnownHead, i64)>,
    /// Records that were read before this stream began.
    before: i64,
    /// Those of them that are of the first chain of this stream.
    carried: i64,
}

impl Report {
    pub(super) fn new(output: Output) -> Self {
        Self {
            output,
            bar: bar(output),
            documents: Vec::new(),
            chains: 0,
            worst: ChainState::Intact,
            last_chain: String::new(),
            completed: 0,
            reached: None,
            before: 0,
            carried: 0,
        }
    }

    /// Returns the number of records that were read.
    pub(super) fn checked(&self) -> i64 {
        let open = self.reached.as_ref().map_or(0, |(_, open)| *open);
        self.completed.saturating_add(open)
    }

    /// Prints what a message reports. Returns true if it has the result of all.
    pub(super) fn take(&mut self, message: VerifyTrailResponse) -> Result<bool, Failure> {
        if !message.chains.is_empty() {
            self.reached = None;
        }
        let state = message.state();
        for mut verdict in message.chains {
            let carried = std::mem::take(&mut self.carried);
            verdict.checked = verdict.checked.saturating_add(carried);
            self.chain(verdict)?;
        }
        let checked = self.before.saturating_add(message.checked);
        if let Some(reached) = message.reached {
            self.reached = Some((reached, checked.saturating_sub(self.completed)));
        }
        if message.total > 0 {
            let total = self.before.saturating_add(message.total);
            self.bar.set_length(u64::try_from(total).unwrap_or(0));
        }
        self.bar.set_position(u64::try_from(checked).unwrap_or(0));
        Ok(state != ChainState::Unspecified)
    }

    /// Prints the result of one chain: a line that begins with the head to save.
    fn chain(&mut self, verdict: ChainVerdict) -> Result<(), Failure> {
        self.chains = self.chains.saturating_add(1);
        self.completed = self.completed.saturating_add(verdict.checked);
        self.worst = self.worst.max(verdict.state());
        if self.output.json {
            self.documents.push(render::verdict(&verdict));
        } else {
            let line = escape(&line(&verdict));
            self.bar.suspend(|| self.output.line(&line))?;
        }
        self.last_chain = verdict.chain;
        Ok(())
    }

    /// Changes a request so that a new stream continues where the last one was.
    pub(super) fn resume(&mut self, request: &mut VerifyTrailRequest) {
        request.after_chain.clone_from(&self.last_chain);
        request.start_after.retain(|head| head.chain > self.last_chain);
        request.start_after.extend(self.reached.clone().map(|(head, _)| head));
        self.before = self.checked();
        self.carried = self.before.saturating_sub(self.completed);
    }

    /// Prints the result of all; the failure is that there is a broken chain.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        let state = render::state(self.worst);
        if self.output.json {
            self.output.document(&json!({
                "complete": true,
                "intact": self.worst == ChainState::Intact,
                "state": state,
                "checked": self.completed,
                "chains": std::mem::take(&mut self.documents),
            }))?;
        } else {
            self.output.line(&self.summary(state))?;
        }
        match self.worst {
            ChainState::Intact | ChainState::EndNotSure => Ok(()),
            ChainState::Broken | ChainState::Unspecified => Err(Failure::Code(1)),
        }
    }

    /// Prints the place that a verification without a result has reached. Nothing more can be done
    /// about an output that cannot be written.
    pub(super) fn give_up(&mut self) {
        self.bar.finish_and_clear();
        if self.chains == 0 && self.reached.is_none() {
            return;
        }
        let reached = self.reached.as_ref();
        if self.output.json {
            let reached = reached.map(|(KnownHead { chain, sequence, hash }, _)| {
                json!({ "chain": chain, "sequence": sequence, "hash": hash })
            });
            let _ = self.output.document(&json!({
                "complete": false,
                "intact": false,
                "state": NOT_COMPLETE,
                "checked": self.checked(),
                "chains": std::mem::take(&mut self.documents),
                "reached": reached,
            }));
            return;
        }
        if let Some((KnownHead { chain, sequence, hash }, records)) = reached {
            let records = render::count(*records, "record");
            let line = format!("{chain}:{sequence}:{hash}  {NOT_COMPLETE}, {records}");
            let _ = self.output.line(&escape(&line));
        }
        let _ = self.output.line(&self.summary(NOT_COMPLETE));
    }

    fn summary(&self, state: &str) -> String {
        let chains = render::count(self.chains as u64, "chain");
        format!("{state}: {chains}, {}", render::count(self.checked(), "record"))
    }
}

/// Returns the line of one chain.
fn line(verdict: &ChainVerdict) -> String {
    let ChainVerdict { chain, first_bad_sequence, problem, head_sequence, head_hash, .. } = verdict;
    let head = format!("{chain}:{head_sequence}:{head_hash}");
    let state = render::state(verdict.state());
    let records = render::count(verdict.checked, "record");
    match verdict.state() {
        ChainState::Intact => format!("{head}  {state}, {records}"),
        ChainState::EndNotSure => {
            let witnessed = verdict.witnessed_sequence;
            format!(
                "{head}  {state}, {records}; the node stopped without closing the chain; other \
                 nodes confirm it up to record {witnessed}"
            )
        }
        ChainState::Broken | ChainState::Unspecified => {
            format!(
                "{head}  {state} at record {first_bad_sequence}: {problem}; {records} before it"
            )
        }
    }
}

/// Creates a progress bar of records, if stderr is a terminal.
fn bar(output: Output) -> ProgressBar {
    if output.json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    bar.set_draw_target(ProgressDrawTarget::stderr());
    // The template is a constant; one that does not parse is replaced by the default.
    let style = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} records {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_begins_with_the_head_and_counts_records() {
        let verdict = |state: ChainState, checked: i64| ChainVerdict {
            chain: "a:7".to_owned(),
            state: state.into(),
            checked,
            head_sequence: 3,
            head_hash: "ab".to_owned(),
            witnessed_sequence: 2,
            first_bad_sequence: 2,
            problem: "removed".to_owned(),
            ..ChainVerdict::default()
        };
        assert_eq!(line(&verdict(ChainState::Intact, 3)), "a:7:3:ab  intact, 3 records");
        assert_eq!(line(&verdict(ChainState::Intact, 1)), "a:7:3:ab  intact, 1 record");
        assert_eq!(
            line(&verdict(ChainState::Broken, 1)),
            "a:7:3:ab  broken at record 2: removed; 1 record before it"
        );
        assert_eq!(
            line(&verdict(ChainState::EndNotSure, 3)),
            "a:7:3:ab  end not sure, 3 records; the node stopped without closing the chain; other \
             nodes confirm it up to record 2"
        );
    }

    /// The numbers and the place are those of all streams together.
    #[test]
    fn a_stream_continues_where_the_last_one_was() {
        let output = Output { json: true, wide: false };
        let head = |chain: &str, sequence: i64| KnownHead {
            chain: chain.to_owned(),
            sequence,
            hash: "ab".to_owned(),
        };
        let verdict = |chain: &str, checked: i64| ChainVerdict {
            chain: chain.to_owned(),
            state: ChainState::Intact.into(),
            checked,
            ..ChainVerdict::default()
        };
        let mut report = Report::new(output);
        let progress = |checked: i64, reached: Option<KnownHead>, chains: Vec<ChainVerdict>| {
            VerifyTrailResponse { checked, total: 100, reached, chains, ..Default::default() }
        };
        report.take(progress(0, None, Vec::new())).unwrap();
        report.take(progress(30, Some(head("b", 20)), vec![verdict("a", 10)])).unwrap();
        // The chain b is done, but its result was not sent.
        report.take(progress(60, None, Vec::new())).unwrap();
        let mut request = VerifyTrailRequest {
            start_after: vec![head("a", 1), head("b", 2), head("c", 3)],
            ..VerifyTrailRequest::default()
        };
        report.resume(&mut request);
        assert_eq!(request.after_chain, "a");
        assert_eq!(request.start_after, [head("b", 2), head("c", 3), head("b", 20)]);
        assert_eq!(report.checked(), 30);
        report.take(progress(25, None, vec![verdict("b", 25)])).unwrap();
        assert_eq!(report.checked(), 55);
        assert_eq!(report.documents[1]["checked"], 45);
        let last = VerifyTrailResponse {
            state: ChainState::Intact.into(),
            ..progress(30, None, vec![verdict("c", 5)])
        };
        assert!(report.take(last).unwrap());
        assert_eq!(report.checked(), 60);
    }
}
