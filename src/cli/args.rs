//! Values of arguments: durations, times, and texts that are read from files instead.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{error::Failure, output::Output};
use crate::{
    clock::{Clock, SystemClock},
    crypto::refresh_token::{self, Presented},
    model::Timestamp,
};

/// Format of a `DURATION` argument, printed below the help of commands that take one.
pub(super) const DURATION_FORMAT: &str = "DURATION: a whole number and a unit (s, m, h or d), such \
                                          as 90s, 15m or 30d; without a unit, seconds";

/// Maximum bytes that are read from a file or stdin for one value.
const VALUE_MAX_BYTES: u64 = 64 * 1024;

/// Length of the shortest signature of an access token: 64 bytes in base64url.
const SIGNATURE_MIN_CHARS: usize = 86;

/// Minimum characters of a valid token.
const TOKEN_MIN_CHARS: usize = 60;

/// Parses a whole number with `s`, `m`, `h` or `d`; without a unit, seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(['s', 'm', 'h', 'd']);
    let unit = match text.strip_prefix(digits) {
        Some("" | "s") => 1,
        Some("m") => 60,
        Some("h") => 60 * 60,
        Some("d") => 24 * 60 * 60,
        _ => return Err("must be a number with s, m, h or d, such as 15m".to_owned()),
    };
    let number: u64 =
        digits.parse().map_err(|_| "must be a number with s, m, h or d, such as 15m".to_owned())?;
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(|| "must be shorter".to_owned())
}

/// Parses the timeout of a call.
pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration(text)?;
    if timeout.is_zero() { Err("must be at least 1s".to_owned()) } else { Ok(timeout) }
}

/// A point in time, absolute or relative to now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    At(Timestamp),
    Ago(Duration),
}

impl Moment {
    pub(super) fn before(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Ago(age) => now - age,
        }
    }
}

/// Parses an RFC 3339 time, or a duration before now.
pub(super) fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        let millis = i64::try_from(time.unix_timestamp_nanos() / 1_000_000)
            .map_err(|_| "must be nearer to the present".to_owned())?;
        return Ok(Moment::At(Timestamp::from_millis(millis)));
    }
    duration(text).map(Moment::Ago).map_err(|_| {
        "must be an RFC 3339 time, such as 2026-01-31T08:00:00Z, or a duration before now, such as \
         15m"
        .to_owned()
    })
}

/// Returns the time of this machine's clock.
pub(super) fn now() -> Timestamp {
    SystemClock::starting_at(Timestamp::EPOCH).now()
}

/// Warns about a token on the command line, which every user of the machine can read there.
pub(super) fn warn_of_token(token: &str, output: Output) {
    // A shorter text is no valid token.
    if token.len() >= TOKEN_MIN_CHARS {
        output.talk(
            "warning: other users of this machine can see a token on the command line: use - for \
             stdin, or --file",
        );
    }
}

/// A token from the command line or, hidden from process lists, from a file or stdin.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct TokenArgument {
    /// Token; - reads it from stdin (arguments are visible to every user of this machine)
    #[arg(value_name = "TOKEN")]
    token: Option<String>,
    /// Read the token from this file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl TokenArgument {
    pub(super) fn read(&self, output: Output) -> Result<String, Failure> {
        let text = match (&self.token, &self.file) {
            (Some(token), _) if token != "-" => {
                warn_of_token(token, output);
                token.clone()
            }
            (_, Some(file)) => secret_file(file)?,
            _ => secret_file(Path::new("-"))?,
        };
        token(&text)
    }
}

/// Returns a token without the blanks around it.
///
/// # Errors
/// It is no token by its shape. The server answers alike for every unknown token (RFC 7009), so it
/// would not say that something else was typed or piped here.
pub(super) fn token(text: &str) -> Result<String, Failure> {
    let token = text.trim();
    let problem = if token.is_empty() {
        "it is empty"
    } else if token.starts_with(['{', '[', '"']) {
        "it is JSON: give the value of access_token or refresh_token alone"
    } else if token.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer ")) {
        "leave out the word Bearer"
    } else if token.contains(char::is_whitespace) {
        "it has blanks inside: give one token alone, as `jeton token --raw` prints it"
    } else if !token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte))
    {
        "it has characters that no token has"
    } else {
        return Ok(token.to_owned());
    };
    Err(Failure::Usage(format!("this is not a token: {problem}")))
}

/// Checks that a text is a whole token of this service, access or refresh token.
///
/// # Errors
/// It is a part of one, or something else. The server answers alike for every unknown token
/// (RFC 7009): without this a token that was cut off would stay valid without a word.
pub(super) fn whole_token(token: &str) -> Result<(), Failure> {
    let assigned =
        ["access_token=", "refresh_token="].iter().find(|name| token.starts_with(**name));
    let problem = if let Some(name) = assigned {
        format!("leave out {name}")
    } else if token.starts_with("jcs_") {
        "it is a client secret: see `jeton client retire-secret`".to_owned()
    } else if token.starts_with(refresh_token::PREFIX) {
        if Presented::parse(token).is_some() {
            return Ok(());
        }
        "it is a refresh token of which a part is missing".to_owned()
    } else {
        let parts: Vec<&str> = token.split('.').collect();
        let is_whole = matches!(parts.as_slice(), [header, claims, signature]
            if !header.is_empty() && !claims.is_empty() && signature.len() >= SIGNATURE_MIN_CHARS);
        if is_whole {
            return Ok(());
        }
        "a part is missing, or it is something else: an access token has three parts with dots \
         between them"
            .to_owned()
    };
    Err(Failure::Usage(format!("this is not a whole token: {problem}")))
}

