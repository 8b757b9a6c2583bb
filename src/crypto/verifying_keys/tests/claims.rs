//! Tokens whose signature is good and whose claims are not: signed with the service's own key.

use serde_json::{Value, json};

use super::*;

/// The good claims with one of them replaced, or taken away by `None`.
fn with(name: &str, value: Option<Value>) -> Vec<u8> {
    let mut claims = serde_json::to_value(good_claims()).unwrap();
    match value {
        Some(value) => drop(claims.as_object_mut().unwrap().insert(name.to_owned(), value)),
        None => drop(claims.as_object_mut().unwrap().remove(name)),
    }
    serde_json::to_vec(&claims).unwrap()
}

/// The good claims as text, with `from` replaced.
fn replaced(from: &str, to: &str) -> String {
    let text = String::from_utf8(payload()).unwrap();
    assert!(text.contains(from), "{from} in {text}");
    text.replacen(from, to, 1)
}

fn refused(name: &str, values: impl IntoIterator<Item = Option<Value>>) {
    let (_, bench) = Bench::all()[0];
    for value in values {
        let token = bench.forge(bench.header(), with(name, value.clone()));
        assert!(!bench.accepts(&token), "{name}: {value:?}");
    }
}

/// Precondition of every other test here.
#[test]
fn the_claims_are_good_before_they_are_changed() {
    for (name, bench) in Bench::all() {
        assert!(bench.accepts(&bench.forge(bench.header(), payload())), "{name}");
    }
}

/// J08: expired, absent, of another type, absurd or longer than any lifetime given here.
#[test]
fn a_bad_expiry_is_refused() {
    let now = NOW.seconds();
    let bad = [
        json!(now - 1),
        json!(now),
        json!(-1),
        json!(0),
        json!(i64::MIN),
        json!(i64::MAX),
        json!(253_402_300_800_i64),
    ];
    let typed = [
        json!("1900000000"),
        json!(null),
        json!([now + 900]),
        json!({}),
        json!(true),
        json!((now + 900) as f64 + 0.5),
    ];
    refused("exp", bad.into_iter().chain(typed).map(Some).chain([None]));
    // Counted from the moment of issue, which may be ten seconds after `iat`.
    refused("exp", [Some(json!(now + 3_611))]);
    let (_, bench) = Bench::all()[0];
    for number in [
        "1e400",
        "1e18",
        "1.8000009e9",
        "0x6B49D200",
        "NaN",
        "01800000900",
        "+1800000900",
        "9223372036854775808",
    ] {
        let text = replaced(&format!("\"exp\":{}", now + 900), &format!("\"exp\":{number}"));
        assert!(!bench.accepts(&bench.forge(bench.header(), text)), "{number}");
    }
    assert!(
        bench.accepts(&bench.forge(bench.header(), with("exp", Some(json!(now + 3_600))))),
        "the longest lifetime itself"
    );
}

/// J08: the moment of expiry belongs to the expired.
#[test]
fn a_token_ends_at_its_expiry() {
    let (_, bench) = Bench::all()[0];
    let token = bench.signing.sign(&good_claims()).unwrap();
    let end = NOW + Duration::from_secs(900);
    assert!(bench.verifying.verify(&token, end - Duration::from_millis(1)).is_some());
    assert!(bench.verifying.verify(&token, end).is_none());
    assert!(bench.verifying.verify(&token, end + Duration::from_millis(1)).is_none());
}

/// J08: issued in the future, or after its own end.
#[test]
fn a_bad_time_of_issue_is_refused() {
    let now = NOW.seconds();
    refused(
        "iat",
        [json!(now + 6), json!(now + 900), json!(now + 901), json!(i64::MAX), json!(i64::MIN)]
            .map(Some),
    );
    refused("iat", [Some(json!("1800000000")), Some(json!(null)), Some(json!(1.5)), None]);
    let (_, bench) = Bench::all()[0];
    assert!(
        bench.accepts(&bench.forge(bench.header(), with("iat", Some(json!(now + 5))))),
        "within the skew"
    );
    for issued in [2, 3, 5] {
        let claims = Claims { iat: now + issued, exp: now + 2, ..good_claims() };
        assert!(
            bench.verifying.verify(&bench.signing.sign(&claims).unwrap(), NOW).is_none(),
            "not before its end"
        );
    }
}

