//! Contexts: named servers with the credentials to use there, in
//! `$XDG_CONFIG_HOME/jeton/contexts.toml`, which only its owner can read. `serve --dev` saves one,
//! so that the commands need no flags on the same machine.

mod edit;
mod store;

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process,
};

use clap::{Args, Subcommand};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::json;

pub use self::store::Remembered;
use super::{
    args,
    error::Failure,
    output::{self, Output},
    token_cache::TokenCache,
};

/// A server and the credentials to use there.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `HOST:PORT`, or a URL.
    pub address: String,
    /// Client id of the caller.
    pub client_id: String,
    /// Secret of the client; absent if another user started the server for the first time.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "expose",
        deserialize_with = "conceal"
    )]
    pub client_secret: Option<SecretString>,
    /// File with the secret of the client, instead of the secret itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_file: Option<PathBuf>,
    /// PEM file with the CA of the server's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// PEM file with the key of the client certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The server's data directory, where it is on this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// Address of a store that nodes share, without its user and password. None means the store in
    /// the data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
}

impl Context {
    /// Returns the secret, kept here or in its file.
    pub(super) fn secret(&self) -> Result<Option<SecretString>, Failure> {
        match (&self.client_secret, &self.client_secret_file) {
            (Some(secret), _) => Ok(Some(secret.clone())),
            (None, Some(file)) => match args::secret_file(file) {
                Ok(secret) => Ok(Some(secret.into())),
                Err(failure) => Err(Failure::setting(
                    "client_secret_file",
                    format!("of the context: {failure}"),
                )),
            },
            (None, None) => Ok(None),
        }
    }
}

/// Serializes a secret. The only place where one is written to disk in clear: a file of mode 0600,
/// for development.
fn expose<S: Serializer>(secret: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(ExposeSecret::expose_secret).serialize(serializer)
}

fn conceal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    String::deserialize(deserializer).map(|secret| Some(secret.into()))
}

/// All contexts of a user.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// Name of the context that is used without `--context`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub current: String,
    /// Contexts by name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

impl Contexts {
    /// Returns the named or, without a name, the current context.
    pub fn find(&self, name: Option<&str>) -> Option<(&str, &Context)> {
        let name = name.unwrap_or(&self.current);
        self.contexts.get_key_value(name).map(|(name, context)| (name.as_str(), context))
    }
}

/// Path of the contexts file of the user with this environment; `None` without a home directory.
pub fn path(environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    let directory =
        |name: &str| environment.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config =
        directory("XDG_CONFIG_HOME").or_else(|| Some(directory("HOME")?.join(".config")))?;
    Some(config.join("jeton/contexts.toml"))
}

/// Reads the contexts; empty if there is no file.
///
/// # Errors
/// The file exists and cannot be read or parsed, belongs to another user, or is writable for
/// others, who could choose the server that a secret is sent to. The message does not quote it.
pub fn load(path: &Path) -> io::Result<Contexts> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        // A home that is no directory, such as /dev/null, has no contexts.
        Err(error)
            if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) =>
        {
            return Ok(Contexts::default());
        }
        Err(error) => return Err(error),
    };
    // Metadata of the open file: the file that is checked is the file that is read.
    let metadata = file.metadata()?;
    let mode = metadata.mode() & 0o777;
    if let Some(problem) = exposure(metadata.uid(), mode, rustix::process::geteuid().as_raw()) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let contexts: Contexts = toml::from_str(&text)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.message().to_owned()))?;
    if mode & 0o044 != 0
        && contexts.contexts.values().any(|context| context.client_secret.is_some())
    {
        let shown = path.display();
        output::warn(&format!(
            "warning: other users can read the secrets in {shown} (mode {mode:04o}): chmod 0600 \
             {shown}"
        ));
    }
    Ok(contexts)
}

