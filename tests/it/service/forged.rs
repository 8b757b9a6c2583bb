//! Tokens that are not ours, or not any more, sent to the real server: each is answered by the same
//! two bytes.

use aws_lc_rs::{hmac, rand::SystemRandom, signature::Ed25519KeyPair};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::support::server::{
    Caller, INACTIVE, TamperableServer, TestServer, aimed_at, bytes, reason, refreshing, serving,
    tolerance,
};

fn named(tokens: impl IntoIterator<Item = (Value, String)>) -> Vec<(String, String)> {
    tokens.into_iter().map(|(what, token)| (what.to_string(), token)).collect()
}

/// J08: `exp` in the past, now, absent, of another type, beyond every lifetime; `iat` ahead of the
/// clocks.
#[tokio::test]
async fn a_token_is_held_to_its_times() {
    let lab = TamperableServer::start().await;
    lab.accepts(&lab.claiming(&json!({}))).await;
    let now = lab.server.now();
    let times = [
        json!({"exp": now}),
        json!({"exp": now - 1}),
        json!({"exp": null}),
        json!({"exp": (now + 900).to_string()}),
        json!({"exp": -1}),
        json!({"exp": 1e18}),
        json!({"exp": 253_402_300_800_i64}),
        json!({"exp": now + 3_611}),
        json!({"exp": i64::MAX}),
        json!({"exp": [now + 900]}),
        json!({"exp": now as f64 + 900.5}),
        json!({"iat": now + tolerance() + 1, "exp": now + 900}),
        json!({"iat": null}),
        json!({"iat": now.to_string()}),
        json!({"iat": i64::MIN}),
    ];
    let mut tokens = named(times.map(|time| (time.clone(), lab.claiming(&time))));
    // Numbers that no JSON library writes.
    for exp in ["1e400", "-1e400", "99999999999999999999", "0x7fffffff", "NaN", "Infinity"] {
        let text = lab
            .claims()
            .to_string()
            .replace(&format!("\"exp\":{}", now + 900), &format!("\"exp\":{exp}"));
        assert!(text.contains(exp));
        tokens.push((exp.to_owned(), lab.forge(lab.header().to_string(), text)));
    }
    lab.refuses_all(tokens).await;
    lab.accepts(&lab.claiming(&json!({"iat": now + 5}))).await;
    lab.accepts(&lab.claiming(&json!({"exp": now + 3_600}))).await;
}

/// J09: `nbf` ahead, or of another type.
#[tokio::test]
async fn a_token_is_not_valid_before_its_time() {
    let lab = TamperableServer::start().await;
    let now = lab.server.now();
    let early = lab.claiming(&json!({"nbf": now + tolerance() + 1}));
    let mut tokens = vec![("ahead".to_owned(), early.clone())];
    for nbf in ["\"1800000000\"", "null", "[1800000000]", "true", "1e400"] {
        let text =
            lab.claims().to_string().replace(&format!("\"nbf\":{now}"), &format!("\"nbf\":{nbf}"));
        assert!(text.contains(nbf));
        tokens.push((nbf.to_owned(), lab.forge(lab.header().to_string(), text)));
    }
    lab.refuses_all(tokens).await;
    lab.server.advance(1);
    lab.accepts(&early).await;
}

/// J10: who a token is for is an array of URIs, compared exactly.
#[tokio::test]
async fn an_audience_counts_only_letter_by_letter() {
    const X: &str = "https://x.test/api";
    let lab = TamperableServer::start().await;
    let viewer = lab.server.register(serving(&[X])).await;
    let judged = async |token: &str| bytes(&lab.server.introspected(&viewer, token, "").await).0;
    assert_ne!(judged(&lab.claiming(&json!({"aud": [X]}))).await, INACTIVE, "the exact one");
    let others = [
        json!(null),
        json!(5),
        json!([]),
        json!(X),
        json!([X, 5]),
        json!([X, null]),
        json!({X: true}),
        json!(["https://x.test/ap"]),
        json!(["https://x.test/api/"]),
        json!(["https://x.test/API"]),
        json!(["HTTPS://x.test/api"]),
        json!(["https://x.test:443/api"]),
        json!(["https://x.test/api?"]),
        json!(["https://x.test/api/../api"]),
        json!(["x.test/api"]),
        json!([""]),
        json!(["https://y.test"]),
    ];
    for aud in others {
        let token = lab.claiming(&json!({"aud": aud}));
        assert_eq!(judged(&token).await, INACTIVE, "{aud}");
    }
    // What has no audience at all is nobody's, also not the administrator's.
    lab.refuses_all(named(
        [json!([]), json!(null), json!([X, 5])]
            .map(|aud| (aud.clone(), lab.claiming(&json!({"aud": aud})))),
    ))
    .await;
}

