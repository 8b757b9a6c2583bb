//! Proofs: the ground on which a caller may change something, handed to the store together with the
//! one change it is for.
//!
//! A rule proves its caller, does what takes long (argon2id, RSA, a wait for a place), and only
//! then changes the store. What the proof rested on may be gone by then: the client disabled, its
//! secret retired, its token revoked. So the store compares it with what is kept at the moment of
//! the write, and [`Spent::Unproven`] says that nothing was changed.

use async_trait::async_trait;

use super::Result;
use crate::{
    crypto::records::RecordKey,
    model::{
        AudienceRecord, Claims, Client, ClientId, EpochOf, Epochs, Event, FamilyId, Jti, Keyset,
        Kid, Revocation, Revoked, Scopes, SecretId, Subject, TenantId, Timestamp,
    },
};

/// Proof that a caller may make one change. It is neither copied nor cloned: [`ProofStore::spend`]
/// takes it by value, so a second change needs a second proof.
#[derive(Debug)]
#[must_use = "a proof is for the change that follows it"]
pub struct Proof {
    client: ClientId,
    tenant: TenantId,
    scopes: Scopes,
    basis: Basis,
    /// Key that the client's record is checked under when it is read again.
    key: Option<RecordKey>,
}

/// The credential that a caller proved itself with.
#[derive(Debug)]
pub(super) enum Basis {
    /// An access token of its own.
    Token(TokenBasis),
    /// A secret that works at this time.
    Secret(SecretId, Timestamp),
}

/// Everything that can end an access token before its time.
#[derive(Debug)]
pub(super) struct TokenBasis {
    pub(super) jti: Jti,
    pub(super) family: Option<FamilyId>,
    pub(super) kid: Kid,
    pub(super) subject: Subject,
    pub(super) epochs: Epochs,
}

impl Proof {
    /// Rests on an access token signed by `kid`, and on its client's still having `scopes`.
    pub fn by_token(claims: &Claims, kid: &Kid, scopes: Scopes) -> Self {
        let basis = TokenBasis {
            jti: claims.jti,
            family: claims.fam,
            kid: kid.clone(),
            subject: claims.sub.clone(),
            epochs: claims.ep,
        };
        Self {
            client: claims.client_id.clone(),
            tenant: claims.tenant.clone(),
            scopes,
            basis: Basis::Token(basis),
            key: None,
        }
    }

    /// Rests on a secret of `client` that works at `now`, and on the client's still having
    /// `scopes`.
    pub fn by_secret(client: &Client, secret: SecretId, now: Timestamp, scopes: Scopes) -> Self {
        let basis = Basis::Secret(secret, now);
        Self { client: client.id.clone(), tenant: client.tenant.clone(), scopes, basis, key: None }
    }

    /// With the key that the client's record must check under, for a store that seals its records.
    pub(super) fn checked_with(self, key: &RecordKey) -> Self {
        Self { key: Some(key.clone()), ..self }
    }

    /// The client that proved itself.
    pub const fn client(&self) -> &ClientId {
        &self.client
    }

    /// Returns true if the proof rests on an access token, false if it rests on a secret.
    pub const fn is_by_token(&self) -> bool {
        matches!(self.basis, Basis::Token(_))
    }

    pub(super) const fn basis(&self) -> &Basis {
        &self.basis
    }

    /// The tenant of the client that proved itself.
    pub(super) const fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Returns true if the client's record, as it is kept now, still carries the proof. One that
    /// does not check carries none, like one that is read for any other end.
    pub(super) fn holds_for(&self, client: Option<&Client>) -> bool {
        client.is_some_and(|client| {
            let secret_works = match &self.basis {
                Basis::Token(_) => true,
                Basis::Secret(id, now) => client.live_secrets(*now).any(|own| own.id == *id),
            };
            let is_authentic = self
                .key
                .as_ref()
                .is_none_or(|key| client.id == self.client && key.is_authentic(client));
            is_authentic
                && !client.disabled
                && client.tenant == self.tenant
                && client.scopes.lacks(&self.scopes).is_none()
                && secret_works
        })
    }
}

impl TokenBasis {
    /// Revocations of which none may exist.
    pub(super) fn enders(&self) -> impl Iterator<Item = Revoked> {
        std::iter::once(Revoked::Token(self.jti)).chain(self.family.map(Revoked::Family))
    }

    /// Returns true if the key that signed the token verifies still.
    pub(super) fn holds_under(&self, keyset: Option<&Keyset>) -> bool {
        use crate::model::KeyState;
        keyset.is_some_and(|keyset| {
            keyset
                .keys
                .iter()
                .any(|key| key.kid == self.kid && !matches!(key.state, KeyState::Revoked { .. }))
        })
    }
}