/// J09: not yet valid, or not saying so as a number.
#[test]
fn a_bad_beginning_is_refused() {
    let now = NOW.seconds();
    refused(
        "nbf",
        [json!(now + 6), json!(i64::MAX), json!("0"), json!(null), json!([]), json!(1.5)].map(Some),
    );
    let (_, bench) = Bench::all()[0];
    assert!(
        bench.accepts(&bench.forge(bench.header(), with("nbf", Some(json!(now + 5))))),
        "within the skew"
    );
}

/// J10: no audience, or one that is no list of resource indicators. The caller decides which
/// audience is right.
#[test]
fn a_bad_audience_is_refused() {
    let bad = [
        json!(null),
        json!(5),
        json!([]),
        json!(["https://me", 5]),
        json!(["https://me", null]),
        json!([["https://me"]]),
    ];
    let texts = [
        json!(""),
        json!([""]),
        json!(["me"]),
        json!(["https://me", ""]),
        json!({"0": "https://me"}),
    ];
    refused("aud", bad.into_iter().chain(texts).map(Some).chain([None]));
}

/// J10: exact match: what is verified is what was signed, byte by byte.
#[test]
fn audiences_come_back_as_they_were_signed() {
    let (_, bench) = Bench::all()[0];
    for other in [
        "https://orders.example/",
        "https://ORDERS.example",
        "https://orders.exampl",
        "https://orders.example:443",
    ] {
        let token = bench.forge(bench.header(), with("aud", Some(json!([other]))));
        let verified = bench.verifying.verify(&token, NOW).unwrap();
        assert_eq!(verified.claims().aud[0].as_str(), other);
        assert_ne!(verified.claims().aud, good_claims().aud);
    }
}

/// J11, J20: another issuer, even with our own key; nothing but the exact text is ours.
#[test]
fn another_issuer_is_refused() {
    let other = [
        "https://other.example",
        "https://jeton.example/",
        "https://JETON.example",
        "https://jeton.exampl",
        "",
        " ",
    ];
    refused("iss", other.map(|iss| Some(json!(iss))));
    refused(
        "iss",
        [
            None,
            Some(json!([ISSUER])),
            Some(json!(null)),
            Some(json!({"iss": ISSUER})),
            Some(json!(1)),
        ],
    );
    let (_, bench) = Bench::all()[0];
    let (signing, public) = SigningKeys::open(&bench.keyset, &bench.sealer).unwrap();
    let elsewhere = VerifyingKeys::new(1, "https://other.example", LIMITS, public);
    let token =
        signing.sign(&Claims { iss: "https://other.example".to_owned(), ..good_claims() }).unwrap();
    assert!(elsewhere.verify(&token, NOW).is_some() && !bench.accepts(&token));
}

/// J12: a claim or a header member named twice, the same or not, is not a question of which one
/// wins.
#[test]
fn duplicate_members_are_refused() {
    let (_, bench) = Bench::all()[0];
    for claim in [
        "exp",
        "scope",
        "aud",
        "iss",
        "sub",
        "client_id",
        "iat",
        "nbf",
        "jti",
        "tenant",
        "roles",
        "fam",
        "ep",
    ] {
        let value = serde_json::to_value(good_claims()).unwrap()[claim].to_string();
        for second in [&value, "null", "\"x\""] {
            for text in [
                replaced("{", &format!("{{\"{claim}\":{second},")),
                replaced("\"ep\":", &format!("\"{claim}\":{second},\"ep\":")),
            ] {
                assert!(!bench.accepts(&bench.forge(bench.header(), &text)), "{text}");
            }
        }
    }
    let escaped = replaced("{", "{\"\\u0065xp\":1,");
    assert!(
        !bench.accepts(&bench.forge(bench.header(), escaped)),
        "also where one is spelled with an escape"
    );
    let kid = bench.kid();
    for member in [
        "\"alg\":\"EdDSA\"",
        "\"alg\":\"none\"",
        "\"typ\":\"at+jwt\"",
        &format!("\"kid\":\"{kid}\""),
        "\"kid\":null",
    ] {
        let header = bench.header().replacen('{', &format!("{{{member},"), 1);
        assert!(!bench.accepts(&bench.forge(&header, payload())), "{header}");
    }
}

