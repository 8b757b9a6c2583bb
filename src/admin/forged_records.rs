//! Records in the store that this service did not write: each is logged and on record once a minute
//! for as long as it is read.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    audit::Trail,
    clock::Clock,
    error::Result,
    model::{Action, Stamp, Timestamp},
    store::authentic::{Authentic, Forged},
};

/// Between two reports of one record.
const PAUSE: Duration = Duration::from_secs(60);
/// The most records that are reported within a pause.
const MOST: usize = 1_000;

/// Reports records that this service did not write.
pub struct ForgedRecords {
    pub(crate) store: Arc<Authentic>,
    pub(crate) trail: Arc<Trail>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) reported: Reported,
}

/// Time of the last report of each record.
#[derive(Default)]
pub struct Reported(Mutex<BTreeMap<Forged, Timestamp>>);

impl Reported {
    /// Returns true if a record is due to be reported.
    fn is_due(&self, forged: &Forged, now: Timestamp) -> bool {
        let mut reported = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back must not silence this until it is there again.
        reported.retain(|_, at| *at <= now && now < *at + PAUSE);
        if reported.contains_key(forged) || reported.len() >= MOST {
            return false;
        }
        reported.insert(forged.clone(), now);
        true
    }
}

impl ForgedRecords {
    /// Logs and records which records did not check since the last time. The store has refused them
    /// already. A report that it does not take is recorded later; the others are tried all the
    /// same.
    ///
    /// # Errors
    ///
    /// The first report that the store did not take.
    pub async fn report(&self) -> Result<()> {
        let mut outcome = Ok(());
        for (forged, times) in self.store.take_alarms() {
            let now = self.clock.now();
            if !self.reported.is_due(&forged, now) {
                continue;
            }
            tracing::error!(
                record = %forged, times,
                "record was not written by this service and is ignored; remove it"
            );
            let (action, target) = match &forged {
                Forged::Client(id) => (Action::ClientNotAuthentic, id.as_str()),
                Forged::Audience(audience) => (Action::AudienceNotAuthentic, audience.as_str()),
            };
            let event = Stamp::internal(now).refused(action, target, "not_authentic");
            outcome = outcome.and(self.trail.kept(None, event).await);
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_reported_once_a_minute() {
        let (reported, at) =
            (Reported::default(), |seconds: i64| Timestamp::from_seconds(1_000 + seconds));
        let due =
            |id: &str, seconds| reported.is_due(&Forged::Client(id.parse().unwrap()), at(seconds));
        assert!(due("a", 0) && due("b", 30));
        assert!(!due("a", 59) && !due("b", 89));
        assert!(due("a", 90) && due("b", 90));
        assert!(due("a", -500), "the clock was set back");
        for n in 0..MOST {
            let _ = due(&format!("c{n}"), 0);
        }
        assert!(!due("d", 0), "there is a bound");
    }
}
