//! `jeton.admin.v1.ClientService`.

use tonic::{Request, Response, Status};

use super::{
    GrpcServices, into_response, pages,
    parse::{duration, each, etag, optional, required, seconds, time, timestamp},
};
use crate::{
    admin::{AdminScope, Conditions, NewSecret, Settings, clients::Listed},
    error::{Error, Result},
    model::{
        Client, ClientCredential, ClientId, Digest, Grants, PlanName, Scopes, Secret, SecretId,
        TenantId,
    },
    proto::admin::{
        self as proto, AddSecretRequest, AddSecretResponse, CreateClientRequest,
        CreateClientResponse, DeleteClientRequest, DeleteClientResponse, DisableClientRequest,
        DisableClientResponse, EnableClientRequest, EnableClientResponse, GetClientRequest,
        GetClientResponse, GrantType, ListClientsRequest, ListClientsResponse, RetireSecretRequest,
        RetireSecretResponse, SecretKind, UpdateClientRequest, UpdateClientResponse,
        add_secret_request, client_service_server::ClientService, create_client_request,
    },
};
use secrecy::ExposeSecret;

/// Fields that a mask may name, as in the proto.
const FIELDS: [&str; 11] = [
    "display_name",
    "scopes",
    "default_scopes",
    "roles",
    "audiences",
    "serves",
    "grant_types",
    "access_token_lifetime",
    "refresh_token_lifetime",
    "refresh_token_idle_lifetime",
    "rate_plan",
];

