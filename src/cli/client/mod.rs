//! `client`: manages clients and their secrets.

mod lists;
mod secret;
mod table;

use std::{collections::BTreeMap, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use self::{
    lists::ListChanges,
    secret::{Imported, ImportedSecret, ShownSecret},
    table::{Made, list, show},
};
use super::{
    admin::Admin,
    args,
    connect::{Options, Remote},
    error::Failure,
    output::Output,
    render,
};
use crate::proto::admin::{
    AddSecretRequest, Client, CreateClientRequest, DeleteClientRequest, DisableClientRequest,
    EnableClientRequest, GetClientRequest, GrantType, RetireSecretRequest, UpdateClientRequest,
    add_secret_request, client_service_client::ClientServiceClient, create_client_request,
};

/// `jeton client`
#[derive(Args, Debug)]
pub(super) struct Command {
    #[command(subcommand)]
    command: ClientCommand,
    #[command(flatten)]
    remote: Options,
}

/// Notes below the help of `client update`.
const UPDATE_NOTES: &str = "\
--scope, --default-scope, --role, --audience, --serves and --grant replace the whole list: repeat
them for every value to keep, or use --add-scope, --remove-scope and so on. A change that takes a
scope, audience, role or grant away from the client revokes all tokens issued to it so far.";

#[derive(Subcommand, Debug)]
enum ClientCommand {
    /// Register a client; its secret is printed once
    #[command(after_help = args::DURATION_FORMAT)]
    Create(Box<Create>),
    /// Show one client
    Get {
        /// Client id
        client_id: String,
    },
    /// List clients
    List {
        /// Show only this tenant
        #[arg(long)]
        tenant: Option<String>,
        /// Show at most this many
        #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
        limit: usize,
    },
    /// Change the given properties of a client. A list replaces the old list, and taking a scope,
    /// audience, role or grant away revokes the client's tokens
    #[command(after_help = format!("{UPDATE_NOTES}\n\n{}", args::DURATION_FORMAT))]
    Update(Box<Update>),
    /// Disable a client and revoke its tokens
    Disable(Withdraw),
    /// Enable a disabled client; its old tokens stay revoked
    Enable(Versioned),
    /// Delete a client and revoke its tokens
    Delete(Withdraw),
    /// Add a secret, printed once; a client has at most two active secrets
    #[command(after_help = args::DURATION_FORMAT)]
    AddSecret(AddSecret),
    /// Retire a secret, at once or after an overlap
    #[command(after_help = args::DURATION_FORMAT)]
    RetireSecret(RetireSecret),
}

#[derive(Args, Debug)]
struct Create {
    /// Client id, 1 to 128 of [A-Za-z0-9._~-] [default: generated]
    client_id: Option<String>,
    /// Tenant [default: the caller's]
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    properties: Properties,
    #[command(flatten)]
    secret: ImportedSecret,
    #[command(flatten)]
    shown: ShownSecret,
}

/// Properties that `create` sets and `update` changes.
#[derive(Args, Debug, Default)]
struct Properties {
    /// Display name
    #[arg(long = "name", value_name = "TEXT")]
    display_name: Option<String>,
    /// Scope the client may request, repeatable
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Scope granted when a request names none, repeatable
    #[arg(long = "default-scope", value_name = "SCOPE")]
    default_scopes: Vec<String>,
    /// Role copied into the client's tokens, repeatable
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// Audience the client may request tokens for, repeatable; the first is the default
    #[arg(long = "audience", value_name = "URI")]
    audiences: Vec<String>,
    /// Audience whose tokens the client may introspect, repeatable
    #[arg(long, value_name = "URI")]
    serves: Vec<String>,
    /// Grant type the client may use, repeatable
    #[arg(long = "grant", value_name = "GRANT")]
    grants: Vec<Grant>,
    /// Lifetime of access tokens [default: token.access_lifetime_seconds of the server]
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    access_lifetime: Option<Duration>,
    /// Absolute lifetime of refresh families [default: token.refresh_lifetime_seconds of the
    /// server]
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    refresh_lifetime: Option<Duration>,
    /// Idle lifetime of refresh families [default: token.refresh_idle_seconds of the server]
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    refresh_idle: Option<Duration>,
    /// Rate plan of the client, one of limits.plans of the server: standard, bulk, or your own
    /// [default: standard]; only administrators of the tenant "default" may assign another
    #[arg(long, value_name = "NAME")]
    rate_plan: Option<String>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Grant {
    #[value(alias = "client_credentials")]
    ClientCredentials,
    #[value(alias = "refresh_token")]
    RefreshToken,
}

impl Grant {
    /// Returns the number of the grant in the proto.
    fn number(self) -> i32 {
        match self {
            Self::ClientCredentials => GrantType::ClientCredentials.into(),
            Self::RefreshToken => GrantType::RefreshToken.into(),
        }
    }
}

/// A property that `--clear` can reset.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Clearable {
    Name,
    Scopes,
    #[value(alias = "default_scopes")]
    DefaultScopes,
    Roles,
    Audiences,
    Serves,
    #[value(alias = "access_lifetime")]
    AccessLifetime,
    #[value(alias = "refresh_lifetime")]
    RefreshLifetime,
    #[value(alias = "refresh_idle")]
    RefreshIdle,
    #[value(alias = "rate_plan")]
    RatePlan,
}

impl Clearable {
    /// Returns the name of the field in the proto.
    const fn path(self) -> &'static str {
        match self {
            Self::Name => "display_name",
            Self::Scopes => "scopes",
            Self::DefaultScopes => "default_scopes",
            Self::Roles => "roles",
            Self::Audiences => "audiences",
            Self::Serves => "serves",
            Self::AccessLifetime => "access_token_lifetime",
            Self::RefreshLifetime => "refresh_token_lifetime",
            Self::RefreshIdle => "refresh_token_idle_lifetime",
            Self::RatePlan => "rate_plan",
        }
    }
}

