//! WHAT STILL STANDS: everything a judgement depends on, in memory, fed by the store. Introspect
//! reads only this: no I/O, and no lock on the way.
//!
//! Where nodes share a store, what the others did is heard of later, may be heard of twice, and not
//! always in order: a change that is late or repeated changes nothing. And it may not be heard of
//! at all. So this knows its own age, and past `max_staleness` there is no judgement, neither that
//! a token stands nor that it does not: [`Behind`]. Who judges cannot get round it:
//! [`Standing::judge`], [`Standing::stands`] and [`Standing::epochs`] all answer it. Clients are
//! then read from the store each time, which goes on as long as the store answers.
//!
//! Two things need no age. A revocation that is known stays true ([`Standing::token_was_revoked`]).
//! And the public keys are shown as they are: whoever verifies by them keeps them for their
//! `max-age` anyway, and without an answer for longer.

mod age;
mod clients;
mod keys;
mod seen;
#[cfg(test)]
mod tests;

use std::{future::Future, sync::Arc, time::Duration};

use arc_swap::Guard;
use papaya::HashMap;
use tokio::time::Instant;

use self::{
    age::Age,
    clients::Clients,
    keys::{Keys, Taken},
    seen::Seen,
};
pub use self::{age::Behind, keys::Refused};
use crate::{
    crypto::{
        seal::Sealer,
        signing_keys::{SigningKeys, SigningKeysError},
        verifying_keys::{Judging, VerifiedClaims, VerifyingKeys},
    },
    model::{
        Claims, Client, ClientId, EpochOf, Epochs, FamilyId, Jti, Keyset, Revocation, Revoked,
        Subject, TenantId, Timestamp,
    },
    store::{Change, Follower, Snapshot, Store, StoreError},
};

/// How far other machines' clocks, and this one's steps, may be off: what was revoked is remembered
/// this much longer than any token it covers (V07).
pub const SLACK: Duration = Duration::from_secs(3_600);

/// The index of what still stands.
pub struct Standing {
    revoked: HashMap<Revoked, Timestamp>,
    tenants: HashMap<TenantId, u64>,
    of_clients: HashMap<ClientId, u64>,
    subjects: HashMap<Subject, u64>,
    keys: Keys,
    clients: Clients,
    seen: Seen,
    age: Age,
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
    fn open(&self, keyset: &Keyset) -> Result<(SigningKeys, VerifyingKeys), SigningKeysError> {
        let (signing, public) = SigningKeys::open(keyset, &self.sealer)?;
        let verifying = VerifyingKeys::new(keyset.revision, &self.issuer, self.judging, public);
        Ok((signing, verifying))
    }
}

