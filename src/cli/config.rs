//! `config show`: every setting with its origin.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{error::Failure, output::Output, settings::Settings};
use crate::config::{Config, DEFAULTS, check};

/// `jeton config`
#[derive(Args, Debug)]
pub(super) struct Command {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Subcommand, Debug)]
enum ConfigCommand {
    /// Show every setting, its value and its source; secrets are not shown
    Show(Settings),
    /// Print the default configuration file with comments
    Default,
}

impl Command {
    pub(super) fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let settings = match &self.command {
            ConfigCommand::Show(settings) => settings,
            ConfigCommand::Default => return output.line(DEFAULTS.trim_end()),
        };
        let (config, origins) = Config::load(&settings.sources(environment))?;
        let origin = |key: &str| origins.of(key).unwrap_or("default").to_owned();
        let rows = config.settings();
        if output.json {
            let entry = |(key, value): (String, String)| {
                let origin = origin(&key);
                (key, json!({ "value": value, "origin": origin }))
            };
            output.document(&Value::Object(rows.into_iter().map(entry).collect::<Map<_, _>>()))?;
        } else {
            let row =
                |(key, value): &(String, String)| vec![key.clone(), value.clone(), origin(key)];
            output.table(
                &["setting", "value", "origin"],
                &rows.iter().map(row).collect::<Vec<_>>(),
                &[],
            )?;
        }
        // Printed before the check: the table shows the source of the wrong setting.
        check(&config, false).map_err(|error| origins.blame(error).into())
    }
}
