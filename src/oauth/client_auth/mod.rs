//! Client authentication (RFC 6749 section 2.3). Whatever is wrong, the answer is the same and the
//! work is the same.

mod bearer;
mod presented;
mod secret_uses;

use std::{fmt, sync::Arc};

use secrecy::{ExposeSecret, SecretString};

use self::presented::{Judgement, PresentedSecret, Refusal};
pub use self::{bearer::carries, secret_uses::SecretUses};
use super::Detached;
use crate::{
    audit::Trail,
    clock::Clock,
    crypto::{
        passwords::Passwords,
        secrets::{ClientSecrets, secret_id_of},
    },
    error::{Error, Result},
    limit::{Limits, ReadPlace},
    model::{
        Audience, AuthMethod, Call, Client, ClientId, Epochs, Stamp, Subject, TenantId, Timestamp,
    },
    standing::{ClientCache, Stale, TokenState},
    store::{Store, StoreError},
};

/// Maximum length of a presented secret, in bytes (A04).
pub const MAX_SECRET: usize = 1_024;

/// Client id of the dummy read that keeps refusals of known and unknown clients equally slow (A02).
const DUMMY_CLIENT_ID: &str = "~";

/// Credentials that a caller presents: exactly one of these.
pub enum Credentials {
    /// Nothing.
    None,
    /// A client id and its secret, from the metadata or the message.
    Secret {
        /// As presented.
        client_id: String,
        /// As presented.
        secret: SecretString,
    },
    /// An access token of the caller's own (RFC 6750).
    Bearer(SecretString),
}

/// Without the values.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Secret { .. } => "Secret",
            Self::Bearer(_) => "Bearer",
        })
    }
}

/// A client that proved itself in this call. Made here and nowhere else: a rule that takes one
/// cannot be reached without.
#[derive(Debug)]
pub struct AuthenticatedClient {
    client: Arc<Client>,
    method: AuthMethod,
    epochs: Result<Epochs, Stale>,
}

impl AuthenticatedClient {
    /// The client's record.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Method by which it proved itself.
    pub const fn method(&self) -> &AuthMethod {
        &self.method
    }

    /// The client's record, owned.
    pub fn into_client(self) -> Arc<Client> {
        self.client
    }

    /// The epochs that a token issued in this call is minted under. An error where they were not
    /// known when the client was admitted: proving who one is, and ending a token, needs none.
    pub fn epochs(&self) -> Result<Epochs> {
        Ok(self.epochs?)
    }

    /// A stamp for the audit trail.
    pub fn stamp(&self, call: &Call) -> Stamp {
        call.stamp_of(&self.client.tenant, &self.client.id, Some(self.method.clone()))
    }

    /// A stamp for what concerns `tenant`. Another tenant learns the caller's id and nothing else
    /// of it.
    pub fn stamp_in(&self, call: &Call, tenant: &TenantId) -> Stamp {
        let own = self.client.tenant == *tenant;
        call.stamp_of(tenant, &self.client.id, own.then(|| self.method.clone()))
    }
}

/// Authenticates clients by their secrets and their own access tokens, and draws on their budgets.
pub struct ClientAuthenticator {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) tokens: Arc<TokenState>,
    pub(crate) cache: Arc<ClientCache>,
    pub(crate) trail: Arc<Trail>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) secrets: Arc<ClientSecrets>,
    pub(crate) passwords: Arc<Passwords>,
    pub(crate) uses: SecretUses,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) detached: Arc<Detached>,
    /// This service as an audience: that of the access tokens that clients authenticate with.
    pub(crate) own_audience: Audience,
}

