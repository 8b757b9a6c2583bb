//! `serve`: the service, from its flags to its exit code.

use std::{
    collections::BTreeMap,
    env,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use sd_notify::NotifyState;
use secrecy::ExposeSecret;
use serde_json::json;

use super::{
    context::{self, Context, Remembered},
    error::Failure,
    output::{self, Output},
    secret_file::SecretFile,
    settings::Settings,
    signals,
};
use crate::{
    config::{Config, ConfigError, Flag, check},
    server::{self, Started},
    telemetry,
};

/// Time to write the last log lines at the end.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// `jeton serve`
#[derive(Args, Debug)]
pub(super) struct Command {
    /// Development mode: create a master key and a first client, enable reflection and save a
    /// context for the other commands
    #[arg(long)]
    dev: bool,
    /// Create the first client, an administrator, if there is no client yet, and print its secret
    /// once [implied by --dev]
    #[arg(long)]
    bootstrap: bool,
    /// Write the first client's secret to this new file (mode 0600) instead of stdout, which may be
    /// logged; requires --bootstrap. A file from an earlier start is left as it is
    #[arg(long, value_name = "FILE", requires = "bootstrap")]
    bootstrap_secret_file: Option<PathBuf>,
    /// Serve a data directory that was copied or restored, for one start only: tokens revoked since
    /// the copy was made are valid again. The audit trail records it
    #[arg(long)]
    accept_rollback: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Command {
    pub(super) fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        self.serve(output, environment).map_err(|failure| {
            let code = failure.exit_code();
            output::bounded(move || output.fail(&failure));
            Failure::Code(code)
        })
    }

    fn serve(&self, output: Output, environment: &BTreeMap<String, String>) -> Result<(), Failure> {
        let mut sources = self.settings.silent_sources(environment);
        if self.dev {
            sources.flags.push(Flag { name: "--dev", key: "reflection", value: "true".to_owned() });
        }
        let (config, origins) = Config::load(&sources)?;
        check(&config, self.dev).map_err(|error| origins.blame(error))?;
        let log = telemetry::init(&config.log)
            .map_err(|problem| ConfigError::new("log.level", problem))?;
        if let Some(warning) = self.settings.warning() {
            tracing::warn!("{warning}");
        }
        for variable in origins.passed_over() {
            tracing::warn!(variable, "environment variable is not a setting, ignored");
        }
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        if config.limits.workers > 0 {
            runtime.worker_threads(config.limits.workers);
        }
        let runtime = runtime.enable_all().build().map_err(Failure::io("cannot start"))?;
        let dev = self.dev.then(|| Development::of(&config));
        let file = self.bootstrap_secret_file.as_deref();
        let secret_file = file.map(SecretFile::create_unless_there).transpose()?.flatten();
        let options = server::Options {
            config,
            dev: self.dev,
            bootstrap: self.bootstrap,
            accept_rollback: self.accept_rollback,
            store: None,
            clock: None,
        };
        let ended = runtime.block_on(Box::pin(async {
            let shutdown =
                signals::shutdown(log.clone()).map_err(Failure::io("cannot listen for signals"))?;
            let started = |started: &Started| {
                let secret = Shown::of(started, secret_file, file)?;
                announce(started, &secret, dev.as_ref(), output, environment)
            };
            server::run(options, started, shutdown).await.map_err(|error| start_failed(&error))
        }));
        // The drain timeout is over: tasks that still run are dropped.
        runtime.shutdown_background();
        log.flush_within(LOG_FLUSH_TIMEOUT);
        ended
    }
}

pub(super) fn start_failed(error: &server::StartError) -> Failure {
    let text = error.to_string();
    if error.exit_code() == i32::from(ConfigError::EXIT_CODE) {
        Failure::setting("", text)
    } else {
        Failure::Other(text)
    }
}

/// Place where the first client's secret is shown, once.
enum Shown<'a> {
    /// On stdout.
    Here(&'a str),
    /// In a file.
    In(&'a Path),
    /// Nowhere: it was generated at an earlier start.
    Nowhere,
}

impl<'a> Shown<'a> {
    /// Writes a new secret to its file at `path`, if there is one. Without `file` there was one
    /// before the start.
    fn of(
        started: &'a Started,
        file: Option<SecretFile>,
        path: Option<&'a Path>,
    ) -> Result<Self, String> {
        let secret =
            started.bootstrap.as_ref().and_then(|bootstrap| bootstrap.client_secret.as_ref());
        match (secret.map(ExposeSecret::expose_secret), path, file) {
            (None, ..) => Ok(Self::Nowhere),
            (Some(secret), None, _) => Ok(Self::Here(secret)),
            (Some(_), Some(path), None) => Err(lost(&format!("{} exists", shown(path)))),
            (Some(secret), Some(path), Some(file)) => {
                file.write(secret).map_err(|error| lost(&format!("{}: {error}", shown(path))))?;
                Ok(Self::In(path))
            }
        }
    }

    const fn here(&self) -> Option<&'a str> {
        if let Self::Here(secret) = self { Some(secret) } else { None }
    }
}

/// Properties of a development server's context that the server does not report.
struct Development {
    certificate: PathBuf,
    /// Address of the store that nodes share, without its user and password.
    store: Option<String>,
}

impl Development {
    fn of(config: &Config) -> Self {
        let address = config.store.is_shared().then(|| config.store.address().ok()).flatten();
        Self {
            certificate: config.tls.cert_file.clone(),
            store: address.as_deref().map(without_password),
        }
    }
}

/// Returns the hosts and the database of an address.
fn without_password(address: &str) -> String {
    let (scheme, rest) = address.split_once("://").unwrap_or(("mongodb", address));
    let rest = rest.split('?').next().unwrap_or(rest);
    let hosts = rest.rsplit_once('@').map_or(rest, |(_, hosts)| hosts);
    format!("{scheme}://{hosts}")
}

/// A context that was saved.
struct Saved {
    context: Remembered,
    /// True if the context has the secret of the first client.
    has_secret: bool,
}

/// Returns the problem of a first client's secret that was not shown.
fn lost(problem: &str) -> String {
    format!("cannot write the first client's secret: {problem}")
}

/// Reports, once, that the port serves, and a new secret; the error is that the secret is lost. In
/// development it also saves a context, with the certificate if there is one.
fn announce(
    started: &Started,
    secret: &Shown<'_>,
    dev: Option<&Development>,
    output: Output,
    environment: &BTreeMap<String, String>,
) -> Result<(), String> {
    let context = dev.and_then(|dev| remember(started, dev, environment));
    let text = if output.json {
        Some(first_line(started, secret).to_string())
    } else if dev.is_some() || !matches!(secret, Shown::Nowhere) {
        Some(welcome(started, secret, context.as_ref(), &program(environment)))
    } else {
        None
    };
    let exposed = dev.is_none() && secret.here().is_some() && !io::stdout().is_terminal();
    let printed = text.map(|text| output::bounded(move || output.line(&text)));
    let problem = match printed {
        Some(Some(Err(failure))) => Some(failure.to_string()),
        Some(None) => Some("stdout is not read".to_owned()),
        Some(Some(Ok(()))) if secret.here().is_some() && output::is_stdout_discarded() => {
            Some("stdout is closed or /dev/null, use --bootstrap-secret-file".to_owned())
        }
        Some(Some(Ok(()))) | None => None,
    };
    if let Some(problem) = problem {
        let is_kept = context.as_ref().is_some_and(|saved| saved.has_secret);
        if secret.here().is_some() && !is_kept {
            return Err(lost(&problem));
        }
        tracing::warn!(problem, "cannot print the service's address");
    }
    if exposed {
        tracing::warn!(
            "the client secret was printed to stdout, which is not a terminal and may be logged: \
             use --bootstrap-secret-file"
        );
    }
    signals::notify_supervisor(NotifyState::Ready);
    Ok(())
}

/// Returns the only line on stdout for programs.
fn first_line(started: &Started, secret: &Shown<'_>) -> serde_json::Value {
    let bootstrap = started.bootstrap.as_ref();
    json!({
        "address": started.address.to_string(),
        "issuer": started.issuer,
        "data_dir": started.data_dir,
        "client_id": bootstrap.map(|bootstrap| bootstrap.client_id.as_str()),
        "client_secret": secret.here(),
    })
}

/// Saves the context for the other commands; the service does not depend on it. A developer's
/// certificate is often its own CA, so it is used as one.
fn remember(
    started: &Started,
    dev: &Development,
    environment: &BTreeMap<String, String>,
) -> Option<Saved> {
    let bootstrap = started.bootstrap.as_ref()?;
    let path = context::path(environment)?;
    let scheme = if started.tls { "https://" } else { "" };
    let context = Context {
        address: format!("{scheme}{}", server::connectable(started.address)),
        client_id: bootstrap.client_id.to_string(),
        client_secret: bootstrap.client_secret.clone(),
        ca_file: dev.certificate.canonicalize().ok().filter(|_| started.tls),
        data_dir: Some(
            started.data_dir.canonicalize().unwrap_or_else(|_| started.data_dir.clone()),
        ),
        store: dev.store.clone(),
        ..Context::default()
    };
    let saved = context::change(&path, |contexts| {
        let context = contexts.remember(context);
        let has_secret = contexts.contexts.get(&context.name).is_some_and(|saved| {
            saved.client_secret.is_some() || saved.client_secret_file.is_some()
        });
        Ok::<_, io::Error>(Saved { context, has_secret })
    });
    let saved = saved.inspect_err(
        |error| tracing::warn!(path = %path.display(), %error, "cannot save the context"),
    );
    let saved = saved.ok()?;
    let Remembered { name, replaced, dropped, .. } = &saved.context;
    for dropped in dropped {
        tracing::warn!(context = dropped, "data directory is gone, context dropped");
    }
    if let Some(replaced) = replaced {
        tracing::warn!(
            context = name,
            replaced,
            "commands use this server's context now: `jeton context use` selects another"
        );
    }
    Some(saved)
}

/// Returns the command to paste: `jeton` if the shell finds this binary, else its path.
fn program(environment: &BTreeMap<String, String>) -> String {
    let Ok(this) = env::current_exe() else { return "jeton".to_owned() };
    let path = environment.get("PATH").map(String::as_str).unwrap_or_default();
    let found = env::split_paths(path).map(|dir| dir.join("jeton")).find(|file| file.is_file());
    if found.and_then(|file| file.canonicalize().ok()) == this.canonicalize().ok() {
        return "jeton".to_owned();
    }
    let here = env::current_dir().unwrap_or_default();
    match this.strip_prefix(&here) {
        Ok(relative) => format!("./{}", relative.display()),
        Err(_) => this.display().to_string(),
    }
}

/// Returns the text for people on stdout.
fn welcome(
    started: &Started,
    secret: &Shown<'_>,
    context: Option<&Saved>,
    program: &str,
) -> String {
    let listening = started.address;
    let address = server::connectable(listening);
    let data_dir = shown(&started.data_dir);
    let mut text = format!(
        "jeton is serving on {listening}\n\n  data directory  {data_dir}\n  issuer          {}\n",
        started.issuer
    );
    let Some(bootstrap) = &started.bootstrap else { return text };
    let id = &bootstrap.client_id;
    let kept = match context {
        Some(saved) if saved.has_secret => "shown at the first start; saved in the context",
        Some(_) => "shown at the first start, not saved here: `jeton context edit` names its file",
        None => "shown at the first start",
    };
    text.push_str(&format!("  client id       {id}\n"));
    match secret {
        Shown::Here(secret) => {
            text.push_str(&format!("  client secret   {secret}   (not shown again)\n"))
        }
        Shown::In(file) => text.push_str(&format!("  client secret   in {}\n", shown(file))),
        Shown::Nowhere => text.push_str(&format!("  client secret   {kept}\n")),
    }
    if let Some(Saved { context, .. }) = context {
        let Remembered { name, is_current, replaced, .. } = context;
        let (note, flag) = match (name.as_str(), is_current) {
            ("dev", true) => (String::new(), String::new()),
            (_, true) => (format!("  (context {name})"), String::new()),
            (_, false) => (
                format!("  (context {name}; `{program} context use {name}` makes it the current)"),
                format!(" --context {name}"),
            ),
        };
        if let Some(replaced) = replaced {
            text.push_str(&format!(
                "\nCommands use this server now, no longer that of the context {}.\n",
                telemetry::escape(replaced)
            ));
        }
        text.push_str(&format!("\nGet a token and introspect it{note}:\n\n"));
        text.push_str(&format!("  {program} token{flag}\n"));
        text.push_str(&format!("  {program} token --raw{flag} | {program} introspect{flag} -\n"));
    }
    let mut flags = if started.tls { "-cacert CA.pem" } else { "-plaintext" }.to_owned();
    let mut before = String::new();
    if !started.reflection {
        flags.push_str(" -protoset jeton.protoset");
        before = format!("  {program} protoset > jeton.protoset\n");
    }
    let credentials = format!(
        "\"client_id\":\"{id}\",\"client_secret\":\"{}\"",
        secret.here().unwrap_or("SECRET")
    );
    let service = "jeton.token.v1.TokenService";
    text.push_str(&format!(
        "\nThe same with grpcurl:\n\n{before}  grpcurl {flags} -d '{{{credentials}}}' {address} \
         {service}/Token\n  grpcurl {flags} -d '{{{credentials},\"token\":\"TOKEN\"}}' {address} \
         {service}/Introspect\n"
    ));
    text
}

fn shown(path: &Path) -> String {
    telemetry::escape(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Bootstrap;

    fn started(dir: &Path, secret: Option<&str>) -> Started {
        Started {
            address: "127.0.0.1:50051".parse().unwrap(),
            issuer: "http://127.0.0.1:50051".to_owned(),
            data_dir: dir.to_owned(),
            bootstrap: Some(Bootstrap {
                client_id: "boot".parse().unwrap(),
                client_secret: secret.map(Into::into),
            }),
            tls: false,
            reflection: true,
        }
    }

    #[test]
    fn programs_read_four_things_and_the_issuer() {
        let first = started(Path::new("/d"), Some("jcs_x"));
        let line = first_line(&first, &Shown::of(&first, None, None).unwrap());
        assert_eq!(line["address"], "127.0.0.1:50051");
        assert_eq!(line["data_dir"], "/d");
        assert_eq!(line["client_id"], "boot");
        assert_eq!(line["client_secret"], "jcs_x");
        assert!(first_line(&first, &Shown::In(Path::new("/s")))["client_secret"].is_null());
        let again = started(Path::new("/d"), None);
        assert!(
            first_line(&again, &Shown::of(&again, None, None).unwrap())["client_secret"].is_null()
        );
    }

    fn saved(name: &str, is_current: bool, has_secret: bool) -> Saved {
        let name = name.to_owned();
        let context = Remembered { name, is_current, replaced: None, dropped: Vec::new() };
        Saved { context, has_secret }
    }

    #[test]
    fn people_get_lines_to_paste() {
        let first = started(Path::new("/d"), Some("jcs_x"));
        let dev = saved("dev", true, true);
        let text = welcome(
            &first,
            &Shown::of(&first, None, None).unwrap(),
            Some(&dev),
            "./target/release/jeton",
        );
        assert!(
            text.contains(
                "\n  ./target/release/jeton token --raw | ./target/release/jeton introspect -\n"
            ),
            "{text}"
        );
        let line = "grpcurl -plaintext -d '{\"client_id\":\"boot\",\"client_secret\":\"jcs_x\"}' \
                    127.0.0.1:50051 jeton.token.v1.TokenService/Token";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("(not shown again)"));
        // OPERATORS 4.19
        let without = Started { reflection: false, ..started(Path::new("/d"), Some("jcs_x")) };
        let text = welcome(&without, &Shown::of(&without, None, None).unwrap(), None, "jeton");
        assert!(text.contains("  jeton protoset > jeton.protoset\n"), "{text}");
        let line = "grpcurl -plaintext -protoset jeton.protoset -d ";
        assert_eq!(text.matches(line).count(), 2, "{text}");
        let again = started(Path::new("/d"), None);
        assert!(
            !welcome(&again, &Shown::of(&again, None, None).unwrap(), None, "jeton")
                .contains("jeton token")
        );
        let kept = welcome(&first, &Shown::In(Path::new("/s")), None, "jeton");
        assert!(kept.contains("client secret   in /s\n") && !kept.contains("jcs_x"), "{kept}");
    }

    /// OPERATORS 4.4: neither a context that is not the current one nor a secret that is nowhere is
    /// presumed by the text.
    #[test]
    fn lines_to_paste_name_the_context_where_they_must() {
        let again = started(Path::new("/d"), None);
        let second = welcome(&again, &Shown::Nowhere, Some(&saved("dev-2", false, true)), "jeton");
        let line = "  jeton token --raw --context dev-2 | jeton introspect --context dev-2 -\n";
        assert!(second.contains(line) && second.contains("saved in the context"), "{second}");
        let lost = welcome(&again, &Shown::Nowhere, Some(&saved("dev", true, false)), "jeton");
        assert!(lost.contains("not saved here") && lost.contains("  jeton token\n"), "{lost}");
        let mut taken = saved("dev-2", true, true);
        taken.context.replaced = Some("dev".to_owned());
        let taken = welcome(&again, &Shown::Nowhere, Some(&taken), "jeton");
        assert!(taken.contains("no longer that of the context dev."), "{taken}");
    }

    #[test]
    fn a_store_is_named_without_its_password() {
        for (address, shown) in [
            ("mongodb://me:p@ss@a:1,b:2/jeton?replicaSet=r", "mongodb://a:1,b:2/jeton"),
            ("mongodb+srv://host/db", "mongodb+srv://host/db"),
            ("mongodb://host", "mongodb://host"),
        ] {
            assert_eq!(without_password(address), shown);
        }
    }

    #[test]
    fn the_context_left_behind_is_found_by_the_other_commands() {
        let home = tempfile::tempdir().unwrap();
        let environment =
            BTreeMap::from([("HOME".to_owned(), home.path().to_str().unwrap().to_owned())]);
        let dev = Development { certificate: PathBuf::new(), store: None };
        for secret in [Some("jcs_x"), None] {
            let saved = remember(&started(home.path(), secret), &dev, &environment).unwrap();
            assert_eq!((saved.context.name.as_str(), saved.has_secret), ("dev", true));
        }
        let contexts = context::load(&context::path(&environment).unwrap()).unwrap();
        let (_, context) = contexts.find(None).unwrap();
        assert_eq!(context.client_secret.as_ref().unwrap().expose_secret(), "jcs_x");
    }
}