/// J11: another issuer, whoever signed.
#[tokio::test]
async fn only_our_issuer_counts() {
    let lab = TamperableServer::start().await;
    let others = [
        json!(null),
        json!(["https://jeton.test"]),
        json!("https://other.test"),
        json!("https://jeton.test/"),
        json!("https://JETON.test"),
        json!("jeton.test"),
        json!(""),
        json!(5),
    ];
    lab.refuses_all(named(others.map(|iss| (iss.clone(), lab.claiming(&json!({"iss": iss}))))))
        .await;
}

/// J01, J02, J04, J05, J06, J07: headers that choose the rules, each rightly signed where a
/// signature is to be had; and nobody is asked for the keys they name. I04: all answers are the
/// same bytes.
#[tokio::test]
async fn headers_choose_nothing() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    let lab = TamperableServer::start().await;
    lab.accepts(&lab.headed(&json!({"typ": "application/at+jwt"}))).await;
    let mut headers = Vec::new();
    for none in
        ["none", "NONE", "noNE", "nOnE", "", "HS256", "HS512", "RS256", "ES256", "eddsa", "Ed25519"]
    {
        headers.push(json!({"alg": none}));
    }
    for typ in ["JWT", "rt+jwt", "dpop+jwt", "id_token", "", "AT+JWT "] {
        headers.push(json!({"typ": typ}));
    }
    headers.extend([json!({"typ": null}), json!({"alg": null}), json!({"kid": null})]);
    headers.extend([
        json!({"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}}),
        json!({"jku": url}),
        json!({"x5u": url}),
    ]);
    headers.extend([
        json!({"x5c": ["AAAA"]}),
        json!({"zip": "DEF"}),
        json!({"p2c": 2_147_483_647_i64}),
    ]);
    headers.extend([
        json!({"crit": ["exp2"], "exp2": 1}),
        json!({"crit": []}),
        json!({"crit": ["b64"], "b64": false}),
    ]);
    for kid in [
        json!("../../dev/null"),
        json!("' or 1=1--"),
        json!("{\"$ne\":\"\"}"),
        json!("a\0b"),
        json!("$(id)"),
        json!(""),
    ] {
        headers.push(json!({"kid": kid}));
    }
    headers.extend([
        json!({"kid": 5}),
        json!({"kid": [lab.kid]}),
        json!({"kid": {"$ne": ""}}),
        json!({"kid": format!("{}A", lab.kid)}),
    ]);
    let mut tokens = named(headers.into_iter().map(|header| (header.clone(), lab.headed(&header))));

    // J01: the signature taken away. J02: an HMAC keyed with the public key as everybody can fetch
    // it.
    let public = lab.public_key();
    for (what, alg) in [("none", "none"), ("our own", "EdDSA")] {
        let token = lab.headed(&json!({"alg": alg}));
        let (signed, _) = token.rsplit_once('.').unwrap();
        tokens.push((format!("{what}, nothing behind the dot"), format!("{signed}.")));
        tokens.push((format!("{what}, no dot"), signed.to_owned()));
    }
    for key in [
        public.clone(),
        URL_SAFE_NO_PAD.encode(&public).into_bytes(),
        spki(&public),
        pem(&public).into_bytes(),
        Vec::new(),
    ] {
        for alg in ["HS256", "EdDSA"] {
            let token = lab.headed(&json!({"alg": alg}));
            let (signed, _) = token.rsplit_once('.').unwrap();
            let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), signed.as_bytes());
            tokens.push((
                format!("hmac as {alg}"),
                format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac)),
            ));
        }
    }
    // J04: an attacker's key under our header.
    let theirs = Ed25519KeyPair::from_pkcs8(
        Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap().as_ref(),
    )
    .unwrap();
    let good = lab.claiming(&json!({}));
    let (signed, _) = good.rsplit_once('.').unwrap();
    tokens.push((
        "their key".to_owned(),
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(theirs.sign(signed.as_bytes()))),
    ));

    let before = lab.store.asked();
    let asked = tokens.len() as u64;
    lab.refuses_all(tokens).await;
    // J06: nothing was looked up, but for who asks where a node on MongoDB has forgotten its
    // clients, as it does once a minute.
    let looked_up = lab.store.asked() - before;
    assert!(looked_up < asked / 4, "{looked_up} store calls for {asked} tokens");
    assert_eq!(
        listener.accept().unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock,
        "somebody fetched a key"
    );
}

