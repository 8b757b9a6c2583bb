//! Bodies of the fuzz targets in `fuzz/`. Each takes arbitrary bytes as a parser of foreign input
//! gets them, and panics where the parser breaks a promise. They are compiled for fuzzing and for
//! the tests below alone, which run every body over its corpus with stable tools.

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::crypto::{
    jwk,
    jws::{Jws, MAX_TOKEN, Verifier, split},
    page_tokens::PageTokens,
};
pub use crate::{
    api::{fuzzing::credentials, listen::fuzzing::frames},
    cli::fuzz_export as export,
};

/// RFC 8037 appendix A.2, as a set.
const KEY: &str =
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
/// RFC 8037 appendix A.4: the one token that anybody outside knows to verify under that key.
const SIGNED: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.\
    hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";

static VERIFIERS: LazyLock<Vec<Verifier>> = LazyLock::new(|| {
    let keys = jwk::parse_set(KEY).unwrap_or_default();
    keys.iter().filter_map(|key| Verifier::from_jwk(key).ok()).collect()
});

/// The parser of access tokens: what it accepts has one spelling and a bounded size, and nothing
/// verifies that the key's owner did not sign.
pub fn jws(data: &[u8]) {
    assert_eq!(VERIFIERS.len(), 1, "the example's key is taken in");
    let Ok(token) = std::str::from_utf8(data) else { return };
    let Ok(jws) = Jws::parse(token) else { return };
    assert!(token.len() <= MAX_TOKEN);
    let parts: Vec<&str> = token.split('.').collect();
    assert_eq!(parts.len(), 3, "three parts");
    let header = split(token).map(|parts| URL_SAFE_NO_PAD.encode(parts.header));
    assert_eq!(header.ok().as_deref(), parts.first().copied(), "one spelling");
    for verifier in VERIFIERS.iter() {
        assert_eq!(verifier.verify(&jws).is_some(), token == SIGNED, "only what was signed");
    }
}

/// Runs the parser of page tokens on two lines: question and token. A token opens only in its
/// canonical encoding, and every cursor is returned unchanged.
pub fn page_token(data: &[u8]) {
    let pages = PageTokens::with_key([7; 32]);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (question, token) = text.split_once('\n').unwrap_or(("", text));
    if let Ok(cursor) = pages.open(question, token) {
        assert_eq!(pages.seal(question, &cursor), token, "one spelling");
    }
    let made = pages.seal(question, token);
    assert_eq!(pages.open(question, &made).as_deref(), Ok(token), "the same cursor");
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::PathBuf};

    type Body = fn(&[u8]);
    const TARGETS: [(&str, Body); 5] = [
        ("jws", super::jws),
        ("credentials", super::credentials),
        ("page_token", super::page_token),
        ("frames", super::frames),
        ("export", super::export),
    ];
    /// Places of an input at which it is cut off, and at which one byte is changed.
    const PLACES: usize = 64;

    fn files(dir: &str) -> Vec<PathBuf> {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(dir);
        let mut files: Vec<_> =
            fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    /// Runs a body over its corpus: each input whole, cut off, and with one byte changed.
    fn replay(target: &str) {
        let (_, body) = TARGETS.iter().find(|(name, _)| *name == target).unwrap();
        let inputs = files(&format!("corpus/{target}"));
        assert!(inputs.len() >= 3, "{target} has a corpus");
        for input in inputs {
            let whole = fs::read(&input).unwrap();
            body(&whole);
            for at in (0..whole.len()).step_by((whole.len() / PLACES).max(1)) {
                body(&whole[..at]);
                let mut changed = whole.clone();
                changed[at] ^= 1 << (at % 8);
                body(&changed);
            }
        }
    }

    #[test]
    fn the_corpus_of_jws_breaks_nothing() {
        replay("jws");
    }

    #[test]
    fn the_corpus_of_credentials_breaks_nothing() {
        replay("credentials");
    }

    #[test]
    fn the_corpus_of_page_token_breaks_nothing() {
        replay("page_token");
    }

    #[test]
    fn the_corpus_of_frames_breaks_nothing() {
        replay("frames");
    }

    #[test]
    fn the_corpus_of_export_breaks_nothing() {
        replay("export");
    }

    /// A target without a body here, or a body without a target, would never run.
    #[test]
    fn every_target_has_a_body() {
        let targets: BTreeSet<_> = files("fuzz_targets")
            .iter()
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(targets, TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect());
    }
}