impl Properties {
    fn client(&self, client_id: String) -> Client {
        Client {
            client_id,
            display_name: self.display_name.clone().unwrap_or_default(),
            scopes: self.scopes.clone(),
            default_scopes: self.default_scopes.clone(),
            roles: self.roles.clone(),
            audiences: self.audiences.clone(),
            serves: self.serves.clone(),
            grant_types: self.grants.iter().map(|grant| grant.number()).collect(),
            access_token_lifetime: self.access_lifetime.map(render::proto_duration),
            refresh_token_lifetime: self.refresh_lifetime.map(render::proto_duration),
            refresh_token_idle_lifetime: self.refresh_idle.map(render::proto_duration),
            rate_plan: self.rate_plan.clone().unwrap_or_default(),
            ..Client::default()
        }
    }

    /// Returns the names of the fields that have a flag.
    fn paths(&self) -> Vec<&'static str> {
        let named = [
            ("display_name", self.display_name.is_some()),
            ("scopes", !self.scopes.is_empty()),
            ("default_scopes", !self.default_scopes.is_empty()),
            ("roles", !self.roles.is_empty()),
            ("audiences", !self.audiences.is_empty()),
            ("serves", !self.serves.is_empty()),
            ("grant_types", !self.grants.is_empty()),
            ("access_token_lifetime", self.access_lifetime.is_some()),
            ("refresh_token_lifetime", self.refresh_lifetime.is_some()),
            ("refresh_token_idle_lifetime", self.refresh_idle.is_some()),
            ("rate_plan", self.rate_plan.is_some()),
        ];
        named.into_iter().filter_map(|(path, given)| given.then_some(path)).collect()
    }
}

#[derive(Args, Debug)]
struct Update {
    /// Client id
    client_id: String,
    #[command(flatten)]
    properties: Properties,
    /// Reset this property to empty or to its default, repeatable
    #[arg(long, value_name = "PROPERTY")]
    clear: Vec<Clearable>,
    #[command(flatten)]
    lists: ListChanges,
    /// Change only this version of the client
    #[arg(long)]
    etag: Option<String>,
    /// Allow a change that leaves no client that can administer the service
    #[arg(long)]
    allow_no_administrator: bool,
}

impl Update {
    fn request(&self) -> Result<UpdateClientRequest, Failure> {
        let mut paths = self.properties.paths();
        for cleared in &self.clear {
            if paths.contains(&cleared.path()) {
                return Err(Failure::Usage(format!("{} is both set and cleared", cleared.path())));
            }
            paths.push(cleared.path());
        }
        for changed in self.lists.paths() {
            if paths.contains(&changed) {
                let problem = format!("{changed} is replaced or cleared, and changed too");
                return Err(Failure::Usage(problem));
            }
            paths.push(changed);
        }
        if paths.is_empty() {
            return Err(Failure::Usage(
                "name at least one property to change, or --clear".to_owned(),
            ));
        }
        let mut client = self.properties.client(self.client_id.clone());
        client.etag = self.etag.clone().unwrap_or_default();
        let paths = paths.into_iter().map(str::to_owned).collect();
        Ok(UpdateClientRequest {
            client: Some(client),
            update_mask: Some(prost_types::FieldMask { paths }),
            allow_no_administrator: self.allow_no_administrator,
        })
    }
}

