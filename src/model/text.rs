//! Free text: words of an administrator, which are stored and shown to others.

use super::id::Invalid;

/// The fewest characters behind the prefix of a secret of this service.
const SECRET: usize = 40;
/// The fewest characters of each part of a JWS.
const PART: usize = 10;

/// Admits a text that names no secret and hides nothing: neither control characters nor those that
/// do not show or turn text round, and nothing shaped like a client secret, a refresh token or a
/// JWS, as it is pasted in a hurry.
///
/// # Errors
///
/// Says what is wrong, never what was given.
pub fn check(text: &str) -> Result<(), Invalid> {
    if text.chars().any(|c| c.is_control() || is_hidden(c)) {
        return Err(Invalid(
            "must not contain control, invisible or bidirectional formatting characters",
        ));
    }
    if holds_secret(text) {
        return Err(Invalid(
            "must not contain a secret or a token: this text is stored and shown to other users",
        ));
    }
    Ok(())
}

/// Returns true for characters that break lines, turn text round or do not show, and are no control
/// characters to Unicode: those with the property Default_Ignorable_Code_Point
/// (DerivedCoreProperties.txt of Unicode 17), all of them, the line and paragraph separators and
/// the marks of interlinear annotation.
pub const fn is_hidden(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// Returns true if a text contains what is shaped like a client secret, a refresh token or a JWS.
pub fn holds_secret(text: &str) -> bool {
    let made_here = ["jcs_", "jrt_"].iter().any(|prefix| {
        let behind =
            text.match_indices(prefix).filter_map(|(at, found)| text.get(at + found.len()..));
        behind
            .into_iter()
            .any(|rest| rest.bytes().take_while(|byte| is_base64url(*byte)).count() >= SECRET)
    });
    made_here
        || text
            .split(|c: char| !c.is_ascii() || !(is_base64url(c as u8) || c == '.'))
            .any(holds_jws)
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

/// Returns the text of a file without what editors and shells add to it: a byte order mark, white
/// space and one pair of quotes around it.
pub fn unquoted(text: &str) -> &str {
    let text = text.trim_start_matches('\u{feff}').trim();
    ['"', '\'']
        .iter()
        .find_map(|&quote| text.strip_prefix(quote)?.strip_suffix(quote))
        .map_or(text, str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// O01 (AUDIT TL13): secrets are found wherever they stand in a text, and what only looks a
    /// little like them is let through.
    #[test]
    fn secrets_are_found_in_text() {
        let (long, short) = ("a-_Z9".repeat(8), "a-_Z9".repeat(8).split_off(1));
        let jws = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJlLXRoYXQtaXM";
        for bad in [
            format!("jcs_{long}"),
            format!("leaked: jrt_{long}, sorry"),
            format!("xjrt_jrt_{long}"),
            format!("\"{jws}\""),
        ] {
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
        for c in [
            '\u{202e}',
            '\u{2028}',
            '\u{200b}',
            '\u{2066}',
            '\u{feff}',
            '\u{ad}',
            '\u{e0041}',
            '\n',
            '\u{9b}',
            '\0',
        ] {
            assert!(check(&format!("a{c}b")).is_err(), "{}", u32::from(c));
        }
        assert_eq!(check("Größe 日本 🚀 e\u{301}"), Ok(()));
    }

    /// AUDIT AZ16(f): each range with its edges, and what lies next to them.
    #[test]
    fn everything_that_does_not_show_is_hidden() {
        let ranges: [(u32, u32); 19] = [
            (0x00ad, 0x00ad),
            (0x034f, 0x034f),
            (0x061c, 0x061c),
            (0x115f, 0x1160),
            (0x17b4, 0x17b5),
            (0x180b, 0x180f),
            (0x200b, 0x200f),
            (0x2028, 0x2029),
            (0x202a, 0x202e),
            (0x2060, 0x206f),
            (0x3164, 0x3164),
            (0xfe00, 0xfe0f),
            (0xfeff, 0xfeff),
            (0xffa0, 0xffa0),
            (0xfff0, 0xfff8),
            (0xfff9, 0xfffb),
            (0x1bca0, 0x1bca3),
            (0x1d173, 0x1d17a),
            (0xe0000, 0xe0fff),
        ];
        let expected =
            |code: u32| ranges.iter().any(|(first, last)| (*first..=*last).contains(&code));
        let wrong: Vec<u32> = ('\0'..=char::MAX)
            .map(u32::from)
            .filter(|code| is_hidden(char::from_u32(*code).unwrap()) != expected(*code))
            .collect();
        assert!(wrong.is_empty(), "{wrong:x?}");
        let count: u32 = ranges.iter().map(|(first, last)| last - first + 1).sum();
        assert_eq!(
            count,
            4_174 + 2 + 3,
            "Default_Ignorable_Code_Point has 4,174, and five more are hidden"
        );
    }
}
