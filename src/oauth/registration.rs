//! Registering clients (the data of RFC 7591 section 2, through administration RPCs) and keeping
//! their secrets.

use std::{sync::Arc, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::{
    Administrator, Authority, bearer::ADMIN, client_auth::MAX_SECRET, introspection::INTROSPECT_ANY,
};
use crate::{
    crypto::{passwords, random, secrets::PREFIX},
    error::{Error, Result},
    model::{
        Action, Audience, Call, Client, ClientId, Digest, Grants, Mac, PlanName, Role, Scope,
        Scopes, Secret, SecretId, TenantId, Timestamp, client::MAX_LIVE_SECRETS, text,
    },
    store::{Creation, ProvenWrite, Spent, StoreError},
};

pub use crate::store::Listed;

/// Lifetimes a client may be given, in seconds: a minute to 366 days.
const LIFETIMES: std::ops::RangeInclusive<u64> = 60..=366 * 86_400;
/// The most a retired secret goes on working.
const MAX_OVERLAP: Duration = Duration::from_secs(90 * 86_400);
/// Id of the first client.
const BOOTSTRAP: &str = "bootstrap";
/// How often a write without etag is tried again when others write in between.
const TRIES: usize = 8;

/// The fields of a client that its administrator sets; `None` leaves a field as it is, or at its
/// default.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// For people, at most 200 characters.
    pub display_name: Option<String>,
    /// What it may ask for.
    pub scopes: Option<Scopes>,
    /// What it gets when it asks for nothing.
    pub default_scopes: Option<Scopes>,
    /// Copied into tokens.
    pub roles: Option<Vec<Role>>,
    /// Who its tokens may be for.
    pub audiences: Option<Vec<Audience>>,
    /// Which audiences it answers for.
    pub serves: Option<Vec<Audience>>,
    /// How it may ask.
    pub grants: Option<Grants>,
    /// Lifetime of access tokens; the inner `None` means the configured one.
    pub access_ttl: Option<Option<Duration>>,
    /// Absolute lifetime of families.
    pub refresh_ttl: Option<Option<Duration>>,
    /// How long families live unused.
    pub refresh_idle: Option<Option<Duration>>,
    /// Rate plan.
    pub rate_plan: Option<PlanName>,
}

/// Where a secret comes from.
pub enum NewSecret {
    /// Made here.
    Generated,
    /// Hashed elsewhere: argon2id in PHC form.
    Argon2id(String),
    /// Chosen elsewhere.
    Plain(SecretString),
}

/// A secret that was just added; its value is known only where it was made here.
pub struct Added {
    /// The client as written.
    pub client: Client,
    /// The secret's id.
    pub secret: SecretId,
    /// Its value, this once.
    pub value: Option<SecretString>,
}

impl Authority {
    /// Registers a client with a first secret.
    pub async fn create_client(
        self: &Arc<Self>,
        call: &Call,
        admin: &Administrator,
        id: Option<ClientId>,
        tenant: Option<TenantId>,
        settings: Settings,
        secret: NewSecret,
    ) -> Result<Added> {
        let tenant = tenant.unwrap_or_else(|| admin.tenant().clone());
        admin.must_govern(&tenant)?;
        let id = match id {
            Some(id) => id,
            None => Uuid::now_v7()
                .as_simple()
                .to_string()
                .parse()
                .map_err(Error::invalid("client.client_id"))?,
        };
        let blank = blank(id, tenant, call.now);
        let mut client = self.settle(blank.clone(), settings)?;
        admin.may_give(&client.scopes)?;
        self.may_allow(admin, &blank, &client)?;
        let (secret, value) = self.make_secret(admin.tenant(), secret, None, call.now).await?;
        let secret_id = secret.id.clone();
        client.secrets.push(secret);
        // Asked before an audience is claimed for it.
        match self.store.client(&client.id).await {
            // One that cannot be read is left to the write, which finds the id taken.
            Ok(None) | Err(StoreError::Corrupt(_)) => {}
            Ok(Some(_)) => return Err(Error::AlreadyExists("client")),
            Err(error) => return Err(error.into()),
        }
        let listed = self.claim_listed(call, admin, &blank, &client).await?;
        let created =
            admin.stamp_in(call, &client.tenant).done(Action::ClientCreated, client.id.as_str());
        let events = self.with_sharing(call, admin, created, &blank, &client).await?;
        let of_any = admin.tenant().is_operator();
        let proof = self.prove(admin).await?;
        let write = ProvenWrite::CreateClient { client: Box::new(client.clone()), of_any, events };
        match self.write_listed(call, admin, (proof, write), &client, listed).await? {
            Spent::Done => Ok(Added { client, secret: secret_id, value }),
            Spent::Taken => Err(Error::AlreadyExists("client")),
            Spent::Stale | Spent::Unproven => Err(Error::Stale("client")),
        }
    }

