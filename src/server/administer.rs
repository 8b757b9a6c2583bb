//! Administration of a store without a server, for who has the master key: the way back where no
//! client can administer the service (OPERATORS B44).

use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::{
    Options, StartError, bootstrap, issuer,
    open::{self, Opened, Purpose},
};
use crate::{
    config::{self, Config},
    error::Error,
    model::{Call, ClientId, Peer},
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
    let opened = open_existing(config).await?;
    let made = make_administrator(&opened, id, show).await;
    opened.close().await;
    made
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
async fn open_existing(config: Config) -> Result<Opened, StartError> {
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
    let (store, clock) = (None, None);
    let options =
        Options { config, dev: false, bootstrap: false, accept_rollback: false, store, clock };
    open::open(&options, &issuer, Purpose::Administer).await
}