/// J14: payloads that are not one shallow JSON object in UTF-8.
#[test]
fn other_payloads_are_refused() {
    let (_, bench) = Bench::all()[0];
    let text = String::from_utf8(payload()).unwrap();
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let claims = serde_json::to_value(good_claims()).unwrap();
    let in_order: Vec<_> = text.split(',').collect();
    assert!(in_order[0].starts_with("{\"iss\""), "the array below is in the order of the struct");
    let order = [
        "iss",
        "sub",
        "aud",
        "client_id",
        "scope",
        "iat",
        "nbf",
        "exp",
        "jti",
        "tenant",
        "roles",
        "fam",
        "ep",
    ];
    let array = Value::Array(order.map(|name| claims[name].clone()).to_vec()).to_string();
    let deep = |depth: usize| {
        replaced("{", &format!("{{\"x\":{}{},", "[".repeat(depth), "]".repeat(depth)))
    };
    let deep_objects =
        replaced("{", &format!("{{\"x\":{}0{},", "{\"a\":".repeat(200), "}".repeat(200)));
    let invalid = [replaced("{", "{\"x\":\"\u{1}").as_bytes(), b"\xff\xfe"].concat();
    let mut bad_utf8 = replaced("{", "{\"x\":\"?\",").into_bytes();
    let mark = bad_utf8.iter().position(|b| *b == b'?').unwrap();
    bad_utf8[mark] = 0xff;
    let others: [&[u8]; 17] = [
        &utf16,
        &invalid,
        &bad_utf8,
        array.as_bytes(),
        deep_objects.as_bytes(),
        b"",
        b"null",
        b"\"text\"",
        b"5",
        b"[]",
        b"{}",
        b"{",
        &[b"\xef\xbb\xbf", text.as_bytes()].concat(),
        &[text.as_bytes(), b"{}"].concat(),
        &[text.as_bytes(), b"x"].concat(),
        &[b"[", text.as_bytes(), b"]"].concat(),
        &[text.as_bytes(), b"\0"].concat(),
    ];
    for other in others {
        assert!(
            !bench.accepts(&bench.forge(bench.header(), other)),
            "{}",
            String::from_utf8_lossy(other)
        );
    }
    for depth in [16, 200, 2_000] {
        assert!(!bench.accepts(&bench.forge(bench.header(), deep(depth))), "{depth}");
    }
    assert!(
        bench.accepts(&bench.forge(bench.header(), deep(3))),
        "a claim we do not know means nothing"
    );
}

/// J20: what is no access token of ours is not taken for one.
#[test]
fn other_credentials_are_no_access_tokens() {
    use secrecy::ExposeSecret;

    use crate::crypto::{refresh_token::RefreshKey, secrets::ClientSecrets};
    let (_, bench) = Bench::all()[0];
    let refresh = RefreshKey::new(bench.signing.root()).mint(FamilyId::new(), 0, &[1; 32]);
    let (_, secret, _) = ClientSecrets::new(bench.signing.root()).generate();
    for other in [refresh.expose_secret(), secret.expose_secret(), "", ".", "..", "...", "a.b.c"] {
        assert!(!bench.accepts(other), "{other}");
    }
    // A client assertion (RFC 7523 section 3), rightly signed.
    let exp = NOW.seconds() + 60;
    let assertion =
        json!({ "iss": "orders", "sub": "orders", "aud": ISSUER, "exp": exp, "jti": "1" });
    assert!(!bench.accepts(&bench.forge(bench.header(), assertion.to_string())));
}
