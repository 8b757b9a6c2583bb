//! MACs of stored records that grant permissions: a process that writes to the database without the
//! master key can remove such a record or restore an older one, but cannot create or alter one.

use std::fmt;

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use crate::model::{AudienceRecord, Client, ClientCredential, Digest, Grants, Mac, Secret};

/// Prefix of the authenticated bytes of a client: no record of another kind has the same bytes.
const CLIENT: &str = "jeton client record v1";
/// Prefix of the authenticated bytes of an audience.
const AUDIENCE: &str = "jeton audience record v1";

/// Key that makes and checks the MACs.
#[derive(Clone)]
pub struct RecordKey(hmac::Key);

impl RecordKey {
    /// Creates the key from 32 bytes, derived from the master key under the label "client record".
    pub fn new(bytes: impl Into<Zeroizing<[u8; 32]>>) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &*bytes.into()))
    }

    /// Returns the client with its MAC.
    pub fn seal_client(&self, client: Client) -> Client {
        Client { mac: self.sign(&client_bytes(&client)), ..client }
    }

    /// Returns true if the MAC of this record is valid; in constant time.
    pub fn is_authentic(&self, client: &Client) -> bool {
        self.verify(&client_bytes(client), client.mac)
    }

    /// Returns the record of an audience with its MAC.
    pub fn seal_audience(&self, record: AudienceRecord) -> AudienceRecord {
        AudienceRecord { mac: self.sign(&audience_bytes(&record)), ..record }
    }

    /// Returns true if the MAC of this record is valid; in constant time.
    pub fn is_authentic_audience(&self, record: &AudienceRecord) -> bool {
        self.verify(&audience_bytes(record), record.mac)
    }

    fn sign(&self, bytes: &[u8]) -> Mac {
        let mut mac = [0; 32];
        let tag = hmac::sign(&self.0, bytes);
        mac.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        Mac(mac)
    }

    fn verify(&self, bytes: &[u8], mac: Mac) -> bool {
        hmac::verify(&self.0, bytes, &mac.0).is_ok()
    }
}

/// Prints the type only.
impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordKey")
    }
}

/// Returns all fields except the MAC itself and the uses of secrets, which are counted beside the
/// record. The pattern names every field, so that a new one cannot be forgotten here.
fn client_bytes(client: &Client) -> Vec<u8> {
    let Client {
        id,
        tenant,
        display_name,
        scopes,
        default_scopes,
        roles,
        audiences,
        serves,
        grants,
        access_ttl,
        refresh_ttl,
        refresh_idle,
        rate_plan,
        disabled,
        credentials,
        revision,
        created_at,
        updated_at,
        mac: _,
    } = client;
    let Grants { client_credentials, refresh_token } = grants;
    let mut framed = Framed::of(CLIENT);
    for text in [id.as_str(), tenant.as_str(), display_name, rate_plan.as_str()] {
        framed.text(text);
    }
    framed.texts(scopes.iter().map(|scope| scope.as_str()));
    framed.texts(default_scopes.iter().map(|scope| scope.as_str()));
    framed.texts(roles.iter().map(|role| role.as_str()));
    framed.texts(audiences.iter().map(|audience| audience.as_str()));
    framed.texts(serves.iter().map(|audience| audience.as_str()));
    for flag in [client_credentials, refresh_token, disabled] {
        framed.number(i128::from(*flag));
    }
    for lifetime in [access_ttl, refresh_ttl, refresh_idle] {
        framed.optional(
            lifetime.map(|lifetime| i128::try_from(lifetime.as_nanos()).unwrap_or(i128::MAX)),
        );
    }
    framed.number(i128::from(*revision));
    framed.number(i128::from(created_at.millis()));
    framed.number(i128::from(updated_at.millis()));
    framed.number(i128::try_from(credentials.len()).unwrap_or(i128::MAX));
    for credential in credentials {
        framed.credential(credential);
    }
    framed.0
}

/// Returns all fields except the MAC itself.
fn audience_bytes(record: &AudienceRecord) -> Vec<u8> {
    let AudienceRecord { audience, tenant, claimed_by, created_at, releasing, revision, mac: _ } =
        record;
    let mut framed = Framed::of(AUDIENCE);
    for text in [audience.as_str(), tenant.as_str(), claimed_by.as_str()] {
        framed.text(text);
    }
    framed.number(i128::from(created_at.millis()));
    framed.number(i128::from(*releasing));
    framed.number(i128::from(*revision));
    framed.0
}

/// Unambiguous bytes: each text after its length, each list after its count, numbers of one width.
struct Framed(Vec<u8>);

impl Framed {
    fn of(label: &str) -> Self {
        let mut framed = Self(Vec::with_capacity(1_024));
        framed.text(label);
        framed
    }

    fn text(&mut self, text: &str) {
        self.number(i128::try_from(text.len()).unwrap_or(i128::MAX));
        self.0.extend_from_slice(text.as_bytes());
    }

    fn texts<'a>(&mut self, texts: impl Iterator<Item = &'a str>) {
        let texts: Vec<&str> = texts.collect();
        self.number(i128::try_from(texts.len()).unwrap_or(i128::MAX));
        texts.into_iter().for_each(|text| self.text(text));
    }

    /// The kind is first, so that no credential reads as one of another kind.
    fn credential(&mut self, credential: &ClientCredential) {
        match credential {
            ClientCredential::Secret(secret) => {
                self.text("secret");
                self.secret(secret);
            }
        }
    }

    fn secret(&mut self, secret: &Secret) {
        let Secret { id, digest, created_at, expires_at, last_used_at: _, use_count: _ } = secret;
        self.text(id.as_str());
        let (kind, digest) = match digest {
            Digest::Keyed { hmac } => ("keyed", hmac),
            Digest::Argon2id { phc } => ("argon2id", phc),
        };
        self.text(kind);
        self.text(digest);
        self.number(i128::from(created_at.millis()));
        self.optional(expires_at.map(|end| i128::from(end.millis())));
    }

    fn number(&mut self, number: i128) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    fn optional(&mut self, number: Option<i128>) {
        self.0.push(u8::from(number.is_some()));
        self.number(number.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests;
