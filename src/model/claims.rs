//! Claims of an access token (RFC 9068 section 2.2, RFC 7519 section 4.1).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    audience::Audience,
    id::{ClientId, FamilyId, Jti, Role, Subject, TenantId},
    weight,
};

/// Time by which `iat` and `nbf` lie before the moment of issue. Verifiers whose clock is this much
/// behind accept a token that was just issued; many libraries allow no leeway by themselves. `exp`
/// is counted from the moment of issue.
pub const VERIFIER_BEHIND: Duration = Duration::from_secs(10);

/// The claims of an access token. A typed struct, so that a claim named twice or of the wrong type
/// does not parse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The issuer's URL, exactly as configured.
    pub iss: String,
    /// The subject.
    pub sub: Subject,
    /// Audiences; never empty.
    pub aud: Vec<Audience>,
    /// The client it was issued to.
    pub client_id: ClientId,
    /// Scopes, separated by one space (RFC 8693 section 4.2).
    pub scope: String,
    /// Issued at, seconds since the epoch, [`VERIFIER_BEHIND`] early.
    pub iat: i64,
    /// Start of validity (not before), seconds since the epoch, as early as `iat`.
    pub nbf: i64,
    /// Expires at, seconds since the epoch.
    pub exp: i64,
    /// The token's id.
    pub jti: Jti,
    /// The tenant of the client.
    pub tenant: TenantId,
    /// Roles of the client.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<Role>,
    /// The refresh family that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fam: Option<FamilyId>,
    /// The epochs it was minted under.
    pub ep: Epochs,
}

impl Claims {
    /// Bytes that the claims take besides themselves.
    pub fn weight(&self) -> usize {
        let ids =
            [self.sub.as_str(), self.client_id.as_str(), self.tenant.as_str()].map(weight::text);
        let texts = [self.iss.capacity(), self.scope.capacity()].map(weight::shared);
        ids.into_iter().chain(texts).sum::<usize>()
            + weight::texts::<Audience>(self.aud.capacity(), self.aud.iter().map(Audience::as_str))
            + weight::texts::<Role>(self.roles.capacity(), self.roles.iter().map(Role::as_str))
    }
}

/// The epochs of tenant, client and subject that were known when a token was minted. It is active
/// only while none of them has been raised since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u64; 3]", into = "[u64; 3]")]
pub struct Epochs {
    /// Epoch of the tenant.
    pub tenant: u64,
    /// Epoch of the client.
    pub client: u64,
    /// Epoch of the subject.
    pub subject: u64,
}

impl Epochs {
    /// Returns true if what was minted under `self` is not revoked by `current`.
    pub fn covers(self, current: Self) -> bool {
        self.tenant >= current.tenant
            && self.client >= current.client
            && self.subject >= current.subject
    }
}

impl From<[u64; 3]> for Epochs {
    fn from([tenant, client, subject]: [u64; 3]) -> Self {
        Self { tenant, client, subject }
    }
}

impl From<Epochs> for [u64; 3] {
    fn from(epochs: Epochs) -> Self {
        [epochs.tenant, epochs.client, epochs.subject]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// V06: one raised level ends the token, whatever the other levels say.
    #[test]
    fn any_raised_level_ends_a_token() {
        let minted = Epochs { tenant: 1, client: 2, subject: 3 };
        assert!(minted.covers(minted));
        assert!(minted.covers(Epochs::default()));
        for raised in [[2, 0, 0], [0, 3, 0], [0, 0, 4]] {
            assert!(!minted.covers(raised.into()), "{raised:?}");
        }
    }

    #[test]
    fn the_documents_list_every_claim() {
        let claims = serde_json::json!({
            "iss": "https://jeton.example", "sub": "client:a", "aud": ["https://api.example"],
            "client_id": "a", "scope": "read", "iat": 0, "nbf": 0, "exp": 1,
            "jti": "01a201a0-29f3-722a-8adf-fe338ea12417", "tenant": "default", "roles": ["r"],
            "fam": "01a201a0-29f3-722a-8adf-fe338ea12418", "ep": [0, 0, 0],
        });
        let parsed: Claims = serde_json::from_value(claims).unwrap();
        // A claim that the test does not name is among these, if it is written at all.
        let written = serde_json::to_value(parsed).unwrap();
        let mut written: Vec<_> = written.as_object().unwrap().keys().cloned().collect();
        written.sort();
        let document = include_str!("../../docs/integration.md");
        let (_, claims) = document.split_once("\n## Claims\n").unwrap();
        let (claims, _) = claims.split_once("\n## ").unwrap();
        let rows = claims.lines().filter_map(|line| line.strip_prefix("| `"));
        let mut listed: Vec<_> = rows.map(|row| row.split('`').next().unwrap()).collect();
        listed.sort_unstable();
        assert_eq!(listed, written);
    }
}
