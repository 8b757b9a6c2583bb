//! Audit chains as they are in the database, for a node and for a reader that is none.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use mongodb::bson::{Document, RawDocument, RawDocumentBuf, doc};

use super::{
    node_lease::{decode_head, decode_sealed_head},
    query::of_records,
    records::{
        chain_end_id, decoded, has_position, last_record, read_records, record_id, sealed, shown,
    },
    retention,
};
use crate::{
    crypto::chain::{ChainKey, Claim, CutMark, Head},
    model::{Place, Record, Timestamp},
    store::{
        ChainReader, Result, Writer,
        mongo::driver::{
            codec::Fields,
            connection::Connection,
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

/// Reads of the audit chains of a database.
pub struct StoredChains {
    connection: Arc<Connection>,
    key: ChainKey,
    /// Chain of the node that reads; `None` if the reader is no node.
    own: Option<Arc<str>>,
}

impl StoredChains {
    /// Creates the reads of a node.
    pub(super) const fn of_node(connection: Arc<Connection>, key: ChainKey, own: Arc<str>) -> Self {
        Self { connection, key, own: Some(own) }
    }

    /// Creates the reads of a process that is no node.
    pub(crate) const fn of_reader(connection: Arc<Connection>, key: ChainKey) -> Self {
        Self { connection, key, own: None }
    }

    /// Stored head of a chain. An unreadable one counts as none: the end of the chain is then
    /// uncertain.
    async fn stored_head(&self, chain: &str) -> Result<Option<Head>, MongoError> {
        Ok(self.node_of(chain).await?.and_then(|node| decode_head(&node).ok().flatten()))
    }

    pub(super) async fn node_of(&self, chain: &str) -> Result<Option<Document>, MongoError> {
        let (nodes, id) = (self.connection.collection(NODES), chain.to_owned());
        self.connection.call(async move { Ok(nodes.find_one(doc! { "_id": id }).await?) }).await
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

#[async_trait]
impl ChainReader for StoredChains {
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
        let after = after.max(retention::cut_at(&self.connection, &self.key, name).await?);
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
        if self.own.as_deref() == Some(chain) {
            return Ok(Writer::This);
        }
        // Includes a chain without records: its head is stored some time before its first record is
        // covered by it.
        let head =
            self.node_of(chain).await?.and_then(|node| decode_sealed_head(&node).ok().flatten());
        let head = head.filter(|head| self.key.check(head));
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
                |found: &&Document| sealed(found).is_ok_and(|head| self.key.check(&head));
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
        Ok(retention::mark_of(&self.connection, chain).await?)
    }

    async fn cut_marks(&self) -> Result<Vec<(Arc<str>, CutMark)>> {
        Ok(retention::all_marks(&self.connection).await?)
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