impl ClientAuthenticator {
    /// Authenticates a client by its secret and draws on its budget. Unknown client, wrong, retired
    /// or expired secret and disabled client are all [`Error::InvalidClient`] (A01).
    pub async fn authenticate(
        &self,
        call: &Call,
        credentials: Credentials,
    ) -> Result<AuthenticatedClient> {
        let (client_id, secret) = match credentials {
            Credentials::Secret { client_id, secret } => (client_id, secret),
            Credentials::None | Credentials::Bearer(_) => {
                let refusal = Refusal::NoSecret(self.limits.guess(call.peer, None, call.now));
                return Err(self.refuse(call, None, None, refusal).await);
            }
        };
        if secret.expose_secret().len() > MAX_SECRET {
            return Err(Error::field("client_secret", "must be at most 1024 bytes"));
        }
        let id = client_id.parse::<ClientId>().ok();
        let (client, read) = match &id {
            Some(id) => {
                let place = self.limits.read_place(call.peer);
                self.cache.look_up(id, place, |place| self.read_unproven(place, id)).await?
            }
            None => (None, false),
        };
        let claim =
            PresentedSecret { name: &client_id, client: client.as_deref(), secret: &secret };
        let refusal = match self.judge_claim(call, &claim).await {
            Judgement::Right { secret: id, rehashed } => {
                let proven = client.as_deref().ok_or(Error::InvalidClient)?;
                if let Some(admitted) = self.admit(call, proven, AuthMethod::Secret(id)).await? {
                    if let Some(kept) = rehashed {
                        self.rehash(call, &admitted, kept, &secret).await;
                    }
                    return Ok(admitted);
                }
                Refusal::Ended
            }
            Judgement::Refused(refusal) => refusal,
        };
        // Recorded before anything that takes time: a caller that hangs up must not have a guess
        // judged and leave no record.
        let presented = secret_id_of(secret.expose_secret());
        let refused = self.refuse(call, client.as_deref(), presented, refusal).await;
        // Every refusal pays for one read, so that a cached client is not faster than an unknown
        // name. The name is always the same, because an existing record takes longer to read.
        if id.is_some() && !read {
            let dummy = DUMMY_CLIENT_ID.parse().map_err(Error::invalid("client_id"))?;
            self.read_unproven(self.limits.read_place(call.peer).await, &dummy).await?;
        }
        Err(refused)
    }

    /// Reads a client's record for a caller that has proven nothing yet, in a place of its
    /// network's. In a task of its own: what is on its way to the store stays there when the caller
    /// hangs up, and so does its place.
    async fn read_unproven(
        &self,
        place: ReadPlace,
        id: &ClientId,
    ) -> Result<Option<Client>, StoreError> {
        let (store, id) = (Arc::clone(&self.store), id.clone());
        let read = async move {
            let found = store.client(&id).await;
            drop(place);
            found
        };
        self.detached.run(read).await
    }

    /// Admits a proven client if its record, read once more, still has what was proven: the proof
    /// may have waited for argon2id, and what was retired or taken away meanwhile has no effect
    /// left. Everything that follows goes by this record.
    ///
    /// Disabling writes the record and raises the epoch in one commit, which arrives as the record,
    /// then the epoch. So the epochs are read first and the record second: a reader of the raised
    /// epoch reads the disabled record too, and a caller that is admitted by the old record gets a
    /// token that is revoked.
    async fn admit(
        &self,
        call: &Call,
        proven: &Client,
        method: AuthMethod,
    ) -> Result<Option<AuthenticatedClient>> {
        let epochs =
            self.tokens.epochs(&proven.tenant, &proven.id, &Subject::of_client(&proven.id));
        let Some(client) = self.unchanged(call, proven, &method).await? else { return Ok(None) };
        self.limits.client(&client.id, &client.rate_plan, call.now)?;
        match &method {
            AuthMethod::Secret(secret) => self.uses.note(&client.id, secret, call.now),
            AuthMethod::AccessToken(_) => {}
        }
        Ok(Some(AuthenticatedClient { client, method, epochs }))
    }

    /// A client's record as it is now, if the credential that was proven against an earlier reading
    /// is in it and works.
    async fn unchanged(
        &self,
        call: &Call,
        proven: &Client,
        method: &AuthMethod,
    ) -> Result<Option<Arc<Client>>> {
        // The time that has passed in this call counts: an overlap may have ended in it.
        let now = self.clock.now().max(call.now);
        let made = |client: &Client| added_at(client, method, now);
        let client = self.cache.client(self.store.as_ref(), &proven.id).await?;
        Ok(client.filter(|client| {
            !client.disabled
                && client.tenant == proven.tenant
                && made(client).is_some()
                && made(client) == made(proven)
        }))
    }

    /// Demands that what was proven in this call still holds: next to handing out what was issued,
    /// after the write that recorded it. A token that no caller receives has no effect.
    pub async fn still_authenticated(&self, call: &Call, who: &AuthenticatedClient) -> Result<()> {
        match self.unchanged(call, &who.client, &who.method).await? {
            Some(_) => Ok(()),
            None => {
                let id =
                    if let AuthMethod::Secret(id) = &who.method { Some(id.clone()) } else { None };
                Err(self.refuse(call, Some(&who.client), id, Refusal::Ended).await)
            }
        }
    }
}

/// Time at which the credential that was proven was added to a client, if it works at `now`. A
/// secret is the same by its id and this time, for another digest of it is written at the first use
/// of an import. An access token is no credential of its client's: it proves nothing here.
fn added_at(client: &Client, method: &AuthMethod, now: Timestamp) -> Option<Timestamp> {
    match method {
        AuthMethod::Secret(id) => {
            client.live_secrets(now).find(|own| own.id == *id).map(|own| own.created_at)
        }
        AuthMethod::AccessToken(_) => None,
    }
}
