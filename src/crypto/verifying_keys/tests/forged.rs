//! Tokens whose header, signature or spelling is an attacker's.

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    hmac,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384,
        RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding,
    },
};
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;

/// The header of `bench` with `from` replaced.
fn header(bench: &Bench, from: &str, to: &str) -> String {
    let header = bench.header();
    assert!(header.contains(from), "{from} in {header}");
    header.replacen(from, to, 1)
}

/// The header of `bench` with a member more.
fn header_and(bench: &Bench, member: &str) -> String {
    header(bench, "{", &format!("{{{member},"))
}

fn with_alg(bench: &Bench, alg: &str) -> String {
    header(bench, bench.pair.alg().as_str(), alg)
}

/// J01: unsecured tokens, in every spelling, without a signature and with a good one kept.
#[test]
fn alg_none_is_refused() {
    for (_, bench) in Bench::all() {
        for none in ["none", "NONE", "noNE", "nOnE", "None", "", " ", "null"] {
            let kept = bench.forge(with_alg(bench, none), payload());
            let (signed, _) = kept.rsplit_once('.').unwrap();
            for token in
                [format!("{signed}."), signed.to_owned(), format!("{signed}.AA"), kept.clone()]
            {
                assert!(!bench.accepts(&token), "{none}: {token}");
            }
        }
        let absent = header(bench, &format!("\"alg\":\"{}\",", bench.pair.alg().as_str()), "");
        let listed = header(bench, &format!("\"{}\"", bench.pair.alg().as_str()), "[\"none\"]");
        assert!(!bench.accepts(&bench.forge(absent, payload())));
        assert!(!bench.accepts(&bench.forge(listed, payload())));
    }
}

fn spki(pair: &Pair) -> Vec<u8> {
    let der: PublicKeyX509Der<'_> = match pair {
        Pair::Ed(pair) => pair.public_key().as_der().unwrap(),
        Pair::Es(pair) => pair.public_key().as_der().unwrap(),
        Pair::Rs(pair) => pair.public_key().as_der().unwrap(),
    };
    der.as_ref().to_vec()
}

fn raw(pair: &Pair) -> Vec<u8> {
    match pair {
        Pair::Ed(pair) => pair.public_key().as_ref().to_vec(),
        Pair::Es(pair) => pair.public_key().as_ref().to_vec(),
        Pair::Rs(pair) => pair.public_key().as_ref().to_vec(),
    }
}

/// J02: HMAC keyed with what everybody can fetch: our public key as PEM, DER, JWK and raw bytes.
#[test]
fn a_public_key_is_no_hmac_key() {
    for (name, bench) in Bench::all() {
        let der = spki(&bench.pair);
        let lines: Vec<_> = STANDARD
            .encode(&der)
            .as_bytes()
            .chunks(64)
            .map(|line| String::from_utf8_lossy(line).into_owned())
            .collect();
        let pem =
            format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"));
        let jwk = bench.verifying.jwks()["keys"][0].to_string();
        let point = raw(&bench.pair);
        let variants = [
            pem.trim_end().as_bytes(),
            pem.as_bytes(),
            &der,
            jwk.as_bytes(),
            &point,
            point.get(1..).unwrap(),
            b"",
        ];
        for key in variants {
            for (alg, hash) in [
                ("HS256", hmac::HMAC_SHA256),
                ("HS384", hmac::HMAC_SHA384),
                ("HS512", hmac::HMAC_SHA512),
            ] {
                for named in [alg, bench.pair.alg().as_str()] {
                    let signed = signed(with_alg(bench, named), payload());
                    let mac = hmac::sign(&hmac::Key::new(hash, key), signed.as_bytes());
                    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac));
                    assert!(!bench.accepts(&token), "{name} {alg} {named}");
                }
            }
        }
    }
}

/// J03: a key has one algorithm; a good signature under another name is refused.
#[test]
fn one_key_has_one_algorithm() {
    let algs = [
        "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA", "Ed25519",
        "HS256", "eddsa", "es256",
    ];
    for (name, bench) in Bench::all() {
        for alg in algs.iter().filter(|alg| **alg != name) {
            assert!(
                !bench.accepts(&bench.forge(with_alg(bench, alg), payload())),
                "{name} as {alg}"
            );
        }
    }
}

/// J03: the RSA key of RS256 used as the key of its relatives, each signature right in itself.
#[test]
fn an_rsa_key_does_not_change_its_padding_or_hash() {
    let bench = Bench::rsa();
    let Pair::Rs(pair) = &bench.pair else { panic!("an RSA key") };
    let relatives: [(&str, &'static dyn RsaEncoding); 6] = [
        ("RS256", &RSA_PKCS1_SHA256),
        ("RS384", &RSA_PKCS1_SHA384),
        ("RS512", &RSA_PKCS1_SHA512),
        ("PS256", &RSA_PSS_SHA256),
        ("PS384", &RSA_PSS_SHA384),
        ("PS512", &RSA_PSS_SHA512),
    ];
    for (alg, encoding) in relatives {
        for named in ["RS256", alg] {
            let signed = signed(with_alg(bench, named), payload());
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(encoding, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
            let accepted =
                bench.accepts(&format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)));
            assert_eq!(accepted, alg == "RS256", "{alg} as {named}");
        }
    }
}

