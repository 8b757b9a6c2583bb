//! The examples of the RFCs, and keys that are not taken in.

use jsonwebtoken::jwk::ThumbprintHash;

use super::*;
use crate::crypto::keys::Pair;

/// RFC 7515 appendix A: the payload of A.1 to A.3.
const PAYLOAD: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";

/// RFC 7515 appendix A.1, with the algorithm its key is for.
const A1_KEY: &str = r#"{"kty":"oct","alg":"HS256","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}"#;
/// RFC 7515 appendix A.2, with the algorithm its key is for.
const A2_KEY: &str = r#"{"kty":"RSA","alg":"RS256","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#;
/// RFC 7515 appendix A.3.
const A3_KEY: &str = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
/// RFC 8037 appendix A.2.
const ED_KEY: &str =
    r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
/// RFC 8037 appendix A.4.
const ED_JWS: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";

fn jwk(json: &str) -> Jwk {
    serde_json::from_str(json).unwrap()
}

fn verify(key: &str, token: &str) -> Option<Vec<u8>> {
    Verifier::from_jwk(&jwk(key)).unwrap().verify(&Jws::parse(token).unwrap()).map(<[u8]>::to_vec)
}

#[test]
fn the_examples_of_rfc_7515_and_8037_verify() {
    let a1 = format!(
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{PAYLOAD}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    );
    let a2 = format!(
        "eyJhbGciOiJSUzI1NiJ9.{PAYLOAD}.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
    );
    let a3 = format!(
        "eyJhbGciOiJFUzI1NiJ9.{PAYLOAD}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
    );
    let joe = URL_SAFE_NO_PAD.decode(PAYLOAD).unwrap();
    let examples = [
        (A1_KEY, a1.as_str(), joe.as_slice()),
        (A2_KEY, &a2, &joe),
        (A3_KEY, &a3, &joe),
        (ED_KEY, ED_JWS, b"Example of Ed25519 signing"),
    ];
    for (at, (key, token, payload)) in examples.iter().enumerate() {
        assert_eq!(verify(key, token).as_deref(), Some(*payload), "{token}");
        let other = examples[(at + 1) % 4].1;
        assert_eq!(verify(key, other), None, "with another key");
    }
}

/// RFC 8037 appendix A.4 the other way: Ed25519 signs the same each time.
#[test]
fn the_example_of_rfc_8037_signs() {
    let seed = URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap();
    let pair = Pair::Ed(aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(&seed).unwrap());
    let (signed, signature) = ED_JWS.rsplit_once('.').unwrap();
    assert_eq!(URL_SAFE_NO_PAD.encode(pair.sign(signed.as_bytes()).unwrap()), signature);
    assert_eq!(
        pair.jwk().unwrap().common.key_id.as_deref(),
        Some("kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k")
    );
}

