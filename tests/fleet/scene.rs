//! A run from its beginning to its verdict.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::task::JoinHandle;

use crate::{
    figures::{Figures, HEAD},
    fleet::{Fleet, Plan, watch},
    history::History,
    leaks,
    seed::Chance,
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
        fleet.sample();
        let watch = tokio::spawn(watch(fleet.clone(), Duration::from_millis(500)));
        Self { fleet, chance, traffic, watch }
    }

    /// Ends the traffic, reads the trail, judges everything that was written down and looks for secrets in the nodes' logs and
    /// data and in these places. Panics at any violation; prints and answers the figures of each fault.
    pub(crate) async fn close(self, places: &[PathBuf]) -> Vec<Figures> {
        self.traffic.stop().await;
        self.watch.abort();
        self.fleet.sample();
        self.fleet.export_trail().await;
        let history = History::read(self.fleet.recorder.finished());
        let mut places = places.to_vec();
        places.extend(self.fleet.nodes.iter().flat_map(|node| [node.home.data(), node.home.path().join("log")]));
        let mut found = verdict::judge(&history);
        found.extend(leaks::judge(&self.fleet.recorder.secrets(), &places));
        let calls = history.calls.len();
        println!("{}: {calls} calls, {} records, JETON_SEED={}", history.run.scenario, history.records.len(), history.run.seed);
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
        figures
    }
}
