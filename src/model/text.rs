//! Free text: words of an administrator, which are stored and shown to others.

use super::id::Invalid;

/// The fewest characters behind the prefix of a secret of this service.
const SECRET: usize = 40;
/// The fewest characters of each part of a JWS.
const PART: usize = 10;

/// Admits a text that names no secret and hides nothing: neither control characters nor those that do not show or turn text
/// round, and nothing shaped like a client secret, a refresh token or a JWS, as it is pasted in a hurry.
///
/// # Errors
///
/// Says what is wrong, never what was given.
pub fn check(text: &str) -> Result<(), Invalid> {
    if text.chars().any(|c| c.is_control() || is_hidden(c)) {
        return Err(Invalid("must not hold control characters, invisible ones or ones that turn text round"));
    }
    if holds_secret(text) {
        return Err(Invalid("must not hold a secret or a token: it would be stored and shown to others"));
    }
    Ok(())
}

/// Returns true for characters that break lines, turn text round or do not show, and are no control characters to Unicode.
pub const fn is_hidden(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    )
}

/// Returns true if a text contains what is shaped like a client secret, a refresh token or a JWS.
pub fn holds_secret(text: &str) -> bool {
    let made_here = ["jcs_", "jrt_"].iter().any(|prefix| {
        let behind = text.match_indices(prefix).filter_map(|(at, found)| text.get(at + found.len()..));
        behind.into_iter().any(|rest| rest.bytes().take_while(|byte| is_base64url(*byte)).count() >= SECRET)
    });
    made_here || text.split(|c: char| !c.is_ascii() || !(is_base64url(c as u8) || c == '.')).any(holds_jws)
}

/// Three parts of base64url in a row, of which the first begins as a JSON object does.
fn holds_jws(word: &str) -> bool {
    let parts: Vec<&str> = word.split('.').collect();
    parts.windows(3).any(|three| {
        let is_long = three.iter().all(|part| part.len() >= PART);
        is_long && three.first().is_some_and(|header| header.contains("eyJ"))
    })
}

const fn is_base64url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// O01 (AUDIT TL13): secrets are found wherever they stand in a text, and what only looks a little like them is let through.
    #[test]
    fn secrets_are_found_in_text() {
        let (long, short) = ("a-_Z9".repeat(8), "a-_Z9".repeat(8).split_off(1));
        let jws = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJlLXRoYXQtaXM";
        for bad in
            [format!("jcs_{long}"), format!("leaked: jrt_{long}, sorry"), format!("xjrt_jrt_{long}"), format!("\"{jws}\"")]
        {
            assert!(holds_secret(&bad) && check(&bad).is_err(), "{bad}");
        }
        for good in [
            "",
            "jcs_",
            "jrt_ stolen",
            "a.b.c",
            "https://money-transfer.production-cluster.mycompany-internal.com",
            &format!("jcs_{short}"),
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        assert!(!holds_secret(&"x.".repeat(100)));
    }

    /// AUDIT AZ16(f): text that shows otherwise than it is.
    #[test]
    fn hidden_characters_are_refused() {
        for c in ['\u{202e}', '\u{2028}', '\u{200b}', '\u{2066}', '\u{feff}', '\u{ad}', '\u{e0041}', '\n', '\u{9b}', '\0'] {
            assert!(check(&format!("a{c}b")).is_err(), "{}", u32::from(c));
        }
        assert_eq!(check("Größe 日本 🚀 e\u{301}"), Ok(()));
    }
}
