//! Connection to the database. The driver's futures must not be dropped in flight, while callers
//! may disconnect: every operation runs in a task of its own, and only the wait for it ends at the
//! deadline.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use mongodb::{
    Client, Collection, Database,
    bson::Document,
    options::{ClientOptions, DatabaseOptions, ReadConcern, SelectionCriteria, WriteConcern},
};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use super::error::{MongoError, OpenError};
use crate::store;

/// Operations in flight, those of callers that gave up included; further ones are refused.
const IN_FLIGHT_MAX: usize = 2_048;
/// Name of the database if the address names none.
const DATABASE: &str = "jeton";
/// Connections to each server, and how many of them open at once, unless the address says
/// otherwise.
const POOL_MAX: u32 = 100;
const CONNECTING_MAX: u32 = 8;
/// Interval of the driver's server checks, and timeout for a new connection.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time after which an idle connection is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Timeout of work that no caller waits for.
pub(crate) const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(60);

/// Database behind the driver's pool.
pub(crate) struct Connection {
    client: Client,
    database: Database,
    deadline: Duration,
    permits: Arc<Semaphore>,
    /// True if the server is not a member of a replica set; false before the handshake.
    is_standalone: AtomicBool,
    state: watch::Sender<ConnectionState>,
}

/// State of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionState {
    Open,
    Closed,
    /// Another process took this node's name.
    NameTaken,
}

impl Connection {
    /// Parses the address. Sends nothing yet.
    pub(crate) async fn new(uri: &str, deadline: Duration) -> Result<Self, OpenError> {
        let mut options = parse_options(uri).await?;
        let name = options.default_database.clone().unwrap_or_else(|| DATABASE.to_owned());
        options.app_name.get_or_insert_with(|| "jeton".to_owned());
        options.max_pool_size.get_or_insert(POOL_MAX);
        options.max_connecting.get_or_insert(CONNECTING_MAX);
        options.connect_timeout.get_or_insert(CONNECT_TIMEOUT);
        options.heartbeat_freq.get_or_insert(HEARTBEAT_INTERVAL);
        // Closes connections that a stall has opened.
        options.max_idle_time.get_or_insert(IDLE_TIMEOUT);
        // An operation that finds no server fails by itself before its caller gives up.
        options.server_selection_timeout.get_or_insert_with(|| deadline.mul_f32(0.75));
        // The address must not weaken the guarantees of an answer.
        (options.write_concern, options.read_concern, options.selection_criteria) =
            (None, None, None);
        let client = Client::with_options(options)
            .map_err(|error| OpenError::Uri(describe_address_error(&error)))?;
        let durable = WriteConcern::builder().w(mongodb::options::Acknowledgment::Majority);
        let durable = durable.journal(true).w_timeout(deadline).build();
        let durable_options = DatabaseOptions::builder()
            .write_concern(durable)
            .read_concern(ReadConcern::majority())
            .selection_criteria(SelectionCriteria::ReadPreference(
                mongodb::options::ReadPreference::Primary,
            ))
            .build();
        let database = client.database_with_options(&name, durable_options);
        Ok(Self {
            client,
            database,
            deadline,
            permits: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            is_standalone: AtomicBool::new(false),
            state: watch::Sender::new(ConnectionState::Open),
        })
    }

