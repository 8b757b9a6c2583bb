//! What the tests of administration share: every RPC of it as a value, so that a test can walk them
//! all.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jeton::proto::admin::{
    AddSecretRequest, AssignAudienceRequest, Audience, Client, CreateClientRequest,
    CreateClientResponse, DeleteClientRequest, DisableClientRequest, EnableClientRequest, Event,
    EventFilter, GetClientRequest, ListAudiencesRequest, ListClientsRequest, ListEventsRequest,
    ListKeysRequest, ReleaseAudienceRequest, RetireSecretRequest, RevokeAllRequest,
    RevokeKeyRequest, RotateKeysRequest, SigningKey, TailEventsRequest, UpdateClientRequest,
    VerifyChainRequest, VerifyChainResponse, revoke_all_request::Target,
};
use serde_json::Value;
use tonic::{Request, Status};
use tonic_types::StatusExt;

use crate::service::harness::{Caller, World, bearer};

/// Every RPC of the administration services, and each target of RevokeAll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rpc {
    CreateClient,
    GetClient,
    ListClients,
    UpdateClient,
    AddSecret,
    RetireSecret,
    DisableClient,
    EnableClient,
    DeleteClient,
    ListAudiences,
    AssignAudience,
    ReleaseAudience,
    ListKeys,
    RotateKeys,
    RevokeKey,
    RevokeClient,
    RevokeTenant,
    RevokeSubject,
    RevokeFamily,
    RevokeSigner,
    RevokeToken,
    ListEvents,
    TailEvents,
    VerifyChain,
}

impl Rpc {
    /// In an order in which each can follow the one before, on the same mark.
    pub const ALL: [Self; 24] = [
        Self::CreateClient,
        Self::GetClient,
        Self::ListClients,
        Self::UpdateClient,
        Self::AddSecret,
        Self::RetireSecret,
        Self::RevokeToken,
        Self::RevokeFamily,
        Self::RevokeSubject,
        Self::RevokeClient,
        Self::DisableClient,
        Self::EnableClient,
        Self::DeleteClient,
        Self::ListAudiences,
        Self::AssignAudience,
        Self::ReleaseAudience,
        Self::RevokeTenant,
        Self::ListEvents,
        Self::TailEvents,
        Self::VerifyChain,
        Self::ListKeys,
        Self::RotateKeys,
        Self::RevokeKey,
        Self::RevokeSigner,
    ];

    /// The scope, besides `jeton:admin`, that admits to it.
    pub fn office(self) -> &'static str {
        match self {
            Self::ListKeys | Self::RotateKeys | Self::RevokeKey => "jeton:admin:keys",
            Self::RevokeClient
            | Self::RevokeTenant
            | Self::RevokeSubject
            | Self::RevokeFamily
            | Self::RevokeSigner
            | Self::RevokeToken => "jeton:admin:revocations",
            Self::ListEvents | Self::TailEvents | Self::VerifyChain => "jeton:admin:audit",
            Self::CreateClient
            | Self::GetClient
            | Self::ListClients
            | Self::UpdateClient
            | Self::DisableClient
            | Self::EnableClient
            | Self::DeleteClient
            | Self::ListAudiences
            | Self::AssignAudience
            | Self::ReleaseAudience
            | Self::AddSecret
            | Self::RetireSecret => "jeton:admin:clients",
        }
    }

    /// The record it leaves; `None` for one that only reads.
    pub fn action(self) -> Option<&'static str> {
        Some(match self {
            Self::CreateClient => "client.created",
            Self::UpdateClient => "client.updated",
            Self::DisableClient => "client.disabled",
            Self::EnableClient => "client.enabled",
            Self::DeleteClient => "client.deleted",
            Self::AssignAudience => "audience.claimed",
            Self::ReleaseAudience => "audience.released",
            Self::AddSecret => "secret.added",
            Self::RetireSecret => "secret.retired",
            Self::RotateKeys => "keys.rotated",
            Self::RevokeKey | Self::RevokeSigner => "keys.revoked",
            Self::RevokeClient => "revocation.client",
            Self::RevokeTenant => "revocation.tenant",
            Self::RevokeSubject => "revocation.subject",
            Self::RevokeFamily => "revocation.family",
            Self::RevokeToken => "revocation.token",
            Self::GetClient
            | Self::ListClients
            | Self::ListAudiences
            | Self::ListKeys
            | Self::ListEvents
            | Self::TailEvents
            | Self::VerifyChain => {
                return None;
            }
        })
    }
}

