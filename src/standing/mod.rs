//! WHAT STILL STANDS: everything a judgement depends on, in memory, fed by the store in the order of its commits. Introspect
//! reads only this: no I/O, and no lock on the way.

mod clients;
mod seen;

use std::{sync::Arc, time::Duration};

use arc_swap::{ArcSwap, Guard};
use papaya::HashMap;

use self::{clients::Clients, seen::Seen};
use crate::{
    crypto::{
        keyring::{Judging, Keyring, KeyringError, VerifiedClaims},
        seal::Sealer,
    },
    model::{Claims, Client, ClientId, EpochOf, Epochs, Jti, Keyset, Revocation, Revoked, Subject, TenantId, Timestamp},
    store::{Change, Follower, Snapshot, Store, StoreError},
};

/// How far other machines' clocks, and this one's steps, may be off: what was revoked is remembered this much longer than any
/// token it covers (V07).
pub const SLACK: Duration = Duration::from_secs(3_600);

/// The index of what still stands.
pub struct Standing {
    revoked: HashMap<Revoked, Timestamp>,
    tenants: HashMap<TenantId, u64>,
    of_clients: HashMap<ClientId, u64>,
    subjects: HashMap<Subject, u64>,
    keys: ArcSwap<Keyring>,
    opening: Opening,
    clients: Clients,
    seen: Seen,
}

/// What a keyset is opened with.
pub struct Opening {
    /// The master key.
    pub sealer: Arc<Sealer>,
    /// The `iss` of every token.
    pub issuer: Arc<str>,
    /// Bounds on claims.
    pub judging: Judging,
}

impl Opening {
    fn keyring(&self, keyset: &Keyset) -> Result<Keyring, KeyringError> {
        Keyring::open(keyset, &self.sealer, &self.issuer, self.judging)
    }
}

impl Standing {
    /// An index that knows the keys and nothing else yet.
    pub fn new(keyset: &Keyset, opening: Opening) -> Result<Self, KeyringError> {
        let keys = ArcSwap::from_pointee(opening.keyring(keyset)?);
        Ok(Self {
            revoked: HashMap::new(),
            tenants: HashMap::new(),
            of_clients: HashMap::new(),
            subjects: HashMap::new(),
            keys,
            opening,
            clients: Clients::default(),
            seen: Seen::default(),
        })
    }

    /// Takes in everything that stood when the store began to be followed.
    pub fn load(&self, snapshot: Snapshot) {
        for revocation in snapshot.revocations {
            self.apply(&Change::Revoked(revocation));
        }
        for (of, value) in snapshot.epochs {
            self.apply(&Change::Epoch(of, value));
        }
    }

    /// The claims of an access token that stands at `now`; `None` for every other text, whatever is wrong with it. A token seen
    /// before is not verified again, but everything that can change is checked on every hit.
    pub fn judge(&self, token: &str, now: Timestamp) -> Option<Arc<VerifiedClaims>> {
        let digest = Seen::digest(token);
        let claims = match self.seen.recall(&digest) {
            Some(claims) => claims,
            None => {
                let claims = Arc::new(self.keys.load().verify(token, now)?);
                self.seen.remember(digest, claims.clone());
                claims
            }
        };
        self.stands(&claims, now).then_some(claims)
    }

    /// Whether claims that were verified before stand at `now`.
    pub fn stands(&self, verified: &VerifiedClaims, now: Timestamp) -> bool {
        let claims = verified.claims();
        claims.exp > now.seconds()
            && self.keys.load().stands(verified.kid())
            && !self.is_revoked(&Revoked::Token(claims.jti))
            && claims.fam.is_none_or(|family| !self.is_revoked(&Revoked::Family(family)))
            && self.reaches(claims)
    }

    fn reaches(&self, claims: &Claims) -> bool {
        claims.ep.reach(self.epochs(&claims.tenant, &claims.client_id, &claims.sub))
    }

    fn is_revoked(&self, revoked: &Revoked) -> bool {
        self.revoked.pin().contains_key(revoked)
    }

    /// Whether this token was ended by itself.
    pub fn token_was_revoked(&self, jti: Jti) -> bool {
        self.is_revoked(&Revoked::Token(jti))
    }

    /// The epochs a token minted now must carry. Read them before anything else about the client: what is raised in between
    /// then ends the token.
    pub fn epochs(&self, tenant: &TenantId, client: &ClientId, subject: &Subject) -> Epochs {
        Epochs {
            tenant: self.tenants.pin().get(tenant).copied().unwrap_or(0),
            client: self.of_clients.pin().get(client).copied().unwrap_or(0),
            subject: self.subjects.pin().get(subject).copied().unwrap_or(0),
        }
    }

    /// The keys as they stand.
    pub fn keyring(&self) -> Guard<Arc<Keyring>> {
        self.keys.load()
    }

    /// A client, from memory or from the store.
    pub async fn client(&self, store: &dyn Store, id: &ClientId) -> Result<Option<Arc<Client>>, StoreError> {
        Ok(self.clients.look_up(id, store.client(id)).await?.0)
    }

    /// The same, and whether the store was asked.
    pub async fn look_up(&self, store: &dyn Store, id: &ClientId) -> Result<(Option<Arc<Client>>, bool), StoreError> {
        self.clients.look_up(id, store.client(id)).await
    }

    /// Forgets revocations of what has expired; how many went.
    pub fn sweep(&self, now: Timestamp) -> usize {
        let revoked = self.revoked.pin();
        let before = revoked.len();
        revoked.retain(|_, until| *until > now);
        before.saturating_sub(revoked.len())
    }

    fn raise<K: Clone + Eq + std::hash::Hash>(epochs: &HashMap<K, u64>, of: &K, value: u64) {
        // Combined by max: a change that arrives late never lowers what is known (V06).
        epochs.pin().update_or_insert(of.clone(), |known| (*known).max(value), value);
    }
}

impl Follower for Standing {
    fn apply(&self, change: &Change) {
        match change {
            Change::Revoked(Revocation { revoked, until }) => {
                self.revoked.pin().insert(*revoked, *until);
            }
            Change::Epoch(EpochOf::Tenant(tenant), value) => Self::raise(&self.tenants, tenant, *value),
            Change::Epoch(EpochOf::Client(client), value) => Self::raise(&self.of_clients, client, *value),
            Change::Epoch(EpochOf::Subject(subject), value) => Self::raise(&self.subjects, subject, *value),
            Change::Client(id) => self.clients.forget(id),
            Change::Missed => self.clients.forget_all(),
            Change::Keyset(keyset) => match self.opening.keyring(keyset) {
                Ok(keyring) => self.keys.store(Arc::new(keyring)),
                // Cannot happen with a keyset this process wrote; with another node's it means another master key. The old keys
                // go on: nothing that stood falls, nothing revoked is in them unless this very change revoked it.
                Err(error) => tracing::error!(%error, revision = keyset.revision, "cannot open the new keyset"),
            },
        }
    }
}
