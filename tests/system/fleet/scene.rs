//! A run from its beginning to its verdict.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::task::JoinHandle;

use crate::{
    fleet::{
        figures::{CHANGES, Figures, HEAD},
        history::{BUSY, Call, Fault, History, SECOND, START, Verb},
        leaks,
        nodes::{Fleet, Plan, STALE, watch},
        traffic::{Load, Traffic},
        verdict,
    },
    support::{
        process::pause,
        seed::{Chance, long},
    },
};

/// A fleet with callers at work.
pub(crate) struct FleetRun {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) chance: Chance,
    traffic: Traffic,
    watch: JoinHandle<()>,
}

impl FleetRun {
    pub(crate) async fn open(plan: Plan, load: Load) -> Self {
        let mut chance = Chance::new();
        let fleet = Arc::new(Fleet::start(plan, &mut chance).await);
        let traffic = Traffic::start(&fleet, &mut chance, load).await;
        // Whatever is slow the first time is not what is tried here.
        fleet.recorder.fault(START, None, 0, Duration::from_secs(2));
        if long() {
            pause(Duration::from_secs(2)).await;
        }
        fleet.sample();
        let watch = tokio::spawn(watch(fleet.clone(), Duration::from_millis(500)));
        Self { fleet, chance, traffic, watch }
    }

    /// Lets the callers work undisturbed for between so many milliseconds.
    pub(crate) async fn work(&mut self, least: u64, most: u64) {
        pause(Duration::from_millis(self.chance.within(least..most))).await;
    }

    /// Waits until every kind of change succeeds again.
    pub(crate) async fn goes_on(&self) {
        let recorder = &self.fleet.recorder;
        let now = recorder.now();
        let done = CHANGES.map(|verb| recorder.calls(now, 1, move |call| call.is_done(verb)));
        join_all(done).await;
    }

    /// Ends the traffic, starts the nodes again, reads the trail, judges everything that was
    /// written down and looks for secrets in the nodes' logs and data and in these places. Panics
    /// at any violation; prints and answers the figures of each fault.
    pub(crate) async fn close(mut self, places: &[PathBuf]) -> Told {
        self.traffic.stop().await;
        let stopped = self.fleet.recorder.now();
        self.watch.abort();
        if long() {
            // Connections that nobody uses are closed by then.
            pause(Duration::from_secs(30)).await;
        }
        self.fleet.sample();
        self.fleet.restart().await;
        // What comes of calls without an answer is judged when every node must know of it.
        let known = (stopped + STALE + SECOND).saturating_sub(self.fleet.recorder.now());
        pause(Duration::from_micros(known)).await;
        self.traffic.judge_all().await;
        self.fleet.export_trail().await;
        let history = History::read(self.fleet.recorder.finished());
        let mut places = places.to_vec();
        places.extend(
            self.fleet
                .nodes
                .iter()
                .flat_map(|node| [node.home.data(), node.home.path().join("log")]),
        );
        let mut found = verdict::judge(&history);
        found.extend(leaks::judge(&self.fleet.recorder.secrets(), &places));
        let calls = history.calls.len();
        println!(
            "{}: {calls} calls, {} records, JETON_TEST_SEED={}",
            history.run.scenario,
            history.records.len(),
            history.run.seed
        );
        let busy = history.faults.iter().filter(|fault| fault.name == BUSY).count();
        if busy > 0 {
            println!(
                "others used this machine at {busy} looks: what failed around them is not held \
                 against the nodes"
            );
        }
        assert!(calls > 100, "too little was done for the run to mean anything");
        for violation in found.iter().take(20) {
            println!("{violation}");
        }
        assert!(found.is_empty(), "{} violations", found.len());
        let figures = Figures::of(&history);
        println!("{HEAD}");
        for figures in &figures {
            println!("{figures}");
        }
        Told { history, figures }
    }
}

/// Result of a run that kept every promise.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) history: History,
    pub(crate) figures: Vec<Figures>,
}

impl Told {
    /// The figures of one kind of fault.
    pub(crate) fn of(&self, name: &str) -> &Figures {
        self.figures
            .iter()
            .find(|figures| figures.name == name)
            .unwrap_or_else(|| panic!("there was no {name}"))
    }