/// J12, J13, J14, J15, J16: texts that are no compact JWS of ours, and payloads that are no one
/// object.
#[tokio::test]
async fn other_spellings_are_no_tokens() {
    let lab = TamperableServer::start().await;
    let good = lab.claiming(&json!({}));
    lab.accepts(&good).await;
    let parts: Vec<_> = good.split('.').collect();
    let [head, body, signature] = parts[..] else { panic!("three parts") };
    let json = format!(r#"{{"protected":"{head}","payload":"{body}","signature":"{signature}"}}"#);
    let mut texts = vec![
        json,
        format!(".{good}"),
        format!("{good}."),
        format!("{head}.{body}"),
        format!("{good}.{signature}"),
    ];
    texts.push(format!("{good}.{body}.{signature}"));
    for extra in [" ", "\n", "=", "==", "\0", "%", "+", "/", "\u{200b}", "A"] {
        texts.extend([
            format!("{extra}{good}"),
            format!("{good}{extra}"),
            format!("{head}{extra}.{body}.{signature}"),
        ]);
        texts.push(format!("{head}.{body}{extra}.{signature}"));
    }
    let last = good.chars().last().unwrap();
    let twin = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".chars();
    texts.extend(
        twin.filter(|letter| *letter != last)
            .map(|letter| format!("{}{letter}", &good[..good.len() - 1])),
    );
    for length in [8_193, 16 * 1_024, 60 * 1_024] {
        texts.extend([
            "a".repeat(length),
            ".".repeat(length),
            format!("{good}{}", "A".repeat(length - good.len())),
        ]);
        texts.push(lab.headed(&json!({"x": "x".repeat(length)}))[..length].to_owned());
    }
    let jwe = URL_SAFE_NO_PAD.encode(
        r#"{"alg":"PBES2-HS256+A128KW","enc":"A128GCM","p2c":2147483647,"p2s":"AA","zip":"DEF"}"#,
    );
    texts.extend([
        format!("{jwe}.AAAA.AAAA.AAAA.AAAA"),
        format!("{jwe}.AAAA.AAAA"),
        "..".to_owned(),
        "....".to_owned(),
    ]);
    texts.extend(["x".to_owned(), "null".to_owned(), "\u{feff}".to_owned(), "é".repeat(100)]);

    let text = lab.claims().to_string();
    let mut payloads: Vec<Vec<u8>> =
        ["", "null", "5", "[]", "{}", "\"x\"", "{"].map(|text| text.as_bytes().to_vec()).into();
    payloads.push(text.encode_utf16().flat_map(u16::to_le_bytes).collect());
    payloads.push([b"\xef\xbb\xbf", text.as_bytes()].concat());
    payloads.push([text.as_bytes(), b"{}"].concat());
    payloads.push(
        text.replacen('{', &format!("{{\"x\":{}{},", "[".repeat(200), "]".repeat(200)), 1)
            .into_bytes(),
    );
    let mut invalid = text.replacen('{', "{\"x\":\"?\",", 1).into_bytes();
    let mark = invalid.iter().position(|byte| *byte == b'?').unwrap();
    invalid[mark] = 0xff;
    payloads.push(invalid);
    for claim in ["exp", "scope", "aud", "iss"] {
        payloads.push(
            text.replacen('{', &format!("{{\"{claim}\":{},", lab.claims()[claim]), 1).into_bytes(),
        );
    }
    texts.extend(payloads.iter().map(|payload| lab.forge(lab.header().to_string(), payload)));
    for member in ["\"alg\":\"EdDSA\"", "\"kid\":null", "\"typ\":\"at+jwt\""] {
        texts.push(
            lab.forge(lab.header().to_string().replacen('{', &format!("{{{member},"), 1), &text),
        );
    }
    lab.refuses_all(texts.into_iter().map(|text| (text.chars().take(40).collect(), text))).await;
}

/// J15: a token of a megabyte does not even reach the service: the message is refused by its
/// length.
#[tokio::test]
async fn a_token_beyond_the_message_limit_is_refused_by_its_length() {
    let server = TestServer::start().await;
    for length in [64 * 1_024, 1 << 20, 4 << 20] {
        let refused = server.introspect_as(&server.admin, &"a".repeat(length)).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (tonic::Code::ResourceExhausted, "MESSAGE_TOO_LARGE")
        );
    }
}

