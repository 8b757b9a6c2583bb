//! Variables of the environment: which are settings, and which belong to others. Platforms make
//! variables of their own for a service named `jeton`.

/// Variables that begin with one of these belong to the command line client and to the project's
/// tests, not to the server.
const OTHER_PREFIXES: [&str; 2] = ["CLI_", "TEST_"];

/// Last words of variables by which images and pipelines name what they contain.
const IMAGE_WORDS: [&str; 8] =
    ["VERSION", "RELEASE", "REVISION", "COMMIT", "TAG", "IMAGE", "SHA256", "SHA512"];

/// A variable, by its name and value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Variable {
    /// Sets this key, or is a typing error.
    Setting(String),
    /// Another program's, or empty.
    Foreign,
    /// Probably an image's; the operator gets a warning.
    Suspicious,
}

/// Classifies a variable. `known` decides whether a key exists; a key that exists is a setting,
/// whatever its name looks like.
pub(super) fn classify(name: &str, value: &str, known: impl Fn(&str) -> bool) -> Variable {
    let Some(rest) = name.strip_prefix("JETON_") else { return Variable::Foreign };
    // Compose files pass unset variables as empty ones.
    if value.is_empty() || OTHER_PREFIXES.iter().any(|prefix| rest.starts_with(prefix)) {
        return Variable::Foreign;
    }
    let key = rest.to_ascii_lowercase().replace("__", ".");
    if known(&key) {
        Variable::Setting(key)
    } else if is_service_link(rest, value) || is_docker_link(rest, value) {
        Variable::Foreign
    } else if !rest.contains("__") && IMAGE_WORDS.iter().any(|word| is_last_word(rest, word)) {
        Variable::Suspicious
    } else {
        Variable::Setting(key)
    }
}

/// Returns true for the variables that Kubernetes makes for each Service whose name begins with
/// `jeton`, and Docker for each link: an address and its parts.
fn is_service_link(rest: &str, value: &str) -> bool {
    let last_words = |words: &str| is_last_word(rest, words);
    let after = |words: &str| {
        rest.strip_prefix(words)
            .or_else(|| rest.split_once(&format!("_{words}")).map(|(_, after)| after))
    };
    if last_words("SERVICE_HOST") || last_words("SERVICE_PORT") || after("SERVICE_PORT_").is_some()
    {
        return true;
    }
    // `PORT_50051_TCP`, `PORT_50051_TCP_PORT` and so on.
    if after("PORT_").is_some_and(|port| port.starts_with(|first: char| first.is_ascii_digit())) {
        return true;
    }
    last_words("PORT")
        && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
}

/// Returns true for the other variables of a Docker link: `NAME`, a path of containers, and `ENV_*`,
/// the environment of the linked container.
fn is_docker_link(rest: &str, value: &str) -> bool {
    rest.starts_with("ENV_")
        || rest.contains("_ENV_")
        || (is_last_word(rest, "NAME") && value.starts_with('/'))
}

/// Returns true if the name is these words, or ends with them after an underscore.
fn is_last_word(rest: &str, words: &str) -> bool {
    rest.strip_suffix(words).is_some_and(|before| before.is_empty() || before.ends_with('_'))
}

/// Parses a boolean as people and tools write them.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, value: &str) -> Variable {
        classify(name, value, |key| {
            matches!(
                key,
                "listen" | "token.access_lifetime_seconds" | "limits.plans.gold_version.burst"
            )
        })
    }

    fn setting(key: &str) -> Variable {
        Variable::Setting(key.to_owned())
    }

    #[test]
    fn a_variable_names_its_key_and_others_are_left_alone() {
        assert_eq!(class("JETON_LISTEN", "x"), setting("listen"));
        assert_eq!(
            class("JETON_TOKEN__ACCESS_LIFETIME_SECONDS", "1"),
            setting("token.access_lifetime_seconds")
        );
        for foreign in ["JETON_CLI_CLIENT_SECRET", "JETON_TEST_MONGODB", "PATH"] {
            assert_eq!(class(foreign, "x"), Variable::Foreign, "{foreign}");
        }
        assert_eq!(class("JETON_LISTEN", ""), Variable::Foreign, "empty is no value");
    }

    /// B01: what Kubernetes makes for the Services `jeton`, `jeton-mongo` and one with a named port,
    /// and Docker for a link.
    #[test]
    fn variables_of_platforms_are_passed_over() {
        for (name, value) in [
            ("JETON_SERVICE_HOST", "10.96.0.7"),
            ("JETON_SERVICE_PORT", "50051"),
            ("JETON_SERVICE_PORT_GRPC", "50051"),
            ("JETON_PORT", "tcp://10.96.0.7:50051"),
            ("JETON_PORT_50051_TCP", "tcp://10.96.0.7:50051"),
            ("JETON_PORT_50051_TCP_PROTO", "tcp"),
            ("JETON_PORT_50051_TCP_PORT", "50051"),
            ("JETON_PORT_50051_TCP_ADDR", "10.96.0.7"),
            ("JETON_MONGO_SERVICE_HOST", "10.96.0.8"),
            ("JETON_MONGO_SERVICE_PORT_MONGODB", "27017"),
            ("JETON_MONGO_PORT", "tcp://10.96.0.8:27017"),
            ("JETON_MONGO_PORT_27017_TCP_ADDR", "10.96.0.8"),
            ("JETON_DNS_PORT", "udp://10.96.0.9:53"),
            ("JETON_NAME", "/web/jeton"),
            ("JETON_ENV_LANG", "C"),
            ("JETON_1_ENV_LANG", "C"),
        ] {
            assert_eq!(class(name, value), Variable::Foreign, "{name}");
        }
        for (name, value) in [("JETON_VERSION", "1.2.3"), ("JETON_IMAGE_TAG", "latest")] {
            assert_eq!(class(name, value), Variable::Suspicious, "{name}");
        }
    }

    /// A typing error is still refused.
    #[test]
    fn other_unknown_variables_are_settings() {
        for (name, value, key) in [
            ("JETON_PORT", "8443", "port"),
            ("JETON_LISTN", "x", "listn"),
            ("JETON_NAME", "a", "name"),
            ("JETON_LOG__VERSION", "a", "log.version"),
            ("JETON_LIMITS__PLANS__GOLD_VERSION__BURST", "1", "limits.plans.gold_version.burst"),
            ("JETON_METRICS_PORT", "9464", "metrics_port"),
        ] {
            assert_eq!(class(name, value), setting(key), "{name}");
        }
    }

    #[test]
    fn booleans_are_read_as_people_write_them() {
        for yes in ["1", "true", "True", "TRUE", "yes", "on"] {
            assert_eq!(boolean(yes), Some(true), "{yes}");
        }
        for no in ["0", "false", "False", "FALSE", "no", "off"] {
            assert_eq!(boolean(no), Some(false), "{no}");
        }
        for neither in ["", "2", "maybe", "tru"] {
            assert_eq!(boolean(neither), None, "{neither}");
        }
    }
}
