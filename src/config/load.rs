//! Loading of settings: defaults < file < environment < flags, each value with its origin.

use std::{collections::BTreeMap, fmt, fs, path::PathBuf};

use figment::{
    Figment, Metadata, Profile, Provider,
    error::{Actual, Kind},
    providers::{Format, Toml},
    value::{Dict, Map, Num, Value},
};

use super::{
    Config,
    environment::{Variable, boolean, classify},
};

/// `deploy/config.toml`: every setting with its default.
pub const DEFAULTS: &str = include_str!("../../deploy/config.toml");

/// Sources of settings. Only [`Sources::from_process`] reads the environment of the process.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Requested file; it must exist.
    pub file: Option<PathBuf>,
    /// Environment variables. `JETON_LISTEN` sets `listen`, `JETON_TOKEN__ACCESS_LIFETIME_SECONDS`
    /// a key of the table `token`; an empty variable is no value. `JETON_CLI_*` is the client's,
    /// and variables that platforms make are passed over. `XDG_CONFIG_HOME`, `XDG_STATE_HOME`,
    /// `HOME`, `HOSTNAME` and `CREDENTIALS_DIRECTORY` are read too.
    pub environment: BTreeMap<String, String>,
    /// Settings of the command line.
    pub flags: Vec<Flag>,
}

/// One setting from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The flag as typed, for messages.
    pub name: &'static str,
    /// The setting, with dots.
    pub key: &'static str,
    /// Its text, read as the default's type.
    pub value: String,
}

impl Sources {
    /// The process's own environment; no file, no flags.
    pub fn from_process() -> Self {
        let mut environment = std::env::vars_os()
            .map(|(name, value)| {
                (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
            })
            .collect::<BTreeMap<_, _>>();
        if let Ok(host) = fs::read_to_string("/proc/sys/kernel/hostname") {
            // Shells set HOSTNAME and do not export it.
            environment.entry("HOSTNAME".to_owned()).or_insert_with(|| host.trim().to_owned());
        }
        Self { environment, ..Self::default() }
    }

    /// An absolute directory named by a variable; relative ones are void (XDG Base Directory).
    fn directory(&self, variable: &str) -> Option<PathBuf> {
        self.environment.get(variable).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    /// The file to read: the one asked for, else `jeton/config.toml` of the configuration directory
    /// where it exists.
    fn file_to_read(&self) -> Option<PathBuf> {
        if self.file.is_some() {
            return self.file.clone();
        }
        let home = self
            .directory("XDG_CONFIG_HOME")
            .or_else(|| Some(self.directory("HOME")?.join(".config")))?;
        Some(home.join("jeton/config.toml")).filter(|path| path.exists())
    }
}

/// Origin of each setting, by its key with dots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    by_key: BTreeMap<String, String>,
    passed_over: Vec<String>,
}

impl Origins {
    /// Returns the variables that are no settings and look like an image's, such as
    /// `JETON_VERSION`.
    pub fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    /// Such as `default`, `file /etc/jeton/config.toml`, `environment JETON_LISTEN` or
    /// `flag --listen`.
    pub fn of(&self, key: &str) -> Option<&str> {
        self.by_key.get(key).map(String::as_str)
    }

    /// Adds to an error the origin of the rejected value.
    pub fn blame(&self, mut error: ConfigError) -> ConfigError {
        if error.origin.is_none() {
            error.origin = self.of(&error.key).map(str::to_owned);
        }
        error
    }
}

/// An invalid setting: one line with the key and, if known, the origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The setting, with dots; empty when the whole source is unreadable.
    pub key: String,
    /// Problem with its value.
    pub problem: String,
    /// Origin of the value.
    pub origin: Option<String>,
}

impl ConfigError {
    /// EX_USAGE of sysexits: a supervisor need not restart a process that exits with it.
    pub const EXIT_CODE: u8 = 64;

    /// Creates an error about one key.
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into(), origin: None }
    }

    fn at(mut self, origin: impl Into<String>) -> Self {
        self.origin = Some(origin.into());
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)?;
        match &self.origin {
            Some(origin) => write!(f, " ({origin})"),
            None => Ok(()),
        }
    }
}

/// As compiled in.
impl Default for Config {
    #[expect(clippy::expect_used, reason = "the compiled-in file is loaded in a test")]
    fn default() -> Self {
        Self::load(&Sources::default()).expect("the compiled-in configuration").0
    }
}