#[tonic::async_trait]
impl ClientService for GrpcServices {
    async fn create_client(
        &self,
        request: Request<CreateClientRequest>,
    ) -> Result<Response<CreateClientResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Clients).await?;
                let CreateClientRequest { client, secret } = request.into_inner();
                let client = client.ok_or_else(|| Error::field("client", "is required"))?;
                let id = optional::<ClientId>("client.client_id", &client.client_id)?;
                let tenant = optional::<TenantId>("client.tenant", &client.tenant)?;
                let secret = match secret {
                    None => NewSecret::Generated,
                    Some(create_client_request::Secret::Argon2idHash(phc)) => {
                        NewSecret::Argon2id(phc)
                    }
                    Some(create_client_request::Secret::PlainSecret(plain)) => {
                        NewSecret::Plain(plain.into())
                    }
                };
                let settings = settings(&client, |field| !is_default(&client, field))?;
                let added = self
                    .services
                    .admin
                    .clients
                    .create(&call, &admin, id, tenant, settings, secret)
                    .await?;
                let client_secret =
                    added.value.map(|value| value.expose_secret().to_owned()).unwrap_or_default();
                Ok(CreateClientResponse { client: Some(added.client.into()), client_secret })
            }
            .await,
        )
    }

    async fn get_client(
        &self,
        request: Request<GetClientRequest>,
    ) -> Result<Response<GetClientResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Clients).await?;
                let id = required("client_id", &request.get_ref().client_id)?;
                let client = self.services.admin.clients.get(&admin, &id).await?;
                Ok(GetClientResponse { client: Some(client.into()) })
            }
            .await,
        )
    }

    async fn list_clients(
        &self,
        request: Request<ListClientsRequest>,
    ) -> Result<Response<ListClientsResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Clients).await?;
                let ListClientsRequest { tenant, page_size, page_token } = request.into_inner();
                let size = pages::size(page_size)?;
                // Bound to the caller's tenant too: a token gives no access to another's listing.
                let question = format!("clients/{}/{tenant}", admin.tenant());
                let after = pages::open(&self.services.admin.pages, &question, &page_token)?;
                let after = after
                    .as_deref()
                    .map(str::parse)
                    .transpose()
                    .map_err(Error::invalid("page_token"))?;
                let tenant = optional("tenant", &tenant)?;
                let mut listed = self
                    .services
                    .admin
                    .clients
                    .list(&admin, tenant, after.as_ref(), size + 1)
                    .await?;
                let found = listed.len();
                listed.truncate(size);
                let shown: Vec<(ClientId, Option<proto::Client>)> = listed
                    .into_iter()
                    .map(|entry| match entry {
                        Listed::Client(client) => (client.id.clone(), Some((*client).into())),
                        Listed::NotAuthentic(id) => (id, None),
                    })
                    .collect();
                let bytes = |(id, client): &(ClientId, Option<proto::Client>)| {
                    client
                        .as_ref()
                        .map_or_else(|| pages::bytes(&id.as_str().to_owned()), pages::bytes)
                };
                let fitting = pages::fitting(shown.iter().map(bytes));
                let next_page_token = match shown.get(fitting.saturating_sub(1)) {
                    Some((last, _)) if found > fitting => {
                        self.services.admin.pages.seal(&question, last.as_str())
                    }
                    _ => String::new(),
                };
                let mut answer =
                    ListClientsResponse { next_page_token, ..ListClientsResponse::default() };
                for (id, client) in shown.into_iter().take(fitting) {
                    match client {
                        Some(client) => answer.clients.push(client),
                        None => answer.not_authentic.push(id.as_str().to_owned()),
                    }
                }
                Ok(answer)
            }
            .await,
        )
    }

    async fn update_client(
        &self,
        request: Request<UpdateClientRequest>,
    ) -> Result<Response<UpdateClientResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Clients).await?;
                let UpdateClientRequest { client, update_mask, allow_no_administrator } =
                    request.into_inner();
                let client = client.ok_or_else(|| Error::field("client", "is required"))?;
                let id = required("client.client_id", &client.client_id)?;
                let mask = update_mask.map(|mask| mask.paths).unwrap_or_default();
                check_mask(&mask)?;
                let settings = settings(&client, |field| {
                    mask.iter().any(|path| path == field || path == "*")
                })?;
                let client = self
                    .services
                    .admin
                    .clients
                    .update(
                        &call,
                        &admin,
                        &id,
                        conditions(&client.etag, allow_no_administrator)?,
                        settings,
                    )
                    .await?;
                Ok(UpdateClientResponse { client: Some(client.into()) })
            }
            .await,
        )
    }

    async fn disable_client(
        &self,
        request: Request<DisableClientRequest>,
    ) -> Result<Response<DisableClientResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Clients).await?;
                let DisableClientRequest { client_id, etag, allow_no_administrator } =
                    request.into_inner();
                let conditions = conditions(&etag, allow_no_administrator)?;
                let id = required("client_id", &client_id)?;
                let client =
                    self.services.admin.clients.disable(&call, &admin, &id, conditions).await?;
                Ok(DisableClientResponse { client: Some(client.into()) })
            }
            .await,
        )
    }

    async fn enable_client(
        &self,
        request: Request<EnableClientRequest>,
    ) -> Result<Response<EnableClientResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Clients).await?;
                let EnableClientRequest { client_id, etag: tag } = request.into_inner();
                let id = required("client_id", &client_id)?;
                let client =
                    self.services.admin.clients.enable(&call, &admin, &id, etag(&tag)?).await?;
                Ok(EnableClientResponse { client: Some(client.into()) })
            }
            .await,
        )
    }

    async fn delete_client(
        &self,
        request: Request<DeleteClientRequest>,
    ) -> Result<Response<DeleteClientResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Clients).await?;
                let DeleteClientRequest { client_id, etag, allow_no_administrator } =
                    request.into_inner();
                let conditions = conditions(&etag, allow_no_administrator)?;
                let id = required("client_id", &client_id)?;
                self.services
                    .admin
                    .clients
                    .delete(&call, &admin, &id, conditions)
                    .await
                    .map(|()| DeleteClientResponse {})
            }
            .await,
        )
    }

    async fn add_secret(
        &self,
        request: Request<AddSecretRequest>,
    ) -> Result<Response<AddSecretResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Clients).await?;
                let AddSecretRequest { client_id, secret, expire_time, etag: tag } =
                    request.into_inner();
                let id = required("client_id", &client_id)?;
                let source = match secret {
                    None => NewSecret::Generated,
                    Some(add_secret_request::Secret::Argon2idHash(phc)) => NewSecret::Argon2id(phc),
                    Some(add_secret_request::Secret::PlainSecret(plain)) => {
                        NewSecret::Plain(plain.into())
                    }
                };
                let expires_at = time("expire_time", expire_time)?;
                let added = self
                    .services
                    .admin
                    .clients
                    .add_secret(&call, &admin, &id, etag(&tag)?, source, expires_at)
                    .await?;
                Ok(AddSecretResponse {
                    client: Some(added.client.into()),
                    secret_id: added.secret.as_str().to_owned(),
                    client_secret: added
                        .value
                        .map(|value| value.expose_secret().to_owned())
                        .unwrap_or_default(),
                })
            }
            .await,
        )
    }

    async fn retire_secret(
        &self,
        request: Request<RetireSecretRequest>,
    ) -> Result<Response<RetireSecretResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Clients).await?;
                let RetireSecretRequest {
                    client_id,
                    secret_id,
                    overlap,
                    etag,
                    revoke_issued,
                    allow_no_administrator,
                } = request.into_inner();
                let id = required("client_id", &client_id)?;
                let secret = required::<SecretId>("secret_id", &secret_id)?;
                let overlap = duration("overlap", overlap)?.unwrap_or_default();
                let conditions = conditions(&etag, allow_no_administrator)?;
                let clients = &self.services.admin.clients;
                let client = clients
                    .retire_secret(&call, &admin, &id, conditions, &secret, overlap, revoke_issued)
                    .await?;
                Ok(RetireSecretResponse { client: Some(client.into()) })
            }
            .await,
        )
    }
}

fn conditions(tag: &str, allow_no_administrator: bool) -> Result<Conditions> {
    Ok(Conditions { etag: etag(tag)?, allow_no_administrator })
}

