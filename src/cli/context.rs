//! Contexts: named servers with the credentials to use there, in
//! `$XDG_CONFIG_HOME/jeton/contexts.toml`, which only its owner can read. `serve --dev` saves one,
//! so that the commands need no flags on the same machine.

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

use super::{
    error::Failure,
    output::{self, Output},
};

/// A server and the credentials to use there.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// PEM file with the CA of the server's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The server's data directory, where it is on this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
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

    /// Saves the context of a development server and makes it current. A context with the same data
    /// directory keeps its name, and its secret if there is no new one; contexts whose directory is
    /// gone are dropped.
    pub fn remember(&mut self, mut context: Context) -> &str {
        self.contexts.retain(|_, old| old.data_dir.as_ref().is_none_or(|dir| dir.exists()));
        let known = self
            .contexts
            .iter()
            .find(|(_, old)| old.data_dir.is_some() && old.data_dir == context.data_dir);
        let name = match known {
            Some((name, old)) => {
                if context.client_secret.is_none() && old.client_id == context.client_id {
                    context.client_secret.clone_from(&old.client_secret);
                }
                name.clone()
            }
            None => self.free_name(),
        };
        self.contexts.insert(name.clone(), context);
        self.current = name;
        &self.current
    }

    /// Returns `dev` or, if that is taken, the first free name of `dev-2`, `dev-3` and so on.
    fn free_name(&self) -> String {
        let numbered = (2..).map(|number| format!("dev-{number}"));
        let mut names = std::iter::once("dev".to_owned()).chain(numbered);
        names.find(|name| !self.contexts.contains_key(name)).unwrap_or_default()
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
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contexts::default()),
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
    /// Select the current context
    Use {
        /// Context name
        name: String,
    },
}

impl Command {
    pub(super) fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let path = path(environment)
            .ok_or_else(|| Failure::setting("", "neither XDG_CONFIG_HOME nor HOME is set"))?;
        let mut contexts = load(&path).map_err(Failure::reading(&path))?;
        match &self.command {
            ContextCommand::List => list(output, &contexts),
            ContextCommand::Show { name } => show(output, &contexts, name.as_deref()),
            ContextCommand::Use { name } => {
                let (name, _) = found(&contexts, Some(name))?;
                contexts.current = name.to_owned();
                save(&path, &contexts).map_err(Failure::writing(&path))?;
                output.talk(&format!("using context {}", contexts.current));
                Ok(())
            }
        }
    }
}

fn found<'a>(
    contexts: &'a Contexts,
    name: Option<&str>,
) -> Result<(&'a str, &'a Context), Failure> {
    contexts.find(name).ok_or_else(|| match name {
        Some(name) => {
            Failure::setting("context", format!("unknown context {name}; see `jeton context list`"))
        }
        None => Failure::setting("context", "no context yet: `jeton serve --dev` creates one"),
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
        vec![
            star.to_owned(),
            name.clone(),
            context.address.clone(),
            context.client_id.clone(),
            data_dir,
        ]
    });
    output.table(&["", "name", "address", "client", "data directory"], &rows.collect::<Vec<_>>())
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
            if context.client_secret.is_some() { "kept" } else { "missing" }.to_owned(),
        ),
        ("ca file", path(&context.ca_file)),
        ("data directory", path(&context.data_dir)),
    ])
}

fn describe(name: &str, context: &Context, current: bool) -> serde_json::Value {
    json!({
        "name": name,
        "current": current,
        "address": context.address,
        "client_id": context.client_id,
        "has_client_secret": context.client_secret.is_some(),
        "ca_file": context.ca_file,
        "data_dir": context.data_dir,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn context(dir: &Path, secret: Option<&str>) -> Context {
        Context {
            address: "127.0.0.1:1".to_owned(),
            client_id: "bootstrap".to_owned(),
            client_secret: secret.map(SecretString::from),
            ca_file: None,
            data_dir: Some(dir.to_owned()),
        }
    }

    fn secret(contexts: &Contexts, name: &str) -> Option<String> {
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

    #[test]
    fn a_server_started_again_keeps_its_name_and_secret() {
        let dir = tempfile::tempdir().unwrap();
        let mut contexts = Contexts::default();
        contexts.remember(context(dir.path(), Some("first")));
        let mut again = context(dir.path(), None);
        again.address = "127.0.0.1:2".to_owned();
        assert_eq!(contexts.remember(again), "dev");
        assert_eq!(contexts.contexts["dev"].address, "127.0.0.1:2");
        assert_eq!(secret(&contexts, "dev").as_deref(), Some("first"));
        let mut other = context(dir.path(), None);
        other.client_id = "another".to_owned();
        contexts.remember(other);
        assert_eq!(secret(&contexts, "dev"), None, "another client's secret is not its own");
    }

    #[test]
    fn a_second_server_does_not_take_the_firsts_secret_away() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut contexts = Contexts::default();
        contexts.remember(context(one.path(), Some("one")));
        assert_eq!(contexts.remember(context(two.path(), Some("two"))), "dev-2");
        assert_eq!(secret(&contexts, "dev").as_deref(), Some("one"));
        drop(two);
        assert_eq!(contexts.remember(context(one.path(), None)), "dev");
        assert_eq!(contexts.contexts.len(), 1, "the one whose directory is gone is dropped");
    }
}