/// Reads one value from a file, or from stdin for `-`, without the line break at its end.
pub(super) fn secret_file(path: &Path) -> Result<String, Failure> {
    let text = bounded(path, VALUE_MAX_BYTES)?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

/// Reads a text of many values from a file, or from stdin for `-`.
pub(super) fn text_file(path: &Path) -> Result<String, Failure> {
    bounded(path, VALUE_MAX_BYTES * 1024)
}

fn bounded(path: &Path, longest: u64) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(longest + 1).read_to_string(&mut text)
    } else {
        fs::File::open(path).and_then(|file| file.take(longest + 1).read_to_string(&mut text))
    };
    read.map_err(Failure::reading(path))?;
    if text.len() as u64 > longest {
        return Err(Failure::Other(format!("{} is longer than {longest} bytes", path.display())));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_one_unit() {
        for (text, seconds) in
            [("90", 90), ("90s", 90), ("15m", 900), ("2h", 7200), ("30d", 2_592_000), ("0", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "m", "1h30m", "-5", "1.5h", "5w", "5mm", "99999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_moment_is_a_time_or_an_age() {
        let at = Timestamp::from_millis(1_763_769_600_000);
        assert_eq!(moment("2025-11-22T00:00:00Z"), Ok(Moment::At(at)));
        assert_eq!(moment("2025-11-22T01:00:00+01:00"), Ok(Moment::At(at)));
        assert_eq!(moment("1m").unwrap().before(at), at - Duration::from_secs(60));
        assert!(moment("yesterday").is_err());
    }

    /// B07
    #[test]
    fn what_is_no_token_by_its_shape_is_wrong_usage() {
        for (text, read) in
            [("eyJ.e30.c-_\n", "eyJ.e30.c-_"), (" abc \r\n\n", "abc"), ("\tjrt_x", "jrt_x")]
        {
            assert_eq!(token(text).unwrap(), read);
        }
        for (text, advice) in [
            ("", "empty"),
            (" \n", "empty"),
            ("Bearer eyJ.e30.c", "the word Bearer"),
            ("bearer eyJ.e30.c\n", "the word Bearer"),
            ("{\"access_token\":\"eyJ\"}", "access_token"),
            ("\"eyJ.e30.c\"", "JSON"),
            ("eyJ.e30.c eyJ.e30.c", "blanks"),
            ("eyJ.e30.c\neyJ.e30.c", "blanks"),
            ("eyJ.e30.ä", "characters"),
        ] {
            let failure = token(text).unwrap_err();
            assert_eq!(failure.exit_code(), 2, "{text}");
            assert!(failure.to_string().contains(advice), "{failure}");
        }
    }

    /// B07: what is cut off, or no token of this service, is never reported as revoked.
    #[test]
    fn a_part_of_a_token_is_no_whole_one() {
        let signature = "x".repeat(SIGNATURE_MIN_CHARS);
        // 53 bytes that begin with the version.
        let refresh = format!("jrt_{}AQE", "AQEB".repeat(17));
        let access = format!("eyJ.e30.{signature}");
        whole_token(&access).unwrap();
        whole_token(&refresh).unwrap();
        for (text, advice) in [
            (access[..20].to_owned(), "three parts"),
            (access[..access.len() - 1].to_owned(), "three parts"),
            (refresh[..40].to_owned(), "refresh token"),
            (format!("{refresh}x"), "refresh token"),
            ("jcs_abc".to_owned(), "client secret"),
            (format!("access_token={access}"), "leave out access_token="),
            ("nonsense".to_owned(), "three parts"),
        ] {
            let failure = whole_token(&text).unwrap_err();
            assert_eq!(failure.exit_code(), 2, "{text}");
            assert!(failure.to_string().contains(advice), "{failure}");
        }
    }

    #[test]
    fn a_secret_is_read_without_the_line_break_at_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s");
        for (written, read) in
            [("abc\n", "abc"), ("abc\r\n", "abc"), (" abc ", " abc "), ("abc\n\n", "abc\n")]
        {
            fs::write(&file, written).unwrap();
            assert_eq!(secret_file(&file).unwrap(), read);
        }
        fs::write(&file, vec![b'x'; VALUE_MAX_BYTES as usize + 1]).unwrap();
        assert!(secret_file(&file).is_err());
        assert!(
            secret_file(&dir.path().join("none")).unwrap_err().to_string().contains("cannot read")
        );
    }
}
