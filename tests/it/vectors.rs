//! Verification vectors that nobody here wrote: Wycheproof's for JSON Web Signature and JSON Web
//! Key. They are data to test with and not part of this repository: `JETON_TEST_VECTORS` names the
//! folder that holds them.

use std::{fs, path::PathBuf};

use jeton::crypto::{
    jwk,
    jws::{Jws, Verifier},
};
use serde_json::Value;

/// Vectors that no sane verifier can agree with: 367 and 370 are byte for byte the valid 357; 372 and 373
/// call tokens with a `?` inside valid; 346 and 350 pair a PS256 key with a PS384 token; 347 and
/// 351 need ES512 with a key labelled "ES521".
const NOT_AGREED: [u64; 8] = [346, 347, 350, 351, 367, 370, 372, 373];

fn vectors(file: &str) -> Value {
    let folder = std::env::var_os("JETON_TEST_VECTORS")
        .expect("JETON_TEST_VECTORS names the folder with the vectors");
    let text =
        fs::read_to_string(PathBuf::from(folder).join(file)).expect("the file with the vectors");
    serde_json::from_str(&text).expect("vectors in JSON")
}

/// Every case with the keys of its group: the public ones where the group has them.
fn cases(vectors: &Value) -> Vec<(&Value, &Value)> {
    let groups = vectors["testGroups"].as_array().expect("groups");
    let tests = groups.iter().flat_map(|group| {
        let keys = group.get("public").unwrap_or_else(|| &group["private"]);
        group["tests"].as_array().expect("tests").iter().map(move |test| (keys, test))
    });
    tests.collect()
}

fn accepts(key: &Value, token: &str) -> bool {
    let key =
        serde_json::from_value(key.clone()).ok().and_then(|key| Verifier::from_jwk(&key).ok());
    key.is_some_and(|key| Jws::parse(token).is_ok_and(|jws| key.verify(&jws).is_some()))
}

fn accepts_from(set: &Value, token: &str) -> bool {
    let keys = jwk::parse_set(&set.to_string()).unwrap_or_default();
    let verifiers = keys.iter().filter_map(|key| Verifier::from_jwk(key).ok());
    Jws::parse(token).is_ok_and(|jws| verifiers.into_iter().any(|key| key.verify(&jws).is_some()))
}

/// The cases in which we do not agree, and how many there are at all.
fn disagreements(vectors: &Value, accepts: impl Fn(&Value, &str) -> bool) -> (Vec<u64>, usize) {
    let cases = cases(vectors);
    let differs = |(keys, test): &&(&Value, &Value)| {
        // A token that is no text at all (the JSON serialisation) is given as its text.
        let token = test["jws"].as_str().map_or_else(|| test["jws"].to_string(), str::to_owned);
        accepts(keys, &token) != (test["result"] == "valid")
    };
    let ids = cases.iter().filter(differs).map(|(_, test)| test["tcId"].as_u64().expect("an id"));
    (ids.collect(), cases.len())
}

/// J01-J05, J13, J17: 393 of 401, and exactly these eight not.
#[test]
#[ignore = "needs JETON_TEST_VECTORS"]
fn wycheproof_signatures_are_judged_as_they_should_be() {
    let vectors = vectors("json_web_signature_test.json");
    let (mut differ, count) = disagreements(&vectors, accepts);
    differ.sort_unstable();
    assert_eq!((differ.as_slice(), count), (NOT_AGREED.as_slice(), 401));
}

/// K04, K05: mixed sets, ids given twice, weak and broken keys are all refused; the sound ones are
/// not.
#[test]
#[ignore = "needs JETON_TEST_VECTORS"]
fn wycheproof_keys_are_judged_as_they_should_be() {
    let vectors = vectors("json_web_key_test.json");
    let (differ, count) = disagreements(&vectors, accepts_from);
    assert_eq!((differ.as_slice(), count), ([].as_slice(), 26));
}
