//! Every RPC of administration as a value, so that a test can walk them all.

use jeton::proto::admin::{
    AddSecretRequest, AssignAudienceRequest, Client, CreateClientRequest, DeleteClientRequest,
    DisableClientRequest, EnableClientRequest, EventFilter, GetClientRequest, ListAudiencesRequest,
    ListClientsRequest, ListEventsRequest, ListKeysRequest, ReleaseAudienceRequest,
    RetireSecretRequest, RevokeAllRequest, RevokeKeyRequest, RotateKeysRequest, TailEventsRequest,
    UpdateClientRequest, VerifyChainRequest, VerifyTrailRequest, revoke_all_request::Target,
};
use tonic::{Request, Status};

use super::{RpcTarget, TestServer};

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
    VerifyTrail,
}

impl Rpc {
    /// In an order in which each can follow the one before, on the same mark.
    pub const ALL: [Self; 25] = [
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
        Self::VerifyTrail,
        Self::ListKeys,
        Self::RotateKeys,
        Self::RevokeKey,
        Self::RevokeSigner,
    ];

    /// The scope, besides `jeton:admin`, that admits to it.
    pub fn admin_scope(self) -> &'static str {
        match self {
            Self::ListKeys | Self::RotateKeys | Self::RevokeKey => "jeton:admin:keys",
            Self::RevokeClient
            | Self::RevokeTenant
            | Self::RevokeSubject
            | Self::RevokeFamily
            | Self::RevokeSigner
            | Self::RevokeToken => "jeton:admin:revocations",
            Self::ListEvents | Self::TailEvents | Self::VerifyChain | Self::VerifyTrail => {
                "jeton:admin:audit"
            }
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
            | Self::VerifyChain
            | Self::VerifyTrail => {
                return None;
            }
        })
    }
}

impl TestServer {
    /// Calls `rpc` with an access token; the answer as text.
    pub async fn call_rpc(
        &self,
        rpc: Rpc,
        token: &str,
        mark: &RpcTarget,
    ) -> Result<String, Status> {
        self.call_rpc_with(rpc, mark, |request| {
            request
                .metadata_mut()
                .insert("authorization", format!("Bearer {token}").parse().unwrap())
                .map(drop)
        })
        .await
    }

    /// Calls `rpc` with metadata that `dress` adds; the answer as text.
    pub async fn call_rpc_with(
        &self,
        rpc: Rpc,
        mark: &RpcTarget,
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
                    UpdateClientRequest {
                        client: Some(client),
                        update_mask,
                        allow_no_administrator: false
                    }
                )
            }
            Rpc::DisableClient => {
                call!(
                    self.clients(),
                    disable_client,
                    DisableClientRequest { client_id, etag, allow_no_administrator: false }
                )
            }
            Rpc::EnableClient => {
                call!(self.clients(), enable_client, EnableClientRequest { client_id, etag })
            }
            Rpc::DeleteClient => {
                call!(
                    self.clients(),
                    delete_client,
                    DeleteClientRequest { client_id, etag, allow_no_administrator: false }
                )
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
                call!(self.audit(), tail_events, TailEventsRequest { filter, ..Default::default() })
            }
            Rpc::VerifyChain => call!(self.audit(), verify_chain, VerifyChainRequest::default()),
            Rpc::VerifyTrail => {
                let mut request = Request::new(VerifyTrailRequest::default());
                *request.metadata_mut() = dressed;
                let mut reports = self.audit().verify_trail(request).await?.into_inner();
                let mut answer = String::new();
                while let Some(report) = reports.message().await? {
                    answer = format!("{report:?}");
                }
                Ok(answer)
            }
        }
    }
}
