//! Audit events: a closed list of what can happen, and the record that a chain keeps of it.

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    auth_method::AuthMethod,
    id::{ClientId, FamilyId, SecretId, Subject, TenantId},
    principal::Principal,
    time::Timestamp,
};

/// Caller, origin and request of an event.
#[derive(Clone, Debug)]
pub struct Stamp {
    /// Time.
    pub at: Timestamp,
    /// The connection's peer address.
    pub peer: Arc<str>,
    /// The request.
    pub request_id: Arc<str>,
    /// The caller's tenant, once known.
    pub tenant: Option<TenantId>,
    /// Party that acts, once authenticated.
    pub actor: Option<Principal>,
    /// Method by which it authenticated.
    pub auth: Option<AuthMethod>,
}

impl Stamp {
    /// A stamp for what this process does by itself.
    pub fn internal(at: Timestamp) -> Self {
        Self {
            at,
            peer: "local".into(),
            request_id: "".into(),
            tenant: None,
            actor: Some(Principal::Node),
            auth: None,
        }
    }

    /// An event that went through.
    pub fn done(&self, action: Action, target: impl Into<String>) -> Event {
        self.event(action, Outcome::Ok, target.into())
    }

    /// An event that was refused; `reason` is the OAuth error code in lower case.
    pub fn refused(
        &self,
        action: Action,
        target: impl Into<String>,
        reason: &'static str,
    ) -> Event {
        Event { reason: reason.into(), ..self.event(action, Outcome::Refused, target.into()) }
    }

    fn event(&self, action: Action, outcome: Outcome, target: String) -> Event {
        Event {
            at: self.at,
            action,
            outcome,
            tenant: self.tenant.clone(),
            actor: self.actor.clone(),
            target,
            family: None,
            peer: self.peer.clone(),
            request_id: self.request_id.clone(),
            reason: Cow::Borrowed(""),
            auth: self.auth.clone(),
            recovered_from: None,
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Time. First in the serialised form, where the embedded store expects it.
    pub at: Timestamp,
    /// Action.
    pub action: Action,
    /// Outcome.
    pub outcome: Outcome,
    /// The tenant concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// Party that acted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Principal>,
    /// Target of the action.
    pub target: String,
    /// The refresh family concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<FamilyId>,
    /// The connection's peer address.
    pub peer: Arc<str>,
    /// The request.
    pub request_id: Arc<str>,
    /// OAuth error code, or an administrator's words.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub reason: Cow<'static, str>,
    /// Method by which the caller authenticated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthMethod>,
    /// The node that made the change, where it left the record of it behind and it was appended
    /// later; then the time may lie before that of the records before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered_from: Option<Arc<str>>,
}

impl Event {
    /// Returns true if a client acted, or if the target is the client, its subject or one of its
    /// secrets.
    pub fn concerns(&self, client: &ClientId) -> bool {
        self.is_by(client)
            || self.target.strip_prefix("client:") == Some(client.as_str())
            || self.target.strip_prefix(client.as_str()).is_some_and(|rest| {
                rest.is_empty() || rest.starts_with('/') && self.action.is_of_secret()
            })
    }

    /// Returns true if a secret of a client is the target, or if it was presented for the client.
    pub fn has_secret(&self, client: &ClientId, id: &SecretId) -> bool {
        let is_target = self.action.is_of_secret()
            && self.target.split_once('/') == Some((client.as_str(), id.as_str()));
        let is_presented = matches!(&self.auth, Some(AuthMethod::Secret(own)) if own == id);
        is_target || is_presented && (self.is_by(client) || self.target == client.as_str())
    }

    fn is_by(&self, client: &ClientId) -> bool {
        matches!(&self.actor, Some(Principal::Client(actor)) if actor == client)
    }

    /// Adds the refresh family concerned.
    pub fn in_family(self, family: FamilyId) -> Self {
        Self { family: Some(family), ..self }
    }

    /// Adds an administrator's reason.
    pub fn because(self, reason: String) -> Self {
        Self { reason: Cow::Owned(reason), ..self }
    }
}

/// Prefix of the actions whose target is `client/secret`.
const SECRET_ACTIONS: &str = "secret.";

/// Outcome of what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done.
    Ok,
    /// Refused.
    Refused,
}

impl Outcome {
    /// Returns the name in a record.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
        }
    }
}