/// J04: keys inside the token, or at a URL in it: nothing is fetched, whichever key signed.
#[test]
fn keys_in_the_header_are_refused_and_nothing_is_fetched() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    let (_, bench) = Bench::all()[0];
    let attacker = Bench::new(Algorithm::EdDsa);
    let jwk = attacker.verifying.jwks()["keys"][0].to_string();
    let certificate = STANDARD.encode(spki(&attacker.pair));
    let members = [
        format!("\"jwk\":{jwk}"),
        format!("\"jku\":\"{url}\""),
        format!("\"x5u\":\"{url}\""),
        format!("\"x5c\":[\"{certificate}\"]"),
        "\"x5t\":\"AAAA\"".to_owned(),
        "\"x5t#S256\":\"AAAA\"".to_owned(),
        "\"jwk\":null".to_owned(),
        "\"jku\":null".to_owned(),
    ];
    for member in members {
        let own_kid = header_and(bench, &member);
        let their_kid = own_kid.replacen(bench.kid(), attacker.kid(), 1);
        for header in [own_kid, their_kid] {
            assert!(!bench.accepts(&attacker.forge(&header, payload())), "theirs: {header}");
            assert!(!bench.accepts(&bench.forge(&header, payload())), "ours: {header}");
        }
    }
    assert_eq!(
        listener.accept().unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock,
        "a connection was made"
    );
    assert!(
        !bench.accepts(&attacker.forge(bench.header(), payload())),
        "nor with the header of ours"
    );
    assert!(!bench.accepts(&attacker.signing.sign(&good_claims()).unwrap()), "nor with their own");
}

/// J05: what must be understood is not (RFC 7515 section 4.1.11), and an unencoded payload (RFC
/// 7797) is not ours.
#[test]
fn critical_extensions_are_refused() {
    for (_, bench) in Bench::all() {
        for member in [
            r#""crit":["exp2"],"exp2":1"#,
            r#""crit":["exp2"]"#,
            r#""crit":["exp"]"#,
            r#""crit":["b64"],"b64":false"#,
            r#""b64":false"#,
            r#""b64":true"#,
            r#""crit":[]"#,
            r#""crit":null"#,
            r#""crit":"b64""#,
            r#""crit":["alg"]"#,
            r#""\u0063rit":["x"]"#,
        ] {
            assert!(!bench.accepts(&bench.forge(header_and(bench, member), payload())), "{member}");
        }
        assert!(
            bench.accepts(&bench.forge(header_and(bench, "\"x\":1"), payload())),
            "a member that means nothing"
        );
    }
}

/// J06: key ids that have a meaning for files or databases. They are compared with ids in memory
/// only.
#[test]
fn odd_key_ids_are_refused() {
    let (_, bench) = Bench::all()[0];
    let own = format!("\"{}\"", bench.kid());
    let long = format!("\"{}\"", "k".repeat(64 * 1024));
    let prefix = format!("\"{}\"", &bench.kid()[..42]);
    let padded = format!("\"{} \"", bench.kid());
    let listed = format!("[{own}]");
    let odd = [
        r#""../../dev/null""#,
        r#""' or 1=1--""#,
        r#""{\"$ne\":\"\"}""#,
        r#"{"$ne":""}"#,
        r#""a\u0000b""#,
        r#""$(id)""#,
        r#""""#,
        "5",
        "null",
        "[]",
        "true",
        &long,
        &prefix,
        &padded,
        &listed,
    ];
    for kid in odd {
        assert!(!bench.accepts(&bench.forge(header(bench, &own, kid), payload())), "{kid}");
    }
    let absent = header(bench, &format!(",\"kid\":{own}"), "");
    assert!(!bench.accepts(&bench.forge(absent, payload())));
}

/// J07: only an access token is an access token (RFC 9068 section 4).
#[test]
fn other_types_are_refused() {
    let (_, bench) = Bench::all()[0];
    let others = [
        "JWT",
        "jwt",
        "rt+jwt",
        "dpop+jwt",
        "id_token",
        "at",
        "at+jwt ",
        "application/jwt",
        "text/at+jwt",
        "",
        "logout+jwt",
    ];
    for typ in others {
        assert!(!bench.accepts(&bench.forge(header(bench, "at+jwt", typ), payload())), "{typ}");
    }
    for typ in ["null", "5", "[\"at+jwt\"]"] {
        assert!(!bench.accepts(&bench.forge(header(bench, "\"at+jwt\"", typ), payload())), "{typ}");
    }
    assert!(
        !bench.accepts(&bench.forge(header(bench, "\"typ\":\"at+jwt\",", ""), payload())),
        "absent"
    );
    assert!(bench.accepts(&bench.forge(header(bench, "at+jwt", "application/at+jwt"), payload())));
}