    /// The first client of an empty store: it may administer and introspect any token. On a store
    /// that has clients, the id of that client if it is still there, and no secret: that is not
    /// known afterwards.
    pub async fn bootstrap(&self, call: &Call) -> Result<Option<(ClientId, Option<SecretString>)>> {
        let id: ClientId = BOOTSTRAP.parse().map_err(Error::invalid("client_id"))?;
        match self.store.client(&id).await {
            Ok(None) => {}
            // One that cannot be read has the name too, and must not keep the service from
            // starting.
            Ok(Some(_)) | Err(StoreError::Corrupt(_)) => return Ok(Some((id, None))),
            Err(error) => return Err(error.into()),
        }
        if !self.store.clients(None, None, 1).await?.is_empty() {
            return Ok(None);
        }
        let scopes = Scopes::parse(&[ADMIN, INTROSPECT_ANY]).map_err(Error::invalid("scopes"))?;
        let (secret, value) =
            self.make_secret(&TenantId::operator(), NewSecret::Generated, None, call.now).await?;
        let client = Client {
            display_name: "first administrator".to_owned(),
            default_scopes: scopes.clone(),
            scopes,
            grants: Grants { client_credentials: true, refresh_token: true },
            secrets: vec![secret],
            ..blank(id.clone(), TenantId::operator(), call.now)
        };
        let stamp = call.stamp_of(&client.tenant, &client.id, None);
        match self
            .store
            .create_client(&client, stamp.done(Action::ClientCreated, id.as_str()))
            .await?
        {
            Creation::Created => Ok(Some((id, value))),
            Creation::Taken => Ok(Some((id, None))),
        }
    }

    /// A client that the administrator governs; every other is not found.
    pub async fn administered(&self, admin: &Administrator, id: &ClientId) -> Result<Client> {
        let client = self.store.client(id).await?.filter(|client| admin.governs(&client.tenant));
        client.ok_or(Error::NotFound("client"))
    }

    /// A page of clients in the order of their ids, and of records that are none's.
    pub async fn clients(
        &self,
        admin: &Administrator,
        tenant: Option<TenantId>,
        after: Option<&ClientId>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        let tenant = admin.confined_to(tenant)?;
        Ok(self.store.clients(tenant.as_ref(), after, limit).await?)
    }

    /// Changes a client's settings, validated exactly as on creation (N05). Where something is
    /// taken away, all that was issued to the client ends in the same write.
    pub async fn update_client(
        self: &Arc<Self>,
        call: &Call,
        admin: &Administrator,
        id: &ClientId,
        etag: Option<u64>,
        settings: Settings,
    ) -> Result<Client> {
        let settle = |client: Client| self.settle(client, settings.clone());
        self.rewrite(call, admin, id, etag, Action::ClientUpdated, id.as_str(), None, settle).await
    }