/// What an RPC is aimed at.
#[derive(Clone, Debug, Default)]
pub struct Mark {
    pub client: Caller,
    pub tenant: String,
    pub secret_id: String,
    pub access_token: String,
    pub refresh_token: String,
    pub jti: String,
    pub family: String,
    pub kid: String,
    /// An audience of the tenant that no client lists.
    pub audience: String,
}

impl World {
    /// A client of `tenant` that holds an access and a refresh token.
    pub async fn mark(&self, id: &str, tenant: &str) -> Mark {
        let client = Client {
            client_id: id.to_owned(),
            tenant: tenant.to_owned(),
            ..crate::service::harness::refreshing()
        };
        let client = self.register(client).await;
        let issued = self.token(&client, &[]).await.unwrap();
        let (header, claims) = decoded(&issued.access_token);
        let audience = format!("urn:of:{id}");
        self.assign(&audience, tenant).await.unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Mark {
            secret_id: self.get(&client.id).await.secrets[0].secret_id.clone(),
            client,
            tenant: tenant.to_owned(),
            jti: text(&claims["jti"]),
            family: text(&claims["fam"]),
            kid: text(&header["kid"]),
            audience,
            access_token: issued.access_token,
            refresh_token: issued.refresh_token,
        }
    }

    /// A client with these scopes and nothing else, and an access token that carries them.
    pub async fn staff(&self, tenant: &str, scopes: &[&str]) -> (Caller, String) {
        let scopes_owned = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let client =
            Client { tenant: tenant.to_owned(), scopes: scopes_owned, ..Client::default() };
        let caller = self.register(client).await;
        let token = self.token(&caller, scopes).await.unwrap().access_token;
        (caller, token)
    }

    /// An access token of the first administrator.
    pub async fn admin_token(&self) -> String {
        self.token(&self.admin, &["jeton:admin"]).await.unwrap().access_token
    }

    /// Calls `rpc` with an access token; the answer as text.
    pub async fn ask(&self, rpc: Rpc, token: &str, mark: &Mark) -> Result<String, Status> {
        self.knock(rpc, mark, |request| {
            request
                .metadata_mut()
                .insert("authorization", format!("Bearer {token}").parse().unwrap())
                .map(drop)
        })
        .await
    }

