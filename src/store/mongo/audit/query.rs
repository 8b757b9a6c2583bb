//! Queries over the audit trail: all chains together, newest first, or one chain in order.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use mongodb::bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};
use tokio::sync::broadcast;

use super::{
    AuditLog,
    node_lease::{decode_head, decode_sealed_head},
    records::{
        TIME_FIELD, UNREADABLE_TIME, chain_end_id, decoded, has_position, last_record,
        read_records, record_id, sealed, shown,
    },
    size,
};
use crate::{
    crypto::chain::{Claim, CutMark, Head},
    model::{
        Action, ClientId, Event, Principal, Record, SecretId, Subject, Timestamp,
        event::{Filter, Place},
    },
    store::{
        AuditStore, EventPage, Result, TrailSize, Writer,
        mongo::driver::{
            codec::Fields,
            error::MongoError,
            handshake::server_time,
            query::find_sorted,
            schema::{AUDIT_LOGS, NODES, WITNESSES},
        },
    },
};

/// Greatest age of the last heartbeat's sealed time for a node that counts as running. A heartbeat
/// is sent twice a second.
const HEARTBEAT_AGE_MAX: Duration = Duration::from_secs(30);

#[async_trait]
impl AuditStore for AuditLog {
    async fn append(&self, event: Event) -> Result<()> {
        Ok(self.append_event(event).await?)
    }

    async fn append_soon(&self, event: Event) -> Result<()> {
        Ok(self.append_event_soon(event).await?)
    }

    async fn page(
        &self,
        filter: &Filter,
        before: Option<&Place>,
        limit: usize,
        patience: Duration,
    ) -> Result<EventPage> {
        let mut found: Vec<Record> = Vec::new();
        if before.is_none_or(|before| before.at.millis() != UNREADABLE_TIME) {
            let page = self.timed(filter, before, limit, patience).await?;
            if page.next.is_some() {
                return Ok(page);
            }
            found = page.records;
        }
        let room = limit.saturating_sub(found.len());
        if room > 0 && filter.from.is_none() && filter.to.is_none() {
            let mut query = vec![has_position(), query(filter), has_unreadable_time()];
            let before = before.filter(|before| before.at.millis() == UNREADABLE_TIME);
            query.extend(before.map(
                |before| doc! { "_id": { "$lt": record_id(&before.chain, before.sequence) } },
            ));
            found.extend(self.shown(query, doc! { "_id": -1 }, room).await?);
        }
        let is_full = limit == 0 || found.len() >= limit;
        let next = found.last().map(Record::place).filter(|_| is_full);
        Ok(EventPage { records: found, next })
    }

    async fn chains(&self) -> Result<Vec<Arc<str>>> {
        let nodes = self.connection.collection(NODES);
        let read =
            async move { Ok(nodes.find(doc! {}).await?.try_collect::<Vec<Document>>().await?) };
        let mut names = BTreeSet::new();
        for node in self.connection.call(read).await? {
            // Others can write to the database too: a document that is not a node's is no chain
            // either.
            if let (Ok(name), Ok(Some(_))) =
                (Fields::of("node", &node).text("_id"), decode_head(&node))
            {
                names.insert(name.into());
            }
        }
        let mut after = doc! { "chain": "" };
        while let Some(name) = self.next_name(after).await? {
            after = match String::from_utf8(name) {
                Ok(name) => {
                    let behind = chain_end_id(&name);
                    names.insert(name.into());
                    behind
                }
                // No chain has such a name: its records have no position.
                Err(error) => match above(error.as_bytes()) {
                    Some(next) => doc! { "chain": next },
                    None => break,
                },
            };
        }
        Ok(names.into_iter().collect())
    }

    async fn chain(&self, name: &str, after: u64, limit: usize) -> Result<Vec<Record>> {
        let after = after.max(self.cut_at(name).await?);
        let found = read_records(&self.connection, name, after, limit).await?;
        Ok(found.iter().filter_map(shown).collect())
    }