/// J18: an issued token with one bit flipped, at every third bit; the unit test of the keys does
/// every one.
#[tokio::test]
async fn no_flipped_bit_stands() {
    let lab = TamperableServer::start().await;
    let caller = lab.server.register(refreshing()).await;
    let token = lab.server.token(&caller, &[]).await.unwrap().access_token;
    let flipped = (0..token.len() * 8).step_by(3).filter_map(|bit| {
        let mut bytes = token.clone().into_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        // What is no longer UTF-8 cannot be sent.
        String::from_utf8(bytes).ok().map(|text| (format!("bit {bit}"), text))
    });
    lab.refuses_all(flipped.collect::<Vec<_>>()).await;
    lab.accepts(&token).await;
}

/// J19: a refresh token cut at every length, extended, in another case, under another prefix:
/// refused by Refresh in one and the same way, and the family lives on.
#[tokio::test]
async fn a_refresh_token_counts_only_whole() {
    let server = TestServer::start_unlimited().await;
    let caller = server.register(refreshing()).await;
    let token = server.token(&caller, &[]).await.unwrap().refresh_token;
    let mut others: Vec<String> =
        (1..token.len()).map(|length| token[..length].to_owned()).collect();
    others.extend((1..token.len()).map(|from| token[from..].to_owned()));
    others.extend(["A", "=", " ", "\n", "\0", &token].map(|extra| format!("{token}{extra}")));
    others.extend(["A", " ", "jrt_"].map(|extra| format!("{extra}{token}")));
    others.extend(["jcs_", "JRT_", "jrt-", ""].map(|prefix| token.replacen("jrt_", prefix, 1)));
    others.extend([token.to_uppercase(), token.to_lowercase()]);
    for bit in (0..token.len() * 8).step_by(5) {
        let mut bytes = token.clone().into_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        others.extend(String::from_utf8(bytes));
    }
    for other in &others {
        let refused = server.refresh(&caller, other).await.unwrap_err();
        assert_eq!(reason(&refused), "INVALID_GRANT", "{other}");
    }
    server.refresh(&caller, &token).await.unwrap();
    assert!(server.events_of("refresh_token.reused").await.is_empty());
}

/// J20: no kind of token is taken for another, and none is seen from another tenant.
#[tokio::test]
async fn kinds_of_tokens_are_not_confused() {
    const X: &str = "https://x.test";
    let server = TestServer::start().await;
    let caller = server.register(aimed_at(&[X])).await;
    let issued = server.token(&caller, &[]).await.unwrap();
    let (access, refresh) = (&issued.access_token, &issued.refresh_token);
    for hint in ["", "access_token", "anything"] {
        let answer = bytes(&server.introspected(&server.admin, refresh, hint).await);
        assert_eq!(answer.0, INACTIVE, "a refresh token is no access token, {hint}");
    }
    assert_eq!(
        bytes(&server.introspected(&server.admin, access, "refresh_token").await).0,
        INACTIVE,
        "nor the other way round"
    );
    for other in [access.as_str(), &caller.secret] {
        assert_eq!(reason(&server.refresh(&caller, other).await.unwrap_err()), "INVALID_GRANT");
    }
    assert_eq!(bytes(&server.introspected(&server.admin, &caller.secret, "").await).0, INACTIVE);
    // None of them opens the door to administration either.
    for other in [refresh.as_str(), &caller.secret, &server.admin.secret] {
        let request =
            crate::support::server::bearer(jeton::proto::admin::ListKeysRequest {}, other);
        assert_eq!(reason(&server.keys().list_keys(request).await.unwrap_err()), "INVALID_TOKEN");
    }

    let neighbours = |scope: &str| jeton::proto::admin::Client {
        tenant: "b".to_owned(),
        scopes: vec![scope.to_owned()],
        ..serving(&[X])
    };
    for scope in ["jeton:introspect", "jeton:introspect:any"] {
        let neighbour = server.register(neighbours(scope)).await;
        assert_eq!(
            bytes(&server.introspected(&neighbour, access, "").await).0,
            INACTIVE,
            "{scope}"
        );
        assert_eq!(
            bytes(&server.introspected(&neighbour, refresh, "refresh_token").await).0,
            INACTIVE,
            "{scope}"
        );
    }
    let own = server.register(serving(&[X])).await;
    assert_ne!(
        bytes(&server.introspected(&own, access, "").await).0,
        INACTIVE,
        "its own tenant's sees it"
    );
    assert_eq!(
        bytes(&server.introspected(&own, refresh, "refresh_token").await).0,
        INACTIVE,
        "but no refresh token of another"
    );
}