#[derive(Args, Debug)]
struct Versioned {
    /// Client id
    client_id: String,
    /// Change only this version of the client
    #[arg(long)]
    etag: Option<String>,
}

#[derive(Args, Debug)]
struct Withdraw {
    #[command(flatten)]
    client: Versioned,
    /// Allow a change that leaves no client that can administer the service
    #[arg(long)]
    allow_no_administrator: bool,
}

impl Withdraw {
    fn disable(&self) -> DisableClientRequest {
        DisableClientRequest {
            client_id: self.client.client_id.clone(),
            etag: self.client.etag.clone().unwrap_or_default(),
            allow_no_administrator: self.allow_no_administrator,
        }
    }

    fn delete(&self) -> DeleteClientRequest {
        DeleteClientRequest {
            client_id: self.client.client_id.clone(),
            etag: self.client.etag.clone().unwrap_or_default(),
            allow_no_administrator: self.allow_no_administrator,
        }
    }
}

impl Versioned {
    fn enable(&self) -> EnableClientRequest {
        EnableClientRequest {
            client_id: self.client_id.clone(),
            etag: self.etag.clone().unwrap_or_default(),
        }
    }
}

#[derive(Args, Debug)]
struct AddSecret {
    /// Client id
    client_id: String,
    #[command(flatten)]
    secret: ImportedSecret,
    #[command(flatten)]
    shown: ShownSecret,
    /// The secret expires after this time [default: never]
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    expires_in: Option<Duration>,
    /// Change only this version of the client
    #[arg(long)]
    etag: Option<String>,
}

#[derive(Args, Debug)]
struct RetireSecret {
    /// Client id
    client_id: String,
    /// Secret id
    #[arg(allow_hyphen_values = true)]
    secret_id: String,
    /// The secret stays valid for this time [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    overlap: Option<Duration>,
    /// The secret leaked: revoke every token issued to the client so far
    #[arg(long, conflicts_with = "overlap")]
    revoke_issued: bool,
    /// Change only this version of the client
    #[arg(long)]
    etag: Option<String>,
    /// Allow a change that leaves no client that can administer the service
    #[arg(long)]
    allow_no_administrator: bool,
}

impl Command {
    pub(super) async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        // Errors in the arguments are reported before any call.
        let update = if let ClientCommand::Update(update) = &self.command {
            Some(update.request()?)
        } else {
            None
        };
        let remote = Remote::open(&self.remote, environment).await?;
        let admin = Admin::open(remote, "jeton:admin:clients").await?;
        let mut clients = ClientServiceClient::new(admin.channel());
        let client = match &self.command {
            ClientCommand::Create(create) => {
                let (request, file) = (create.request()?, create.shown.file()?);
                let answer = clients.create_client(admin.request(request)).await?.into_inner();
                let made = Made { id: "", secret: &answer.client_secret };
                return create.shown.show(output, answer.client, made, file);
            }
            ClientCommand::AddSecret(add) => {
                let (request, file) = (add.request()?, add.shown.file()?);
                let answer = clients.add_secret(admin.request(request)).await?.into_inner();
                let made = Made { id: &answer.secret_id, secret: &answer.client_secret };
                return add.shown.show(output, answer.client, made, file);
            }
            ClientCommand::List { tenant, limit } => {
                return list(output, &admin, tenant.clone().unwrap_or_default(), *limit).await;
            }
            ClientCommand::Delete(which) => {
                clients.delete_client(admin.request(which.delete())).await?;
                return if output.json {
                    output.document(&json!({}))
                } else {
                    output.line("deleted")
                };
            }
            ClientCommand::Get { client_id } => {
                let request = admin.request(GetClientRequest { client_id: client_id.clone() });
                clients.get_client(request).await?.into_inner().client
            }
            ClientCommand::Update(update_of) => {
                let Update { client_id, lists, .. } = update_of.as_ref();
                let request = admin.request(GetClientRequest { client_id: client_id.clone() });
                let old = clients.get_client(request).await?.into_inner().client;
                let old = old.unwrap_or_default();
                let mut update = update.unwrap_or_default();
                if let Some(client) = &mut update.client {
                    lists.apply(&old, client)?;
                }
                let answer = clients.update_client(admin.request(update)).await?.into_inner();
                let new = answer.client.unwrap_or_default();
                lists::removed(&old, &new).iter().for_each(|line| output.talk(line));
                Some(new)
            }
            ClientCommand::Disable(which) => {
                clients.disable_client(admin.request(which.disable())).await?.into_inner().client
            }
            ClientCommand::Enable(which) => {
                clients.enable_client(admin.request(which.enable())).await?.into_inner().client
            }
            ClientCommand::RetireSecret(retire) => {
                clients.retire_secret(admin.request(retire.request())).await?.into_inner().client
            }
        };
        show(output, client, None)
    }
}