fn check_mask(paths: &[String]) -> Result<()> {
    if paths.is_empty() {
        return Err(Error::field("update_mask", "must name at least one field to change"));
    }
    match paths.iter().find(|path| *path != "*" && !FIELDS.contains(&path.as_str())) {
        Some(_) => Err(Error::field("update_mask", format!("may name only {}", FIELDS.join(", ")))),
        None => Ok(()),
    }
}

/// Returns true if a field has its proto default: on creation it was not given then.
fn is_default(client: &proto::Client, field: &str) -> bool {
    match field {
        "grant_types" => client.grant_types.is_empty(),
        _ => false,
    }
}

/// Parses the settings of the `named` fields.
fn settings(client: &proto::Client, named: impl Fn(&str) -> bool) -> Result<Settings> {
    let scopes =
        |field: &'static str, texts: &[String]| Scopes::parse(texts).map_err(Error::invalid(field));
    /// Evaluates `value` if the field is named.
    fn given<T>(named: bool, value: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        if named { value().map(Some) } else { Ok(None) }
    }
    Ok(Settings {
        display_name: given(named("display_name"), || Ok(client.display_name.clone()))?,
        scopes: given(named("scopes"), || scopes("client.scopes", &client.scopes))?,
        default_scopes: given(named("default_scopes"), || {
            scopes("client.default_scopes", &client.default_scopes)
        })?,
        roles: given(named("roles"), || each("client.roles", &client.roles))?,
        audiences: given(named("audiences"), || each("client.audiences", &client.audiences))?,
        serves: given(named("serves"), || each("client.serves", &client.serves))?,
        grants: given(named("grant_types"), || grants(&client.grant_types))?,
        access_ttl: given(named("access_token_lifetime"), || {
            duration("client.access_token_lifetime", client.access_token_lifetime)
        })?,
        refresh_ttl: given(named("refresh_token_lifetime"), || {
            duration("client.refresh_token_lifetime", client.refresh_token_lifetime)
        })?,
        refresh_idle: given(named("refresh_token_idle_lifetime"), || {
            duration("client.refresh_token_idle_lifetime", client.refresh_token_idle_lifetime)
        })?,
        rate_plan: given(named("rate_plan"), || {
            let named = optional("client.rate_plan", &client.rate_plan)?;
            Ok(named.unwrap_or_else(PlanName::standard))
        })?,
    })
}

/// N06: unspecified and unknown values are refused.
fn grants(types: &[i32]) -> Result<Grants> {
    let mut grants = Grants { client_credentials: false, refresh_token: false };
    for value in types {
        match GrantType::try_from(*value) {
            Ok(GrantType::ClientCredentials) => grants.client_credentials = true,
            Ok(GrantType::RefreshToken) => grants.refresh_token = true,
            Ok(GrantType::Unspecified) | Err(_) => {
                return Err(Error::field("client.grant_types", "unknown grant type"));
            }
        }
    }
    Ok(grants)
}

impl From<Client> for proto::Client {
    fn from(client: Client) -> Self {
        let mut grant_types = Vec::new();
        if client.grants.client_credentials {
            grant_types.push(GrantType::ClientCredentials.into());
        }
        if client.grants.refresh_token {
            grant_types.push(GrantType::RefreshToken.into());
        }
        Self {
            client_id: client.id.as_str().to_owned(),
            display_name: client.display_name,
            tenant: client.tenant.as_str().to_owned(),
            scopes: client.scopes.to_strings(),
            default_scopes: client.default_scopes.to_strings(),
            roles: client.roles.iter().map(|role| role.as_str().to_owned()).collect(),
            audiences: client
                .audiences
                .iter()
                .map(|audience| audience.as_str().to_owned())
                .collect(),
            serves: client.serves.iter().map(|audience| audience.as_str().to_owned()).collect(),
            grant_types,
            access_token_lifetime: client.access_ttl.map(seconds),
            refresh_token_lifetime: client.refresh_ttl.map(seconds),
            refresh_token_idle_lifetime: client.refresh_idle.map(seconds),
            rate_plan: client.rate_plan.as_str().to_owned(),
            disabled: client.disabled,
            secrets: client
                .credentials
                .into_iter()
                .map(|credential| match credential {
                    ClientCredential::Secret(secret) => secret.into(),
                })
                .collect(),
            etag: client.revision.to_string(),
            create_time: Some(timestamp(client.created_at)),
            update_time: Some(timestamp(client.updated_at)),
        }
    }
}

impl From<Secret> for proto::Secret {
    fn from(secret: Secret) -> Self {
        let kind = match secret.digest {
            Digest::Keyed { .. } => SecretKind::Generated,
            Digest::Argon2id { .. } => SecretKind::Argon2id,
        };
        Self {
            secret_id: secret.id.as_str().to_owned(),
            kind: kind.into(),
            create_time: Some(timestamp(secret.created_at)),
            expire_time: secret.expires_at.map(timestamp),
            last_used_time: secret.last_used_at.map(timestamp),
            use_count: i64::try_from(secret.use_count).unwrap_or(i64::MAX),
        }
    }
}
