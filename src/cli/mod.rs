//! The command line: one file per command group. Data goes to stdout, messages go to stderr;
//! `--json` is for programs; the exit codes are those of `error`. All commands except `serve`,
//! `doctor`, `export`, `import` and `admin`, and `audit verify` of a store, use the same RPCs as any
//! other client.

mod admin;
mod args;
mod audience;
mod audit;
mod bench;
mod cause;
mod client;
mod config;
mod connect;
pub mod context;
mod doctor;
mod error;
mod keys;
mod memory;
mod offline;
mod output;
mod protoset;
mod render;
mod revoke_all;
mod secret_file;
mod serve;
mod settings;
mod signals;
mod tail;
mod timed;
mod token;
mod token_cache;
mod transfer;
mod trust;
mod verify;

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub use transfer::fuzzing::export as fuzz_export;

use std::{collections::BTreeMap, ffi::OsString, io, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

use self::{error::Failure, output::Output};
use crate::config::Sources;

/// Machine-to-machine token service: Token, Refresh, Revoke and Introspect over gRPC
///
/// `jeton serve --dev` starts a service with generated keys and a first client, and saves a
/// context: the other commands then need no flags on the same machine.
#[derive(Parser, Debug)]
#[command(name = "jeton", version, after_help = error::EXIT_CODES)]
struct Cli {
    /// Print JSON: one document, or one per line for streams; errors too, on stderr
    #[arg(long, global = true)]
    json: bool,
    /// Show all columns of tables, and one line for each row, whatever the terminal's width
    #[arg(long, global = true, conflicts_with = "json")]
    wide: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the service
    Serve(serve::Command),
    /// Get an access token
    Token(token::Token),
    /// Exchange a refresh token for its successor and a new access token
    Refresh(token::Refresh),
    /// Introspect tokens
    Introspect(token::Introspect),
    /// Revoke a token; a refresh token is revoked with its whole family
    Revoke(token::Revoke),
    /// Revoke all tokens of a client, tenant, subject, refresh family or key, or one by its jti
    RevokeAll(revoke_all::Command),
    /// Manage clients and their secrets
    Client(client::Command),
    /// Manage audiences and the tenants that own them
    Audience(audience::Command),
    /// Manage signing keys
    Keys(keys::Command),
    /// Read and verify the audit trail
    Audit(audit::Command),
    /// Export the whole store to a file, as a backup or for another store
    Export(transfer::Export),
    /// Import an export into an empty store; revokes all tokens unless --accept-rollback is given
    Import(transfer::Import),
    /// Verify archives of the audit trail that audit.keep cut
    VerifyArchive(transfer::VerifyArchive),
    /// Repair a store with its master key, without a server: create an administrator, reset the
    /// clock
    Admin(offline::Command),
    /// Put load on a running server and measure its calls: jeton bench introspect
    Bench(bench::Command),
    /// Check a deployment and suggest fixes
    Doctor(doctor::Command),
    /// Show the effective configuration
    Config(config::Command),
    /// Manage connection contexts (server address and credentials)
    Context(context::Command),
    /// Print the protocol as a binary descriptor set, for a server whose reflection is off: jeton
    /// protoset > jeton.protoset; grpcurl -protoset jeton.protoset
    Protoset,
    /// Print shell completions: jeton completions bash > /etc/bash_completion.d/jeton
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
}

/// Runs the command that the arguments name and returns the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for and go to stdout; the rest is wrong usage and goes to
            // stderr.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let output = Output { json: cli.json, wide: cli.wide };
    if let Err(error) = memory::keep_private() {
        output.talk(&format!("warning: cannot disable core dumps: {error}"));
    }
    match execute(&cli.command, output, &Sources::from_process().environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.fail(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

fn execute(
    command: &Command,
    output: Output,
    environment: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    match command {
        Command::Serve(command) => command.run(output, environment),
        Command::Token(command) => block_on(command.run(output, environment)),
        Command::Refresh(command) => block_on(command.run(output, environment)),
        Command::Introspect(command) => block_on(command.run(output, environment)),
        Command::Revoke(command) => block_on(command.run(output, environment)),
        Command::RevokeAll(command) => block_on(command.run(output, environment)),
        Command::Client(command) => block_on(command.run(output, environment)),
        Command::Audience(command) => block_on(command.run(output, environment)),
        Command::Keys(command) => block_on(command.run(output, environment)),
        Command::Audit(command) => block_on(command.run(output, environment)),
        Command::Export(command) => block_on(command.run(output, environment)),
        Command::Import(command) => block_on(command.run(output, environment)),
        Command::VerifyArchive(command) => command.run(output, environment),
        Command::Admin(command) => block_on(command.run(output, environment)),
        Command::Bench(command) => block_on_all(command.run(output, environment)),
        Command::Doctor(command) => block_on(command.run(output, environment)),
        Command::Config(command) => command.run(output, environment),
        Command::Context(command) => command.run(output, environment),
        Command::Protoset => protoset::run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "jeton", &mut script);
            io::Write::write_all(&mut io::stdout(), &script)
                .map_err(Failure::io("cannot write to stdout"))
        }
    }
}

/// Runs a command on one thread: enough for one that calls a server.
fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    run_on(&mut tokio::runtime::Builder::new_current_thread(), work)
}

/// Runs a command on a thread for each processor.
fn block_on_all(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    run_on(&mut tokio::runtime::Builder::new_multi_thread(), work)
}

