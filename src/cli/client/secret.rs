//! Secrets of clients: imported ones, and ways to show generated ones.

use std::path::PathBuf;

use clap::Args;

use super::table::{Made, show};
use crate::{
    cli::{args, error::Failure, output::Output, secret_file::SecretFile},
    proto::admin::Client,
};

/// A secret that is imported instead of generated.
#[derive(Args, Debug)]
#[group(multiple = false)]
pub(super) struct ImportedSecret {
    /// File with an existing secret, - for stdin [default: generated]
    #[arg(long, value_name = "FILE")]
    pub(super) secret_file: Option<PathBuf>,
    /// File with the argon2id hash of an existing secret in PHC format, - for stdin
    #[arg(long, value_name = "FILE")]
    pub(super) argon2id_file: Option<PathBuf>,
}

/// Ways to show a generated secret to a script.
#[derive(Args, Debug, Default)]
pub(super) struct ShownSecret {
    /// Print only the secret
    #[arg(long, conflicts_with_all = ["json", "secret_out", "secret_file", "argon2id_file"])]
    raw: bool,
    /// Write the secret to this new file, which only its owner can read, and print it nowhere else
    #[arg(long, value_name = "FILE", conflicts_with_all = ["secret_file", "argon2id_file"])]
    secret_out: Option<PathBuf>,
}

impl ShownSecret {
    /// Creates the file for the secret.
    pub(super) fn file(&self) -> Result<Option<SecretFile>, Failure> {
        self.secret_out.as_deref().map(SecretFile::create).transpose()
    }

    /// Shows a client and its new secret.
    pub(super) fn show(
        &self,
        output: Output,
        client: Option<Client>,
        made: Made<'_>,
        file: Option<SecretFile>,
    ) -> Result<(), Failure> {
        if self.raw {
            return output.line(made.secret);
        }
        let Some(file) = file else { return show(output, client, Some(made)) };
        file.write(made.secret).map_err(Failure::io(
            "the secret is lost (make another with `jeton client add-secret`): cannot write it",
        ))?;
        show(output, client, Some(Made { secret: "", ..made }))
    }
}

/// An imported secret.
pub(super) enum Imported {
    Plain(String),
    Hash(String),
}

impl ImportedSecret {
    pub(super) fn read(&self) -> Result<Option<Imported>, Failure> {
        if let Some(file) = &self.secret_file {
            return args::secret_file(file).map(|text| Some(Imported::Plain(text)));
        }
        self.argon2id_file
            .as_deref()
            .map(|file| args::secret_file(file).map(Imported::Hash))
            .transpose()
    }
}