impl Standing {
    /// An index that knows the keys and nothing else yet. Once the store has said how far it is
    /// known ([`Follower::knows_up_to`]), nothing is judged while that is longer than
    /// `max_staleness` ago.
    pub fn new(
        keyset: &Keyset,
        opening: Opening,
        max_staleness: Duration,
    ) -> Result<Self, SigningKeysError> {
        let keys = Keys::new(keyset, opening)?;
        Ok(Self {
            revoked: HashMap::new(),
            tenants: HashMap::new(),
            of_clients: HashMap::new(),
            subjects: HashMap::new(),
            keys,
            clients: Clients::default(),
            seen: Seen::default(),
            age: Age::new(max_staleness),
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

    /// How long ago everything was known that any node had committed; `None` for a store that never
    /// says, and is never behind.
    pub fn age(&self) -> Option<Duration> {
        self.age.age()
    }

    /// Whether what is known may be judged by. Ask before looking: what is looked at afterwards is
    /// at least as new.
    pub fn fresh(&self) -> Result<(), Behind> {
        self.age.fresh()
    }

    /// The claims of an access token that stands at `now`; `None` for every other text, whatever is
    /// wrong with it. A token seen before is not verified again, but everything that can change is
    /// checked on every hit. While this is [`Behind`] there is no answer to any text: one that
    /// looks wrong may be signed by a key that is not known yet.
    pub fn judge(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<Option<Arc<VerifiedClaims>>, Behind> {
        self.fresh()?;
        let digest = Seen::digest(token);
        let claims = match self.seen.recall(&digest) {
            Some(claims) => claims,
            None => {
                let Some(claims) = self.keys.verifying().verify(token, now) else {
                    return Ok(None);
                };
                let claims = Arc::new(claims);
                self.seen.remember(digest, claims.clone());
                claims
            }
        };
        Ok(self.is_standing(&claims, now).then_some(claims))
    }

    /// Whether claims that were verified before stand at `now`.
    pub fn stands(&self, verified: &VerifiedClaims, now: Timestamp) -> Result<bool, Behind> {
        self.fresh()?;
        Ok(self.is_standing(verified, now))
    }

    fn is_standing(&self, verified: &VerifiedClaims, now: Timestamp) -> bool {
        let claims = verified.claims();
        claims.exp > now.seconds()
            && self.keys.verifying().stands(verified.kid())
            && !self.is_revoked(&Revoked::Token(claims.jti))
            && claims.fam.is_none_or(|family| !self.is_revoked(&Revoked::Family(family)))
            && self.reaches(claims)
    }

    fn reaches(&self, claims: &Claims) -> bool {
        claims.ep.reach(self.known_epochs(&claims.tenant, &claims.client_id, &claims.sub))
    }

    fn is_revoked(&self, revoked: &Revoked) -> bool {
        self.revoked.pin().contains_key(revoked)
    }

    /// Whether this family was ended, which a read of the store that other nodes share may not show
    /// yet.
    pub fn family_was_ended(&self, family: FamilyId) -> bool {
        self.is_revoked(&Revoked::Family(family))
    }

    /// Whether this token was ended by itself. `false` may come from old knowledge, `true` is never
    /// wrong.
    pub fn token_was_revoked(&self, jti: Jti) -> bool {
        self.is_revoked(&Revoked::Token(jti))
    }

    /// Returns true if one of these epochs was raised since. `false` may come from old knowledge,
    /// `true` is never wrong.
    pub fn was_outdated(
        &self,
        epochs: &Epochs,
        tenant: &TenantId,
        client: &ClientId,
        subject: &Subject,
    ) -> bool {
        !epochs.reach(self.known_epochs(tenant, client, subject))
    }

    /// The epochs a token minted now must carry. Read them before anything else about the client:
    /// what is raised in between then ends the token.
    pub fn epochs(
        &self,
        tenant: &TenantId,
        client: &ClientId,
        subject: &Subject,
    ) -> Result<Epochs, Behind> {
        self.fresh()?;
        Ok(self.known_epochs(tenant, client, subject))
    }

    fn known_epochs(&self, tenant: &TenantId, client: &ClientId, subject: &Subject) -> Epochs {
        Epochs {
            tenant: self.tenants.pin().get(tenant).copied().unwrap_or(0),
            client: self.of_clients.pin().get(client).copied().unwrap_or(0),
            subject: self.subjects.pin().get(subject).copied().unwrap_or(0),
        }
    }

    /// The public keys as they stand.
    pub fn verifying_keys(&self) -> Guard<Arc<VerifyingKeys>> {
        self.keys.verifying()
    }

    /// The secret keys as they stand.
    pub fn signing_keys(&self) -> Guard<Arc<SigningKeys>> {
        self.keys.signing()
    }

    /// A client, from memory or from the store; while this is [`Behind`] from the store alone.
    pub async fn client(
        &self,
        store: &dyn Store,
        id: &ClientId,
    ) -> Result<Option<Arc<Client>>, StoreError> {
        Ok(self.look_up(id, std::future::ready(()), |()| store.client(id)).await?.0)
    }

    /// The same by a `read` of the store that is begun only where it is needed, once its caller has
    /// its `place`; and whether it was.
    pub async fn look_up<P: Send, R: Future<Output = Result<Option<Client>, StoreError>> + Send>(
        &self,
        id: &ClientId,
        place: impl Future<Output = P> + Send,
        read: impl FnOnce(P) -> R + Send,
    ) -> Result<(Option<Arc<Client>>, bool), StoreError> {
        match self.fresh() {
            Ok(()) => self.clients.look_up(id, place, read).await,
            // Nor is it remembered: that is for what will be heard of when it changes.
            Err(Behind) => Ok((read(place.await).await?.map(Arc::new), true)),
        }
    }

    /// Forgets revocations of what has expired; how many went. Forgets seen tokens that no longer
    /// stand too. Where nodes share a store, every remembered client too: one that was read while
    /// the store changed its leader may be older than the change that was heard of before.
    pub fn sweep(&self, now: Timestamp) -> usize {
        if self.age().is_some() {
            self.clients.forget_all();
        }
        self.seen.sweep(|claims| self.is_standing(claims, now));
        let revoked = self.revoked.pin();
        let before = revoked.len();
        revoked.retain(|_, until| *until > now);
        before.saturating_sub(revoked.len())
    }

    /// Checks that the store's keyset may be built on: it is genuine, not older than the one in
    /// use, and takes no revocation of a key back.
    ///
    /// # Errors
    ///
    /// When it is not; counted as `jeton_keyset_refused_total`.
    pub fn admit(&self, keyset: &Keyset) -> Result<(), Refused> {
        self.keys.admit(keyset).inspect_err(|_| count_refused())
    }

    fn rekey(&self, keyset: &Keyset) {
        match self.keys.take(keyset) {
            Taken::InUse => {}
            Taken::Refused(error) => {
                count_refused();
                tracing::error!(
                    %error, revision = keyset.revision,
                    "rejected the keyset of the store, still using the last authentic one"
                );
            }
            // A key that this very change revoked would go on being valid here: nothing is judged
            // until there are keys that can be opened.
            Taken::Unread(error) => {
                tracing::error!(%error, revision = keyset.revision, "cannot open the new keyset");
                self.age.unread(keyset.revision);
            }
        }
        self.age.keys_stand_at(self.keys.verifying().revision());
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
                // The later time, however often and in whichever order they are told.
                self.revoked.pin().update_or_insert(*revoked, |known| (*known).max(*until), *until);
            }
            Change::Epoch(EpochOf::Tenant(tenant), value) => {
                Self::raise(&self.tenants, tenant, *value)
            }
            Change::Epoch(EpochOf::Client(client), value) => {
                // Who finds the raised epoch must not find the record from before it (see
                // `Authority::admit`), also where the record's own change is told after this one.
                self.clients.forget(client);
                Self::raise(&self.of_clients, client, *value);
            }
            Change::Epoch(EpochOf::Subject(subject), value) => {
                Self::raise(&self.subjects, subject, *value)
            }
            Change::Client(id) => self.clients.forget(id),
            Change::Missed => self.clients.forget_all(),
            Change::Keyset(keyset) => self.rekey(keyset),
        }
    }

    fn knows_up_to(&self, at: Instant) {
        self.age.reach(at);
    }

    fn lost(&self) {
        self.age.lost();
    }
}

fn count_refused() {
    metrics::counter!("jeton_keyset_refused_total").increment(1);
}
