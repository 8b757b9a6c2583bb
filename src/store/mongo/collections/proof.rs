//! Changes that need a proof. Proof and change are in different documents, so this takes two steps:
//! everything that the proof rests on is read, then the change is written. Nothing else happens in
//! between.

use std::sync::Arc;

use async_trait::async_trait;
use mongodb::bson::{Document, doc};

use super::{
    audiences::Audiences, clients::Clients, families::Families, keys::StoredKeyset,
    revocations::TokenRevocations,
};
use crate::{
    model::{EpochOf, Epochs, FamilyId, Revoked},
    store::{
        Result,
        mongo::{
            audit::AuditLog,
            documents::{client, keyset, revocation},
            driver::{
                codec::{Fields, uuid},
                connection::Connection,
                error::MongoError,
                query::find_latest,
                schema::{CLIENTS, EPOCHS, REVOCATIONS, SIGNING_KEYS, TOKENS},
            },
        },
        proof::{Basis, Proof, ProofStore, ProvenWrite, Spent, TokenBasis},
    },
};

/// Collections that a proof is checked against and that a proven write changes.
#[derive(Clone)]
pub(crate) struct Proofs {
    pub(crate) connection: Arc<Connection>,
    pub(crate) audit: Arc<AuditLog>,
    pub(crate) clients: Clients,
    pub(crate) audiences: Audiences,
    pub(crate) families: Families,
    pub(crate) revocations: TokenRevocations,
    pub(crate) keys: StoredKeyset,
}

#[async_trait]
impl ProofStore for Proofs {
    async fn spend(&self, proof: Proof, write: ProvenWrite) -> Result<Spent> {
        if let ProvenWrite::EndFamily { now, .. } = &write {
            self.audit.observe_time(*now);
        }
        let proofs = self.clone();
        let verb = async move {
            if proofs.holds(&proof).await? {
                proofs.write(write).await
            } else {
                Ok(Spent::Unproven)
            }
        };
        self.connection.run_detached(verb).await
    }
}

impl Proofs {
    /// Returns true if a proof holds by the majority's current data. The reads run concurrently.
    async fn holds(&self, proof: &Proof) -> Result<bool, MongoError> {
        let client = find_latest(
            &self.connection,
            CLIENTS,
            doc! { "_id": proof.client().as_str(), "deleted": false },
        );
        let Basis::Token(token) = proof.basis() else {
            return is_unchanged_for(proof, client.await?.as_ref());
        };
        let (client, tenant, subject, ended, keyset) = tokio::try_join!(
            client,
            self.epoch(EpochOf::Tenant(proof.tenant().clone())),
            self.epoch(EpochOf::Subject(token.subject.clone())),
            self.is_ended(token),
            find_latest(&self.connection, SIGNING_KEYS, doc! { "_id": keyset::KEYSET }),
        )?;
        if ended || !is_unchanged_for(proof, client.as_ref())? {
            return Ok(false);
        }
        let current = Epochs { tenant, client: epoch_in(client.as_ref(), client::EPOCH)?, subject };
        let keyset = keyset.as_ref().map(keyset::decoded).transpose()?;
        Ok(token.epochs.covers(current) && token.holds_under(keyset.as_ref()))
    }

    /// Epoch with a document of its own: a tenant's or a subject's.
    async fn epoch(&self, of: EpochOf) -> Result<u64, MongoError> {
        let (_, id, field) = revocation::epoch_location(&of);
        epoch_in(find_latest(&self.connection, EPOCHS, doc! { "_id": id }).await?.as_ref(), field)
    }

    async fn is_ended(&self, token: &TokenBasis) -> Result<bool, MongoError> {
        for ender in token.enders() {
            if find_latest(
                &self.connection,
                REVOCATIONS,
                doc! { "_id": revocation::document_id(ender) },
            )
            .await?
            .is_some()
            {
                return Ok(true);
            }
            // A stored family carries its end itself.
            if let Revoked::Family(FamilyId(id)) = ender
                && find_latest(&self.connection, TOKENS, doc! { "_id": uuid(id), "ended": true })
                    .await?
                    .is_some()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn write(&self, write: ProvenWrite) -> Result<Spent, MongoError> {
        Ok(match write {
            ProvenWrite::CreateClient { client, of_any, event } => {
                self.clients.insert(&client, of_any, event).await?.into()
            }
            ProvenWrite::ReplaceClient { client, events } => {
                self.clients.write(&client, events, false).await?.into()
            }
            ProvenWrite::EndClient { client, events, ended } => {
                let records = events.into_iter().chain([ended]).collect();
                self.clients.write(&client, records, true).await?.into()
            }
            ProvenWrite::DeleteClient { client, ended, events } => {
                self.clients.delete(&client, events, Some(ended)).await?.into()
            }
            ProvenWrite::ClaimAudience { record, event } => {
                self.audiences.claim(&record, event).await?.into()
            }
            ProvenWrite::ReplaceAudience { record, event } => {
                self.audiences.replace(&record, event).await?.into()
            }
            ProvenWrite::MoveAudience { from, record, events } => {
                self.audiences.assign(from.as_deref(), &record, events).await?.into()
            }
            ProvenWrite::ReleaseAudience { record, event } => {
                self.audiences.release(&record, event).await?.into()
            }
            ProvenWrite::ReplaceKeyset { keyset, event } => {
                self.keys.replace(&keyset, event).await?.into()
            }
            ProvenWrite::RaiseEpoch { of, event } => {
                self.revocations.raise(&of, event).await.map(|_| Spent::Done)?
            }
            ProvenWrite::Revoke { revocation, event } => {
                self.revocations.add(revocation, event).await.map(|()| Spent::Done)?
            }
            ProvenWrite::EndFamily { id, now, until, event } => {
                self.families.end(id, now, until, event).await.map(|()| Spent::Done)?
            }
        })
    }
}

fn is_unchanged_for(proof: &Proof, client: Option<&Document>) -> Result<bool, MongoError> {
    let client = client.map(client::decode_without_use_counts).transpose()?;
    Ok(proof.holds_for(client.as_ref()))
}

/// Value of an epoch; 0 if it was never raised.
fn epoch_in(document: Option<&Document>, field: &str) -> Result<u64, MongoError> {
    match document.filter(|document| document.contains_key(field)) {
        Some(document) => Fields::of("epoch", document).count(field),
        None => Ok(0),
    }
}
