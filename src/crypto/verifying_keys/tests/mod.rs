//! The keys from outside and, with their own private keys in an attacker's hand, from inside.

use std::sync::OnceLock;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use super::*;
use crate::{
    crypto::{
        jwk,
        jws::MAX_TOKEN,
        keys::{self, KeyError, Pair},
        keyset_mac::KeysetError,
        root::Root,
        seal::Sealer,
        signing_keys::{SignError, SigningKeys, SigningKeysError},
    },
    model::{
        FamilyId, Jti, KeyState, Keyset, SigningKey, TenantId, claims::Epochs, keyset::Algorithm,
    },
};

mod claims;
mod forged;

const ISSUER: &str = "https://jeton.example";
const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const LIMITS: ClaimLimits =
    ClaimLimits { max_lifetime: Duration::from_secs(3_600), skew: Duration::from_secs(5) };

/// A keyset with one active key, and that key itself.
struct Bench {
    keyset: Keyset,
    sealer: Sealer,
    signing: SigningKeys,
    verifying: VerifyingKeys,
    pair: Pair,
}

impl Bench {
    fn new(alg: Algorithm) -> Self {
        let sealer = Sealer::new([5; 32]);
        let key =
            SigningKey { state: KeyState::Active { since: NOW }, ..keys::make(alg, &sealer, NOW) };
        let pair = Pair::open(&key, &sealer).unwrap();
        let keyset = Keyset {
            revision: 1,
            keys: vec![key],
            sealed_root: Root::make(&sealer),
            mac: String::new(),
        }
        .with_mac(&sealer);
        let (signing, verifying) = open(&keyset, &sealer).unwrap();
        Self { keyset, sealer, signing, verifying, pair }
    }

    /// An RSA key takes a while to find: one for all tests.
    fn rsa() -> &'static Self {
        static RSA: OnceLock<Bench> = OnceLock::new();
        RSA.get_or_init(|| Self::new(Algorithm::Rs256))
    }

    fn all() -> [(&'static str, &'static Self); 3] {
        static OTHER_BENCHES: OnceLock<[Bench; 2]> = OnceLock::new();
        let [ed, es] = OTHER_BENCHES
            .get_or_init(|| [Self::new(Algorithm::EdDsa), Self::new(Algorithm::Es256)]);
        [("EdDSA", ed), ("ES256", es), ("RS256", Self::rsa())]
    }

    fn kid(&self) -> &str {
        self.signing.kid().as_str()
    }

    fn header(&self) -> String {
        format!(r#"{{"typ":"at+jwt","alg":"{}","kid":"{}"}}"#, self.pair.alg().as_str(), self.kid())
    }

    /// Signs whatever is given with the very key of the service.
    fn forge(&self, header: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> String {
        let signed = signed(header, payload);
        let signature = self.pair.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn accepts(&self, token: &str) -> bool {
        self.verifying.verify(token, NOW).is_some()
    }
}

fn open(
    keyset: &Keyset,
    sealer: &Sealer,
) -> Result<(SigningKeys, VerifyingKeys), SigningKeysError> {
    let (signing, public) = SigningKeys::open(keyset, sealer)?;
    Ok((signing, VerifyingKeys::new(keyset.revision, ISSUER, LIMITS, public)))
}

fn signed(header: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload))
}

fn good_claims() -> Claims {
    Claims {
        iss: ISSUER.to_owned(),
        sub: "client:orders".parse().unwrap(),
        aud: vec!["https://orders.example".parse().unwrap()],
        client_id: "orders".parse().unwrap(),
        scope: "orders:read".to_owned(),
        iat: NOW.seconds(),
        nbf: NOW.seconds(),
        exp: NOW.seconds() + 900,
        jti: Jti::new(),
        tenant: TenantId::operator(),
        roles: vec!["reader".parse().unwrap()],
        fam: Some(FamilyId::new()),
        ep: Epochs { tenant: 1, client: 2, subject: 3 },
    }
}

