//! `admin`: work on a store without a server, with its master key.

use std::{collections::BTreeMap, path::PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    error::Failure,
    output::{self, Output},
    secret_file::SecretFile,
    serve::start_failed,
    settings::{Settings, StoreSettings},
};
use crate::{
    config::{Config, check},
    model::ClientId,
    server::{self, ClockReading},
};

/// `jeton admin`
#[derive(Args, Debug)]
pub(super) struct Command {
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Subcommand, Debug)]
enum AdminCommand {
    /// Create an administrator if none is left whose secret is known
    ///
    /// Works on the data directory of a stopped server, or on MongoDB while nodes run. Requires the
    /// master key. The audit trail records it as administrator.reset.
    Reset(Reset),
    /// Return a store that lives in the future to the machine's clock; revokes all tokens
    ///
    /// A clock that was ahead once is kept, so that nothing that expired becomes valid again. This
    /// ends every token and every secret that had expired instead. Works on the data directory of a
    /// stopped server, or on MongoDB while no node runs. Requires the master key. The audit trail
    /// records it as clock.reset.
    ResetClock(ResetClock),
}

/// `jeton admin reset-clock`
#[derive(Args, Debug)]
struct ResetClock {
    /// Do not ask before all tokens are revoked
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// `jeton admin reset`
#[derive(Args, Debug)]
struct Reset {
    /// Id of the new client; an existing one is not changed [default: admin, admin-2, ...]
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// Write the secret to this new file, which only its owner can read, and print it nowhere else
    #[arg(long, value_name = "FILE")]
    secret_out: Option<PathBuf>,
    #[command(flatten)]
    store: StoreSettings,
}

/// Reads the configuration of a store.
fn load(store: StoreSettings, environment: &BTreeMap<String, String>) -> Result<Config, Failure> {
    let settings = Settings::from(store);
    let (config, origins) = Config::load(&settings.sources(environment))?;
    check(&config, true).map_err(|error| origins.blame(error))?;
    Ok(config)
}

impl Command {
    pub(super) async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        match &self.command {
            AdminCommand::Reset(reset) => reset.run(output, environment).await,
            AdminCommand::ResetClock(reset) => reset.run(output, environment).await,
        }
    }
}

impl Reset {
    async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let id: Option<ClientId> = self
            .client_id
            .as_ref()
            .map(|id| id.parse())
            .transpose()
            .map_err(|problem| Failure::Usage(format!("--client-id: {problem}")))?;
        let config = load(self.store.clone(), environment)?;
        let file = self.secret_out.as_deref().map(SecretFile::create).transpose()?;
        let show = |id: &ClientId, secret: &str| self.show(output, id, secret, file);
        server::reset_administrator(config, id, show).await.map_err(|error| start_failed(&error))
    }

    /// Shows the new client, and its secret once; the error is that the secret is lost.
    fn show(
        &self,
        output: Output,
        id: &ClientId,
        secret: &str,
        file: Option<SecretFile>,
    ) -> Result<(), String> {
        let lost = |problem: &str| format!("cannot write the secret: {problem}");
        let kept = match (file, &self.secret_out) {
            (Some(file), Some(path)) => {
                file.write(secret)
                    .map_err(|error| lost(&format!("{}: {error}", path.display())))?;
                Some(path)
            }
            _ if output::is_stdout_discarded() => {
                return Err(lost("stdout is closed or /dev/null, use --secret-out"));
            }
            _ => None,
        };
        let printed = match (output.json, kept) {
            (true, None) => output.document(&json!({ "client_id": id, "client_secret": secret })),
            (true, Some(path)) => output.document(&json!({ "client_id": id, "secret_file": path })),
            (false, None) => output.record(&[
                ("client id", id.to_string()),
                ("client secret", format!("{secret}   (not shown again)")),
            ]),
            (false, Some(path)) => output.record(&[
                ("client id", id.to_string()),
                ("client secret", format!("in {}", path.display())),
            ]),
        };
        match printed {
            // The secret is in its file, and the id in the audit trail.
            Err(failure) if kept.is_some() => {
                output.talk(&format!("warning: {failure}"));
                Ok(())
            }
            printed => printed.map_err(|failure| lost(&failure.to_string())),
        }
    }
}

impl ResetClock {
    async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let config = load(self.store.clone(), environment)?;
        let agree = |ClockReading { store, machine }: ClockReading| {
            let question = format!(
                "the store lives at {store}, this machine's clock reads {machine}: is that right, \
                 and revoke all tokens?"
            );
            let agreed = if self.yes { Ok(()) } else { output.confirm(&question) };
            agreed.map_err(|failure| failure.to_string())
        };
        let (ClockReading { store, machine }, done) =
            server::reset_clock(config, None, agree).await.map_err(|error| start_failed(&error))?;
        let (store, machine) = (store.to_string(), machine.to_string());
        let Some(done) = done else {
            let text = "nothing to do: the store is not ahead of this machine's clock";
            return if output.json {
                output.document(&json!({ "reset": false, "store": store, "machine": machine }))
            } else {
                output.line(text)
            };
        };
        if output.json {
            return output.document(&json!({
                "reset": true, "store": store, "machine": machine,
                "tenants": done.tenants, "secrets": done.secrets, "shortened": done.shortened,
            }));
        }
        output.line(&format!(
            "reset from {store} to {machine}: all tokens of {} tenants are revoked, {} secrets that \
             had expired are ended, {} keep what was left of them",
            done.tenants, done.secrets, done.shortened
        ))
    }
}