/// Declares the closed list of actions with their names on the wire and in the store.
macro_rules! actions {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// Action that is recorded. The names are part of the contract: filters and alerts are
        /// written against them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Action {
            $($(#[doc = $doc])* #[serde(rename = $text)] $name,)*
        }

        impl Action {
            /// Every action.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name, as in filters and records.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// Returns true if the target is `client/secret`.
            fn is_of_secret(self) -> bool {
                self.as_str().starts_with(SECRET_ACTIONS)
            }

            /// Its sentences above, as the documentation has them too.
            #[cfg(test)]
            const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),*),)*
                }
            }
        }
    };
}

actions! {
    /// An access token was issued; the target is its jti.
    TokenIssued = "token.issued",
    /// A refresh token was exchanged for its successor; the target is the new access token's jti.
    TokenRefreshed = "token.refreshed",
    /// The same successor was returned again within the grace window; the reason names the peer of
    /// the rotation if it has another network address.
    RefreshRepeated = "refresh_token.repeated",
    /// A used refresh token was presented, or two callers used one family: the family was revoked,
    /// or all tokens of its client (`limits.revocations_per_client`), which `revocation.client` then
    /// records too. The reason is `invalid_grant`, or `shared: ...` with both peers.
    RefreshReused = "refresh_token.reused",
    /// A refresh was refused; the family is unchanged. A token that names no family of this service,
    /// or does not verify, is refused without a record.
    RefreshRefused = "refresh_token.refused",
    /// A token or family was revoked by its client, or by an administrator by the token itself. The
    /// target is the jti, or for a family its client; if another client revoked an access token, the
    /// reason names the token's client: `of client:ID`.
    TokenRevoked = "token.revoked",
    /// A caller tried to revoke another client's token.
    RevokeRefused = "token.revoke_refused",
    /// A caller failed to authenticate; the target is the client that it named, if that client
    /// exists. With the reason `slow_down` its secret was not compared. `auth` has the id inside the
    /// presented secret, as if it was a secret of the client: it may be retired, or another client's.
    AuthenticationFailed = "client.authentication_failed",
    /// Wrong secrets of a client were compared 1,000 times within an hour, from any addresses; the
    /// target is the client.
    ClientUnderAttack = "client.under_attack",
    /// An authenticated caller requested something it is not allowed.
    AccessRefused = "access.refused",
    /// A client was registered.
    ClientCreated = "client.created",
    /// `jeton admin reset` created an administrator with the master key; the target is the client.
    AdministratorReset = "administrator.reset",
    /// A client was changed; the reason names the fields, what was added and removed, and old and new
    /// values.
    ClientUpdated = "client.updated",
    /// A client was disabled.
    ClientDisabled = "client.disabled",
    /// A client was enabled.
    ClientEnabled = "client.enabled",
    /// A client was deleted.
    ClientDeleted = "client.deleted",
    /// A secret was added; the target is `client/secret`.
    SecretAdded = "secret.added",
    /// A secret was retired; the target is `client/secret`.
    SecretRetired = "secret.retired",
    /// A stored client record was not written by this service and is ignored; the target is its id.
    ClientNotAuthentic = "client.not_authentic",
    /// A tenant got an audience: its client listed it first, or, with the reason `assigned`, the
    /// operator assigned it. The target is the audience.
    AudienceClaimed = "audience.claimed",
    /// The operator or the owning tenant started to release an audience.
    AudienceReleasing = "audience.releasing",
    /// A release was cancelled because a client lists the audience, or, with the reason `assigned`,
    /// by an assignment to its tenant.
    AudienceKept = "audience.kept",
    /// The operator listed the tenant's audience for a client of another tenant. The target is the
    /// audience, the reason names the client.
    AudienceShared = "audience.shared",
    /// A client of another tenant no longer lists the tenant's audience. The target is the
    /// audience, the reason names the client.
    AudienceUnshared = "audience.unshared",
    /// An audience no longer belongs to the tenant: it was released, or, with the reason
    /// `assigned`, assigned to another tenant.
    AudienceReleased = "audience.released",
    /// A stored audience record was not written by this service and is ignored; the target is the
    /// audience.
    AudienceNotAuthentic = "audience.not_authentic",
    /// An imported secret was rehashed with jeton's parameters at its first use; the target is
    /// `client/secret`.
    SecretRehashed = "secret.rehashed",
    /// All tokens of a client were revoked.
    ClientRevoked = "revocation.client",
    /// All tokens of a tenant were revoked.
    TenantRevoked = "revocation.tenant",
    /// All tokens of a subject were revoked.
    SubjectRevoked = "revocation.subject",
    /// An administrator revoked a refresh family; the target is its client.
    FamilyRevoked = "revocation.family",
    /// An administrator revoked an access token.
    JtiRevoked = "revocation.token",
    /// The first signing keys were created.
    KeysCreated = "keys.created",
    /// A key was prepared, activated or removed.
    KeysRotated = "keys.rotated",
    /// A key was revoked, and every token that it signed.
    KeyRevoked = "keys.revoked",
    /// Heads of other nodes' chains were recorded; the target is a list of `chain:sequence:hash`.
    HeadsWitnessed = "audit.heads_witnessed",
    /// Records were removed by `audit.keep`; the target is the last one as `chain:sequence:hash`, the
    /// reason says how many and names the archive.
    TrailCut = "audit.cut",
    /// An outbox entry that no node of this service wrote was rejected; the target is its document.
    EntryRefused = "audit.entry_refused",
    /// Placeholder for an unreadable record. Never recorded.
    Unreadable = "audit.unreadable",
    /// The system clock was stepped by more than 60 s. With the reason `not followed` the service
    /// goes on by its own clock.
    ClockJumped = "clock.jumped",
    /// `jeton admin reset-clock` returned the store from a time that lay ahead to the machine's clock
    /// and revoked all tokens; the target is both times.
    ClockReset = "clock.reset",
    /// The server started.
    ServerStarted = "server.started",
    /// An export was imported.
    StoreImported = "store.imported",
    /// The server was started on a data directory that may be an older copy; the target is the
    /// reason.
    RollbackAccepted = "store.rollback_accepted",
}

