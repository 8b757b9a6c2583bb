//! Secret keys of the service, opened once under the master key: the key that signs access tokens,
//! and the root of the symmetric keys. The public keys that verify are separate:
//! [`VerifyingKeys`](super::verifying_keys::VerifyingKeys).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{
    jws::MAX_TOKEN,
    keys::{KeyError, Pair},
    keyset_mac::KeysetError,
    root::Root,
    seal::Sealer,
    verifying_keys::PublicKey,
};
use crate::model::{Claims, KeyState, Keyset, Kid, SigningKey};

/// Reason that a keyset cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeysError {
    /// The keyset as a whole.
    #[error(transparent)]
    Keyset(#[from] KeysetError),
    /// A signing key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The root of the symmetric keys.
    #[error("the root key: {0}")]
    Root(#[from] super::seal::SealError),
}

impl SigningKeysError {
    /// Returns true if no holder of this master key wrote the keyset.
    pub const fn is_forgery(&self) -> bool {
        matches!(self, Self::Keyset(_) | Self::Root(_))
    }
}

/// Reason that a token could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The token would be longer than verifiers accept: see [`MAX_TOKEN`].
    #[error("the token would be longer than {MAX_TOKEN} bytes")]
    TooLong,
    /// The claims cannot be written as JSON.
    #[error("cannot encode the claims")]
    Claims(#[source] serde_json::Error),
    /// The key does not sign.
    #[error("signing failed")]
    Signature,
}

/// The secret keys of one revision of the keyset.
pub struct SigningKeys {
    revision: u64,
    root: Root,
    kid: Kid,
    pair: Pair,
    /// Header of every token in base64url, with its dot.
    header: String,
}

impl SigningKeys {
    /// Opens every key of `keyset` that is not revoked, with its public part.
    ///
    /// # Errors
    ///
    /// The keyset does not [check](Keyset::check), or a key or the root does not open under this
    /// master key or is unacceptable.
    pub fn open(
        keyset: &Keyset,
        sealer: &Sealer,
    ) -> Result<(Self, Vec<PublicKey>), SigningKeysError> {
        let root = Root::open(keyset, sealer)?;
        keyset.check(sealer)?;
        let mut signer = None;
        let mut public = Vec::new();
        for key in keyset.keys.iter().filter(|key| !matches!(key.state, KeyState::Revoked { .. })) {
            let pair = Pair::open(key, sealer)?;
            public.push(public_part(key, &pair)?);
            if matches!(key.state, KeyState::Active { .. }) {
                signer = Some((key.kid.clone(), pair));
            }
        }
        let (kid, pair) = signer.ok_or(KeysetError::Active(0))?;
        let header = format!(r#"{{"typ":"at+jwt","alg":"{}","kid":"{kid}"}}"#, pair.alg().as_str());
        let header = format!("{}.", URL_SAFE_NO_PAD.encode(header));
        Ok((Self { revision: keyset.revision, root, kid, pair, header }, public))
    }

    /// Signs an access token (RFC 9068) with the active key.
    ///
    /// # Errors
    ///
    /// The token would be longer than verifiers accept.
    pub fn sign(&self, claims: &Claims) -> Result<String, SignError> {
        let payload = serde_json::to_vec(claims).map_err(SignError::Claims)?;
        let mut token = String::with_capacity(self.header.len() + payload.len() * 4 / 3 + 600);
        token.push_str(&self.header);
        URL_SAFE_NO_PAD.encode_string(&payload, &mut token);
        let signature = self.pair.sign(token.as_bytes()).ok_or(SignError::Signature)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(&signature, &mut token);
        if token.len() > MAX_TOKEN { Err(SignError::TooLong) } else { Ok(token) }
    }

    /// Revision of the keyset that the keys were opened from.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// The root of the symmetric keys.
    pub const fn root(&self) -> &Root {
        &self.root
    }

    /// The key that signs.
    pub const fn kid(&self) -> &Kid {
        &self.kid
    }
}

/// The public part of a key, which must be the one that its id names.
fn public_part(key: &SigningKey, pair: &Pair) -> Result<PublicKey, KeyError> {
    let unacceptable = || KeyError::Unacceptable(key.kid.clone(), key.alg.as_str());
    let until = match key.state {
        KeyState::Retiring { remove_at } => Some(remove_at),
        KeyState::Prepared { .. } | KeyState::Active { .. } | KeyState::Revoked { .. } => None,
    };
    let jwk = pair.jwk().ok_or_else(unacceptable)?;
    let public = PublicKey::new(jwk, until).map_err(|_| unacceptable())?;
    if *public.kid() == key.kid { Ok(public) } else { Err(KeyError::Sealed(key.kid.clone())) }
}

/// Prints the ids of the keys, not the keys.
impl std::fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKeys").field("kid", &self.kid).finish_non_exhaustive()
    }
}