#[test]
fn the_thumbprints_of_rfc_7638_and_8037_come_out() {
    let rsa = r#"{"kty":"RSA","alg":"RS256","kid":"2011-04-29","e":"AQAB","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"}"#;
    let thumbprint = |json| jwk(json).thumbprint(ThumbprintHash::SHA256).unwrap();
    assert_eq!(thumbprint(rsa), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
    assert_eq!(thumbprint(ED_KEY), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
}

/// K04, K05: keys that are too weak, for something else, or not what they say.
#[test]
fn unfit_keys_are_refused() {
    let ec = |from: &str, to: &str| A3_KEY.replace(from, to);
    let ed = |from: &str, to: &str| ED_KEY.replace(from, to);
    let rsa = |from: &str, to: &str| A2_KEY.replace(from, to);
    let oct = |alg: &str, bytes: usize| {
        format!(r#"{{"kty":"oct","alg":"{alg}","k":"{}"}}"#, URL_SAFE_NO_PAD.encode(vec![7; bytes]))
    };
    let modulus = |bytes: usize, last: u8| {
        let n: Vec<u8> = (0..bytes).map(|at| if at + 1 == bytes { last } else { 0xc1 }).collect();
        format!(r#"{{"kty":"RSA","alg":"RS256","e":"AQAB","n":"{}"}}"#, URL_SAFE_NO_PAD.encode(n))
    };
    let refused = [
        ec("P-256", "P-384"),
        ec("P-256", "P-521"),
        ec("P-256", "P-192"),
        ec("P-256", "Ed25519"),
        ec("x_FE", "x_FF"),
        ec("f83O", "AAf83O"),
        ec("f83O", "f83"),
        ec(r#""kty":"EC""#, r#""kty":"EC","alg":"ES384""#),
        ec(r#""kty":"EC""#, r#""kty":"EC","alg":"HS256""#),
        ec(r#""kty":"EC""#, r#""kty":"EC","alg":"ES521""#),
        ec(r#""kty":"EC""#, r#""kty":"EC","use":"enc""#),
        ec(r#""kty":"EC""#, r#""kty":"EC","key_ops":["sign"]"#),
        ec(r#""kty":"EC""#, r#""kty":"EC","key_ops":[]"#),
        ed("URo", "URoA"),
        ed("Ed25519", "P-256"),
        ed(r#""kty":"OKP""#, r#""kty":"OKP","alg":"ES256""#),
        rsa(r#""alg":"RS256","#, ""),
        rsa("RS256", "ES256"),
        rsa("RS256", "HS256"),
        rsa("RS256", "RSA-OAEP"),
        rsa("AQAB", "AQ"),
        rsa("AQAB", "Aw"),
        rsa("AQAB", "AQAA"),
        rsa("AQAB", ""),
        rsa("AQAB", "AQAAAAAB"),
        modulus(128, 1),
        modulus(255, 1),
        modulus(1_025, 1),
        modulus(256, 2),
        oct("HS256", 31),
        oct("HS384", 47),
        oct("HS512", 63),
        oct("HS256", 0),
        oct("ES256", 64),
        oct("RS256", 64),
        oct("none", 64),
        format!(r#"{{"kty":"oct","k":"{}"}}"#, URL_SAFE_NO_PAD.encode([7; 64])),
        r#"{"kty":"AKP","alg":"ML-DSA-65","pub":"AAAA"}"#.to_owned(),
        ec("EC", "RSA"),
    ];
    for json in refused {
        assert!(Verifier::from_jwk(&jwk(&json)).is_err(), "{json}");
    }
    for json in
        [A1_KEY, A2_KEY, A3_KEY, ED_KEY, &oct("HS256", 32), &oct("HS512", 64), &modulus(256, 1)]
    {
        assert!(Verifier::from_jwk(&jwk(json)).is_ok(), "{json}");
    }
}

/// K04: sets that hold a private key, an id twice, or keys that both sides know among keys that
/// everybody knows.
#[test]
fn unfit_sets_are_refused() {
    let set = |keys: &[&str]| format!(r#"{{"keys":[{}]}}"#, keys.join(","));
    let with = |key: &str, member: &str| key.replacen('{', &format!("{{{member},"), 1);
    let named = |key: &str, kid: &str| with(key, &format!(r#""kid":"{kid}""#));
    assert_eq!(
        jwk::parse_set(&set(&[&named(A2_KEY, "a"), &named(A3_KEY, "b"), ED_KEY])).unwrap().len(),
        3
    );
    assert_eq!(jwk::parse_set(&set(&[])).unwrap().len(), 0);
    let private =
        ["d", "p", "q", "dp", "dq", "qi"].map(|name| with(A2_KEY, &format!(r#""{name}":"AQAB""#)));
    let mut refused: Vec<_> = private.iter().map(|key| set(&[key])).collect();
    // A member that is null is there (TL14).
    let nulls = ["d", "p", "q", "dp", "dq", "qi", "oth"]
        .map(|name| with(ED_KEY, &format!(r#""{name}":null"#)));
    refused.extend(nulls.iter().map(|key| set(&[key])));
    refused.extend([
        set(&[&with(ED_KEY, r#""d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A""#)]),
        set(&[&named(A3_KEY, "a"), &named(ED_KEY, "a")]),
        set(&[A1_KEY, A3_KEY]),
        set(&[ED_KEY, &A3_KEY.replace("x_FE", "x_FF")]),
        set(&[ED_KEY; 101]),
        set(&[&with(ED_KEY, r#""crv":"Ed25519""#)]),
        r#"{"keys":{}}"#.to_owned(),
        r#"{"keys":[],"keys":[]}"#.to_owned(),
        "[]".to_owned(),
        ED_KEY.to_owned(),
        String::new(),
    ]);
    for json in refused {
        assert!(jwk::parse_set(&json).is_err(), "{json}");
    }
}

#[test]
fn braces_in_strings_are_not_depth() {
    let text = format!(r#"{{"alg":"{}\"{}","kid":"\\"}}"#, "{".repeat(100), "[".repeat(100));
    assert!(object::<Header>(text.as_bytes()).is_some());
    assert!(!is_deep(&"[]".repeat(1_000)));
    assert!(is_deep(&"[".repeat(17)) && !is_deep(&"[".repeat(16)));
}

/// O01: what is wrong with a token is said without the token.
#[test]
fn errors_do_not_repeat_the_token() {
    for token in [
        "canary",
        "canary.canary",
        "canary.canary.c",
        "canary.canary.canary=",
        "eyJjYW5hcnk.AAAA.AAAA",
    ] {
        let Err(refused) = Jws::parse(token) else { panic!("{token}") };
        assert!(!format!("{refused} {refused:?}").contains("canary"));
    }
}
