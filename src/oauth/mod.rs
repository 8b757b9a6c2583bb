//! RULES for tokens, one file per flow, named by the word of its RFC. Nothing here knows the wire.

pub mod client_auth;
pub mod client_credentials;
mod detached;
pub mod introspection;
mod mint;
pub mod proven;
pub mod refresh;
pub mod revocation;
pub mod token_endpoint;

use std::{sync::Arc, time::Duration};

pub use self::{
    client_auth::{AuthenticatedClient, ClientAuthenticator, Credentials},
    detached::Detached,
    introspection::Introspector,
    mint::{Issued, Minter},
    revocation::Revoker,
    token_endpoint::TokenIssuer,
};
use crate::{
    config,
    model::{
        Audience,
        keyset::{Algorithm, KeyPolicy},
    },
    standing::SLACK,
};

/// Scope of a client that may administer everything that its tenant may.
pub const ADMIN: &str = "jeton:admin";

/// Terms that tokens are issued under.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The `iss` of every token.
    pub issuer: Arc<str>,
    /// The issuer as an audience: the audience of a token whose client has none, and of tokens for
    /// administration.
    pub own_audience: Audience,
    /// Lifetimes.
    pub token: config::Token,
    /// Times of the key lifecycle.
    pub keys: KeyPolicy,
    /// Algorithm of new keys.
    pub algorithm: Algorithm,
}

impl Terms {
    /// Returns the time for which a revocation of a family or client must be kept: the longest
    /// lifetime of an access token, and the slack between clocks.
    pub fn revocation_memory(&self) -> Duration {
        self.token.access_lifetime_max() + SLACK
    }
}
