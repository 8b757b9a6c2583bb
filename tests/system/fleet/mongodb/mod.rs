//! Two nodes on a real replica set, while it is broken in every way of FAULTS section 4.2.
//!
//!   bash .ci/with-mongodb --mongod-only cargo t-system --ignored --nocapture fleet::mongodb
//!
//! The short form of each takes seconds and waits for what it needs to see, not for a time: nothing
//! in it is judged by a clock. `JETON_TEST_LONG=1` runs the long forms, one set after the other, which
//! hold the nodes to the times that README promises.

mod credentials;
mod cut;
mod frozen;
mod full;
mod killed;
mod refused;
mod schema;
mod skew;
mod soak;
mod together;

use std::{fs, time::Duration};

use tempfile::TempDir;

use crate::{
    fleet::{
        history::{Call, Verb},
        nodes::Plan,
        scene::{FleetRun, Told},
        traffic::Load,
    },
    support::{
        process::{Home, pause},
        replica::{Options, ReplicaSet},
        seed::long,
    },
};

/// A replica set with nodes on it and callers at work.
struct Stage {
    set: ReplicaSet,
    scene: FleetRun,
    /// The set's data, and what it said.
    dir: TempDir,
}

impl Stage {
    async fn open(scenario: &'static str) -> Self {
        Self::with(Plan::new(scenario, 2), Options::default(), Load::default()).await
    }

    async fn with(plan: Plan, options: Options, load: Load) -> Self {
        let dir = tempfile::Builder::new().prefix("jeton-fleet-").tempdir().unwrap();
        let data = options.dir.clone().or_else(|| Some(dir.path().join("data")));
        let set = ReplicaSet::start(Options { dir: data, ..options }).await;
        let address = dir.path().join("address");
        fs::write(&address, set.uri_of("jeton")).unwrap();
        let address = address.to_str().unwrap().to_owned();
        // The driver's pool, once it has grown, stays as it is for 20 s; there is no waiting for
        // that in a short run.
        let plan = plan
            .on(|run| run.descriptors = if long() { 10 } else { 110 })
            .with(move |_, home| on(home, &address));
        let scene = FleetRun::open(plan, load).await;
        Self { set, scene, dir }
    }

    /// Breaks something for as long as `broken` takes, which heals it, and gives it so long to
    /// recover; in the short form, until every kind of change succeeds.
    async fn fault(&mut self, name: &str, recovery: Duration, broken: impl AsyncFnOnce(&mut Self)) {
        let begin = self.scene.fleet.recorder.now();
        broken(self).await;
        self.scene.fleet.recorder.fault(name, None, begin, within(recovery));
        self.recovers(recovery).await;
    }

    async fn recovers(&self, recovery: Duration) {
        if long() {
            pause(recovery).await;
        } else {
            self.scene.goes_on().await;
        }
    }

    /// Keeps something broken for so long; in the short form, until a change has failed.
    async fn lasts(&self, time: Duration) {
        if long() {
            pause(time).await;
        } else {
            let failed = |call: &Call| call.verb != Verb::Introspect && call.outcome.is_unknown();
            self.scene.fleet.recorder.calls(0, 1, failed).await;
        }
    }

    /// Lets the callers work undisturbed for between so many milliseconds.
    async fn work(&mut self, least: u64, most: u64) {
        self.scene.work(least, most).await;
    }

    /// Ends it all and judges it, with the members' logs and data among the places where no secret
    /// may be.
    async fn close(self) -> Told {
        for index in 0..3 {
            fs::write(self.dir.path().join(format!("member-{index}.log")), self.set.log(index))
                .unwrap();
        }
        let places = [0, 1, 2].map(|index| self.dir.path().join(format!("member-{index}.log")));
        let places: Vec<_> = places.into_iter().chain([self.dir.path().join("data")]).collect();
        self.scene.close(&places).await
    }
}

/// On the store whose address is in this file.
fn on(home: Home, address: &str) -> Home {
    home.argument("--store-file").argument(address)
}

/// Bound of the long form on the time in which calls fail after a fault.
fn within(recovery: Duration) -> Duration {
    if long() { recovery } else { recovery.min(s(1)) }
}

/// Seconds.
const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
