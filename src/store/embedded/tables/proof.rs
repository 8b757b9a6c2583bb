//! Changes that need a proof: compared and written in one transaction.

use std::sync::Arc;

use async_trait::async_trait;

use super::{
    audiences::StoredAudience,
    clients::{self, StoredClient},
    keys,
};
use crate::{
    model::{AudienceRecord, Client, EpochOf, Epochs, FamilyId, Keyset, Revocation, Timestamp},
    store::{
        Result,
        embedded::{
            Embedded,
            engine::{
                batch::{Batch, EventText, Priority},
                error::SqliteError,
            },
        },
        proof::{Basis, Proof, ProofStore, ProvenWrite, Spent},
    },
};

#[async_trait]
impl ProofStore for Embedded {
    async fn spend(&self, proof: Proof, write: ProvenWrite) -> Result<Spent> {
        if let ProvenWrite::EndFamily { now, .. } = &write {
            self.shared.observe_time(*now);
        }
        let (priority, prepared) = (priority(&write), Prepared::new(write)?);
        self.write(priority, move |batch| {
            if batch.is_proof_valid(&proof)? { batch.apply(&prepared) } else { Ok(Spent::Unproven) }
        })
        .await
    }
}

fn priority(write: &ProvenWrite) -> Priority {
    match write {
        ProvenWrite::ReplaceClient { events, .. } => {
            events.first().map_or(Priority::Normal, |event| Priority::of(event.action))
        }
        ProvenWrite::ReplaceKeyset { event, .. } => Priority::of(event.action),
        ProvenWrite::CreateClient { .. }
        | ProvenWrite::ClaimAudience { .. }
        | ProvenWrite::ReplaceAudience { .. }
        | ProvenWrite::MoveAudience { .. }
        | ProvenWrite::ReleaseAudience { .. } => Priority::Normal,
        ProvenWrite::EndClient { .. }
        | ProvenWrite::DeleteClient { .. }
        | ProvenWrite::RaiseEpoch { .. }
        | ProvenWrite::Revoke { .. }
        | ProvenWrite::EndFamily { .. } => Priority::Revocation,
    }
}

/// Change with its texts serialized on the caller's thread.
enum Prepared {
    Create(StoredClient, bool, EventText),
    Replace(StoredClient, Vec<EventText>),
    End(StoredClient, Vec<EventText>, EventText),
    Delete { client: Box<Client>, ended: EventText, entries: Vec<EventText> },
    ClaimAudience(StoredAudience, EventText),
    ReplaceAudience(StoredAudience, EventText),
    MoveAudience(Option<Box<AudienceRecord>>, StoredAudience, Vec<EventText>),
    ReleaseAudience(AudienceRecord, EventText),
    Raise(EpochOf, EventText),
    Revoke(Revocation, EventText),
    EndFamily { id: FamilyId, now: Timestamp, until: Timestamp, entry: EventText },
    Keyset(Arc<Keyset>, EventText),
}

impl Prepared {
    fn new(write: ProvenWrite) -> Result<Self, SqliteError> {
        Ok(match write {
            ProvenWrite::CreateClient { client, of_any, event } => {
                Self::Create(StoredClient::new(&client)?, of_any, EventText::new(event)?)
            }
            ProvenWrite::ReplaceClient { client, events } => {
                Self::Replace(StoredClient::new(&client)?, EventText::all(events)?)
            }
            ProvenWrite::EndClient { client, events, ended } => Self::End(
                StoredClient::new(&client)?,
                EventText::all(events)?,
                EventText::new(ended)?,
            ),
            ProvenWrite::DeleteClient { client, ended, events } => Self::Delete {
                client,
                ended: EventText::new(ended)?,
                entries: EventText::all(events)?,
            },
            ProvenWrite::ClaimAudience { record, event } => {
                Self::ClaimAudience(StoredAudience::new(&record)?, EventText::new(event)?)
            }
            ProvenWrite::ReplaceAudience { record, event } => {
                Self::ReplaceAudience(StoredAudience::new(&record)?, EventText::new(event)?)
            }
            ProvenWrite::MoveAudience { from, record, events } => {
                Self::MoveAudience(from, StoredAudience::new(&record)?, EventText::all(events)?)
            }
            ProvenWrite::ReleaseAudience { record, event } => {
                Self::ReleaseAudience(*record, EventText::new(event)?)
            }
            ProvenWrite::RaiseEpoch { of, event } => Self::Raise(of, EventText::new(event)?),
            ProvenWrite::Revoke { revocation, event } => {
                Self::Revoke(revocation, EventText::new(event)?)
            }
            ProvenWrite::EndFamily { id, now, until, event } => {
                Self::EndFamily { id, now, until, entry: EventText::new(event)? }
            }
            ProvenWrite::ReplaceKeyset { keyset, event } => {
                Self::Keyset(Arc::new(keyset), EventText::new(event)?)
            }
        })
    }
}

impl Batch<'_> {
    /// Returns true if a proof is valid in the view of this transaction.
    fn is_proof_valid(&self, proof: &Proof) -> Result<bool, SqliteError> {
        if !proof.holds_for(clients::find(self.connection, proof.client())?.as_ref()) {
            return Ok(false);
        }
        let Basis::Token(token) = proof.basis() else { return Ok(true) };
        let current = Epochs {
            tenant: self.epoch(&EpochOf::Tenant(proof.tenant().clone()))?,
            client: self.epoch(&EpochOf::Client(proof.client().clone()))?,
            subject: self.epoch(&EpochOf::Subject(token.subject.clone()))?,
        };
        for ender in token.enders() {
            if self.is_ended(ender)? {
                return Ok(false);
            }
        }
        Ok(token.epochs.covers(current) && token.holds_under(keys::find(self.connection)?.as_ref()))
    }

    fn apply(&mut self, write: &Prepared) -> Result<Spent, SqliteError> {
        Ok(match write {
            Prepared::Create(client, of_any, entry) => {
                self.create_client(client, *of_any, entry)?.into()
            }
            Prepared::Replace(client, entries) => self.replace_client(client, entries)?.into(),
            Prepared::End(client, entries, ended) => {
                self.end_client(client, entries, ended)?.into()
            }
            Prepared::Delete { client, ended, entries } => {
                let deleted = self.delete_client(client, entries)?;
                if deleted == crate::store::Write::Done {
                    self.raise_epoch(&EpochOf::Client(client.id.clone()), ended)?;
                }
                deleted.into()
            }
            Prepared::ClaimAudience(record, entry) => self.claim_audience(record, entry)?.into(),
            Prepared::ReplaceAudience(record, entry) => {
                self.replace_audience(record, entry)?.into()
            }
            Prepared::MoveAudience(from, record, entries) => {
                self.move_audience(from.as_deref(), record, entries)?.into()
            }
            Prepared::ReleaseAudience(record, entry) => {
                self.release_audience(record, entry)?.into()
            }
            Prepared::Raise(of, entry) => {
                self.raise_epoch(of, entry)?;
                Spent::Done
            }
            Prepared::Revoke(revocation, entry) => {
                self.revoke(revocation, entry)?;
                Spent::Done
            }
            Prepared::EndFamily { id, now, until, entry } => {
                self.end_family(*id, *now, *until, entry)?;
                Spent::Done
            }
            Prepared::Keyset(keyset, entry) => self.replace_keyset(keyset, entry)?.into(),
        })
    }
}