impl Config {
    /// Merges the sources. An unknown setting or a value of the wrong type is rejected; the values
    /// themselves are validated by [`super::check`].
    pub fn load(sources: &Sources) -> Result<(Self, Origins), ConfigError> {
        let defaults = parse(DEFAULTS, "default")?;
        let mut figment = Figment::from(Layer::new("default", defaults.clone()));
        if let Some(path) = sources.file_to_read() {
            let origin = format!("file {}", path.display());
            let text = fs::read_to_string(&path).map_err(|error| {
                ConfigError::new("", format!("cannot be read: {error}")).at(origin.clone())
            })?;
            figment = figment.merge(Layer::new(&origin, parse(&text, &origin)?));
        }
        let mut origins = Origins::default();
        let known = |key: &str| {
            key.starts_with("limits.plans.")
                || Value::from(defaults.clone()).find_ref(key).is_some()
        };
        for (name, text) in &sources.environment {
            match classify(name, text, known) {
                Variable::Setting(key) => {
                    let origin = format!("environment {name}");
                    figment = figment.merge(Layer::of_text(&origin, &key, text, &defaults)?);
                }
                Variable::Suspicious => origins.passed_over.push(name.clone()),
                Variable::Foreign => {}
            }
        }
        for flag in &sources.flags {
            figment = figment.merge(Layer::of_text(
                &format!("flag {}", flag.name),
                flag.key,
                &flag.value,
                &defaults,
            )?);
        }
        let mut config: Self = figment.extract().map_err(explain)?;
        for (key, _) in config.settings() {
            let origin =
                figment.find_metadata(&key).map_or("default", |metadata| &metadata.name).to_owned();
            origins.by_key.insert(key, origin);
        }
        config.fill(sources, &mut origins);
        Ok((config, origins))
    }

    /// Path of the master key: the configured file, else `master.key` in the data directory.
    pub fn master_key_path(&self) -> PathBuf {
        let named = !self.master_key_file.as_os_str().is_empty();
        if named { self.master_key_file.clone() } else { self.data_dir.join("master.key") }
    }

    /// Every setting by its key with dots, as text, in the order of the keys.
    pub fn settings(&self) -> Vec<(String, String)> {
        let mut rows = Vec::new();
        // Everything in the struct is a plain value or a map of them, which figment always can
        // keep.
        if let Ok(value) = Value::serialize(self) {
            flatten("", &value, &mut rows);
        }
        rows
    }

    /// Sets the defaults that depend on the environment of the process.
    fn fill(&mut self, sources: &Sources, origins: &mut Origins) {
        if self.data_dir.as_os_str().is_empty() {
            let state =
                sources.directory("XDG_STATE_HOME").map(|dir| ("environment XDG_STATE_HOME", dir));
            let home =
                || Some(("environment HOME", sources.directory("HOME")?.join(".local/state")));
            if let Some((origin, dir)) = state.or_else(home) {
                self.data_dir = dir.join("jeton");
                origins.by_key.insert("data_dir".to_owned(), origin.to_owned());
            }
        }
        // An empty variable is no value, so that the environment needs a word for "none".
        for listen in [&mut self.metrics_listen, &mut self.probe_listen] {
            if listen == "off" {
                listen.clear();
            }
        }
        // Nodes that share a store need different names: the default is the host name.
        let host = sources.environment.get("HOSTNAME").filter(|host| !host.is_empty());
        if let Some(host) = host.filter(|_| self.store.is_shared())
            && origins.of("node") == Some("default")
        {
            host.clone_into(&mut self.node);
            origins.by_key.insert("node".to_owned(), "environment HOSTNAME".to_owned());
        }
        let credential =
            sources.directory("CREDENTIALS_DIRECTORY").map(|dir| dir.join("master_key"));
        if let Some(file) =
            credential.filter(|file| self.master_key_file.as_os_str().is_empty() && file.exists())
        {
            self.master_key_file = file;
            origins
                .by_key
                .insert("master_key_file".to_owned(), "systemd credential master_key".to_owned());
        }
    }
}

/// One source of values, named as `config show` and errors name it.
struct Layer {
    origin: String,
    dict: Dict,
}

impl Layer {
    fn new(origin: &str, dict: Dict) -> Self {
        Self { origin: origin.to_owned(), dict }
    }

