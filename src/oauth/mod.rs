//! RULES for tokens, one file per flow, named by the word of its RFC. Nothing here knows the wire.

mod allowance;
pub mod audiences;
pub mod bearer;
pub mod client_auth;
pub mod client_credentials;
mod detached;
mod forgery;
pub mod introspection;
mod issue;
pub mod keys;
mod listed;
mod presented;
pub mod refresh;
pub mod registration;
pub mod revocation;
mod sharing;
pub mod trail;
mod uses;
pub mod witness;

use std::{sync::Arc, time::Duration};

pub use self::{
    bearer::Administrator,
    client_auth::{AuthenticatedClient, Credentials},
    issue::Issued,
};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use self::detached::Detached;
use crate::{
    audit::Trail,
    clock::{Clock, Skew},
    config,
    crypto::{
        passwords::Passwords, refresh_token::RefreshKey, seal::Sealer, secrets::ClientSecrets,
    },
    limit::Limits,
    model::{
        Audience,
        keyset::{Algorithm, KeyPolicy},
    },
    standing::{SLACK, Standing},
    store::{Store, authentic::Authentic},
};

/// Issues and judges tokens: the one place where the rules meet what they need.
pub struct Authority {
    store: Arc<dyn Store>,
    authentic: Arc<Authentic>,
    standing: Arc<Standing>,
    trail: Trail,
    limits: Arc<Limits>,
    secrets: ClientSecrets,
    passwords: Passwords,
    refresh_key: RefreshKey,
    sealer: Arc<Sealer>,
    page_key: Zeroizing<[u8; 32]>,
    uses: uses::Uses,
    reported: forgery::Reported,
    releases: Arc<Semaphore>,
    detached: Detached,
    clock: Arc<dyn Clock>,
    skew: Arc<Skew>,
    terms: Terms,
}

/// What tokens are issued under.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The `iss` of every token.
    pub issuer: Arc<str>,
    /// The issuer as an audience: who a token is for when its client names nobody, and what
    /// administration demands.
    pub own_audience: Audience,
    /// Lifetimes.
    pub token: config::Token,
    /// Times of a key's life.
    pub keys: KeyPolicy,
    /// Algorithm of new keys.
    pub algorithm: Algorithm,
}

/// What an authority is made of.
pub struct Parts {
    /// Where everything is kept.
    pub store: Arc<Authentic>,
    /// What still stands, following that store.
    pub standing: Arc<Standing>,
    /// Budgets.
    pub limits: Arc<Limits>,
    /// The argon2id pool.
    pub passwords: Passwords,
    /// The master key, for new signing keys.
    pub sealer: Arc<Sealer>,
    /// When an issued token's record is durable.
    pub issue: config::Issue,
    /// Where the time comes from, for background work; calls bring their own.
    pub clock: Arc<dyn Clock>,
    /// How far the clock that the store's nodes have in common is ahead of that.
    pub skew: Arc<Skew>,
    /// What tokens are issued under.
    pub terms: Terms,
}

impl Authority {
    /// Puts the parts together; symmetric keys come from the keyring's root.
    pub fn new(parts: Parts) -> Self {
        let Parts { store, standing, limits, passwords, sealer, issue, clock, skew, terms } = parts;
        let keyring = standing.keyring();
        let root = keyring.root();
        Self {
            secrets: ClientSecrets::new(root),
            refresh_key: RefreshKey::new(root),
            page_key: root.derive("page token"),
            trail: Trail::new(store.clone(), issue),
            uses: uses::Uses::default(),
            reported: forgery::Reported::default(),
            releases: Arc::new(Semaphore::new(1)),
            detached: Detached::default(),
            authentic: store.clone(),
            store,
            standing,
            limits,
            passwords,
            sealer,
            clock,
            skew,
            terms,
        }
    }

    /// What tokens are issued under.
    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// What still stands.
    pub const fn standing(&self) -> &Arc<Standing> {
        &self.standing
    }

    /// Where everything is kept.
    pub fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    /// Budgets.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The argon2id pool.
    pub const fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    /// The key that page tokens are signed with: their own, used for nothing else (N03).
    pub fn page_key(&self) -> &[u8; 32] {
        &self.page_key
    }

    /// Waits for changes whose caller has left. Returns false if some is not finished after `limit`.
    pub async fn finish(&self, limit: Duration) -> bool {
        self.detached.finish(limit).await
    }

    /// How long an ended family or client must be remembered: the longest access token, and the
    /// slack.
    fn remember(&self) -> Duration {
        self.terms.token.access_lifetime_max() + SLACK
    }
}