fn payload() -> Vec<u8> {
    serde_json::to_vec(&good_claims()).unwrap()
}

/// J22, J07: what is signed carries every claim of RFC 9068 section 2.2, under exactly this header,
/// and reads back.
#[test]
fn what_is_signed_is_an_access_token_and_reads_back() {
    for (name, bench) in Bench::all() {
        let claims = good_claims();
        let token = bench.signing.sign(&claims).unwrap();
        let verified = bench.verifying.verify(&token, NOW).unwrap();
        assert_eq!(verified.claims(), &claims, "{name}");
        assert_eq!(verified.kid(), bench.signing.kid());
        let parts: Vec<_> =
            token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap()).collect();
        assert_eq!(parts[0], bench.header().into_bytes());
        let written: serde_json::Value = serde_json::from_slice(&parts[1]).unwrap();
        for claim in
            ["iss", "exp", "aud", "sub", "client_id", "iat", "jti", "scope", "nbf", "tenant"]
        {
            assert!(written.get(claim).is_some(), "{claim}");
        }
    }
}

/// All of it is shared between threads.
#[test]
fn keys_and_pools_can_be_shared() {
    fn shared<T: Send + Sync>() {}
    shared::<SigningKeys>();
    shared::<VerifyingKeys>();
    shared::<Sealer>();
    shared::<VerifiedClaims>();
    shared::<crate::crypto::passwords::Passwords>();
    shared::<crate::crypto::secrets::ClientSecrets>();
    shared::<crate::crypto::refresh_token::RefreshKey>();
}

#[test]
fn what_would_be_too_long_to_verify_is_not_signed() {
    let (_, bench) = Bench::all()[0];
    let fits = Claims { scope: "s".repeat(5_000), ..good_claims() };
    assert!(bench.accepts(&bench.signing.sign(&fits).unwrap()));
    let too_long = Claims { scope: "s".repeat(6_000), ..good_claims() };
    assert!(matches!(bench.signing.sign(&too_long), Err(SignError::TooLong)));
}

/// K03: a revoked key's tokens do not stand, those of the others do.
#[test]
fn tokens_of_a_revoked_key_do_not_verify() {
    let Bench { mut keyset, sealer, signing, .. } = Bench::new(Algorithm::EdDsa);
    let token = signing.sign(&good_claims()).unwrap();
    let kid = signing.kid().clone();
    keyset.keys[0].state = KeyState::Revoked { remove_at: NOW + Duration::from_secs(3_600) };
    keyset.keys.push(SigningKey {
        state: KeyState::Active { since: NOW },
        ..keys::make(Algorithm::Es256, &sealer, NOW)
    });
    let (signing, verifying) = open(&keyset.with_mac(&sealer), &sealer).unwrap();
    assert!(verifying.verify(&token, NOW).is_none());
    assert!(!verifying.contains(&kid));
    assert!(verifying.contains(signing.kid()));
    assert!(verifying.verify(&signing.sign(&good_claims()).unwrap(), NOW).is_some());
    assert!(!verifying.jwks().to_string().contains(kid.as_str()), "nor is it published");
}

/// K01: a retiring key verifies until the last of its tokens has expired, and not a moment longer,
/// swept or not.
#[test]
fn a_retiring_key_verifies_until_it_is_due_to_go() {
    let Bench { mut keyset, sealer, signing, .. } = Bench::new(Algorithm::EdDsa);
    let token = signing.sign(&good_claims()).unwrap();
    let remove_at = NOW + Duration::from_secs(60);
    keyset.keys[0].state = KeyState::Retiring { remove_at };
    keyset.keys.push(SigningKey {
        state: KeyState::Active { since: NOW },
        ..keys::make(Algorithm::EdDsa, &sealer, NOW)
    });
    let (_, verifying) = open(&keyset.with_mac(&sealer), &sealer).unwrap();
    assert!(verifying.verify(&token, remove_at - Duration::from_millis(1)).is_some());
    assert!(verifying.verify(&token, remove_at).is_none());
    assert_eq!(verifying.jwks()["keys"].as_array().unwrap().len(), 2, "both are published");
}

