//! What several tests do to a server, and how they look at its answers.

use std::collections::BTreeMap;

use jeton::{
    config::{Config, Rate},
    proto::{
        admin::{Client, Event, EventFilter, ListEventsRequest},
        token::{
            IntrospectRequest, IntrospectResponse, RefreshRequest, RefreshResponse, RevokeRequest,
        },
    },
};
use prost::Message;
use tonic::{
    Request, Response, Status,
    metadata::{KeyAndValueRef, MetadataMap},
};

use crate::{
    service::harness::{Caller, World, bearer, refreshing},
    support::database::answered,
};

/// Takes the budgets out of the way of what is not about them.
pub fn unlimited(config: &mut Config) {
    let plenty = Rate { per_second: 1_000_000, burst: 1_000_000 };
    config.limits.per_peer = plenty;
    config.limits.failed_authentication = plenty;
    config.limits.argon2_queue = 1_000;
    config.limits.plans.insert("standard".to_owned(), plenty);
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

/// Everything of an answer that must not tell one cause from another: code, message, details, and
/// all metadata but the request's own id and the time of day.
pub type Shape = (i32, String, Vec<u8>, BTreeMap<String, Vec<u8>>);

pub fn shape(status: &Status) -> Shape {
    (
        status.code().into(),
        status.message().to_owned(),
        status.details().to_vec(),
        metadata(status.metadata()),
    )
}

fn metadata(map: &MetadataMap) -> BTreeMap<String, Vec<u8>> {
    let entries = map.iter().map(|entry| match entry {
        KeyAndValueRef::Ascii(key, value) => (key.to_string(), value.as_encoded_bytes().to_vec()),
        KeyAndValueRef::Binary(key, value) => (key.to_string(), value.as_encoded_bytes().to_vec()),
    });
    entries.filter(|(key, _)| key != "x-request-id" && key != "date").collect()
}

/// The bytes of an answer and its metadata.
pub fn bytes<T: Message>(response: &Response<T>) -> (Vec<u8>, BTreeMap<String, Vec<u8>>) {
    (response.get_ref().encode_to_vec(), metadata(response.metadata()))
}

/// `active=false` and nothing else, as it goes over the wire.
pub const INACTIVE: [u8; 2] = [0x08, 0x00];

impl World {
    /// A server whose budgets are out of the way.
    pub async fn open_handed() -> Self {
        Self::with(unlimited).await
    }

    /// A server whose refresh tokens are spent at once.
    pub async fn without_grace() -> Self {
        Self::with(|config| {
            unlimited(config);
            config.token.refresh_grace_seconds = 0;
        })
        .await
    }

    /// The whole answer to an introspection.
    /// Waits until it is known of every refresh so far that its caller was answered.
    pub async fn settled(&self) {
        if let Some(uri) = self.home.uri() {
            answered(uri).await;
        }
    }

    pub async fn introspected(
        &self,
        caller: &Caller,
        token: &str,
        hint: &str,
    ) -> Response<IntrospectResponse> {
        let Caller { id, secret } = caller.clone();
        let (token, token_type_hint) = (token.to_owned(), hint.to_owned());
        let request =
            IntrospectRequest { client_id: id, client_secret: secret, token, token_type_hint };
        self.tokens().introspect(request).await.unwrap()
    }

    pub async fn revoke_with_hint(
        &self,
        caller: &Caller,
        token: &str,
        hint: &str,
    ) -> Result<(), Status> {
        let Caller { id, secret } = caller.clone();
        let (token, token_type_hint) = (token.to_owned(), hint.to_owned());
        self.tokens()
            .revoke(RevokeRequest { client_id: id, client_secret: secret, token, token_type_hint })
            .await
            .map(drop)
    }

    pub async fn refresh_to(
        &self,
        caller: &Caller,
        token: &str,
        scopes: &[&str],
    ) -> Result<RefreshResponse, Status> {
        let Caller { id, secret } = caller.clone();
        let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let request = RefreshRequest {
            client_id: id,
            client_secret: secret,
            refresh_token: token.to_owned(),
            scopes,
        };
        self.tokens().refresh(request).await.map(Response::into_inner)
    }

    /// The administrator's request with a token that was fetched before.
    pub async fn pass(&self) -> String {
        self.token(&self.admin, &["jeton:admin"]).await.unwrap().access_token
    }

    /// The records of an action, newest first. Asking takes a token, whose durable record comes
    /// after every earlier one.
    pub async fn events_of(&self, action: &str) -> Vec<Event> {
        let pass = self.pass().await;
        let mut events = Vec::new();
        let mut page_token = String::new();
        loop {
            let filter = Some(EventFilter { action: action.to_owned(), ..EventFilter::default() });
            let message = ListEventsRequest { filter, page_size: 1_000, page_token };
            let page = self.audit().list_events(bearer(message, &pass)).await.unwrap().into_inner();
            events.extend(page.events);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return events;
            }
        }
    }
}

/// A message with a client's id and secret in its metadata.
pub fn basic<T>(message: T, caller: &Caller) -> Request<T> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let encoded = STANDARD.encode(format!("{}:{}", caller.id, caller.secret));
    crate::service::harness::with_authorization(message, &format!("Basic {encoded}"))
}
