//! Changes that need a proof. Proof and change are in different documents, so this takes two steps:
//! everything that the proof rests on is read, then the change is written. Nothing else happens in
//! between.

use async_trait::async_trait;
use mongodb::bson::{Document, doc};

use super::{clients, keys, revocation_document};
use crate::{
    model::{EpochOf, Epochs, FamilyId, Revoked},
    store::{
        Result,
        mongo::{
            Mongo, Shared,
            driver::{
                codec::{Fields, uuid},
                error::MongoError,
                schema::{CLIENTS, EPOCHS, REVOCATIONS, SIGNING_KEYS, TOKENS},
            },
            run_detached,
        },
        proof::{Basis, Proof, ProofStore, ProvenWrite, Spent, TokenBasis},
    },
};

#[async_trait]
impl ProofStore for Mongo {
    async fn spend(&self, proof: Proof, write: ProvenWrite) -> Result<Spent> {
        if let ProvenWrite::EndFamily { now, .. } = &write {
            self.shared.observe_time(*now);
        }
        let shared = self.shared.clone();
        let verb = async move {
            if shared.holds(&proof).await? {
                shared.write_proven(write).await
            } else {
                Ok(Spent::Unproven)
            }
        };
        run_detached(&self.shared, verb).await
    }
}

impl Shared {
    /// Returns true if a proof holds by the majority's current data. The reads run concurrently.
    async fn holds(&self, proof: &Proof) -> Result<bool, MongoError> {
        let client =
            self.latest(CLIENTS, doc! { "_id": proof.client().as_str(), "deleted": false });
        let Basis::Token(token) = proof.basis() else {
            return is_unchanged_for(proof, client.await?.as_ref());
        };
        let (client, tenant, subject, ended, keyset) = tokio::try_join!(
            client,
            self.epoch(EpochOf::Tenant(proof.tenant().clone())),
            self.epoch(EpochOf::Subject(token.subject.clone())),
            self.is_ended(token),
            self.latest(SIGNING_KEYS, doc! { "_id": keys::KEYSET }),
        )?;
        if ended || !is_unchanged_for(proof, client.as_ref())? {
            return Ok(false);
        }
        let current =
            Epochs { tenant, client: epoch_in(client.as_ref(), clients::EPOCH)?, subject };
        let keyset = keyset.as_ref().map(keys::decoded).transpose()?;
        Ok(token.epochs.covers(current) && token.holds_under(keyset.as_ref()))
    }

    /// Epoch with a document of its own: a tenant's or a subject's.
    async fn epoch(&self, of: EpochOf) -> Result<u64, MongoError> {
        let (_, id, field) = revocation_document::epoch_location(&of);
        epoch_in(self.latest(EPOCHS, doc! { "_id": id }).await?.as_ref(), field)
    }

    async fn is_ended(&self, token: &TokenBasis) -> Result<bool, MongoError> {
        for ender in token.enders() {
            if self
                .latest(REVOCATIONS, doc! { "_id": revocation_document::document_id(ender) })
                .await?
                .is_some()
            {
                return Ok(true);
            }
            // A stored family carries its end itself.
            if let Revoked::Family(FamilyId(id)) = ender
                && self.latest(TOKENS, doc! { "_id": uuid(id), "ended": true }).await?.is_some()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn write_proven(&self, write: ProvenWrite) -> Result<Spent, MongoError> {
        Ok(match write {
            ProvenWrite::CreateClient { client, of_any, event } => {
                self.create_client(&client, of_any, event).await?.into()
            }
            ProvenWrite::ReplaceClient { client, events } => {
                self.write_client(&client, events, false).await?.into()
            }
            ProvenWrite::EndClient { client, events, ended } => {
                let records = events.into_iter().chain([ended]).collect();
                self.write_client(&client, records, true).await?.into()
            }
            ProvenWrite::DeleteClient { client, ended, events } => {
                self.delete_client(&client, events, Some(ended)).await?.into()
            }
            ProvenWrite::ClaimAudience { record, event } => {
                self.claim_audience(&record, event).await?.into()
            }
            ProvenWrite::ReplaceAudience { record, event } => {
                self.replace_audience(&record, event).await?.into()
            }
            ProvenWrite::MoveAudience { from, record, events } => {
                self.move_audience(from.as_deref(), &record, events).await?.into()
            }
            ProvenWrite::ReleaseAudience { record, event } => {
                self.release_audience(&record, event).await?.into()
            }
            ProvenWrite::ReplaceKeyset { keyset, event } => {
                self.replace_keyset(&keyset, event).await?.into()
            }
            ProvenWrite::RaiseEpoch { of, event } => {
                self.raise_epoch(&of, event).await.map(|_| Spent::Done)?
            }
            ProvenWrite::Revoke { revocation, event } => {
                self.revoke(revocation, event).await.map(|()| Spent::Done)?
            }
            ProvenWrite::EndFamily { id, now, until, event } => {
                self.end_family(id, now, until, event).await.map(|()| Spent::Done)?
            }
        })
    }
}

fn is_unchanged_for(proof: &Proof, client: Option<&Document>) -> Result<bool, MongoError> {
    let client = client.map(clients::decode_without_use_counts).transpose()?;
    Ok(proof.holds_for(client.as_ref()))
}

/// Value of an epoch; 0 if it was never raised.
fn epoch_in(document: Option<&Document>, field: &str) -> Result<u64, MongoError> {
    match document.filter(|document| document.contains_key(field)) {
        Some(document) => Fields::of("epoch", document).count(field),
        None => Ok(0),
    }
}
