//! Requests and the clients that send them.

use base64::{Engine, engine::general_purpose::STANDARD};
use jeton::{
    config::{Config, Rate},
    proto::admin::{Client, GrantType, Principal, principal::Kind},
};
use tonic::{Request, metadata::MetadataValue};

use super::Caller;

/// Takes the budgets out of the way of what is not about them.
pub fn unlimited(config: &mut Config) {
    let plenty = Rate { per_second: 1_000_000, burst: 1_000_000 };
    config.limits.per_peer = plenty;
    config.limits.failed_authentication = plenty;
    config.limits.argon2_queue = 1_000;
    config.limits.plans.insert("standard".to_owned(), plenty);
}

/// Party that acts: a client.
pub fn client(id: &str) -> Option<Principal> {
    Some(Principal { kind: Some(Kind::ClientId(id.to_owned())) })
}

/// A client that may refresh, with two scopes.
pub fn refreshing() -> Client {
    Client {
        scopes: vec!["orders:read".to_owned(), "orders:write".to_owned()],
        grant_types: vec![GrantType::ClientCredentials.into(), GrantType::RefreshToken.into()],
        ..Client::default()
    }
}

/// A client that may introspect tokens for these audiences.
pub fn serving(audiences: &[&str]) -> Client {
    let serves = audiences.iter().map(|audience| (*audience).to_owned()).collect();
    Client { scopes: vec!["jeton:introspect".to_owned()], serves, ..Client::default() }
}

/// A client with two scopes whose tokens are for these audiences.
pub fn aimed_at(audiences: &[&str]) -> Client {
    Client {
        audiences: audiences.iter().map(|audience| (*audience).to_owned()).collect(),
        ..refreshing()
    }
}

/// A message with an access token in its metadata.
pub fn bearer<T>(message: T, token: &str) -> Request<T> {
    with_authorization(message, &format!("Bearer {token}"))
}

/// A message with a client's id and secret in its metadata.
pub fn basic<T>(message: T, caller: &Caller) -> Request<T> {
    let encoded = STANDARD.encode(format!("{}:{}", caller.id, caller.secret));
    with_authorization(message, &format!("Basic {encoded}"))
}

/// A message with this `authorization`.
pub fn with_authorization<T>(message: T, value: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", MetadataValue::try_from(value).unwrap());
    request
}

pub fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