/// Returns the reason to refuse a file of this owner and mode to the user `own`, if others can
/// change it. A file of root is accepted.
fn exposure(owner: u32, mode: u32, own: u32) -> Option<String> {
    if owner != own && owner != 0 {
        return Some(format!(
            "the file belongs to user {owner}, this process runs as user {own}: run it as that \
             user, or chown the file"
        ));
    }
    (mode & 0o022 != 0)
        .then(|| format!("other users can write to the file (mode {mode:04o}): chmod 0600"))
}

/// Writes the contexts to a new file and renames it: a reader gets the old or the new file, whole.
///
/// # Errors
/// The directory or the file cannot be written.
pub fn save(path: &Path, contexts: &Contexts) -> io::Result<()> {
    let text = toml::to_string(contexts).map_err(io::Error::other)?;
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let new = directory.join(format!("contexts.toml.{}", process::id()));
    // Left over from a process of the same number that was killed here.
    let _ = fs::remove_file(&new);
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).and_then(
        |mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        },
    );
    written.and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

/// Reads, changes and writes the contexts; of several processes one after the other.
///
/// # Errors
/// The file cannot be read or written, or the change fails.
pub fn change<T, E: From<io::Error>>(
    path: &Path,
    change: impl FnOnce(&mut Contexts) -> Result<T, E>,
) -> Result<T, E> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // The directory itself is the lock: it stays when the file is replaced. Where it cannot be
    // locked, the change goes on without, as a reader does.
    let lock = File::open(directory)?;
    let _ = lock.lock();
    let mut contexts = load(path)?;
    let result = change(&mut contexts)?;
    save(path, &contexts)?;
    Ok(result)
}

/// `jeton context`
#[derive(Args, Debug)]
pub(super) struct Command {
    #[command(subcommand)]
    command: ContextCommand,
}

#[derive(Subcommand, Debug)]
enum ContextCommand {
    /// List contexts; a star marks the current one
    List,
    /// Show a context, without its secret
    Show {
        /// Context name [default: the current context]
        name: Option<String>,
    },
    /// Add a context
    Add(edit::Add),
    /// Change the given properties of a context
    Edit(edit::Edit),
    /// Remove a context
    Remove(edit::Remove),
    /// Select the current context
    Use {
        /// Context name
        name: String,
    },
}

/// Failure of a change, by its place.
enum Changing {
    File(io::Error),
    Failed(Failure),
}

impl From<io::Error> for Changing {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

impl Command {
    pub(super) fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let path = path(environment)
            .ok_or_else(|| Failure::setting("", "neither XDG_CONFIG_HOME nor HOME is set"))?;
        let read = || load(&path).map_err(Failure::reading(&path));
        let done = match &self.command {
            ContextCommand::List => return list(output, &read()?),
            ContextCommand::Show { name } => return show(output, &read()?, name.as_deref()),
            ContextCommand::Add(add) => {
                let properties = add.checked()?;
                changed(&path, |contexts| add.apply(properties, contexts))?
            }
            ContextCommand::Edit(edit) => {
                let properties = edit.checked()?;
                changed(&path, |contexts| edit.apply(properties, contexts))?
            }
            ContextCommand::Remove(remove) => {
                remove.confirm(output, &read()?)?;
                let done = changed(&path, |contexts| remove.apply(contexts))?;
                TokenCache::beside(&path).clear();
                done
            }
            ContextCommand::Use { name } => changed(&path, |contexts| {
                contexts.current = found(contexts, Some(name))?.0.to_owned();
                Ok(format!("using context {}", contexts.current))
            })?,
        };
        output.talk(&crate::telemetry::escape(&done));
        Ok(())
    }
}

/// Changes the contexts for a command and returns what to say of it.
fn changed(
    path: &Path,
    run: impl FnOnce(&mut Contexts) -> Result<String, Failure>,
) -> Result<String, Failure> {
    change(path, |contexts| run(contexts).map_err(Changing::Failed)).map_err(|error| match error {
        Changing::Failed(failure) => failure,
        Changing::File(error) => Failure::io(format!("cannot change {}", path.display()))(error),
    })
}