/// J20: a client assertion (RFC 7523), rightly signed, is no access token.
#[tokio::test]
async fn a_client_assertion_is_no_access_token() {
    let lab = TamperableServer::start().await;
    let now = lab.server.now();
    let assertion = json!({"iss": "orders", "sub": "orders", "aud": crate::support::server::ISSUER, "exp": now + 60, "jti": "1"});
    let tokens = [json!({}), json!({"typ": "JWT"}), json!({"typ": null})].map(|header| {
        lab.forge(
            crate::support::server::changed(lab.header(), &header).to_string(),
            assertion.to_string(),
        )
    });
    lab.refuses_all(tokens.map(|token| ("an assertion".to_owned(), token))).await;
}

/// J21: a client's subject is in a namespace of its own: ending everything of a person of that name
/// does not touch the client.
#[tokio::test]
async fn a_person_is_not_a_client_of_the_same_name() {
    use jeton::proto::admin::revoke_all_request::Target;
    let server = TestServer::start().await;
    let caller = server
        .register(jeton::proto::admin::Client { client_id: "alice".to_owned(), ..refreshing() })
        .await;
    let token = server.token(&caller, &[]).await.unwrap().access_token;
    let judged = server.introspect(&token).await;
    assert_eq!((judged.sub.as_str(), judged.client_id.as_str()), ("client:alice", "alice"));
    let unknown = server.revoke_all(Target::Subject("alice".to_owned())).await.unwrap_err();
    assert_eq!(reason(&unknown), "NOT_FOUND");
    assert!(server.is_active(&token).await, "a person was meant");
    server.revoke_all(Target::Subject("client:alice".to_owned())).await.unwrap();
    assert!(!server.is_active(&token).await);
    // And no client can be named so that its subject is another's.
    let odd = jeton::proto::admin::Client { client_id: "client:alice".to_owned(), ..refreshing() };
    let message = jeton::proto::admin::CreateClientRequest { client: Some(odd), secret: None };
    let refused = server.clients().create_client(server.as_admin(message).await).await.unwrap_err();
    assert_eq!(reason(&refused), "INVALID_REQUEST");
}

/// J22: what is issued is an access token by RFC 9068 section 2: its type, its key, every claim.
#[tokio::test]
async fn an_access_token_is_one_by_rfc_9068() {
    let server = TestServer::start().await;
    let caller: Caller = server.register(refreshing()).await;
    let token = server.token(&caller, &["orders:read"]).await.unwrap().access_token;
    let decoded = |part: &str| {
        serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    };
    let parts: Vec<_> = token.split('.').collect();
    let (header, claims) = (decoded(parts[0]), decoded(parts[1]));
    assert_eq!((&header["typ"], &header["alg"]), (&json!("at+jwt"), &json!("EdDSA")));
    assert_eq!(header.as_object().unwrap().len(), 3, "typ, alg and kid: {header}");
    assert_eq!(claims["iss"], crate::support::server::ISSUER);
    assert_eq!(claims["exp"], server.now() + 900);
    // A verifier ten seconds behind accepts it.
    let early = json!(server.now() - 10);
    assert_eq!((&claims["iat"], &claims["nbf"]), (&early, &early));
    assert_eq!(claims["aud"], json!([crate::support::server::ISSUER]));
    assert_eq!(claims["client_id"], json!(caller.id));
    assert_eq!(claims["sub"], json!(format!("client:{}", caller.id)));
    assert_eq!(claims["scope"], "orders:read");
    assert!(claims["jti"].as_str().is_some_and(|jti| jti.len() == 36));
    let again = server.token(&caller, &["orders:read"]).await.unwrap().access_token;
    assert_ne!(decoded(again.split('.').nth(1).unwrap())["jti"], claims["jti"]);
}

/// DER of an Ed25519 key (RFC 8410 section 4).
fn spki(public: &[u8]) -> Vec<u8> {
    [&[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00], public].concat()
}

fn pem(public: &[u8]) -> String {
    use base64::engine::general_purpose::STANDARD;
    format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        STANDARD.encode(spki(public))
    )
}