/// K04: the published set holds public members only, unique kids, one alg and use each, and passes
/// our own import.
#[test]
fn the_published_set_is_public() {
    let sealer = Sealer::new([5; 32]);
    let made = [Algorithm::EdDsa, Algorithm::Es256].map(|alg| keys::make(alg, &sealer, NOW));
    let mut keys = vec![Bench::rsa().keyset.keys[0].clone()];
    keys.extend(made);
    let keyset = Keyset { revision: 1, keys, sealed_root: Root::make(&sealer), mac: String::new() }
        .with_mac(&sealer);
    let jwks = open(&keyset, &sealer).unwrap().1.jwks().clone();
    let expected = [
        ("RSA", vec!["alg", "e", "kid", "kty", "n", "use"]),
        ("OKP", vec!["alg", "crv", "kid", "kty", "use", "x"]),
        ("EC", vec!["alg", "crv", "kid", "kty", "use", "x", "y"]),
    ];
    for ((kty, members), (key, own)) in
        expected.iter().zip(jwks["keys"].as_array().unwrap().iter().zip(&keyset.keys))
    {
        assert_eq!(key["kty"], *kty);
        let mut named: Vec<_> = key.as_object().unwrap().keys().collect();
        named.sort_unstable();
        assert_eq!(named, *members);
        assert_eq!(key["kid"], own.kid.as_str());
        assert_eq!((&key["use"], &key["alg"]), (&"sig".into(), &own.alg.as_str().into()));
    }
    assert_eq!(jwk::parse_set(&jwks.to_string()).unwrap().len(), 3);
}

/// K05: an RSA key below 3,072 bits is not opened, wherever it is from.
#[test]
fn a_short_rsa_key_is_refused() {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    let pair =
        aws_lc_rs::signature::RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let pkcs8: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let Bench { mut keyset, sealer, .. } = Bench::new(Algorithm::EdDsa);
    let key = &mut keyset.keys[0];
    key.alg = Algorithm::Rs256;
    key.sealed =
        URL_SAFE_NO_PAD.encode(sealer.seal("signing key", key.kid.as_str(), pkcs8.as_ref()));
    assert!(matches!(
        open(&keyset.with_mac(&sealer), &sealer),
        Err(SigningKeysError::Key(KeyError::Unacceptable(_, "RS256")))
    ));
}

/// K06: another master key, an altered or a swapped private part: the service does not start.
#[test]
fn a_key_that_is_not_its_own_does_not_open() {
    let Bench { keyset, sealer, .. } = Bench::new(Algorithm::EdDsa);
    assert!(matches!(open(&keyset, &Sealer::new([6; 32])), Err(SigningKeysError::Root(_))));
    let other = keys::make(Algorithm::EdDsa, &sealer, NOW);
    let mut swapped = keyset.clone();
    swapped.keys[0].sealed = other.sealed;
    assert!(matches!(open(&swapped, &sealer), Err(SigningKeysError::Keyset(KeysetError::Mac))));
    assert!(matches!(
        open(&swapped.with_mac(&sealer), &sealer),
        Err(SigningKeysError::Key(KeyError::Sealed(_)))
    ));
    let mut renamed = keyset.clone();
    let (_, pkcs8) = keys::make_key(Algorithm::EdDsa);
    let kid = renamed.keys[0].kid.clone();
    renamed.keys[0].sealed =
        URL_SAFE_NO_PAD.encode(sealer.seal("signing key", kid.as_str(), &pkcs8));
    assert!(
        matches!(
            open(&renamed.with_mac(&sealer), &sealer),
            Err(SigningKeysError::Key(KeyError::Sealed(_)))
        ),
        "its id is its thumbprint"
    );
    let mut wrong_alg = keyset;
    wrong_alg.keys[0].alg = Algorithm::Es256;
    assert!(matches!(
        open(&wrong_alg.with_mac(&sealer), &sealer),
        Err(SigningKeysError::Key(KeyError::Unacceptable(..)))
    ));
}