    async fn head(&self, chain: &str) -> Result<Option<Head>> {
        let noted = self.stored_head(chain).await?;
        // The stored head lags behind the chain. After it, each record's own seal counts; records
        // that it covers and that are missing were cut off.
        let last =
            last_record(&self.connection, chain).await?.as_ref().map(own_seal).transpose()?;
        Ok(match (noted, last) {
            (Some(noted), Some(last)) if last.sequence <= noted.sequence => Some(noted),
            (noted, last) => last.or(noted),
        })
    }

    async fn writer(&self, chain: &str) -> Result<Writer> {
        if self.node.name.as_ref() == chain {
            return Ok(Writer::This);
        }
        // Includes a chain without records: its head is stored some time before its first record is
        // covered by it.
        let head =
            self.node_of(chain).await?.and_then(|node| decode_sealed_head(&node).ok().flatten());
        let head = head.filter(|head| self.node.key.check(head));
        let Some(head) = head.filter(|head| head.claim != Claim::Closed) else {
            return Ok(Writer::NotRunning);
        };
        let now = server_time(&self.connection).await?.unwrap_or(Timestamp::EPOCH);
        Ok(if is_sure(&head, now) { Writer::Another } else { Writer::NotRunning })
    }

    async fn witnesses(&self, after: Option<&Place>, limit: usize) -> Result<Vec<Record>> {
        let (mut after, mut room) = (
            after.map_or_else(
                || doc! { "chain": "" },
                |after| record_id(&after.chain, after.sequence),
            ),
            limit,
        );
        loop {
            let query = doc! { "$and": [has_position(), doc! { "event.action": WITNESSES, "_id": { "$gt": after.clone() } }] };
            let found = find_sorted(
                &self.connection,
                AUDIT_LOGS,
                query,
                doc! { "_id": 1 },
                of_records(),
                room,
            )
            .await?;
            let is_sealed =
                |found: &&Document| sealed(found).is_ok_and(|head| self.node.key.check(&head));
            let ours = found.iter().filter(is_sealed).filter_map(|found| decoded(found).ok());
            let ours: Vec<Record> = ours.take(limit).collect();
            if room == 0 || found.len() < room || !ours.is_empty() {
                return Ok(ours);
            }
            // A page of forged records only must not hide those after it.
            match found.iter().rev().find_map(|found| found.get_document("_id").ok()) {
                Some(last) => (after, room) = (last.clone(), limit),
                None => room = room.saturating_mul(2),
            }
        }
    }

    async fn cut_mark(&self, chain: &str) -> Result<Option<CutMark>> {
        self.mark_of(chain).await
    }

    async fn cut_marks(&self) -> Result<Vec<(Arc<str>, CutMark)>> {
        self.all_marks().await
    }

    async fn trail_size(&self, now: Timestamp) -> Result<TrailSize> {
        Ok(size::of_trail(&self.connection, now).await?)
    }

    fn tail(&self) -> broadcast::Receiver<Option<Arc<Record>>> {
        let records = self.chain.subscribe();
        self.remote_tail.start();
        records
    }
}

impl AuditLog {
    /// Stored head of a chain. An unreadable one counts as none: the end of the chain is then
    /// uncertain.
    async fn stored_head(&self, chain: &str) -> Result<Option<Head>, MongoError> {
        Ok(self.node_of(chain).await?.and_then(|node| decode_head(&node).ok().flatten()))
    }

    pub(super) async fn node_of(&self, chain: &str) -> Result<Option<Document>, MongoError> {
        let (nodes, id) = (self.connection.collection(NODES), chain.to_owned());
        self.connection.call(async move { Ok(nodes.find_one(doc! { "_id": id }).await?) }).await
    }

    /// Reads up to `limit` records. Documents without a position, and records below a cut, end no
    /// page.
    pub(super) async fn shown(
        &self,
        query: Vec<Document>,
        sort: Document,
        limit: usize,
    ) -> Result<Vec<Record>, MongoError> {
        let (mut records, mut seen) = (Vec::new(), 0_usize);
        loop {
            let (query, room) =
                (doc! { "$and": query.clone() }, limit.saturating_sub(records.len()));
            let page = find_sorted(
                &self.connection,
                AUDIT_LOGS,
                query,
                sort.clone(),
                of_records(),
                seen.saturating_add(room),
            )
            .await?;
            let found: Vec<Record> = page.iter().skip(seen).filter_map(shown).collect();
            let chains: BTreeSet<&str> = found.iter().map(|record| &*record.chain).collect();
            let cuts = self.cuts_of(chains.into_iter().collect()).await?;
            let is_cut = |record: &Record| {
                cuts.get(&record.chain).is_some_and(|cut| record.sequence <= *cut)
            };
            records.extend(found.into_iter().filter(|record| !is_cut(record)));
            if page.len() < seen.saturating_add(room) || records.len() >= limit {
                return Ok(records);
            }
            seen = page.len();
        }
    }

