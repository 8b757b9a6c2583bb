//! Calls of administration by the first administrator, or by one whose access token a test holds.

use crate::support::until::HANG;
use jeton::proto::admin::{
    AddSecretRequest, AddSecretResponse, AssignAudienceRequest, Audience, Client,
    CreateClientRequest, CreateClientResponse, DisableClientRequest, GetClientRequest,
    ListAudiencesRequest, ListClientsRequest, ListKeysRequest, ReleaseAudienceRequest,
    RetireSecretRequest, RevokeAllRequest, RevokeKeyRequest, RotateKeysRequest, SigningKey,
    UpdateClientRequest, add_secret_request, create_client_request, revoke_all_request::Target,
};
use serde_json::Value;
use tonic::{Request, Status};

use super::{Caller, TestServer, bearer, decoded, reason, refreshing, seconds, texts};

/// Target of an RPC.
#[derive(Clone, Debug, Default)]
pub struct RpcTarget {
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

impl TestServer {
    /// A client of `tenant` that holds an access and a refresh token.
    pub async fn rpc_target(&self, id: &str, tenant: &str) -> RpcTarget {
        let client = Client { client_id: id.to_owned(), tenant: tenant.to_owned(), ..refreshing() };
        let client = self.register(client).await;
        let issued = self.token(&client, &[]).await.unwrap();
        let (header, claims) = decoded(&issued.access_token);
        let audience = format!("urn:of:{id}");
        self.assign(&audience, tenant).await.unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        RpcTarget {
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

    /// Registers a client; an empty id lets the server choose.
    pub async fn register(&self, client: Client) -> Caller {
        let request =
            self.as_admin(CreateClientRequest { client: Some(client), secret: None }).await;
        let created = self.clients().create_client(request).await.unwrap().into_inner();
        Caller { id: created.client.unwrap().client_id, secret: created.client_secret }
    }

    /// A message with the administrator's access token.
    pub async fn as_admin<T>(&self, message: T) -> Request<T> {
        let token = self.token(&self.admin, &["jeton:admin"]).await.unwrap();
        bearer(message, &token.access_token)
    }

    /// The administrator's request with a token that was fetched before.
    pub async fn pass(&self) -> String {
        self.token(&self.admin, &["jeton:admin"]).await.unwrap().access_token
    }

    /// A client with these scopes and nothing else, and an access token that carries them.
    pub async fn client_with_token(&self, tenant: &str, scopes: &[&str]) -> (Caller, String) {
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
            allow_no_administrator: false,
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

    /// Number of clients of a tenant.
    pub async fn clients_of(&self, tenant: &str) -> i64 {
        let message = ListClientsRequest {
            tenant: tenant.to_owned(),
            page_size: 1_000,
            ..ListClientsRequest::default()
        };
        let listed = self.clients().list_clients(self.as_admin(message).await).await.unwrap();
        i64::try_from(listed.into_inner().clients.len()).unwrap()
    }

    pub async fn list_keys(&self) -> Vec<SigningKey> {
        self.keys()
            .list_keys(self.as_admin(ListKeysRequest {}).await)
            .await
            .unwrap()
            .into_inner()
            .keys
    }

    /// Ends what `target` names, as the first administrator.
    pub async fn revoke_all(&self, target: Target) -> Result<(), Status> {
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

    /// An administrator of a tenant: its access token.
    pub async fn tenant_admin_token(&self, tenant: &str) -> String {
        self.client_with_token(tenant, &["jeton:admin"]).await.1
    }

    pub async fn create_as(&self, token: &str, client: Client) -> Result<Caller, Status> {
        let request = bearer(CreateClientRequest { client: Some(client), secret: None }, token);
        let created = self.clients().create_client(request).await?.into_inner();
        Ok(Caller { id: created.client.unwrap().client_id, secret: created.client_secret })
    }

    pub async fn change_as(
        &self,
        token: &str,
        client: Client,
        mask: &[&str],
    ) -> Result<Client, Status> {
        let update_mask = Some(prost_types::FieldMask { paths: texts(mask) });
        let request = bearer(
            UpdateClientRequest {
                client: Some(client),
                update_mask,
                allow_no_administrator: false,
            },
            token,
        );
        Ok(self.clients().update_client(request).await?.into_inner().client.unwrap())
    }

    pub async fn release_as(&self, token: &str, audience: &str) -> Result<(), Status> {
        let message = ReleaseAudienceRequest { audience: audience.to_owned() };
        self.audiences().release_audience(bearer(message, token)).await.map(drop)
    }

    /// Waits for what a call that was cut off leaves to be done.
    pub async fn wait_until_deleted(&self, id: &str) {
        // Any other refusal says nothing.
        let is_gone =
            async || self.try_get(id).await.is_err_and(|refused| reason(&refused) == "NOT_FOUND");
        let gone = async { while !is_gone().await {} };
        tokio::time::timeout(HANG, gone).await.expect("the client is taken back");
    }

    /// Registers a client with a secret that was chosen elsewhere.
    pub async fn register_with(&self, client: Client, plain: &str) -> Caller {
        let secret = Some(create_client_request::Secret::PlainSecret(plain.to_owned()));
        let request = self.as_admin(CreateClientRequest { client: Some(client), secret }).await;
        let created = self.clients().create_client(request).await.unwrap().into_inner();
        Caller { id: created.client.unwrap().client_id, secret: plain.to_owned() }
    }

    pub async fn disable(&self, caller: &Caller) {
        let message = DisableClientRequest {
            client_id: caller.id.clone(),
            ..DisableClientRequest::default()
        };
        self.clients().disable_client(self.as_admin(message).await).await.unwrap();
    }

    pub async fn add_secret(
        &self,
        caller: &Caller,
        plain: Option<&str>,
        lives: Option<i64>,
    ) -> AddSecretResponse {
        let expire_time =
            lives.map(|lives| prost_types::Timestamp { seconds: self.now() + lives, nanos: 0 });
        let secret = plain.map(|plain| add_secret_request::Secret::PlainSecret(plain.to_owned()));
        let message = AddSecretRequest {
            client_id: caller.id.clone(),
            secret,
            expire_time,
            ..AddSecretRequest::default()
        };
        self.clients().add_secret(self.as_admin(message).await).await.unwrap().into_inner()
    }

    pub async fn retire(&self, caller: &Caller, secret_id: &str, overlap: i64) {
        let overlap = Some(prost_types::Duration { seconds: overlap, nanos: 0 });
        let (client_id, secret_id) = (caller.id.clone(), secret_id.to_owned());
        let message =
            RetireSecretRequest { client_id, secret_id, overlap, ..RetireSecretRequest::default() };
        self.clients().retire_secret(self.as_admin(message).await).await.unwrap();
    }

    /// The one secret of a client.
    pub async fn secret_id(&self, caller: &Caller) -> String {
        let message = self.as_admin(GetClientRequest { client_id: caller.id.clone() }).await;
        let client = self.clients().get_client(message).await.unwrap().into_inner().client.unwrap();
        client.secrets.first().unwrap().secret_id.clone()
    }

    pub async fn retire_first(&self, caller: &Caller, overlap: Option<i64>) {
        let secret_id = self.get(&caller.id).await.secrets[0].secret_id.clone();
        let overlap = overlap.and_then(seconds);
        let message = RetireSecretRequest {
            client_id: caller.id.clone(),
            secret_id,
            overlap,
            ..Default::default()
        };
        self.clients().retire_secret(self.as_admin(message).await).await.unwrap();
    }

    /// Makes this node read the client from the store at its next call.
    pub async fn evict(&self, id: &str) {
        let client = Client {
            client_id: id.to_owned(),
            display_name: "again".to_owned(),
            ..Client::default()
        };
        self.change(client, &["display_name"]).await.unwrap();
    }
}
