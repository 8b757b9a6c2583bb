//! A run from its beginning to its verdict.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::task::JoinHandle;

use crate::{
    figures::{Figures, HEAD},
    fleet::{Fleet, Plan, watch},
    history::{BUSY, Call, Fault, History, START},
    leaks,
    process::pause,
    seed::{Chance, long},
    traffic::{Load, Traffic},
    verdict,
};

/// A fleet with callers at work.
pub(crate) struct Scene {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) chance: Chance,
    traffic: Traffic,
    watch: JoinHandle<()>,
}

impl Scene {
    pub(crate) async fn open(plan: Plan, load: Load) -> Self {
        let mut chance = Chance::new();
        let fleet = Arc::new(Fleet::start(plan, &mut chance).await);
        let traffic = Traffic::start(&fleet, &mut chance, load).await;
        // Whatever is slow the first time is not what is tried here.
        fleet.recorder.fault(START, None, 0, Duration::from_secs(2));
        pause(Duration::from_secs(2)).await;
        fleet.sample();
        let watch = tokio::spawn(watch(fleet.clone(), Duration::from_millis(500)));
        Self { fleet, chance, traffic, watch }
    }

    /// Lets the callers work undisturbed for between so many milliseconds.
    pub(crate) async fn work(&mut self, least: u64, most: u64) {
        pause(Duration::from_millis(self.chance.within(least..most))).await;
    }

    /// Ends the traffic, starts the nodes again, reads the trail, judges everything that was written down and looks for secrets in
    /// the nodes' logs and data and in these places. Panics at any violation; prints and answers the figures of each fault.
    pub(crate) async fn close(mut self, places: &[PathBuf]) -> Told {
        self.traffic.stop().await;
        self.watch.abort();
        if long() {
            // Connections that nobody uses are closed by then.
            pause(Duration::from_secs(30)).await;
        }
        self.fleet.sample();
        self.fleet.restart().await;
        self.traffic.judge_all().await;
        self.fleet.export_trail().await;
        let history = History::read(self.fleet.recorder.finished());
        let mut places = places.to_vec();
        places.extend(self.fleet.nodes.iter().flat_map(|node| [node.home.data(), node.home.path().join("log")]));
        let mut found = verdict::judge(&history);
        found.extend(leaks::judge(&self.fleet.recorder.secrets(), &places));
        let calls = history.calls.len();
        println!("{}: {calls} calls, {} records, JETON_SEED={}", history.run.scenario, history.records.len(), history.run.seed);
        let busy = history.faults.iter().filter(|fault| fault.name == BUSY).count();
        if busy > 0 {
            println!("others used this machine at {busy} looks: what failed around them is not held against the nodes");
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

/// What is known of a run that kept every promise.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) history: History,
    pub(crate) figures: Vec<Figures>,
}

impl Told {
    /// The figures of one kind of fault.
    pub(crate) fn of(&self, name: &str) -> &Figures {
        self.figures.iter().find(|figures| figures.name == name).unwrap_or_else(|| panic!("there was no {name}"))
    }

    /// Holds the longest time without a success of any kind of change, over all faults whose names begin so, to this bound. Where
    /// others took the processors that says nothing, and is said so.
    pub(crate) fn goes_on_within(&self, bound: Duration, names: &str) {
        // Unoptimised code is given more.
        let bound = if cfg!(debug_assertions) { bound * 2 } else { bound };
        let gap = self.figures.iter().filter(|figures| figures.name.starts_with(names)).map(Figures::gap).max();
        let gap = Duration::from_micros(gap.unwrap_or_else(|| panic!("there was no {names}")));
        if self.is_of_a_busy_machine() {
            println!("NOT JUDGED: the longest gap, {gap:?}, since others used this machine");
        } else {
            assert!(gap <= bound, "nothing went on for {gap:?}");
        }
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
        let faults: Vec<_> = self.history.faults.iter().filter(|fault| fault.name == name).collect();
        assert!(!faults.is_empty(), "there was no {name}");
        let during = |call: &&Call| faults.iter().any(|fault| fault.begin < call.start && call.end < fault.end);
        self.history.calls.iter().filter(|call| call.outcome.is_ok()).filter(during).collect()
    }
}
