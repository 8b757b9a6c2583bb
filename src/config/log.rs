//! Parsing of `log.level`.

use tracing_subscriber::EnvFilter;

/// Parses `log.level`.
///
/// # Errors
/// The problem with it, without the text itself.
pub fn log_filter(level: &str) -> Result<EnvFilter, &'static str> {
    const PROBLEM: &str = "must be error, warn, info, debug, trace or off, or directives such as \
                           info,jeton::store=debug";
    let word_is_level =
        |word: &str| matches!(word.trim(), "error" | "warn" | "info" | "debug" | "trace" | "off");
    // A word that is no level would be parsed as the name of a module, and silence all others.
    if level
        .split(',')
        .any(|directive| !directive.contains(['=', '[']) && !word_is_level(directive))
    {
        return Err(PROBLEM);
    }
    EnvFilter::try_new(level).map_err(|_| PROBLEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        for good in ["info", "off", "info,jeton::store=debug", "jeton=trace"] {
            assert!(log_filter(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "info,", "info,jeton", "jeton=loud"] {
            assert!(log_filter(bad).is_err(), "{bad}");
        }
    }
}