fn run_on(
    runtime: &mut tokio::runtime::Builder,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let runtime = runtime.enable_all().build().map_err(Failure::io("cannot start the runtime"))?;
    let done = runtime.block_on(Box::pin(work));
    // A lookup of a name that is not answered is not waited for.
    runtime.shutdown_background();
    done
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definitions_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_manual_is_understood() {
        for line in [
            "jeton serve --dev --json --listen 127.0.0.1:0 --data-dir /d --config /c",
            "jeton token --scope a --scope b --resource https://r --raw",
            "jeton refresh -",
            "jeton introspect --check TOKEN",
            "jeton introspect A B C --json",
            "jeton introspect --file f --refresh-token",
            "jeton revoke - --address 127.0.0.1:1",
            "jeton revoke-all --client c --reason leaked",
            "jeton revoke-all --jti j",
            // What is made of random bytes may begin with a hyphen.
            "jeton revoke-all --kid -u",
            "jeton keys revoke -u --json",
            "jeton client retire-secret c -u --overlap 1h",
            "jeton client create --name N --scope a --grant client-credentials --grant \
             refresh-token --access-lifetime 15m",
            "jeton client get c",
            "jeton client list --tenant t --limit 10",
            "jeton client update c --clear roles --scope x --etag 3",
            "jeton client update c --add-scope x --remove-scope y --add-grant refresh_token",
            "jeton client create c --grant client_credentials --raw",
            "jeton client add-secret c --secret-out f",
            "jeton revoke-all --tenant t --yes",
            "jeton client disable c",
            "jeton client enable c",
            "jeton client delete c --etag 1",
            "jeton client add-secret c --expires-in 30d",
            "jeton client retire-secret c s --overlap 1d",
            "jeton audience list --tenant t --limit 10",
            "jeton audience assign https://a --tenant t",
            "jeton audience release https://a --json",
            "jeton keys list --wide",
            "jeton keys rotate",
            "jeton keys revoke k",
            "jeton audit list --action token. --since 1h --limit 5",
            "jeton audit tail --outcome refused",
            "jeton audit tail --json --from-last /var/lib/forwarder/place",
            "jeton audit verify --chain node-1 --known node-1:7:00ff --known node-2:9:00ff",
            "jeton audit verify --from-head heads --address h:1 --timeout 1s --json",
            "jeton audit verify --data-dir /d --known node-1:7:00ff",
            "jeton audit verify --store-file f --config c --from-head heads",
            "jeton export",
            "jeton export backup.ndjson --data-dir /d",
            "jeton import backup.ndjson --accept-rollback",
            "jeton admin reset --data-dir /d --client-id a --secret-out f",
            "jeton admin reset --store mongodb://h/d --json",
            "jeton admin reset-clock --data-dir /d --yes",
            "jeton bench introspect --connections 2 --in-flight 16 --duration 30s --warm-up 0s",
            "jeton bench mixed --scope a --json --address id.example:443 --ca f",
            "jeton doctor --config /c",
            "jeton config show --json",
            "jeton context list",
            "jeton context use dev",
            "jeton context add prod --address id.example:443 --client-id c --client-secret-file f",
            "jeton context edit prod --cert c --key k --clear ca",
            "jeton context remove prod --yes",
            "jeton protoset",
            "jeton completions bash",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    /// Options that every command takes are propagated by their ids: a command's own argument of
    /// the same id would fill both.
    #[test]
    fn what_a_command_is_about_is_not_who_calls() {
        fn check(command: &clap::Command, inherited: &[String]) {
            let own: Vec<String> =
                command.get_arguments().map(|arg| arg.get_id().to_string()).collect();
            let clash = own.iter().find(|id| inherited.contains(id));
            assert_eq!(clash, None, "in {}", command.get_name());
            let global = command
                .get_arguments()
                .filter(|arg| arg.is_global_set())
                .map(|arg| arg.get_id().to_string());
            let inherited: Vec<String> = inherited.iter().cloned().chain(global).collect();
            command.get_subcommands().for_each(|sub| check(sub, &inherited));
        }
        check(&Cli::command(), &[]);
    }

    #[test]
    fn wrong_usage_is_told_apart_from_help() {
        for line in [
            "jeton",
            "jeton serve --lisen x",
            "jeton token extra",
            "jeton revoke-all",
            "jeton revoke-all --client c --kid k",
            "jeton introspect",
        ] {
            assert!(parse(line).unwrap_err().use_stderr() || line == "jeton", "{line}");
        }
        assert_eq!(parse("jeton --help").unwrap_err().kind(), ErrorKind::DisplayHelp);
        assert_eq!(parse("jeton --version").unwrap_err().kind(), ErrorKind::DisplayVersion);
        assert!(
            parse("jeton --help").unwrap_err().to_string().contains("64  invalid configuration")
        );
    }

    /// O01: no flag takes a secret, so none stands in a process list.
    #[test]
    fn no_flag_takes_a_secret_itself() {
        fn flags(command: &clap::Command, into: &mut Vec<String>) {
            into.extend(
                command.get_arguments().filter_map(|arg| arg.get_long()).map(str::to_owned),
            );
            command.get_subcommands().for_each(|sub| flags(sub, into));
        }
        let mut all = Vec::new();
        flags(&Cli::command(), &mut all);
        assert!(all.iter().any(|flag| flag == "client-secret-file"));
        assert!(
            all.iter()
                .filter(|flag| flag.contains("secret"))
                .all(|flag| flag.ends_with("-file")
                    || ["secret-out", "secret-id"].contains(&&**flag)),
            "{all:?}"
        );
    }
}