    /// Refuses a client from now on and ends what it holds, in one write: a call that is cut off
    /// leaves both or neither.
    pub async fn disable_client(
        self: &Arc<Self>,
        call: &Call,
        admin: &Administrator,
        id: &ClientId,
        etag: Option<u64>,
    ) -> Result<Client> {
        let disable = |client: Client| Ok(Client { disabled: true, ..client });
        self.rewrite(
            call,
            admin,
            id,
            etag,
            Action::ClientDisabled,
            id.as_str(),
            Some("disabled"),
            disable,
        )
        .await
    }

    /// Admits a disabled client again.
    pub async fn enable_client(
        self: &Arc<Self>,
        call: &Call,
        admin: &Administrator,
        id: &ClientId,
        etag: Option<u64>,
    ) -> Result<Client> {
        let enable = |client: Client| Ok(Client { disabled: false, ..client });
        self.rewrite(call, admin, id, etag, Action::ClientEnabled, id.as_str(), None, enable).await
    }

    /// Removes a client and raises its epoch in one write: that is what ends its families also for
    /// a later client of its name.
    pub async fn delete_client(
        self: &Arc<Self>,
        call: &Call,
        admin: &Administrator,
        id: &ClientId,
        etag: Option<u64>,
    ) -> Result<()> {
        let remove = |client: Client| Ok(client);
        self.rewrite(
            call,
            admin,
            id,
            etag,
            Action::ClientDeleted,
            id.as_str(),
            Some("deleted"),
            remove,
        )
        .await
        .map(drop)
    }

    /// Gives a client a further secret, unless two live already.
    pub async fn add_secret(
        self: &Arc<Self>,
        call: &Call,
        admin: &Administrator,
        id: &ClientId,
        etag: Option<u64>,
        source: NewSecret,
        expires_at: Option<Timestamp>,
    ) -> Result<Added> {
        if expires_at.is_some_and(|end| end <= call.now) {
            return Err(Error::field("expire_time", "lies in the past"));
        }
        // Asked before the price of argon2id is paid.
        self.administered(admin, id).await.and_then(|client| admin.may_give(&client.scopes))?;
        let (secret, value) =
            self.make_secret(admin.tenant(), source, expires_at, call.now).await?;
        let secret_id = secret.id.clone();
        let target = format!("{id}/{secret_id}");
        let client = self
            .rewrite(call, admin, id, etag, Action::SecretAdded, &target, None, |mut client| {
                client.secrets.retain(|secret| secret.lives(call.now));
                if client.secrets.len() >= MAX_LIVE_SECRETS {
                    return Err(Error::precondition("two secrets are live: retire one first"));
                }
                client.secrets.push(secret.clone());
                Ok(client)
            })
            .await?;
        Ok(Added { client, secret: secret_id, value })
    }

    /// Ends a secret, after an overlap or at once; it never lives longer than it would have. For
    /// one that leaked, everything that was issued to the client so far ends in the same write.
    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub async fn retire_secret(
        self: &Arc<Self>,
        call: &Call,
        admin: &Administrator,
        id: &ClientId,
        etag: Option<u64>,
        secret: &SecretId,
        overlap: Duration,
        revoke_issued: bool,
    ) -> Result<Client> {
        if revoke_issued && !overlap.is_zero() {
            return Err(Error::field(
                "revoke_issued",
                "goes with no overlap: the secret would go on to get tokens",
            ));
        }
        if overlap > MAX_OVERLAP {
            return Err(Error::field("overlap", "at most 90 days"));
        }
        let end = call.now + overlap;
        let ends = revoke_issued.then_some("secret retired");
        self.rewrite(
            call,
            admin,
            id,
            etag,
            Action::SecretRetired,
            &format!("{id}/{secret}"),
            ends,
            |mut client| {
                let found = client
                    .secrets
                    .iter_mut()
                    .find(|own| own.id == *secret)
                    .ok_or(Error::NotFound("secret"))?;
                found.expires_at = Some(found.expires_at.map_or(end, |already| already.min(end)));
                client.secrets.retain(|secret| secret.lives(call.now));
                Ok(client)
            },
        )
        .await
    }

