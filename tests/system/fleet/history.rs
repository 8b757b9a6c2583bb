//! Events of a run: one line of JSON for each call, fault, audit record and sample. Times
//! are microseconds of the client's monotonic clock since the run began. There is never a secret in
//! it: tokens are named by their ids and a hash.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

/// A second, in the unit of every time here.
pub(crate) const SECOND: u64 = 1_000_000;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub(crate) enum Line {
    Run(Run),
    Call(Call),
    Fault(Fault),
    Record(Record),
    Chain(Chain),
    Sample(Sample),
}

/// Rules of the whole run; the first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) scenario: String,
    pub(crate) seed: u64,
    /// The wall clock when the monotonic one was 0, in microseconds: windows of rate limits are
    /// aligned to it.
    pub(crate) wall: u64,
    /// True if the clock counts: not in short forms, which also pass on a slow or busy machine.
    #[serde(default = "yes")]
    pub(crate) timed: bool,
    /// No call takes longer.
    pub(crate) longest: u64,
    /// Time after which every node knows of a revocation, while its store can be reached.
    pub(crate) delta: u64,
    /// Time after which every node knows of it or refuses to answer, in every case.
    pub(crate) stale: u64,
    /// Time in which a spent refresh token may be repeated.
    pub(crate) grace: u64,
    /// By how much the nodes' clocks may differ.
    pub(crate) leeway: u64,
    /// The most a node may have resident, in KiB.
    pub(crate) resident: u64,
    /// By how much that may grow, in KiB a minute; long runs only.
    pub(crate) growth: Option<u64>,
    /// Descriptors that a node may have in the end beyond those at its beginning.
    pub(crate) descriptors: u64,
    /// Clients with a budget that is meant to run out.
    pub(crate) limits: Vec<Limit>,
}

/// Histories that were kept before there was a choice are timed.
fn yes() -> bool {
    true
}

/// Budget of a client in each window of the wall clock, on all nodes together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limit {
    pub(crate) client: String,
    pub(crate) window: u64,
    /// With the overshoot that is documented.
    pub(crate) calls: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verb {
    Token,
    Refresh,
    Revoke,
    RevokeAll,
    Introspect,
    CreateClient,
    DisableClient,
}

/// One RPC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) node: String,
    pub(crate) verb: Verb,
    /// The `x-request-id` it was sent with.
    pub(crate) request: String,
    /// The calling client; for an administrator's call the client it is about.
    pub(crate) client: String,
    /// The token that was presented, judged or ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<Named>,
    pub(crate) outcome: Outcome,
    /// Tokens that were given out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) issued: Option<Issued>,
    /// The judgement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) active: Option<bool>,
}

impl Call {
    /// True if it is of this kind and succeeded.
    pub(crate) fn is_done(&self, verb: Verb) -> bool {
        self.verb == verb && self.outcome.is_ok()
    }

    /// Object that it revokes, if any: a jti, a family or a client.
    pub(crate) fn ends(&self) -> &str {
        match &self.token {
            Some(Named::Access { jti }) => jti,
            Some(Named::Refresh { family, .. } | Named::Family { family }) => family,
            None => &self.client,
        }
    }
}

/// A token by its ids.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Named {
    Access {
        jti: String,
    },
    Refresh {
        family: String,
        generation: u32,
        /// The first bytes of its SHA-256.
        print: String,
    },
    /// A whole family, as an administrator names it.
    Family {
        family: String,
    },
}

/// Content of a token answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Issued {
    pub(crate) jti: String,
    /// The earliest end of its life.
    pub(crate) until: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refresh: Option<Named>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(crate) enum Outcome {
    Ok,
    /// Nothing was changed.
    Refused {
        code: String,
        reason: String,
    },
    /// Nobody can say from the answer whether anything was changed. `TRANSPORT` where the server
    /// did not answer.
    Unknown {
        code: String,
        why: String,
        /// True if the server said when to ask again.
        #[serde(default)]
        retry: bool,
    },
}

impl Outcome {
    pub(crate) fn is_ok(&self) -> bool {
        *self == Self::Ok
    }

