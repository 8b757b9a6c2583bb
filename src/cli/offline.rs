//! `admin`: work on a store without a server, for who has its master key.

use std::{collections::BTreeMap, path::PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    error::Failure,
    output::{self, Output},
    secret_file::SecretFile,
    serve::{Settings, start_failed},
};
use crate::{
    config::{Config, check},
    model::ClientId,
    server,
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

/// Flags that name a store and its master key.
#[derive(Args, Clone, Debug)]
struct StoreSettings {
    /// Configuration file [default: $XDG_CONFIG_HOME/jeton/config.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory of the embedded store
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Address of a MongoDB that nodes share, instead of the embedded store
    #[arg(long, value_name = "URI")]
    store: Option<String>,
    /// File with the MongoDB address, for an address with a password
    #[arg(long, value_name = "FILE", conflicts_with = "store")]
    store_file: Option<String>,
}

impl StoreSettings {
    fn load(&self, environment: &BTreeMap<String, String>) -> Result<Config, Failure> {
        let Self { config, data_dir, store, store_file } = self.clone();
        let settings = Settings::of_store(config, data_dir, store, store_file);
        let (config, origins) = Config::load(&settings.sources(environment))?;
        check(&config, true).map_err(|error| origins.blame(error))?;
        Ok(config)
    }
}

impl Command {
    pub(super) async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        match &self.command {
            AdminCommand::Reset(reset) => reset.run(output, environment).await,
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
        let config = self.store.load(environment)?;
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
