//! `keys`: manages the keys that sign tokens.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    admin::Admin,
    connect::{Options, Remote},
    error::Failure,
    output::Output,
    render,
};
use crate::proto::admin::{
    ListKeysRequest, RevokeKeyRequest, RotateKeysRequest, SigningKey,
    key_service_client::KeyServiceClient,
};

/// `jeton keys`
#[derive(Args, Debug)]
pub(super) struct Command {
    #[command(subcommand)]
    command: KeysCommand,
    #[command(flatten)]
    remote: Options,
}

#[derive(Subcommand, Debug)]
enum KeysCommand {
    /// List signing keys
    List,
    /// Rotate: sign with the prepared key once it is published long enough, and prepare another
    Rotate,
    /// Revoke a key, and with it every token it signed, at once
    Revoke {
        /// Key id (kid)
        // A thumbprint in base64url may begin with a hyphen.
        #[arg(allow_hyphen_values = true)]
        kid: String,
    },
}

impl Command {
    pub(super) async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let remote = Remote::open(&self.remote, environment).await?;
        let admin = Admin::open(remote, "jeton:admin:keys").await?;
        let mut service = KeyServiceClient::new(admin.channel());
        let keys = match &self.command {
            KeysCommand::List => {
                service.list_keys(admin.request(ListKeysRequest {})).await?.into_inner().keys
            }
            KeysCommand::Rotate => {
                service.rotate_keys(admin.request(RotateKeysRequest {})).await?.into_inner().keys
            }
            KeysCommand::Revoke { kid } => {
                let request = admin.request(RevokeKeyRequest { kid: kid.clone() });
                service.revoke_key(request).await?.into_inner().keys
            }
        };
        print(output, &keys)
    }
}

fn print(output: Output, keys: &[SigningKey]) -> Result<(), Failure> {
    if output.json {
        return output
            .document(&json!({ "keys": keys.iter().map(render::key).collect::<Vec<_>>() }));
    }
    let row = |key: &SigningKey| {
        let times = [&key.create_time, &key.activate_time, &key.remove_time];
        let mut row =
            vec![key.kid.clone(), key.alg.clone(), render::key_state(key.state).to_owned()];
        row.extend(times.map(|time| render::time(time.as_ref())));
        row
    };
    output.table(
        &["kid", "alg", "state", "created", "signs from", "removed"],
        &keys.iter().map(row).collect::<Vec<_>>(),
        &["removed", "created", "alg"],
    )
}