/// J12: also header members that are ignored must leave an object behind; an array in the order of
/// the fields is none.
#[test]
fn a_header_that_is_no_object_is_refused() {
    let (_, bench) = Bench::all()[0];
    let array = format!("[\"EdDSA\",\"{}\",\"at+jwt\"]", bench.kid());
    let deep = header_and(bench, &format!("\"x\":{}{}", "[".repeat(200), "]".repeat(200)));
    let bom = format!("\u{feff}{}", bench.header());
    for header in
        [&array, &deep, &bom, "", "null", "{}", "\"EdDSA\"", &format!("{}{{}}", bench.header())]
    {
        assert!(!bench.accepts(&bench.forge(header, payload())), "{header}");
    }
}

/// J13: other serialisations, numbers of parts and spellings.
#[test]
fn only_the_canonical_compact_spelling_is_accepted() {
    for (name, bench) in Bench::all() {
        let token = bench.signing.sign(&good_claims()).unwrap();
        let parts: Vec<_> = token.split('.').collect();
        let [head, body, signature] = parts[..] else { panic!("three parts") };
        let json =
            format!(r#"{{"protected":"{head}","payload":"{body}","signature":"{signature}"}}"#);
        let general = format!(
            r#"{{"payload":"{body}","signatures":[{{"protected":"{head}","signature":"{signature}"}}]}}"#
        );
        let mut others = vec![json, general];
        others.extend([
            format!(".{token}"),
            format!("{token}."),
            format!("{head}.{body}"),
            format!("{token}.{signature}"),
        ]);
        others.extend([
            format!("{head}..{body}.{signature}"),
            format!("{head}.{body}..{signature}"),
            format!("{head}{body}.{signature}"),
        ]);
        for extra in
            [" ", "\n", "\t", "\r\n", "=", "==", "\0", "%", "+", "/", "?", "\u{200b}", "A", "AAAA"]
        {
            others.extend([format!("{extra}{token}"), format!("{token}{extra}")]);
            others.extend([
                format!("{head}{extra}.{body}.{signature}"),
                format!("{head}.{body}{extra}.{signature}"),
            ]);
            others.extend([
                format!("{head}.{extra}{body}.{signature}"),
                format!("{head}.{body}.{extra}{signature}"),
            ]);
        }
        for other in others {
            assert!(!bench.accepts(&other), "{name}: {other}");
        }
        assert!(bench.accepts(&token));
    }
}

/// J13: bits of the last letter that carry nothing must be zero; each part has one spelling.
#[test]
fn unused_bits_make_no_second_spelling() {
    let (_, bench) = Bench::all()[0];
    let token = bench.signing.sign(&good_claims()).unwrap();
    let ends = [token.find('.').unwrap(), token.rfind('.').unwrap(), token.len()];
    for end in ends {
        for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".chars() {
            let other = format!("{}{letter}{}", &token[..end - 1], &token[end..]);
            assert_eq!(bench.accepts(&other), other == token, "{other}");
        }
    }
}

/// J15: a token that is too long is refused by its length alone: nothing of it is searched or
/// decoded.
#[test]
fn long_tokens_are_refused_before_they_are_read() {
    let (_, bench) = Bench::all()[0];
    for length in [MAX_TOKEN, MAX_TOKEN + 1, 64 * 1024, 1024 * 1024, 4 * 1024 * 1024] {
        let padded = of_length(bench, length);
        assert_eq!(padded.len(), length);
        if length == MAX_TOKEN {
            assert!(bench.accepts(&padded), "the longest there is");
            continue;
        }
        for token in [padded, "a".repeat(length), ".".repeat(length), "é".repeat(length / 2 + 1)] {
            assert!(!bench.accepts(&token));
            let refused = jws::split(&token).err().expect("a refusal").to_string();
            assert_eq!(refused, "not an acceptable compact JWS: too long", "{length}");
        }
    }
}

/// A good token of exactly this length: padded by a member of the header, and by white space where
/// base64 skips a length.
fn of_length(bench: &Bench, length: usize) -> String {
    let room = (length - bench.signing.sign(&good_claims()).unwrap().len()) * 3 / 4;
    let padded = (room.saturating_sub(20)..room + 4)
        .flat_map(|room| (0..3).map(move |spaces| (room, spaces)));
    let tokens = padded.map(|(room, spaces)| {
        let header = header_and(bench, &format!("\"x\":\"{}\"", "x".repeat(room)));
        bench.forge(header, [payload().as_slice(), &b"  "[..spaces]].concat())
    });
    tokens.into_iter().find(|token| token.len() == length).unwrap()
}