    /// Calls `rpc` with metadata that `dress` adds; the answer as text.
    pub async fn knock(
        &self,
        rpc: Rpc,
        mark: &Mark,
        dress: impl FnOnce(&mut Request<()>) -> Option<()>,
    ) -> Result<String, Status> {
        let mut blank = Request::new(());
        dress(&mut blank);
        let dressed = blank.metadata().clone();
        macro_rules! call {
            ($client:expr, $method:ident, $message:expr) => {{
                let mut request = Request::new($message);
                *request.metadata_mut() = dressed;
                $client.$method(request).await.map(|answer| format!("{:?}", answer.into_inner()))
            }};
        }
        let client_id = mark.client.id.clone();
        let target = |target| RevokeAllRequest { target: Some(target), reason: "asked".to_owned() };
        let etag = String::new();
        match rpc {
            Rpc::CreateClient => {
                let client = Client { tenant: mark.tenant.clone(), ..Client::default() };
                call!(
                    self.clients(),
                    create_client,
                    CreateClientRequest { client: Some(client), secret: None }
                )
            }
            Rpc::GetClient => call!(self.clients(), get_client, GetClientRequest { client_id }),
            Rpc::ListClients => {
                let tenant = mark.tenant.clone();
                call!(
                    self.clients(),
                    list_clients,
                    ListClientsRequest { tenant, ..ListClientsRequest::default() }
                )
            }
            Rpc::UpdateClient => {
                let client =
                    Client { client_id, display_name: "changed".to_owned(), ..Client::default() };
                let update_mask =
                    Some(prost_types::FieldMask { paths: vec!["display_name".to_owned()] });
                call!(
                    self.clients(),
                    update_client,
                    UpdateClientRequest { client: Some(client), update_mask }
                )
            }
            Rpc::DisableClient => {
                call!(self.clients(), disable_client, DisableClientRequest { client_id, etag })
            }
            Rpc::EnableClient => {
                call!(self.clients(), enable_client, EnableClientRequest { client_id, etag })
            }
            Rpc::DeleteClient => {
                call!(self.clients(), delete_client, DeleteClientRequest { client_id, etag })
            }
            Rpc::AddSecret => {
                call!(
                    self.clients(),
                    add_secret,
                    AddSecretRequest { client_id, ..AddSecretRequest::default() }
                )
            }
            Rpc::RetireSecret => {
                let secret_id = mark.secret_id.clone();
                call!(
                    self.clients(),
                    retire_secret,
                    RetireSecretRequest { client_id, secret_id, etag, ..Default::default() }
                )
            }
            Rpc::ListAudiences => {
                let tenant = mark.tenant.clone();
                call!(
                    self.audiences(),
                    list_audiences,
                    ListAudiencesRequest { tenant, ..Default::default() }
                )
            }
            Rpc::AssignAudience => {
                let audience = format!("{}:new", mark.audience);
                let message = AssignAudienceRequest { audience, tenant: mark.tenant.clone() };
                call!(self.audiences(), assign_audience, message)
            }
            Rpc::ReleaseAudience => {
                let audience = mark.audience.clone();
                call!(self.audiences(), release_audience, ReleaseAudienceRequest { audience })
            }
            Rpc::ListKeys => call!(self.keys(), list_keys, ListKeysRequest {}),
            Rpc::RotateKeys => call!(self.keys(), rotate_keys, RotateKeysRequest {}),
            Rpc::RevokeKey => {
                call!(self.keys(), revoke_key, RevokeKeyRequest { kid: mark.kid.clone() })
            }
            Rpc::RevokeClient => {
                call!(self.revocations(), revoke_all, target(Target::ClientId(client_id)))
            }
            Rpc::RevokeTenant => {
                call!(self.revocations(), revoke_all, target(Target::Tenant(mark.tenant.clone())))
            }
            Rpc::RevokeSubject => {
                call!(
                    self.revocations(),
                    revoke_all,
                    target(Target::Subject(format!("client:{client_id}")))
                )
            }
            Rpc::RevokeFamily => {
                call!(self.revocations(), revoke_all, target(Target::Family(mark.family.clone())))
            }
            Rpc::RevokeSigner => {
                call!(self.revocations(), revoke_all, target(Target::Kid(mark.kid.clone())))
            }
            Rpc::RevokeToken => {
                call!(self.revocations(), revoke_all, target(Target::Jti(mark.jti.clone())))
            }
            Rpc::ListEvents => {
                let filter =
                    Some(EventFilter { tenant: mark.tenant.clone(), ..EventFilter::default() });
                call!(
                    self.audit(),
                    list_events,
                    ListEventsRequest { filter, ..ListEventsRequest::default() }
                )
            }
            Rpc::TailEvents => {
                let filter =
                    Some(EventFilter { tenant: mark.tenant.clone(), ..EventFilter::default() });
                call!(self.audit(), tail_events, TailEventsRequest { filter })
            }
            Rpc::VerifyChain => call!(self.audit(), verify_chain, VerifyChainRequest::default()),
        }
    }

    /// Registers a client as the first administrator.
    pub async fn create(&self, client: Client) -> Result<CreateClientResponse, Status> {
        let request =
            self.as_admin(CreateClientRequest { client: Some(client), secret: None }).await;
        self.clients().create_client(request).await.map(tonic::Response::into_inner)
    }

    /// Gives an audience to a tenant as the first administrator.
    pub async fn assign(&self, audience: &str, tenant: &str) -> Result<Audience, Status> {
        let message =
            AssignAudienceRequest { audience: audience.to_owned(), tenant: tenant.to_owned() };
        let assigned = self.audiences().assign_audience(self.as_admin(message).await).await?;
        Ok(assigned.into_inner().audience.unwrap())
    }

