//! Full snapshot of the data that judgements depend on. Read after a write of this node, so that
//! every change committed before that write, by any node, is in it.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use mongodb::{
    ClientSession, Collection,
    bson::{Document, RawDocumentBuf, doc},
};

use super::ChangeFeed;
use crate::{
    model::Keyset,
    store::{
        Change, Snapshot,
        mongo::{
            documents::{
                client,
                family::revocation_of_family,
                keyset,
                revocation::{epoch_of, revocation_of},
            },
            driver::{
                codec::{Fields, lenient},
                connection::BACKGROUND_TIMEOUT,
                error::MongoError,
                schema::{CLIENTS, EPOCHS, NODES, REVOCATIONS, SIGNING_KEYS, TOKENS},
            },
        },
    },
};

/// Live revocations and epochs, and the keyset.
pub(crate) struct FullSnapshot {
    pub(crate) snapshot: Snapshot,
    pub(crate) keyset: Option<Keyset>,
}

impl FullSnapshot {
    /// Converts it to changes, for followers that may have missed some.
    pub(crate) fn changes(self) -> Vec<Change> {
        let revoked = self.snapshot.revocations.into_iter().map(Change::Revoked);
        let epochs = self.snapshot.epochs.into_iter().map(|(of, value)| Change::Epoch(of, value));
        let keyset = self.keyset.map(|keyset| Change::Keyset(Arc::new(keyset)));
        std::iter::once(Change::Missed).chain(revoked).chain(epochs).chain(keyset).collect()
    }
}

impl ChangeFeed {
    pub(crate) async fn read_snapshot(&self) -> Result<FullSnapshot, MongoError> {
        let (connection, node) = (self.connection.clone(), self.node.name.clone());
        let collections = [REVOCATIONS, TOKENS, EPOCHS, CLIENTS, SIGNING_KEYS, NODES]
            .map(|name| connection.collection(name));
        let client = connection.client().clone();
        let read = async move {
            let [revocations, tokens, epochs, clients, keys, nodes] = collections;
            let mut session = client.start_session().causal_consistency(true).await?;
            let looks = doc! { "$inc": { "looks": 1_i64 } };
            nodes.update_one(doc! { "_id": node.as_ref() }, looks).session(&mut session).await?;
            let mut snapshot = Snapshot::default();
            // Stored families first: the sweep moves revocations from `tokens` to `revocations`,
            // never back.
            let ended = doc! { "ended_until": { "$exists": true } };
            for_each_document(&tokens, ended, doc! { "ended_until": 1 }, &mut session, |found| {
                snapshot.revocations.push(revocation_of_family(found)?);
                Ok(())
            })
            .await?;
            for_each_document(&revocations, doc! {}, doc! { "until": 1 }, &mut session, |found| {
                snapshot.revocations.push(revocation_of(found)?);
                Ok(())
            })
            .await?;
            for_each_document(&epochs, doc! {}, doc! { "value": 1 }, &mut session, |found| {
                let fields = Fields::of("epoch", found);
                snapshot.epochs.push((epoch_of(fields.text("_id")?)?, fields.count("value")?));
                Ok(())
            })
            .await?;
            for_each_document(
                &clients,
                doc! { client::EPOCH: { "$gt": 0 } },
                doc! { client::EPOCH: 1 },
                &mut session,
                |found| {
                    let fields = Fields::of("client", found);
                    snapshot.epochs.extend(client::epoch(fields.get("_id")?, &fields));
                    Ok(())
                },
            )
            .await?;
            let keys = keys.clone_with_type::<RawDocumentBuf>();
            let keyset =
                keys.find_one(doc! { "_id": keyset::KEYSET }).session(&mut session).await?;
            Ok((snapshot, keyset.map(|raw| lenient(&raw))))
        };
        let (snapshot, keyset) = self.connection.within(BACKGROUND_TIMEOUT, read).await?;
        Ok(FullSnapshot {
            snapshot,
            keyset: keyset.and_then(|keyset| self.readable(keyset::decoded(&keyset))),
        })
    }

    /// Keyset that was read; `None` for an unreadable one, which is logged once: the last authentic
    /// keyset stays in use.
    fn readable(&self, read: Result<Keyset, MongoError>) -> Option<Keyset> {
        let is_known = self.is_keyset_unreadable.swap(read.is_err(), SeqCst);
        read.inspect_err(|fault| {
            if !is_known {
                keyset::log_refused(fault)
            }
        })
        .ok()
    }
}

/// Calls `show` for each document that matches.
async fn for_each_document(
    from: &Collection<Document>,
    filter: Document,
    fields: Document,
    session: &mut ClientSession,
    mut show: impl FnMut(&Document) -> Result<(), MongoError> + Send,
) -> Result<(), MongoError> {
    let mut cursor = from.find(filter).projection(fields).session(&mut *session).await?;
    while let Some(document) = cursor.next(session).await {
        show(&document?)?;
    }
    Ok(())
}