    /// Reads, changes and conditionally writes a client; again where another write came in between
    /// and no etag was given. What the client holds ends with it where `ends` says why, or
    /// something is taken away. Each try is proven anew.
    #[expect(clippy::too_many_arguments, reason = "one place for every write of a client")]
    async fn rewrite(
        self: &Arc<Self>,
        call: &Call,
        admin: &Administrator,
        id: &ClientId,
        etag: Option<u64>,
        action: Action,
        target: &str,
        ends: Option<&'static str>,
        change: impl Fn(Client) -> Result<Client>,
    ) -> Result<Client> {
        for _ in 0..TRIES {
            let client = self.administered(admin, id).await?;
            if etag.is_some_and(|etag| etag != client.revision) {
                return Err(Error::Stale("client"));
            }
            // Both as it was and as it shall be: a lesser office neither gives nor touches what it
            // does not hold.
            admin.may_give(&client.scopes)?;
            let before = client.clone();
            let client =
                Client { revision: before.revision + 1, updated_at: call.now, ..change(client)? };
            let ends = ends.or_else(|| before.loses_by(&client).then_some("narrowed"));
            admin.may_give(&client.scopes)?;
            self.may_allow(admin, &before, &client)?;
            let listed = self.claim_listed(call, admin, &before, &client).await?;
            let stamp = admin.stamp_in(call, &client.tenant);
            let deleted = action == Action::ClientDeleted;
            let kept = if deleted { unlisted(&client) } else { client.clone() };
            let own = stamp.done(action, target);
            let events = self.with_sharing(call, admin, own, &before, &kept).await?;
            let ended =
                |why: &str| stamp.done(Action::ClientRevoked, id.as_str()).because(why.to_owned());
            let kept = Box::new(kept);
            let write = if deleted {
                ProvenWrite::DeleteClient {
                    client: Box::new(before),
                    ended: ended("deleted"),
                    events,
                }
            } else if let Some(why) = ends {
                ProvenWrite::EndClient { client: kept, events, ended: ended(why) }
            } else {
                ProvenWrite::ReplaceClient { client: kept, events }
            };
            let proof = self.prove(admin).await?;
            if self.write_listed(call, admin, (proof, write), &client, listed).await? == Spent::Done
            {
                return Ok(client);
            }
        }
        Err(Error::Stale("client"))
    }

    /// Applies settings and checks the whole: every way of writing a client ends here.
    fn settle(&self, client: Client, settings: Settings) -> Result<Client> {
        let client = Client {
            display_name: settings.display_name.unwrap_or(client.display_name),
            scopes: settings.scopes.unwrap_or(client.scopes),
            default_scopes: settings.default_scopes.unwrap_or(client.default_scopes),
            roles: settings.roles.unwrap_or(client.roles),
            audiences: settings.audiences.unwrap_or(client.audiences),
            serves: settings.serves.unwrap_or(client.serves),
            grants: settings.grants.unwrap_or(client.grants),
            access_ttl: settings.access_ttl.unwrap_or(client.access_ttl),
            refresh_ttl: settings.refresh_ttl.unwrap_or(client.refresh_ttl),
            refresh_idle: settings.refresh_idle.unwrap_or(client.refresh_idle),
            rate_plan: settings.rate_plan.unwrap_or(client.rate_plan),
            ..client
        };
        if client.display_name.chars().count() > 200 {
            return Err(Error::field("client.display_name", "at most 200 characters"));
        }
        check_texts(&client)?;
        if let Some(scope) = client.scopes.lacks(&client.default_scopes) {
            return Err(Error::field(
                "client.default_scopes",
                format!("{scope} is not among the client's scopes"),
            ));
        }
        for (field, len) in [
            ("client.roles", client.roles.len()),
            ("client.audiences", client.audiences.len()),
            ("client.serves", client.serves.len()),
        ] {
            if len > 50 {
                return Err(Error::field(field, "at most 50"));
            }
        }
        let max = self.terms.token.access_lifetime_max_seconds;
        if client.access_ttl.is_some_and(|ttl| !(60..=max).contains(&ttl.as_secs())) {
            return Err(Error::field(
                "client.access_token_lifetime",
                format!("must be 60 s to {max} s"),
            ));
        }
        for (field, lifetime) in [
            ("client.refresh_token_lifetime", client.refresh_ttl),
            ("client.refresh_token_idle_lifetime", client.refresh_idle),
        ] {
            if lifetime.is_some_and(|lifetime| !LIFETIMES.contains(&lifetime.as_secs())) {
                return Err(Error::field(field, "must be 60 s to 366 days"));
            }
        }
        if !self.limits.has_plan(&client.rate_plan) {
            return Err(Error::field("client.rate_plan", "there is no such plan"));
        }
        Ok(client)
    }