/// An event with its place in a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The chain it is in, by the name of the node that began it.
    pub chain: Arc<str>,
    /// Number from 1 in each chain, without gaps.
    pub sequence: u64,
    /// The node that wrote it.
    pub node: Arc<str>,
    /// The event.
    pub event: Event,
    /// SHA-256 over the previous hash and this record: see `crypto::chain`.
    pub hash: [u8; 32],
}

impl Record {
    /// Creates the placeholder of a record that cannot be read.
    pub fn unreadable(place: Place) -> Self {
        let unknown = Stamp { actor: None, ..Stamp::internal(place.at) };
        let event = unknown.refused(Action::Unreadable, "", "unreadable");
        Self { chain: place.chain, sequence: place.sequence, node: "".into(), event, hash: [0; 32] }
    }

    /// Returns true if it is in place of a record that cannot be read.
    pub fn is_unreadable(&self) -> bool {
        self.event.action == Action::Unreadable
    }

    /// Returns its place among the records of all chains.
    pub fn place(&self) -> Place {
        Place { at: self.event.at, chain: self.chain.clone(), sequence: self.sequence }
    }
}

/// Place of a record among those of all chains: newest first means descending places. No two
/// records have the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Time of the event.
    pub at: Timestamp,
    /// The chain; names compare by their bytes.
    pub chain: Arc<str>,
    /// Its place in the chain.
    pub sequence: u64,
}