/// K07: zero or two active keys, or one key twice, is no keyset to go on with.
#[test]
fn exactly_one_key_is_active() {
    let Bench { mut keyset, sealer, .. } = Bench::new(Algorithm::EdDsa);
    keyset.keys.push(keyset.keys[0].clone());
    assert!(matches!(
        open(&keyset.clone().with_mac(&sealer), &sealer),
        Err(SigningKeysError::Keyset(KeysetError::Twice(_)))
    ));
    keyset.keys[1] = SigningKey {
        state: KeyState::Active { since: NOW },
        ..keys::make(Algorithm::Es256, &sealer, NOW)
    };
    assert!(matches!(
        open(&keyset.clone().with_mac(&sealer), &sealer),
        Err(SigningKeysError::Keyset(KeysetError::Active(2)))
    ));
    for key in &mut keyset.keys {
        key.state = KeyState::Prepared { activate_at: None };
    }
    assert!(matches!(
        open(&keyset.with_mac(&sealer), &sealer),
        Err(SigningKeysError::Keyset(KeysetError::Active(0)))
    ));
}

/// O01, K06: neither the keyset at rest nor anything that can be printed holds a private key.
#[test]
fn no_private_key_is_in_the_record_or_in_debug() {
    let sealer = Sealer::new([5; 32]);
    for alg in [Algorithm::EdDsa, Algorithm::Es256] {
        let key = keys::make(alg, &sealer, NOW);
        let sealed = URL_SAFE_NO_PAD.decode(&key.sealed).unwrap();
        let private = sealer.open("signing key", key.kid.as_str(), &sealed).unwrap();
        // The end of the document: the seed or scalar, not the fixed header.
        assert!(!sealed.windows(8).any(|window| window == &private[private.len() - 8..]));
        assert!(!format!("{key:?}").contains(&key.sealed[..8]));
    }
    let (_, bench) = Bench::all()[0];
    assert!(!format!("{:?}{:?}", bench.signing, bench.verifying).contains("issuer"));
}

/// Published keys are all that verifying needs: a process without the master key judges as the
/// service does.
#[test]
fn published_keys_verify_without_the_master_key() {
    for (name, bench) in Bench::all() {
        let published = jwk::parse_set(&bench.verifying.jwks().to_string()).unwrap();
        let public = published.into_iter().map(|key| PublicKey::new(key, None).unwrap());
        let elsewhere = VerifyingKeys::new(1, ISSUER, LIMITS, public);
        let token = bench.signing.sign(&good_claims()).unwrap();
        assert_eq!(elsewhere.verify(&token, NOW).unwrap().claims().jti, {
            bench.verifying.verify(&token, NOW).unwrap().claims().jti
        });
        assert!(elsewhere.verify(&token[..token.len() - 1], NOW).is_none(), "{name}");
        assert_eq!(elsewhere.jwks(), bench.verifying.jwks());
    }
}

/// K04, J03: no key that could sign verifies, nor one under another key's id.
#[test]
fn only_public_keys_under_their_own_id_verify() {
    let admit = |json: serde_json::Value| {
        PublicKey::new(serde_json::from_value(json).unwrap(), None).map(drop)
    };
    let (_, bench) = Bench::all()[0];
    let own = bench.verifying.jwks()["keys"][0].clone();
    assert_eq!(admit(own.clone()), Ok(()));
    for (kid, reason) in [(Some("other"), "renamed"), (None, "without an id")] {
        let mut key = own.clone();
        key["kid"] = kid.into();
        assert_eq!(admit(key), Err(Refused("its kid is not its thumbprint")), "{reason}");
    }
    let secret = URL_SAFE_NO_PAD.encode([7; 32]);
    let symmetric = serde_json::json!({"kty": "oct", "alg": "HS256", "k": secret, "kid": "a"});
    assert_eq!(admit(symmetric), Err(Refused("it is not a public key")));
}