    /// Releases an audience as the first administrator.
    pub async fn release(&self, audience: &str) -> Result<(), Status> {
        let message = ReleaseAudienceRequest { audience: audience.to_owned() };
        self.audiences().release_audience(self.as_admin(message).await).await.map(drop)
    }

    /// Audiences with their tenants, as an administrator sees them.
    pub async fn owners(&self, token: &str) -> Vec<(String, String)> {
        let request =
            bearer(ListAudiencesRequest { page_size: 1_000, ..Default::default() }, token);
        let listed = self.audiences().list_audiences(request).await.unwrap().into_inner();
        listed.audiences.into_iter().map(|audience| (audience.audience, audience.tenant)).collect()
    }

    /// Changes the fields in `mask`.
    pub async fn change(&self, client: Client, mask: &[&str]) -> Result<Client, Status> {
        let paths = mask.iter().map(|path| (*path).to_owned()).collect();
        let message = UpdateClientRequest {
            client: Some(client),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        let updated = self.clients().update_client(self.as_admin(message).await).await?;
        Ok(updated.into_inner().client.unwrap())
    }

    pub async fn try_get(&self, id: &str) -> Result<Client, Status> {
        let request = self.as_admin(GetClientRequest { client_id: id.to_owned() }).await;
        Ok(self.clients().get_client(request).await?.into_inner().client.unwrap())
    }

    pub async fn get(&self, id: &str) -> Client {
        self.try_get(id).await.unwrap()
    }

    /// Every event that a filter admits, newest first.
    pub async fn trail(&self, filter: EventFilter) -> Vec<Event> {
        let request =
            ListEventsRequest { filter: Some(filter), page_size: 1_000, page_token: String::new() };
        self.audit().list_events(self.as_admin(request).await).await.unwrap().into_inner().events
    }

    /// Events of one action.
    pub async fn trail_of(&self, action: &str) -> Vec<Event> {
        self.trail(EventFilter { action: action.to_owned(), ..EventFilter::default() }).await
    }

    pub async fn list_keys(&self) -> Vec<SigningKey> {
        self.keys()
            .list_keys(self.as_admin(ListKeysRequest {}).await)
            .await
            .unwrap()
            .into_inner()
            .keys
    }

    pub async fn verify_chain(&self) -> VerifyChainResponse {
        self.audit()
            .verify_chain(self.as_admin(VerifyChainRequest::default()).await)
            .await
            .unwrap()
            .into_inner()
    }

    /// Ends what `target` names, as the first administrator.
    pub async fn end_all(&self, target: Target) -> Result<(), Status> {
        let message = RevokeAllRequest { target: Some(target), reason: "because".to_owned() };
        self.revocations().revoke_all(self.as_admin(message).await).await.map(drop)
    }

    /// Ends a signing key with an administrator's token.
    pub async fn revoke_key(&self, kid: &str, token: &str) -> Result<Vec<SigningKey>, Status> {
        let request = bearer(RevokeKeyRequest { kid: kid.to_owned() }, token);
        Ok(self.keys().revoke_key(request).await?.into_inner().keys)
    }

    pub async fn rotate_keys(&self) -> Vec<SigningKey> {
        self.keys()
            .rotate_keys(self.as_admin(RotateKeysRequest {}).await)
            .await
            .unwrap()
            .into_inner()
            .keys
    }
}

/// Header and claims of a token, unverified.
pub fn decoded(token: &str) -> (Value, Value) {
    let mut parts = token.split('.').map(|part| {
        let bytes = URL_SAFE_NO_PAD.decode(part).unwrap_or_default();
        serde_json::from_slice::<Value>(&bytes).unwrap_or_default()
    });
    (parts.next().unwrap(), parts.next().unwrap())
}

/// The `kid` a token was signed with.
pub fn kid_of(token: &str) -> String {
    decoded(token).0["kid"].as_str().unwrap().to_owned()
}

/// The field that a refusal blames.
pub fn blamed(status: &Status) -> String {
    let violations = status
        .get_details_bad_request()
        .map(|details| details.field_violations)
        .unwrap_or_default();
    violations.into_iter().next().map(|violation| violation.field).unwrap_or_default()
}

/// A duration in whole seconds.
pub fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}
