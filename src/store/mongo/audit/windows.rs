//! Lists by several fields: an index has the order of time for one of them, and the others are
//! compared in the record. A list that is not answered soon is read in windows of the records of
//! the one, so that it returns what it has when its time is over, and continues there.

use std::time::Duration;

use mongodb::bson::{Document, doc};
use tokio::time::{Instant, timeout};

use super::{
    AuditLog,
    query::{newest_first, of_time, older_than, query},
};
use crate::{
    model::{
        Record, Timestamp,
        event::{Filter, Outcome, Place},
    },
    store::{
        EventPage,
        mongo::driver::{error::MongoError, schema::AUDIT_LOGS},
    },
};

/// Records of a first window, and of the greatest: some milliseconds each.
const WINDOW: std::ops::RangeInclusive<u64> = 2_000..=32_000;

/// Returns the filter of the field whose index is used, if there are others; `None` if the index
/// answers the whole filter.
fn indexed(filter: &Filter) -> Option<Filter> {
    let none = Filter { from: filter.from, to: filter.to, ..Filter::default() };
    let one = if filter.target.is_some() {
        Filter { target: filter.target.clone(), ..none }
    } else if filter.family.is_some() {
        Filter { family: filter.family, ..none }
    } else if filter.actor.is_some() {
        Filter { actor: filter.actor.clone(), ..none }
    } else if filter.action.is_some() {
        Filter { action: filter.action.clone(), ..none }
    } else if filter.tenant.is_some() {
        Filter { tenant: filter.tenant.clone(), ..none }
    } else {
        none
    };
    // An index of its own has the refusals.
    let refusals = Filter {
        outcome: Some(Outcome::Refused),
        from: filter.from,
        to: filter.to,
        ..Filter::default()
    };
    (one != *filter && refusals != *filter).then_some(one)
}

impl AuditLog {
    /// Reads records with a readable time, in windows where the filter has several fields; the
    /// place in the page is `None` if all were read.
    pub(super) async fn timed(
        &self,
        filter: &Filter,
        before: Option<&Place>,
        limit: usize,
        patience: Duration,
    ) -> Result<EventPage, MongoError> {
        let began = Instant::now();
        let mut parts = of_time(filter);
        parts.extend(before.map(older_than));
        let whole = self.shown(parts, newest_first(), limit);
        let page = |records: Vec<Record>| {
            let next = records.last().map(Record::place).filter(|_| records.len() >= limit);
            EventPage { records, next }
        };
        let Some(indexed) = indexed(filter) else { return Ok(page(whole.await?)) };
        // MongoDB may know an index that answers it better than windows do.
        let soon = patience.min(self.connection.deadline()) / 2;
        if let Ok(found) = timeout(soon, whole).await {
            return Ok(page(found?));
        }
        let (mut records, mut before): (Vec<Record>, _) = (Vec::new(), before.cloned());
        let mut window = *WINDOW.start();
        loop {
            let end = self.end_of_window(&indexed, before.as_ref(), window).await?;
            let mut part = of_time(filter);
            part.extend(before.as_ref().map(older_than));
            part.extend(end.map(|end| doc! { "event.at": { "$gte": end.millis() } }));
            let room = limit.saturating_sub(records.len());
            records.extend(self.shown(part, newest_first(), room).await?);
            if records.len() >= limit {
                let next = records.last().map(Record::place);
                return Ok(EventPage { records, next });
            }
            let Some(end) = end else { return Ok(EventPage { records, next: None }) };
            // Before every record of that time: all of them were in the window.
            before = Some(Place { at: end, chain: "".into(), sequence: 0 });
            if began.elapsed() >= patience {
                return Ok(EventPage { records, next: before });
            }
            window = window.saturating_mul(2).min(*WINDOW.end());
        }
    }

    /// Returns the time of the last record of a window; `None` if there are fewer records.
    async fn end_of_window(
        &self,
        filter: &Filter,
        before: Option<&Place>,
        window: u64,
    ) -> Result<Option<Timestamp>, MongoError> {
        let mut parts = vec![query(filter), doc! { "event.at": { "$gte": i64::MIN } }];
        parts.extend(before.map(older_than));
        let logs = self.connection.collection(AUDIT_LOGS);
        let read = async move {
            let found = logs.find_one(doc! { "$and": parts }).sort(newest_first());
            let found = found.skip(window.saturating_sub(1));
            Ok(found.projection(doc! { "_id": 0, "event.at": 1 }).await?)
        };
        let found: Option<Document> = self.connection.call(read).await?;
        let event = found.as_ref().and_then(|found| found.get_document("event").ok());
        Ok(event.and_then(|event| event.get_i64("at").ok()).map(Timestamp::from_millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_of_one_field_needs_no_windows() {
        let outcome = |outcome| Filter { outcome: Some(outcome), ..Filter::default() };
        assert_eq!(indexed(&outcome(Outcome::Refused)), None);
        assert_eq!(indexed(&outcome(Outcome::Ok)), Some(Filter::default()));
        let target = Filter { target: Some("x".to_owned()), ..Filter::default() };
        assert_eq!(indexed(&Filter::default()), None);
        assert_eq!(indexed(&target), None);
        let two = Filter { action: Some("token.".to_owned()), ..target.clone() };
        assert_eq!(indexed(&two), Some(target));
    }
}