    /// Name of the next chain that has records. A chain may have very many records, so each name is
    /// looked up after the one before.
    async fn next_name(&self, after: Document) -> Result<Option<Vec<u8>>, MongoError> {
        // Up to the first `_id` of another shape.
        let mut filter = doc! { "_id": { "$gt": after, "$lt": { "chain": {} } } };
        filter.extend(has_position());
        let logs = self.connection.collection(AUDIT_LOGS).clone_with_type::<RawDocumentBuf>();
        let read = async move {
            Ok(logs.find_one(filter).sort(doc! { "_id": 1 }).projection(doc! { "_id": 1 }).await?)
        };
        let found = self.connection.call(read).await?;
        Ok(found.as_ref().and_then(|found| found.get_document("_id").ok()).and_then(name_in))
    }
}

/// Bytes of the chain's name in an `_id`: a BSON string, not necessarily UTF-8.
fn name_in(place: &RawDocument) -> Option<Vec<u8>> {
    const FIELD: &[u8] = b"\x02chain\0";
    let (length, text) = place.as_bytes().get(4..)?.strip_prefix(FIELD)?.split_first_chunk()?;
    let length = usize::try_from(i32::from_le_bytes(*length)).ok()?.checked_sub(1)?;
    text.get(..length).map(<[u8]>::to_vec)
}

/// Smallest text, by bytes, above a name that is not UTF-8.
fn above(name: &[u8]) -> Option<String> {
    let valid = std::str::from_utf8(name).map_or_else(|error| error.valid_up_to(), str::len);
    let (valid, rest) = name.split_at_checked(valid)?;
    let (mut text, mut rest) = (String::from_utf8_lossy(valid).into_owned(), rest.to_vec());
    loop {
        let next = ('\0'..=char::MAX)
            .find(|next| next.encode_utf8(&mut [0; 4]).as_bytes() > rest.as_slice());
        if let Some(next) = next {
            text.push(next);
            return Some(text);
        }
        // Above everything with this prefix.
        rest = text.pop()?.to_string().into_bytes();
        rest.push(0xff);
    }
}

/// Returns true if a head is certainly the end of its chain: it was closed, or its node runs.
pub(crate) fn is_sure(head: &Head, now: Timestamp) -> bool {
    match head.claim {
        Claim::Closed => true,
        Claim::Open { at } => now.since(at).max(at.since(now)) < HEARTBEAT_AGE_MAX,
        Claim::Record { .. } => false,
    }
}

/// Seal of a record; an invalid one for an unreadable record.
fn own_seal(document: &Document) -> Result<Head, MongoError> {
    sealed(document).or_else(|fault| {
        let Record { node, sequence, hash, .. } = shown(document).ok_or(fault)?;
        Ok(Head { node, sequence, hash, claim: Claim::Record { entry: [0; 16] }, seal: [0; 32] })
    })
}

/// Conditions of a list of records whose time is a number.
pub(super) fn of_time(filter: &Filter) -> Vec<Document> {
    // An array of times would match by each of its elements.
    let number = doc! { "$expr": { "$in": [{ "$type": "$event.at" }, ["long", "int", "double"]] } };
    vec![has_position(), query(filter), doc! { "event.at": { "$gte": i64::MIN } }, number]
}

/// Order of a list.
pub(super) fn newest_first() -> Document {
    doc! { "event.at": -1, "_id": -1 }
}

/// Projection of a record. The time is read separately, since invalid UTF-8 in the event hides its
/// later fields.
fn of_records() -> Document {
    doc! { "node": 1, "event": 1, "hash": 1, "seal": 1, "entry": 1, TIME_FIELD: "$event.at" }
}