    /// Creates a layer of one value, parsed as the type of that key's default: `JETON_NODE=5` is a
    /// name and `JETON_INSECURE=maybe` is rejected.
    fn of_text(origin: &str, key: &str, text: &str, defaults: &Dict) -> Result<Self, ConfigError> {
        let refused = |problem: &str| ConfigError::new(key, problem).at(origin);
        if key.split('.').any(str::is_empty) {
            return Err(refused("is not a setting"));
        }
        let value = match Value::from(defaults.clone()).find_ref(key) {
            Some(Value::Bool(..)) => {
                Value::from(boolean(text).ok_or_else(|| refused("must be true or false"))?)
            }
            Some(Value::Num(..)) => {
                number(text).ok_or_else(|| refused("must be a whole number"))?
            }
            Some(Value::Array(..)) => {
                let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
                Value::from(entries.map(Value::from).collect::<Vec<_>>())
            }
            Some(Value::Dict(..)) => return Err(refused("is a table: set one of its keys")),
            // A rate of a plan that the defaults do not have.
            None => number(text).unwrap_or_else(|| Value::from(text)),
            Some(_) => Value::from(text),
        };
        Ok(Self::new(origin, figment::util::nest(key, value).into_dict().unwrap_or_default()))
    }
}

fn number(text: &str) -> Option<Value> {
    text.trim().parse::<u64>().ok().map(|number| Value::from(Num::from(number)))
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// Parses the text of a file. An error keeps only the first and last line of the parser's message,
/// so that it is one line.
fn parse(text: &str, origin: &str) -> Result<Dict, ConfigError> {
    Toml::from_str::<Dict>(text).map_err(|error| {
        let message = error.to_string();
        let first = message.lines().next().unwrap_or_default();
        let last = message.lines().last().filter(|last| *last != first).unwrap_or_default();
        ConfigError::new("", format!("{first}: {last}")).at(origin)
    })
}

fn explain(error: figment::Error) -> ConfigError {
    let key = error.path.join(".");
    let (key, problem) = match &error.kind {
        Kind::UnknownField(field, known) => (
            unknown_key(&key, field),
            format!("is not a setting; expected one of {}", known.join(", ")),
        ),
        Kind::MissingField(field) => (unknown_key(&key, field), "must be set".to_owned()),
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
            (key, format!("must be {expected}, got {}", kind_of(found)))
        }
        Kind::UnknownVariant(_, known) => (key, format!("must be one of {}", known.join(", "))),
        Kind::Message(_)
        | Kind::InvalidLength(..)
        | Kind::DuplicateField(_)
        | Kind::ISizeOutOfRange(_)
        | Kind::USizeOutOfRange(_)
        | Kind::Unsupported(_)
        | Kind::UnsupportedKey(..) => (key, error.kind.to_string()),
    };
    let error_at = error.metadata.map(|metadata| metadata.name.into_owned());
    ConfigError { key, problem, origin: error_at }
}

/// Returns the full key of an unknown field: figment's path contains the field itself only in some
/// places.
fn unknown_key(path: &str, field: &str) -> String {
    match path {
        "" => field.to_owned(),
        path if path == field || path.ends_with(&format!(".{field}")) => path.to_owned(),
        path => format!("{path}.{field}"),
    }
}

/// Returns the type of a value, never the value: it may be a secret in the wrong place.
const fn kind_of(found: &Actual) -> &'static str {
    match found {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(_) | Actual::Signed(_) | Actual::Float(_) => "a number",
        Actual::Char(_) | Actual::Str(_) | Actual::Bytes(_) => "a string",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        Actual::Unit
        | Actual::Option
        | Actual::NewtypeStruct
        | Actual::Enum
        | Actual::UnitVariant
        | Actual::NewtypeVariant
        | Actual::TupleVariant
        | Actual::StructVariant
        | Actual::Other(_) => "something else",
    }
}

fn flatten(prefix: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    let text = match value {
        Value::Dict(_, dict) => {
            for (name, value) in dict {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&key, value, rows);
            }
            return;
        }
        Value::String(_, text) => text.clone(),
        Value::Char(_, c) => c.to_string(),
        Value::Bool(_, bool) => bool.to_string(),
        Value::Num(_, number) => {
            number.to_u128().map_or_else(String::new, |number| number.to_string())
        }
        Value::Array(_, entries) => {
            entries.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
        }
        Value::Empty(..) => String::new(),
    };
    rows.push((prefix.to_owned(), text));
}