/// A change that is made only if its caller's proof still holds. Each is the verb of its name, made
/// conditional.
#[derive(Clone, Debug)]
pub enum ProvenWrite {
    /// [`super::ClientStore::create_client`], or [`super::ClientStore::create_client_of_any`].
    CreateClient {
        /// As it shall be kept.
        client: Box<Client>,
        /// Whether the id of a deleted client may be any tenant's.
        of_any: bool,
        /// Its record.
        event: Event,
    },
    /// [`super::ClientStore::replace_client`].
    ReplaceClient {
        /// One revision on.
        client: Box<Client>,
        /// Its records.
        events: Vec<Event>,
    },
    /// [`super::ClientStore::end_client`].
    EndClient {
        /// One revision on.
        client: Box<Client>,
        /// Records of the change.
        events: Vec<Event>,
        /// Record of the raised epoch.
        ended: Event,
    },
    /// [`super::ClientStore::delete_client`], and the client's epoch is raised in the same commit.
    DeleteClient {
        /// The one that must be found.
        client: Box<Client>,
        /// Record of the raised epoch.
        ended: Event,
        /// Records of the removal.
        events: Vec<Event>,
    },
    /// [`super::AudienceStore::claim_audience`].
    ClaimAudience {
        /// As it shall be kept.
        record: Box<AudienceRecord>,
        /// Its record in the trail.
        event: Event,
    },
    /// [`super::AudienceStore::replace_audience`].
    ReplaceAudience {
        /// One revision on.
        record: Box<AudienceRecord>,
        /// Its record in the trail.
        event: Event,
    },
    /// Puts a record, of whichever tenant, in the place of another.
    MoveAudience {
        /// The one that must be found; `None`: one that is not authentic.
        from: Option<Box<AudienceRecord>>,
        /// As it shall be kept.
        record: Box<AudienceRecord>,
        /// Its records in the trail.
        events: Vec<Event>,
    },
    /// [`super::AudienceStore::release_audience`].
    ReleaseAudience {
        /// The one that must be found.
        record: Box<AudienceRecord>,
        /// Its record in the trail.
        event: Event,
    },
    /// [`super::RevocationStore::raise_epoch`].
    RaiseEpoch {
        /// Whose.
        of: EpochOf,
        /// Its record.
        event: Event,
    },
    /// [`super::RevocationStore::revoke`].
    Revoke {
        /// The token.
        revocation: Revocation,
        /// Its record.
        event: Event,
    },
    /// [`super::FamilyStore::end_family`].
    EndFamily {
        /// The family.
        id: FamilyId,
        /// When.
        now: Timestamp,
        /// Until when that is remembered.
        until: Timestamp,
        /// Its record.
        event: Event,
    },
    /// [`super::KeyStore::replace_keyset`].
    ReplaceKeyset {
        /// One revision on.
        keyset: Keyset,
        /// Its record.
        event: Event,
    },
}

impl ProvenWrite {
    /// The same change with another form of the client that it writes, if it writes one.
    pub(super) fn map_client(mut self, change: impl FnOnce(Client) -> Client) -> Self {
        if let Self::CreateClient { client, .. }
        | Self::ReplaceClient { client, .. }
        | Self::EndClient { client, .. } = &mut self
        {
            **client = change((**client).clone());
        }
        self
    }

    /// The same change with another form of the audience's record that it writes, if it writes one.
    pub(super) fn map_audience(
        mut self,
        change: impl FnOnce(AudienceRecord) -> AudienceRecord,
    ) -> Self {
        if let Self::ClaimAudience { record, .. }
        | Self::ReplaceAudience { record, .. }
        | Self::MoveAudience { record, .. } = &mut self
        {
            **record = change((**record).clone());
        }
        self
    }

    /// The verb that it makes conditional, as metrics name it.
    pub(super) const fn verb(&self) -> &'static str {
        match self {
            Self::CreateClient { .. } => "create_client",
            Self::ReplaceClient { .. } => "replace_client",
            Self::EndClient { .. } => "end_client",
            Self::DeleteClient { .. } => "delete_client",
            Self::ClaimAudience { .. } => "claim_audience",
            Self::ReplaceAudience { .. } => "replace_audience",
            Self::MoveAudience { .. } => "move_audience",
            Self::ReleaseAudience { .. } => "release_audience",
            Self::RaiseEpoch { .. } => "raise_epoch",
            Self::Revoke { .. } => "revoke",
            Self::EndFamily { .. } => "end_family",
            Self::ReplaceKeyset { .. } => "replace_keyset",
        }
    }
}

/// Outcome of a change that needed a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// The change is made.
    Done,
    /// The id of a new client is taken, or the audience has a record; nothing was changed.
    Taken,
    /// Another write came in between; nothing was changed.
    Stale,
    /// The proof does not hold any more; nothing was changed.
    Unproven,
}

impl From<super::Write> for Spent {
    fn from(write: super::Write) -> Self {
        match write {
            super::Write::Done => Self::Done,
            super::Write::Stale => Self::Stale,
        }
    }
}

impl From<super::Creation> for Spent {
    fn from(creation: super::Creation) -> Self {
        match creation {
            super::Creation::Created => Self::Done,
            super::Creation::Taken => Self::Taken,
        }
    }
}

/// Changes on behalf of a caller that administers.
#[async_trait]
pub trait ProofStore: Send + Sync {
    /// Makes the change if the proof still holds. A store of one process compares it inside the
    /// change's own transaction: what was acknowledged before leaves a later change undone. A store
    /// that nodes share has no transaction over two documents: it reads what the proof rests on by
    /// majority immediately before the write, so a change whose write is already on its way (one
    /// round trip, at most one store deadline) when the proof falls is still made.
    async fn spend(&self, proof: Proof, write: ProvenWrite) -> Result<Spent>;
}