    /// `tenant` is the administrator's.
    async fn make_secret(
        &self,
        tenant: &TenantId,
        source: NewSecret,
        expires_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(Secret, Option<SecretString>)> {
        let (id, digest, value) = match source {
            NewSecret::Generated => {
                let (id, value, digest) = self.secrets.generate();
                (id, digest, Some(value))
            }
            NewSecret::Argon2id(phc) => {
                passwords::check_import(&phc).map_err(Error::invalid("argon2id_hash"))?;
                (random_secret_id()?, Digest::Argon2id { phc }, None)
            }
            NewSecret::Plain(plain) => {
                let length = plain.expose_secret().len();
                if !(16..=MAX_SECRET).contains(&length) || plain.expose_secret().starts_with(PREFIX)
                {
                    return Err(Error::field(
                        "plain_secret",
                        "must be 16 to 1024 bytes and not begin with \"jcs_\"",
                    ));
                }
                (
                    random_secret_id()?,
                    Digest::Argon2id { phc: self.passwords.hash(tenant, plain).await? },
                    None,
                )
            }
        };
        Ok((
            Secret { id, digest, created_at: now, expires_at, last_used_at: None, use_count: 0 },
            value,
        ))
    }
}

/// Refuses secrets in every text of a client that people choose.
fn check_texts(client: &Client) -> Result<()> {
    let fields: [(&str, Vec<&str>); 6] = [
        ("client.client_id", vec![client.id.as_str()]),
        ("client.display_name", vec![&client.display_name]),
        ("client.scopes", client.scopes.iter().map(Scope::as_str).collect()),
        ("client.roles", client.roles.iter().map(Role::as_str).collect()),
        ("client.audiences", client.audiences.iter().map(Audience::as_str).collect()),
        ("client.serves", client.serves.iter().map(Audience::as_str).collect()),
    ];
    for (field, texts) in fields {
        texts.into_iter().try_for_each(text::check).map_err(Error::invalid(field))?;
    }
    Ok(())
}

fn blank(id: ClientId, tenant: TenantId, now: Timestamp) -> Client {
    Client {
        id,
        tenant,
        display_name: String::new(),
        scopes: Scopes::default(),
        default_scopes: Scopes::default(),
        roles: Vec::new(),
        audiences: Vec::new(),
        serves: Vec::new(),
        grants: Grants { client_credentials: true, refresh_token: false },
        access_ttl: None,
        refresh_ttl: None,
        refresh_idle: None,
        rate_plan: PlanName::standard(),
        disabled: false,
        secrets: Vec::new(),
        revision: 1,
        created_at: now,
        updated_at: now,
        mac: Mac::default(),
    }
}

/// The client without an audience, as it is once it was deleted.
fn unlisted(client: &Client) -> Client {
    Client { audiences: Vec::new(), serves: Vec::new(), ..client.clone() }
}

fn random_secret_id() -> Result<SecretId> {
    let text: String = random::bytes::<6>().iter().map(|byte| format!("{byte:02x}")).collect();
    text.parse().map_err(|invalid| Error::Internal(Box::<crate::model::Invalid>::new(invalid)))
}
