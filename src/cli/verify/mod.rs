//! `audit verify`: verifies audit chains through a server, or in the files or the database of one that
//! does not run.

mod heads;
mod report;
mod served;
mod stored;

use std::{collections::BTreeMap, path::PathBuf};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use self::report::Report;
use super::{
    connect::{Options, Remote},
    error::Failure,
    output::Output,
    settings::{Settings, StoreSettings},
};
use crate::{
    config::Config,
    proto::admin::{KnownHead, VerifyTrailRequest},
};

/// `jeton audit verify`
#[derive(Args, Debug)]
pub(super) struct Verify {
    /// Verify only this chain
    #[arg(long, value_name = "NAME")]
    chain: Option<String>,
    /// Chain head saved earlier, CHAIN:SEQUENCE:HASH, repeatable; detects a truncated or removed
    /// chain
    #[arg(long, value_name = "HEAD", value_parser = heads::parse)]
    known: Vec<KnownHead>,
    /// File with the output of an earlier run, with or without --json, or with lines of
    /// CHAIN:SEQUENCE:HASH. Each chain must have its head of the file, and is verified from there
    /// on; other chains from their beginning
    #[arg(long, value_name = "FILE")]
    from_head: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Store, to verify without a server")]
    store: StoreSettings,
}

impl Verify {
    pub(super) async fn run(
        &self,
        output: Output,
        remote: &Options,
        scope: &str,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        // Errors in the arguments are reported before any call.
        let request = self.request()?;
        let mut report = Report::new(output);
        let listen = |kind| signal(kind).map_err(Failure::io("cannot listen for signals"));
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let work = async {
            if self.store.is_given() {
                let sources = Settings::from(self.store.clone()).sources(environment);
                let (config, _) = Config::load(&sources)?;
                config.store.supported()?;
                stored::verify(&config, request, &mut report).await
            } else {
                let remote = Remote::open(remote, environment).await?;
                served::verify(&remote, scope, request, &mut report).await
            }
        };
        let stopped = || Err(Failure::Other("stopped by a signal".to_owned()));
        let outcome = tokio::select! {
            outcome = work => outcome,
            _ = terminate.recv() => stopped(),
            _ = interrupt.recv() => stopped(),
        };
        let outcome = outcome.and_then(|()| report.finish());
        match outcome {
            // The chains are broken.
            Err(failure @ Failure::Code(_)) => Err(failure),
            Err(failure) => {
                report.give_up();
                Err(Failure::NotCompleted(Box::new(failure)))
            }
            Ok(()) => Ok(()),
        }
    }

    fn request(&self) -> Result<VerifyTrailRequest, Failure> {
        let chain = self.chain.clone().unwrap_or_default();
        let mut start_after = match &self.from_head {
            Some(path) => heads::read(path)?,
            None => Vec::new(),
        };
        start_after.retain(|head| chain.is_empty() || head.chain == chain);
        let (known, after_chain) = (self.known.clone(), String::new());
        Ok(VerifyTrailRequest { chain, known, start_after, after_chain })
    }
}