    /// Holds the longest time without a success of any kind of change, over all faults whose names
    /// begin so, to this bound, which is the same for every build. Where others took the processors
    /// that says nothing, and is said so. In short forms it is only printed.
    pub(crate) fn goes_on_within(&self, bound: Duration, names: &str) {
        let gap = self
            .figures
            .iter()
            .filter(|figures| figures.name.starts_with(names))
            .map(Figures::gap)
            .max();
        let gap = Duration::from_micros(gap.unwrap_or_else(|| panic!("there was no {names}")));
        println!(
            "{names}: some kind of change did not succeed for {gap:?}, of {bound:?} that it may \
             take"
        );
        if self.is_judged_by_the_clock() {
            assert!(gap <= bound, "{names}: nothing went on for {gap:?}, more than {bound:?}");
        }
    }

    /// Holds callers whose call failed while this was broken to one retry. As with all that depends
    /// on how long something takes, not where others took the processors.
    pub(crate) fn goes_on_with_one_retry(&self, name: &str) {
        let twice = self.failed_twice(name);
        if self.is_judged_by_the_clock() {
            assert!(twice.is_empty(), "{name}: one retry was not enough: {twice:?}");
        }
    }

    /// Changes that failed while this was broken, each with its only retry, which failed too: the
    /// next call of the same client, verb and token that began after its answer, on whichever node.
    /// Prints how many there are.
    pub(crate) fn failed_twice(&self, name: &str) -> Vec<(&Call, &Call)> {
        let faults: Vec<_> =
            self.history.faults.iter().filter(|fault| fault.name == name).collect();
        assert!(!faults.is_empty(), "there was no {name}");
        let calls = &self.history.calls;
        let is_change = |call: &Call| CHANGES.contains(&call.verb);
        let during = |call: &Call| faults.iter().any(|fault| fault.covers(call.start, call.end));
        let failed = calls
            .iter()
            .filter(|call| is_change(call) && call.outcome.is_unknown() && during(call));
        let mut twice = Vec::new();
        for call in failed {
            let same = |next: &Call| {
                next.client == call.client && next.verb == call.verb && next.token == call.token
            };
            let retry = calls.iter().find(|next| next.start > call.end && same(next));
            twice.extend(
                retry.filter(|retry| retry.outcome.is_unknown()).map(|retry| (call, retry)),
            );
        }
        println!("{name}: {} changes failed, and their only retry too", twice.len());
        twice
    }

    fn is_judged_by_the_clock(&self) -> bool {
        if !self.history.run.timed {
            return false;
        }
        let busy = self.is_of_a_busy_machine();
        if busy {
            println!("NOT JUDGED, since others used this machine");
        }
        !busy
    }

    fn is_of_a_busy_machine(&self) -> bool {
        let broken = |busy: &Fault| {
            let faults = self.history.faults.iter().filter(|fault| !fault.is_weather());
            faults.into_iter().any(|fault| fault.covers(busy.begin, busy.end + busy.recovery))
        };
        self.history.faults.iter().filter(|fault| fault.name == BUSY).any(broken)
    }

    /// Calls that began when this was broken already, and were done before it was not any more.
    pub(crate) fn done_during(&self, name: &str) -> Vec<&Call> {
        let faults: Vec<_> =
            self.history.faults.iter().filter(|fault| fault.name == name).collect();
        assert!(!faults.is_empty(), "there was no {name}");
        let during = |call: &&Call| {
            faults.iter().any(|fault| fault.begin < call.start && call.end < fault.end)
        };
        self.history.calls.iter().filter(|call| call.outcome.is_ok()).filter(during).collect()
    }

    /// True if a call that was acknowledged took a write. To end what a node knows to have been
    /// ended takes none: a Revoke is excused where somebody had tried before to end the same token
    /// or family, whatever came of it, and nowhere else.
    pub(crate) fn took_a_write(&self, call: &Call) -> bool {
        match call.verb {
            Verb::Introspect => false,
            Verb::Revoke => {
                let earlier =
                    self.history.calls.iter().take_while(|other| other.start < call.start);
                let mut tried =
                    earlier.filter(|other| matches!(other.verb, Verb::Revoke | Verb::RevokeAll));
                !tried.any(|other| other.ends() == call.ends())
            }
            Verb::Token
            | Verb::Refresh
            | Verb::RevokeAll
            | Verb::CreateClient
            | Verb::DisableClient => true,
        }
    }
}