/// J16: encrypted tokens, compressed ones and costly key derivations are not ours to open.
#[test]
fn encrypted_tokens_are_refused() {
    let (_, bench) = Bench::all()[0];
    let jwe = URL_SAFE_NO_PAD.encode(
        r#"{"alg":"PBES2-HS256+A128KW","enc":"A128GCM","p2c":2147483647,"p2s":"AAAA","zip":"DEF"}"#,
    );
    assert!(!bench.accepts(&format!("{jwe}.AAAA.AAAA.AAAA.AAAA")));
    assert!(!bench.accepts(&format!("{jwe}..AAAA.AAAA.AAAA")));
    assert!(!bench.accepts(&format!("{jwe}.AAAA.AAAA")));
    for member in [r#""zip":"DEF""#, r#""enc":"A128GCM""#, r#""p2c":2147483647"#, r#""epk":{}"#] {
        assert!(!bench.accepts(&bench.forge(header_and(bench, member), payload())), "{member}");
    }
}

/// J17: ES256 signatures that are none: the edges of r and s, all zero, another length, DER.
#[test]
fn odd_ecdsa_signatures_are_refused() {
    const ORDER: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    let order: Vec<u8> =
        (0..32).map(|n| u8::from_str_radix(&ORDER[2 * n..2 * n + 2], 16).unwrap()).collect();
    let number = |n: u8| [[0; 31].as_slice(), &[n]].concat();
    let less_one = [&order[..31], &[0x50]].concat();
    let more_one = [&order[..31], &[0x52]].concat();
    let (_, bench) = Bench::all()[1];
    let signed = signed(bench.header(), payload());
    let with = |signature: &[u8]| format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
    let edges = [number(0), number(1), less_one, order.clone(), more_one, vec![0xff; 32]];
    for r in &edges {
        for s in &edges {
            assert!(!bench.accepts(&with(&[r.as_slice(), s].concat())), "{r:?} {s:?}");
        }
    }
    let good = bench.pair.sign(signed.as_bytes()).unwrap();
    assert!(bench.accepts(&with(&good)));
    let longer = [good.as_slice(), &[0]].concat();
    let wider = [&[0], &good[..32], &[0], &good[32..]].concat();
    let over = [&good[..32], order.as_slice()].concat();
    for other in [&longer, &wider, &over, &good[..63], &good[1..], &[0; 64], &[0; 63], &[0]] {
        assert!(!bench.accepts(&with(other)), "{other:?}");
    }
    let key = &bench.keyset.keys[0];
    let pkcs8 = bench
        .sealer
        .open("signing key", key.kid.as_str(), &URL_SAFE_NO_PAD.decode(&key.sealed).unwrap())
        .unwrap();
    let der = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8).unwrap();
    let der = der.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    assert!(!bench.accepts(&with(der.as_ref())), "DER is for X.509");
}

/// J18: our own token with one bit flipped, at every position: of the bytes of each part, and of
/// the text itself.
#[test]
fn every_flipped_bit_is_refused() {
    for (name, bench) in Bench::all() {
        let token = bench.signing.sign(&good_claims()).unwrap();
        let parts: Vec<_> =
            token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap()).collect();
        for part in 0..3 {
            for bit in 0..parts[part].len() * 8 {
                let mut flipped = parts.clone();
                flipped[part][bit / 8] ^= 1 << (bit % 8);
                let flipped: Vec<_> =
                    flipped.iter().map(|part| URL_SAFE_NO_PAD.encode(part)).collect();
                assert!(!bench.accepts(&flipped.join(".")), "{name}: bit {bit} of part {part}");
            }
        }
        for bit in 0..token.len() * 8 {
            let mut flipped = token.clone().into_bytes();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(text) = std::str::from_utf8(&flipped) {
                assert!(!bench.accepts(text), "{name}: bit {bit} of the text");
            }
        }
        for length in 0..token.len() {
            assert!(!bench.accepts(&token[..length]), "{name}: cut at {length}");
        }
    }
}

proptest! {
    /// J13, J14: nothing that was not signed here is accepted, and nothing panics.
    #[test]
    fn nothing_made_up_is_accepted(
        any in ".*",
        parts in proptest::collection::vec("[A-Za-z0-9_-]{0,60}", 0..5),
        header in proptest::collection::vec(any::<u8>(), 0..80),
        body in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let (_, bench) = Bench::all()[0];
        prop_assert!(!bench.accepts(&any));
        prop_assert!(!bench.accepts(&parts.join(".")));
        prop_assert!(!bench.accepts(&bench.forge(&header, payload())));
        prop_assert!(!bench.accepts(&bench.forge(bench.header(), &body)));
    }
}
