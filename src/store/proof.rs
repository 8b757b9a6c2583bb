//! Proofs: the credential with which a caller may change something, passed to the store together
//! with the one change it is for.
//!
//! A rule authenticates its caller, does slow work (argon2id, RSA, a wait for a permit), and only
//! then changes the store. Meanwhile the credential may have become invalid: the client disabled,
//! its secret retired, its token revoked. So the store compares it with the stored state at the
//! moment of the write; [`Spent::Unproven`] means that nothing was changed.

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
    /// Key under which the client's record is checked when it is read again.
    key: Option<RecordKey>,
}

/// Credential with which a caller authenticated.
#[derive(Debug)]
pub(super) enum Basis {
    /// Access token of the caller.
    Token(TokenBasis),
    /// Secret that is valid at this time.
    Secret(SecretId, Timestamp),
}

/// Everything that can revoke an access token.
#[derive(Debug)]
pub(super) struct TokenBasis {
    pub(super) jti: Jti,
    pub(super) family: Option<FamilyId>,
    pub(super) kid: Kid,
    pub(super) subject: Subject,
    pub(super) epochs: Epochs,
}

impl Proof {
    /// Creates a proof by an access token signed by `kid`; its client must still have `scopes`.
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

    /// Creates a proof by a secret of `client` that is valid at `now`; the client must still have
    /// `scopes`.
    pub fn by_secret(client: &Client, secret: SecretId, now: Timestamp, scopes: Scopes) -> Self {
        let basis = Basis::Secret(secret, now);
        Self { client: client.id.clone(), tenant: client.tenant.clone(), scopes, basis, key: None }
    }

    /// Adds the key under which the client's record must be authentic, for a store that seals its
    /// records.
    pub(super) fn checked_with(self, key: &RecordKey) -> Self {
        Self { key: Some(key.clone()), ..self }
    }

    /// Returns the client that authenticated.
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

    /// Returns the tenant of the client that authenticated.
    pub(super) const fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Returns true if the client's record, as it is stored now, still supports the proof. A record
    /// that is not authentic supports none: it reads as absent everywhere.
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
    /// Returns the revocations of which none may exist.
    pub(super) fn enders(&self) -> impl Iterator<Item = Revoked> {
        std::iter::once(Revoked::Token(self.jti)).chain(self.family.map(Revoked::Family))
    }

    /// Returns true if the key that signed the token still verifies.
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

/// Change that is made only if its caller's proof is still valid. Each variant is the verb of its
/// name, made conditional.
#[derive(Clone, Debug)]
pub enum ProvenWrite {
    /// [`super::ClientStore::create_client`], or [`super::ClientStore::create_client_of_any`].
    CreateClient {
        /// Client to store.
        client: Box<Client>,
        /// True if the id of a deleted client of any tenant may be used.
        of_any: bool,
        /// Audit record of the change.
        event: Event,
    },
    /// [`super::ClientStore::replace_client`].
    ReplaceClient {
        /// Client at its next revision.
        client: Box<Client>,
        /// Records of the change.
        events: Vec<Event>,
    },
    /// [`super::ClientStore::end_client`].
    EndClient {
        /// Client at its next revision.
        client: Box<Client>,
        /// Records of the change.
        events: Vec<Event>,
        /// Record of the raised epoch.
        ended: Event,
    },
    /// [`super::ClientStore::delete_client`], and the client's epoch is raised in the same commit.
    DeleteClient {
        /// Client that must be stored.
        client: Box<Client>,
        /// Record of the raised epoch.
        ended: Event,
        /// Records of the removal.
        events: Vec<Event>,
    },
    /// [`super::AudienceStore::claim_audience`].
    ClaimAudience {
        /// Record to store.
        record: Box<AudienceRecord>,
        /// Audit record of the change.
        event: Event,
    },
    /// [`super::AudienceStore::replace_audience`].
    ReplaceAudience {
        /// Record at its next revision.
        record: Box<AudienceRecord>,
        /// Audit record of the change.
        event: Event,
    },
    /// Replaces the record of an audience, also by one of another tenant.
    MoveAudience {
        /// Record that must be stored; `None`: one that is not authentic.
        from: Option<Box<AudienceRecord>>,
        /// Record to store.
        record: Box<AudienceRecord>,
        /// Audit records of the change.
        events: Vec<Event>,
    },
    /// [`super::AudienceStore::release_audience`].
    ReleaseAudience {
        /// Record that must be stored.
        record: Box<AudienceRecord>,
        /// Audit record of the change.
        event: Event,
    },
    /// [`super::RevocationStore::raise_epoch`].
    RaiseEpoch {
        /// Tenant, client or subject of the epoch.
        of: EpochOf,
        /// Audit record of the change.
        event: Event,
    },
    /// [`super::RevocationStore::revoke`].
    Revoke {
        /// Token to revoke.
        revocation: Revocation,
        /// Audit record of the change.
        event: Event,
    },
    /// [`super::FamilyStore::end_family`].
    EndFamily {
        /// Family to end.
        id: FamilyId,
        /// Time of the call.
        now: Timestamp,
        /// Time until which the revocation is kept.
        until: Timestamp,
        /// Audit record of the change.
        event: Event,
    },
    /// [`super::KeyStore::replace_keyset`].
    ReplaceKeyset {
        /// Keyset at its next revision.
        keyset: Keyset,
        /// Audit record of the change.
        event: Event,
    },
}

impl ProvenWrite {
    /// Returns the same change with another form of the client that it writes, if any.
    pub(super) fn map_client(mut self, change: impl FnOnce(Client) -> Client) -> Self {
        if let Self::CreateClient { client, .. }
        | Self::ReplaceClient { client, .. }
        | Self::EndClient { client, .. } = &mut self
        {
            **client = change((**client).clone());
        }
        self
    }

    /// Returns the same change with another form of the audience's record that it writes, if any.
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

    /// Returns the verb that it makes conditional, as metrics name it.
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
    /// Applied.
    Done,
    /// The id of a new client is taken, or the audience has a record; nothing was changed.
    Taken,
    /// Another process wrote meanwhile; nothing was changed.
    Stale,
    /// The proof is no longer valid; nothing was changed.
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

/// Changes on behalf of an administrator.
#[async_trait]
pub trait ProofStore: Send + Sync {
    /// Makes the change if the proof is still valid. A store of one process compares it inside the
    /// change's own transaction: a revocation acknowledged before it prevents it. A shared store
    /// has no transaction over two documents: it reads the state behind the proof by majority
    /// immediately before the write, so a change whose write is already in flight (one round trip,
    /// at most one store deadline) when the proof becomes invalid is still made.
    async fn spend(&self, proof: Proof, write: ProvenWrite) -> Result<Spent>;
}