/// Filter for records whose time cannot be read.
fn has_unreadable_time() -> Document {
    let others = [
        "string",
        "object",
        "array",
        "binData",
        "objectId",
        "bool",
        "date",
        "regex",
        "javascript",
        "timestamp",
        "minKey",
        "maxKey",
        "decimal",
        "symbol",
        "dbPointer",
        "javascriptWithScope",
        "undefined",
    ];
    let missing = doc! { "event.at": { "$exists": false } };
    doc! { "$or": [missing, { "event.at": null }, { "event.at": f64::NAN }, { "event.at": { "$type": others.as_slice() } }] }
}

/// Filter for records after a place in the common order, newest first.
pub(super) fn older_than(before: &Place) -> Document {
    let at = before.at.millis();
    let same = doc! { "event.at": at, "_id": { "$lt": record_id(&before.chain, before.sequence) } };
    // The first condition says where an index is entered.
    doc! { "event.at": { "$lte": at }, "$or": [{ "event.at": { "$lt": at } }, same] }
}

/// Filter for events that concern a client. No index answers it: see [`Filter::alternatives`].
fn about(client: &ClientId) -> Document {
    let secrets = doc! { "$gte": format!("{client}/"), "$lt": format!("{client}0") };
    let of_secret =
        doc! { "event.action": { "$in": actions_of("secret.") }, "event.target": secrets };
    let names = [client.to_string(), Subject::of_client(client).to_string()];
    doc! { "$or": [by(client), { "event.target": { "$in": names.as_slice() } }, of_secret] }
}

/// Filter for events that have a secret of a client.
fn with_secret((client, id): &(ClientId, SecretId)) -> Document {
    let target = doc! {
        "event.action": { "$in": actions_of("secret.") },
        "event.target": format!("{client}/{id}"),
    };
    let presented = doc! {
        "event.auth.method": "client_secret",
        "event.auth.id": id.as_str(),
        "$or": [by(client), { "event.target": client.as_str() }],
    };
    doc! { "$or": [target, presented] }
}

fn by(client: &ClientId) -> Document {
    doc! { "event.actor": { "client": client.as_str() } }
}

fn actions_of(prefix: &str) -> Vec<&'static str> {
    let names = Action::ALL.iter().map(|action| action.as_str());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Translates [`Filter::admits`] into a query.
pub(super) fn query(filter: &Filter) -> Document {
    let mut query = Document::new();
    if let Some(tenant) = &filter.tenant {
        query.insert("event.tenant", tenant.as_str());
    }
    match &filter.actor {
        Some(Principal::Client(client)) => {
            // The whole value: its index has the order of a list for nodes and clients alike.
            query.insert("event.actor", doc! { "client": client.as_str() });
        }
        Some(Principal::Node) => {
            query.insert("event.actor", "node");
        }
        None => {}
    }
    match &filter.action {
        // Each action with this prefix, and not a range: the index has the order of time only for
        // one action, and MongoDB merges a list of them.
        Some(action) if action.ends_with('.') => {
            let admitted = Action::ALL.iter().filter(|action| filter.admits_action(**action));
            let admitted: Vec<&str> = admitted.map(|action| action.as_str()).collect();
            query.insert("event.action", doc! { "$in": admitted });
        }
        Some(action) => drop(query.insert("event.action", action)),
        None => {}
    }
    if let Some(outcome) = filter.outcome {
        query.insert("event.outcome", outcome.as_str());
    }
    if let Some(target) = &filter.target {
        query.insert("event.target", target);
    }
    if let Some(family) = filter.family {
        query.insert("event.family", family.to_string());
    }
    let concerned = [filter.about.as_ref().map(about), filter.secret.as_ref().map(with_secret)];
    let concerned: Vec<Document> = concerned.into_iter().flatten().collect();
    if !concerned.is_empty() {
        query.insert("$and", concerned);
    }
    let mut at = Document::new();
    at.extend(filter.from.map(|from| ("$gte".to_owned(), Bson::Int64(from.millis()))));
    at.extend(filter.to.map(|to| ("$lt".to_owned(), Bson::Int64(to.millis()))));
    if !at.is_empty() {
        query.insert("event.at", at);
    }
    query
}
