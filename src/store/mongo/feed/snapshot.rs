//! Everything that judgements depend on, read at one go behind a write of this node's own: what was
//! committed before that write, by any node, is in it.

use std::sync::Arc;

use mongodb::{
    ClientSession, Collection,
    bson::{Document, RawDocumentBuf, doc},
};

use crate::{
    model::Keyset,
    store::{
        Change, Snapshot,
        mongo::{
            LONG, Shared,
            collections::{
                clients,
                family_document::revocation_of_family,
                keys,
                revocation_document::{epoch_of, revocation_of},
            },
            driver::{
                codec::{Fields, lenient},
                error::MongoError,
                schema::{CLIENTS, EPOCHS, NODES, REVOCATIONS, SIGNING_KEYS, TOKENS},
            },
        },
    },
};

/// What stands, and the keys.
pub(crate) struct Known {
    pub(crate) standing: Snapshot,
    pub(crate) keyset: Option<Keyset>,
}

impl Known {
    /// As changes, for those who may have missed some.
    pub(crate) fn changes(self) -> Vec<Change> {
        let revoked = self.standing.revocations.into_iter().map(Change::Revoked);
        let epochs = self.standing.epochs.into_iter().map(|(of, value)| Change::Epoch(of, value));
        let keyset = self.keyset.map(|keyset| Change::Keyset(Arc::new(keyset)));
        std::iter::once(Change::Missed).chain(revoked).chain(epochs).chain(keyset).collect()
    }
}

impl Shared {
    pub(crate) async fn known(&self) -> Result<Known, MongoError> {
        let (connection, node) = (self.connection.clone(), self.node.name.clone());
        let rooms = [REVOCATIONS, TOKENS, EPOCHS, CLIENTS, SIGNING_KEYS, NODES]
            .map(|name| connection.collection(name));
        let client = connection.client().clone();
        let read = async move {
            let [revocations, tokens, epochs, clients, keys, nodes] = rooms;
            let mut session = client.start_session().causal_consistency(true).await?;
            let looks = doc! { "$inc": { "looks": 1_i64 } };
            nodes.update_one(doc! { "_id": node.as_ref() }, looks).session(&mut session).await?;
            let mut standing = Snapshot::default();
            // First those that are there: the sweep moves ends from here to the revocations, never
            // back.
            let ended = doc! { "ended_until": { "$exists": true } };
            each(&tokens, ended, doc! { "ended_until": 1 }, &mut session, |found| {
                standing.revocations.push(revocation_of_family(found)?);
                Ok(())
            })
            .await?;
            each(&revocations, doc! {}, doc! { "until": 1 }, &mut session, |found| {
                standing.revocations.push(revocation_of(found)?);
                Ok(())
            })
            .await?;
            each(&epochs, doc! {}, doc! { "value": 1 }, &mut session, |found| {
                let fields = Fields::of("epoch", found);
                standing.epochs.push((epoch_of(fields.text("_id")?)?, fields.count("value")?));
                Ok(())
            })
            .await?;
            each(
                &clients,
                doc! { clients::EPOCH: { "$gt": 0 } },
                doc! { clients::EPOCH: 1 },
                &mut session,
                |found| {
                    let fields = Fields::of("client", found);
                    standing.epochs.extend(clients::epoch(fields.get("_id")?, &fields));
                    Ok(())
                },
            )
            .await?;
            let keys = keys.clone_with_type::<RawDocumentBuf>();
            let keyset = keys.find_one(doc! { "_id": keys::KEYSET }).session(&mut session).await?;
            Ok((standing, keyset.map(|raw| lenient(&raw))))
        };
        let (standing, keyset) = self.connection.within(LONG, read).await?;
        Ok(Known {
            standing,
            keyset: keyset.and_then(|keyset| self.readable(keys::decoded(&keyset))),
        })
    }
}

/// Shows each document that fits.
async fn each(
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