impl RetireSecret {
    fn request(&self) -> RetireSecretRequest {
        RetireSecretRequest {
            client_id: self.client_id.clone(),
            secret_id: self.secret_id.clone(),
            overlap: self.overlap.map(render::proto_duration),
            etag: self.etag.clone().unwrap_or_default(),
            revoke_issued: self.revoke_issued,
            allow_no_administrator: self.allow_no_administrator,
        }
    }
}

impl Create {
    fn request(&self) -> Result<CreateClientRequest, Failure> {
        use create_client_request::Secret;
        let mut client = self.properties.client(self.client_id.clone().unwrap_or_default());
        client.tenant = self.tenant.clone().unwrap_or_default();
        let secret = match self.secret.read()? {
            Some(Imported::Plain(text)) => Some(Secret::PlainSecret(text)),
            Some(Imported::Hash(phc)) => Some(Secret::Argon2idHash(phc)),
            None => None,
        };
        Ok(CreateClientRequest { client: Some(client), secret })
    }
}

impl AddSecret {
    fn request(&self) -> Result<AddSecretRequest, Failure> {
        use add_secret_request::Secret;
        let secret = match self.secret.read()? {
            Some(Imported::Plain(text)) => Some(Secret::PlainSecret(text)),
            Some(Imported::Hash(phc)) => Some(Secret::Argon2idHash(phc)),
            None => None,
        };
        Ok(AddSecretRequest {
            client_id: self.client_id.clone(),
            secret,
            expire_time: self.expires_in.map(|after| render::proto_time(args::now() + after)),
            etag: self.etag.clone().unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(properties: Properties, clear: Vec<Clearable>) -> Update {
        Update {
            client_id: "c".to_owned(),
            properties,
            clear,
            lists: ListChanges::default(),
            etag: Some("3".to_owned()),
            allow_no_administrator: false,
        }
    }

    #[test]
    fn the_mask_names_what_was_named() {
        let properties = Properties {
            scopes: vec!["a".to_owned()],
            rate_plan: Some("bulk".to_owned()),
            ..Properties::default()
        };
        let request = update(properties, vec![Clearable::Roles, Clearable::AccessLifetime])
            .request()
            .unwrap();
        let paths = request.update_mask.unwrap().paths;
        assert_eq!(paths, ["scopes", "rate_plan", "roles", "access_token_lifetime"]);
        let client = request.client.unwrap();
        assert_eq!((client.client_id.as_str(), client.etag.as_str()), ("c", "3"));
        assert!(client.roles.is_empty() && client.access_token_lifetime.is_none());
    }

    #[test]
    fn an_update_of_nothing_or_of_both_ways_is_wrong_usage() {
        assert_eq!(update(Properties::default(), vec![]).request().unwrap_err().exit_code(), 2);
        let both = Properties { roles: vec!["r".to_owned()], ..Properties::default() };
        assert_eq!(update(both, vec![Clearable::Roles]).request().unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_secret_is_imported_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hash");
        std::fs::write(&file, "$argon2id$v=19$...\n").unwrap();
        let secret = ImportedSecret { secret_file: None, argon2id_file: Some(file) };
        let create = Create {
            client_id: None,
            tenant: None,
            properties: Properties::default(),
            secret,
            shown: ShownSecret::default(),
        };
        let expected = create_client_request::Secret::Argon2idHash("$argon2id$v=19$...".to_owned());
        assert_eq!(create.request().unwrap().secret, Some(expected));
    }
}
