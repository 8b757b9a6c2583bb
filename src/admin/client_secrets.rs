//! New secrets of clients: made here, or imported.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use crate::{
    crypto::{
        passwords::{self, Passwords},
        random,
        secrets::{ClientSecrets, PREFIX},
    },
    error::{Error, Result},
    model::{Digest, Secret, SecretId, TenantId, Timestamp, digits::hex},
    oauth::client_auth::MAX_SECRET,
};

/// Where a secret comes from.
pub enum NewSecret {
    /// Made here.
    Generated,
    /// Hashed elsewhere: argon2id in PHC form.
    Argon2id(String),
    /// Chosen elsewhere.
    Plain(SecretString),
}

/// Makes the records of new secrets.
pub struct SecretMaker {
    pub(crate) secrets: Arc<ClientSecrets>,
    pub(crate) passwords: Arc<Passwords>,
}

impl SecretMaker {
    /// `tenant` is the administrator's.
    pub(super) async fn make(
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
                        "must be 16 to 1024 bytes and must not begin with \"jcs_\"",
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

fn random_secret_id() -> Result<SecretId> {
    hex(&random::bytes::<6>())
        .parse()
        .map_err(|invalid| Error::Internal(Box::<crate::model::Invalid>::new(invalid)))
}