    pub(crate) const fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) const fn database(&self) -> &Database {
        &self.database
    }

    pub(crate) const fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Collection with majority and journaled writes, and majority reads from the primary.
    pub(crate) fn collection(&self, name: &str) -> Collection<Document> {
        self.database.collection(name)
    }

    /// Runs an operation to completion, even if the caller is dropped.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        operation: impl Future<Output = Result<T, MongoError>> + Send + 'static,
    ) -> Result<T, MongoError> {
        self.within(self.deadline, operation).await
    }

    /// Runs an operation as [`Self::call`] does, with its own deadline.
    pub(crate) async fn within<T: Send + 'static>(
        &self,
        deadline: Duration,
        operation: impl Future<Output = Result<T, MongoError>> + Send + 'static,
    ) -> Result<T, MongoError> {
        match *self.state.borrow() {
            ConnectionState::Open => {}
            ConnectionState::Closed => return Err(MongoError::Closed),
            ConnectionState::NameTaken => return Err(MongoError::NodeNameTaken),
        }
        let permit =
            self.permits.clone().try_acquire_owned().map_err(|_| MongoError::TooManyPending)?;
        let task = tokio::spawn(async move {
            let outcome = operation.await;
            drop(permit);
            outcome
        });
        match timeout(deadline, task).await {
            Ok(Ok(outcome)) => outcome,
            // The task panicked, or the runtime is shutting down.
            Ok(Err(_)) => Err(MongoError::Closed),
            Err(_) => Err(MongoError::Timeout(deadline)),
        }
    }

    /// Runs an operation of several calls to completion even if its caller is dropped: no change is
    /// left without its record because a caller disconnected. The caller waits for the whole of it
    /// no longer than for a single call.
    pub(crate) async fn run_detached<T: Send + 'static>(
        &self,
        operation: impl Future<Output = Result<T, MongoError>> + Send + 'static,
    ) -> store::Result<T> {
        let task = tokio::spawn(operation);
        let ended =
            timeout(self.deadline, task).await.map_err(|_| MongoError::Timeout(self.deadline))?;
        Ok(ended.map_err(|_| MongoError::Closed)??)
    }

    /// Returns true if the server is not a member of a replica set.
    pub(crate) fn is_standalone(&self) -> bool {
        self.is_standalone.load(SeqCst)
    }

    /// Sets the outcome of the handshake.
    pub(super) fn set_standalone(&self, is_standalone: bool) {
        self.is_standalone.store(is_standalone, SeqCst);
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.state.borrow() != ConnectionState::Open
    }

    /// Refuses further operations: another process took this node's name.
    pub(crate) fn close_name_taken(&self) {
        self.close_as(ConnectionState::NameTaken);
    }

    /// Refuses further operations.
    pub(crate) fn close(&self) {
        self.close_as(ConnectionState::Closed);
    }

    fn close_as(&self, state: ConnectionState) {
        self.state.send_if_modified(|now| {
            let open = *now == ConnectionState::Open;
            if open {
                *now = state;
            }
            open
        });
    }

    /// Waits until the connection is closed. Returns true if another process took this node's name.
    pub(crate) async fn closed(&self) -> bool {
        let mut state = self.state.subscribe();
        let closed = state.wait_for(|state| *state != ConnectionState::Open).await;
        closed.is_ok_and(|state| *state == ConnectionState::NameTaken)
    }
}

/// Parses an address.
pub(crate) async fn parse_options(uri: &str) -> Result<ClientOptions, OpenError> {
    let error = match ClientOptions::parse(uri).await {
        Ok(options) => return Ok(options),
        Err(error) => error,
    };
    if matches!(*error.kind, mongodb::error::ErrorKind::DnsResolve { .. }) {
        return Err(error.into());
    }
    let bare = uri.split_once('?').map(|(address, _)| address);
    if let Some(address) = bare.filter(|_| !is_tls_file_error(&error))
        && ClientOptions::parse(address).await.is_ok()
    {
        return Err(OpenError::Uri(
            "unknown or invalid option in the query part of the address".to_owned(),
        ));
    }
    Err(OpenError::Uri(describe_address_error(&error)))
}

fn is_tls_file_error(error: &mongodb::error::Error) -> bool {
    matches!(*error.kind, mongodb::error::ErrorKind::InvalidTlsConfig { .. })
}

/// Waits between two attempts or two rounds.
#[expect(clippy::disallowed_methods, reason = "what is waited for is another machine")]
pub(crate) async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Describes the problem of an address without its text, which the driver repeats in part.
fn describe_address_error(error: &mongodb::error::Error) -> String {
    if is_tls_file_error(error) {
        return "its TLS options conflict, or name a file that cannot be read".to_owned();
    }
    "must be a MongoDB address: mongodb://[user:password@]host[:port],.../[database][?options], \
     with special characters of user and password percent-encoded"
        .to_owned()
}
