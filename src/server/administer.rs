//! Administration of a store without a server, for who has the master key: the way back where no
//! client can administer the service (OPERATORS B44).

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::{
    Options, StartError, bootstrap, issuer,
    open::{self, Opened, Purpose},
};
use crate::{
    admin::ClockResetDone,
    clock::{Clock, JUMP, SystemClock},
    config::{self, Config},
    error::Error,
    model::{Call, ClientId, Peer, Timestamp},
    store::embedded::Embedded,
};

/// Creates an administrator of the operator's tenant in the configured store and passes its secret to
/// `show`; if that fails, the client is deleted again.
///
/// # Errors
///
/// A store that cannot be opened or has not been served, an id that is taken, or the error of `show`.
pub async fn reset_administrator(
    config: Config,
    id: Option<ClientId>,
    show: impl FnOnce(&ClientId, &str) -> Result<(), String>,
) -> Result<(), StartError> {
    let opened = open_existing(config, None).await?;
    let made = make_administrator(&opened, id, show).await;
    opened.close().await;
    made
}

/// Times before a reset of the clock.
#[derive(Clone, Copy, Debug)]
pub struct ClockReading {
    /// Time that the store lives in.
    pub store: Timestamp,
    /// Time of the machine.
    pub machine: Timestamp,
}

/// Returns the configured store to the time of `clock`, by default the machine's, if it lives more than
/// a minute ahead of it: every token is revoked. No node may run. `agree` is asked before.
///
/// # Errors
///
/// A store that cannot be opened or has not been served, a node that runs, the error of `agree`.
pub async fn reset_clock(
    config: Config,
    clock: Option<Arc<dyn Clock>>,
    agree: impl FnOnce(ClockReading) -> Result<(), String>,
) -> Result<(ClockReading, Option<ClockResetDone>), StartError> {
    let clock = clock.unwrap_or_else(|| Arc::new(SystemClock::starting_at(Timestamp::EPOCH)));
    let opened = open_existing(config, Some(clock.clone())).await?;
    let reset = return_to(&opened, clock.now(), agree).await;
    opened.close().await;
    reset
}

async fn return_to(
    opened: &Opened,
    machine: Timestamp,
    agree: impl FnOnce(ClockReading) -> Result<(), String>,
) -> Result<(ClockReading, Option<ClockResetDone>), StartError> {
    let failed = |error: Error| StartError::failed("cannot reset the clock")(error.into());
    let rule = &opened.services.admin.clock_reset;
    let reading = ClockReading { store: rule.latest_time().await.map_err(failed)?, machine };
    if reading.store.since(machine) <= JUMP {
        return Ok((reading, None));
    }
    agree(reading).map_err(StartError::Failed)?;
    let done = rule.run(machine, reading.store).await.map_err(|error| {
        if let Error::Precondition(problem) = error {
            return StartError::Failed(problem.into_owned());
        }
        failed(error)
    })?;
    Ok((reading, Some(done)))
}

async fn make_administrator(
    opened: &Opened,
    id: Option<ClientId>,
    show: impl FnOnce(&ClientId, &str) -> Result<(), String>,
) -> Result<(), StartError> {
    let call = Call { now: opened.clock.now(), peer: Peer::Local, request_id: "admin".into() };
    let clients = &opened.services.admin.clients;
    let (id, secret): (ClientId, SecretString) =
        clients.reset_administrator(&call, id.clone()).await.map_err(|error| {
            if !matches!(error, Error::AlreadyExists(_)) {
                return StartError::failed("cannot create the administrator")(error.into());
            }
            StartError::Failed(match id {
                Some(id) => format!("the client id {id} is taken: choose another"),
                None => "every id that is tried is taken: choose one with --client-id".to_owned(),
            })
        })?;
    match show(&id, secret.expose_secret()) {
        Ok(()) => Ok(()),
        Err(problem) => Err(bootstrap::take_back(opened, &id, StartError::Failed(problem)).await),
    }
}

/// Opens a store that has been served. On a shared store under a node name of its own, so that no
/// running node loses its name.
async fn open_existing(
    config: Config,
    clock: Option<Arc<dyn Clock>>,
) -> Result<Opened, StartError> {
    let mut config = config;
    if config.store.is_shared() {
        let unique = Uuid::new_v4().simple().to_string();
        config.node = format!("admin-{}", unique.get(..8).unwrap_or(&unique));
    } else if !Embedded::is_in(&config.data_dir) {
        return Err(StartError::Configuration(format!(
            "{} holds no store: check data_dir",
            config.data_dir.display()
        )));
    }
    let issuer = issuer(&config, config.listen, config.tls != config::Tls::default());
    let options = Options {
        config,
        dev: false,
        bootstrap: false,
        accept_rollback: false,
        store: None,
        clock,
    };
    open::open(&options, &issuer, Purpose::Administer).await
}