fn found<'a>(
    contexts: &'a Contexts,
    name: Option<&str>,
) -> Result<(&'a str, &'a Context), Failure> {
    contexts.find(name).ok_or_else(|| match name {
        Some(name) => {
            Failure::setting("context", format!("unknown context {name}; see `jeton context list`"))
        }
        None => Failure::setting(
            "context",
            "no current context: use `jeton context use` or `add`, or `jeton serve --dev`",
        ),
    })
}

fn list(output: Output, contexts: &Contexts) -> Result<(), Failure> {
    if output.json {
        let all = contexts
            .contexts
            .iter()
            .map(|(name, context)| describe(name, context, name == &contexts.current));
        return output.document(&json!({ "contexts": all.collect::<Vec<_>>() }));
    }
    let rows = contexts.contexts.iter().map(|(name, context)| {
        let star = if name == &contexts.current { "*" } else { "" };
        let data_dir =
            context.data_dir.as_ref().map(|dir| dir.display().to_string()).unwrap_or_default();
        let state = if context.is_gone() { "gone" } else { "" };
        vec![
            star.to_owned(),
            name.clone(),
            context.address.clone(),
            context.client_id.clone(),
            data_dir,
            state.to_owned(),
        ]
    });
    let header = ["", "name", "address", "client", "data directory", "state"];
    output.table(&header, &rows.collect::<Vec<_>>(), &["data directory", "client"])
}

fn show(output: Output, contexts: &Contexts, name: Option<&str>) -> Result<(), Failure> {
    let (name, context) = found(contexts, name)?;
    if output.json {
        return output.document(&describe(name, context, name == contexts.current));
    }
    let path = |path: &Option<PathBuf>| {
        path.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
    };
    output.record(&[
        ("name", name.to_owned()),
        ("address", context.address.clone()),
        ("client id", context.client_id.clone()),
        (
            "client secret",
            match (&context.client_secret, &context.client_secret_file) {
                (Some(_), _) => "kept".to_owned(),
                (None, Some(file)) => format!("in {}", file.display()),
                (None, None) => "missing".to_owned(),
            },
        ),
        ("ca file", path(&context.ca_file)),
        ("cert file", path(&context.cert_file)),
        ("key file", path(&context.key_file)),
        ("data directory", path(&context.data_dir)),
        ("store", context.store.clone().unwrap_or_default()),
        ("state", if context.is_gone() { "the data directory is gone" } else { "" }.to_owned()),
    ])
}