/// Filter on the trail; an empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this tenant.
    pub tenant: Option<TenantId>,
    /// Only this actor.
    pub actor: Option<Principal>,
    /// Only this action, or those that begin with it if it ends in a dot.
    pub action: Option<String>,
    /// Only this outcome.
    pub outcome: Option<Outcome>,
    /// Only this target.
    pub target: Option<String>,
    /// At or after.
    pub from: Option<Timestamp>,
    /// Before.
    pub to: Option<Timestamp>,
    /// Only events by or about this client: see [`Event::concerns`].
    pub about: Option<ClientId>,
    /// Only events about this secret of this client, and calls with it.
    pub secret: Option<(ClientId, SecretId)>,
    /// Only this refresh family.
    pub family: Option<FamilyId>,
}

impl Filter {
    /// Returns filters by fields that have an index each, instead of `about` and `secret`: what this
    /// filter admits, at least one of them admits.
    pub fn alternatives(&self) -> Vec<Self> {
        let (client, secret) = match (&self.secret, &self.about) {
            (Some((client, id)), _) => (client, Some(id)),
            (None, Some(client)) => (client, None),
            (None, None) => return vec![self.clone()],
        };
        let rest = Self { about: None, secret: None, ..self.clone() };
        let by_client = Principal::Client(client.clone());
        let is_by_other = self.actor.as_ref().is_some_and(|actor| *actor != by_client);
        let by_client = (!is_by_other).then(|| Self { actor: Some(by_client), ..rest.clone() });
        let with_target = |target: String| {
            let is_other = self.target.as_ref().is_some_and(|wanted| *wanted != target);
            (!is_other).then(|| Self { target: Some(target), ..rest.clone() })
        };
        let more = match secret {
            Some(id) => with_target(format!("{client}/{id}")),
            // Few events have a secret as their target.
            None => match self.action.as_deref() {
                None => Some(Self { action: Some(SECRET_ACTIONS.to_owned()), ..rest.clone() }),
                Some(action) if action.starts_with(SECRET_ACTIONS) => Some(rest.clone()),
                Some(_) => None,
            },
        };
        let by_name = with_target(client.to_string());
        let by_subject = with_target(Subject::of_client(client).to_string());
        by_client.into_iter().chain(by_name).chain(by_subject).chain(more).collect()
    }

    /// Returns true if events of an action may be shown.
    pub fn admits_action(&self, action: Action) -> bool {
        let action = action.as_str();
        self.action.as_ref().is_none_or(|wanted| {
            action == wanted || (wanted.ends_with('.') && action.starts_with(wanted.as_str()))
        })
    }

    /// Returns true if an event is to be shown.
    pub fn admits(&self, event: &Event) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| event.tenant.as_ref() == Some(tenant))
            && self.actor.as_ref().is_none_or(|actor| event.actor.as_ref() == Some(actor))
            && self.admits_action(event.action)
            && self.outcome.is_none_or(|outcome| event.outcome == outcome)
            && self.target.as_ref().is_none_or(|target| event.target == *target)
            && self.about.as_ref().is_none_or(|client| event.concerns(client))
            && self.secret.as_ref().is_none_or(|(client, id)| event.has_secret(client, id))
            && self.family.is_none_or(|family| event.family == Some(family))
            && self.from.is_none_or(|from| event.at >= from)
            && self.to.is_none_or(|to| event.at < to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// O03: the documentation lists every action with what it says here, and no other.
    #[test]
    fn every_action_is_documented() {
        let table: String = Action::ALL
            .iter()
            .map(|action| format!("| `{}` | {} |\n", action.as_str(), action.meaning().trim()))
            .collect();
        let document = include_str!("../../docs/audit.md");
        let listed: String = document
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(listed, table, "docs/audit.md must hold:\n{table}");
    }

    #[test]
    fn an_event_is_written_with_its_time_first() {
        for millis in [0, -7, 1_790_000_000_123, i64::MAX] {
            let event =
                Stamp::internal(Timestamp::from_millis(millis)).done(Action::TokenIssued, "");
            assert!(
                serde_json::to_string(&event).unwrap().starts_with(&format!("{{\"at\":{millis},"))
            );
        }
    }
}