    pub(crate) fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }

    /// The reason of a refusal.
    pub(crate) fn reason(&self) -> Option<&str> {
        match self {
            Self::Refused { reason, .. } => Some(reason),
            Self::Ok | Self::Unknown { .. } => None,
        }
    }
}

/// Something was broken from `begin` to `end`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub(crate) name: String,
    /// The node it is about; none where it is about what all nodes stand on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<String>,
    pub(crate) begin: u64,
    pub(crate) end: u64,
    /// Further time in which calls may fail.
    pub(crate) recovery: u64,
}

/// Name of the time before the callers work.
pub(crate) const START: &str = "start";
/// Name of a time in which other programs took the processors.
pub(crate) const BUSY: &str = "busy";

impl Fault {
    /// True if no fault was made here: calls are late, and nothing more.
    pub(crate) fn is_weather(&self) -> bool {
        self.name == START || self.name == BUSY
    }

    /// True if any of these moments is in its time or that of the recovery.
    pub(crate) fn covers(&self, from: u64, to: u64) -> bool {
        self.begin <= to && from <= self.end + self.recovery
    }
}

/// A record of the audit trail, read when all was over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The chain it stands in: a node's.
    pub(crate) chain: String,
    pub(crate) sequence: i64,
    pub(crate) action: String,
    pub(crate) outcome: String,
    pub(crate) target: String,
    pub(crate) family: String,
    pub(crate) request: String,
}

/// Result of the walk of the chains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chain {
    pub(crate) by: String,
    pub(crate) intact: bool,
    pub(crate) problem: String,
}

/// Resources that a node used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) at: u64,
    pub(crate) node: String,
    /// In KiB.
    pub(crate) resident: u64,
    pub(crate) descriptors: u64,
}

/// A run as it was written down.
#[derive(Clone, Debug)]
pub(crate) struct History {
    pub(crate) run: Run,
    pub(crate) calls: Vec<Call>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) records: Vec<Record>,
    pub(crate) chains: Vec<Chain>,
    pub(crate) samples: Vec<Sample>,
}

impl History {
    pub(crate) fn new(run: Run) -> Self {
        let (calls, faults, records, chains, samples) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { run, calls, faults, records, chains, samples }
    }

    pub(crate) fn read(path: &Path) -> Self {
        let lines = BufReader::new(File::open(path).unwrap()).lines();
        let mut lines = lines.map(|line| serde_json::from_str::<Line>(&line.unwrap()).unwrap());
        let Some(Line::Run(run)) = lines.next() else {
            panic!("{} does not begin with its run", path.display())
        };
        let mut history = Self::new(run);
        for line in lines {
            history.add(line);
        }
        history.calls.sort_by_key(|call| call.start);
        history
    }

    fn add(&mut self, line: Line) {
        match line {
            Line::Run(run) => assert_eq!(run, self.run, "one file is one run"),
            Line::Call(call) => self.calls.push(call),
            Line::Fault(fault) => self.faults.push(fault),
            Line::Record(record) => self.records.push(record),
            Line::Chain(chain) => self.chains.push(chain),
            Line::Sample(sample) => self.samples.push(sample),
        }
    }

    /// True if something that this node stands on is broken at any moment of these, or may not have
    /// recovered.
    pub(crate) fn disturbed(&self, node: &str, from: u64, to: u64) -> bool {
        let concerns = |fault: &&Fault| fault.node.as_deref().is_none_or(|name| name == node);
        self.faults.iter().filter(concerns).any(|fault| fault.covers(from, to))
    }
}

/// Writes a history down.
pub(crate) struct Scribe(BufWriter<File>);

impl Scribe {
    pub(crate) fn new(path: &Path) -> Self {
        Self(BufWriter::new(File::create(path).unwrap()))
    }

    pub(crate) fn write(&mut self, line: &Line) {
        serde_json::to_writer(&mut self.0, line).unwrap();
        self.0.write_all(b"\n").unwrap();
    }

    pub(crate) fn flush(&mut self) {
        self.0.flush().unwrap();
    }
}