fn describe(name: &str, context: &Context, current: bool) -> serde_json::Value {
    json!({
        "name": name,
        "current": current,
        "address": context.address,
        "client_id": context.client_id,
        "has_client_secret": context.client_secret.is_some(),
        "client_secret_file": context.client_secret_file,
        "ca_file": context.ca_file,
        "cert_file": context.cert_file,
        "key_file": context.key_file,
        "data_dir": context.data_dir,
        "store": context.store,
        "is_gone": context.is_gone(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Context of a server on this machine.
    pub(super) fn context(dir: &Path, secret: Option<&str>) -> Context {
        Context {
            address: "127.0.0.1:1".to_owned(),
            client_id: "bootstrap".to_owned(),
            client_secret: secret.map(SecretString::from),
            data_dir: Some(dir.to_owned()),
            ..Context::default()
        }
    }

    /// Secret that is kept in a context.
    pub(super) fn secret(contexts: &Contexts, name: &str) -> Option<String> {
        contexts.contexts[name]
            .client_secret
            .as_ref()
            .map(|secret| secret.expose_secret().to_owned())
    }

    #[test]
    fn what_is_saved_is_loaded_again_and_only_its_owner_can_read_it() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("jeton/contexts.toml");
        assert!(load(&path).unwrap().contexts.is_empty());
        let mut contexts = Contexts::default();
        contexts.remember(context(home.path(), Some("jcs_quote\"and\\slash")));
        save(&path, &contexts).unwrap();
        save(&path, &contexts).unwrap();
        let read = load(&path).unwrap();
        assert_eq!(read.current, "dev");
        assert_eq!(secret(&read, "dev").as_deref(), Some("jcs_quote\"and\\slash"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    /// AZ16: a file that others can write to is not followed; it is not read before that is known.
    #[test]
    fn a_file_that_others_can_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("contexts.toml");
        let mut contexts = Contexts::default();
        contexts.remember(context(dir.path(), Some("jcs_x")));
        save(&path, &contexts).unwrap();
        for (mode, expected) in [
            (0o666, false),
            (0o620, false),
            (0o602, false),
            (0o644, true),
            (0o600, true),
            (0o400, true),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let loaded = load(&path);
            assert_eq!(loaded.is_ok(), expected, "{mode:o}");
            assert!(loaded.is_ok() || loaded.unwrap_err().to_string().contains("chmod 0600"));
        }
    }

    /// AZ16, DECISIONS 15: nor is one that belongs to another user, root for one, who runs `jeton`
    /// in another user's home.
    #[test]
    fn a_file_of_another_user_is_refused() {
        let refused = |owner, mode, own| exposure(owner, mode, own);
        for (owner, own) in [(1_000, 1_001), (1_000, 0)] {
            for mode in [0o600, 0o644, 0o666] {
                assert!(
                    refused(owner, mode, own)
                        .is_some_and(|problem| problem.contains(&format!("user {owner}")))
                );
            }
        }
        for (owner, own) in [(1_000, 1_000), (0, 1_000), (0, 0)] {
            assert_eq!(refused(owner, 0o644, own), None);
            assert!(
                refused(owner, 0o622, own).is_some_and(|problem| problem.contains("chmod 0600"))
            );
        }
    }

    /// The same of a real file, where this may give one away.
    #[test]
    fn a_file_that_was_given_away_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("contexts.toml");
        save(&path, &Contexts::default()).unwrap();
        if std::os::unix::fs::chown(&path, Some(65_534), None).is_err() {
            return;
        }
        assert!(load(&path).unwrap_err().to_string().contains("belongs to user 65534"));
    }

    /// O01: neither `Debug` nor a complaint about the file shows the secret.
    #[test]
    fn secrets_do_not_show() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!format!("{:?}", context(dir.path(), Some("canary"))).contains("canary"));
        let path = dir.path().join("contexts.toml");
        fs::write(&path, "[contexts.dev]\nclient_secret = canary\n").unwrap();
        assert!(!load(&path).unwrap_err().to_string().contains("canary"));
        fs::write(
            &path,
            "[contexts.dev]\naddress = 1\nclient_id = \"x\"\nclient_secret = \"canary\"\n",
        )
        .unwrap();
        assert!(!load(&path).unwrap_err().to_string().contains("canary"));
    }

    /// Two commands at once: neither change is lost, whatever the other one writes.
    #[test]
    fn changes_at_the_same_time_are_all_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jeton/contexts.toml");
        std::thread::scope(|threads| {
            for number in 0..8 {
                let path = &path;
                threads.spawn(move || {
                    for turn in 0..8 {
                        change(path, |contexts| {
                            let name = format!("{number} \"{turn}\".[x]");
                            contexts.contexts.insert(name, Context::default());
                            Ok::<_, io::Error>(())
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(load(&path).unwrap().contexts.len(), 64);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let failed = change(&path, |contexts| {
            contexts.contexts.clear();
            Err::<(), _>(io::Error::other("refused"))
        });
        assert!(failed.is_err());
        assert_eq!(load(&path).unwrap().contexts.len(), 64, "a change that fails changes nothing");
    }
}
