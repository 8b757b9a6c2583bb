//! Diagnosis of the servers of an address: each is asked by itself and without credentials. The
//! driver only reports that no server could be selected; this module finds out why.

use std::{collections::BTreeMap, future::Future, time::Duration};

use futures_util::future::join_all;
use mongodb::{
    Client,
    bson::{Document, doc},
    options::{ClientOptions, ServerAddress},
};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use crate::store::mongo::driver::{connection, error::OpenError, handshake::WIRE_VERSION};

/// Timeout of each step of a probe.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);
/// Text by which the driver reports a server that is too old for it.
const WIRE_VERSION_TEXT: &str = "reports wire version ";

/// Server that the address names, or that another server names as a member of its set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Host and port.
    pub address: String,
    /// Result of the probe.
    pub state: ServerState,
}

/// State of a server as it reports it, or the reason for no report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// Its host name cannot be resolved.
    Unresolved,
    /// Nothing accepts connections.
    ConnectionRefused,
    /// Accepts TCP but does not speak MongoDB's protocol; often a TLS mismatch.
    NotMongo(String),
    /// Speaks this wire version, which is too old.
    TooOld(i32),
    /// Server without a replica set.
    Standalone,
    /// Started for a replica set that was not initiated.
    Uninitiated,
    /// Router of a sharded cluster.
    Router,
    /// Member of the replica set of this name.
    ReplicaSetMember(String, Role),
}

/// Role of a member of a replica set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes writes.
    Primary,
    /// Replicates from the primary.
    Secondary,
    /// Votes and holds no data.
    Arbiter,
    /// Starting, catching up, or removed from the set.
    Other,
}

impl Member {
    /// Returns true if the server speaks MongoDB's protocol.
    pub const fn answers(&self) -> bool {
        !matches!(
            self.state,
            ServerState::Unresolved | ServerState::ConnectionRefused | ServerState::NotMongo(_)
        )
    }
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match &self.state {
            ServerState::Unresolved => "cannot be resolved",
            ServerState::ConnectionRefused => "refuses connections",
            ServerState::NotMongo(problem) => {
                return write!(f, "{} does not speak MongoDB's protocol ({problem})", self.address);
            }
            ServerState::TooOld(found) => {
                return write!(f, "{} is too old (wire version {found})", self.address);
            }
            ServerState::Standalone => "a standalone server",
            ServerState::Uninitiated => "not initiated",
            ServerState::Router => "a mongos router",
            ServerState::ReplicaSetMember(_, Role::Primary) => "primary",
            ServerState::ReplicaSetMember(_, Role::Secondary) => "secondary",
            ServerState::ReplicaSetMember(_, Role::Arbiter) => "arbiter",
            ServerState::ReplicaSetMember(_, Role::Other) => "starting or catching up",
        };
        write!(f, "{} {state}", self.address)
    }
}

/// Probes the servers that the address names, then those that they name: in the order of the
/// address, then by name.
pub(super) async fn members(options: &ClientOptions) -> Vec<Member> {
    let answers = join_all(options.hosts.iter().map(|host| probe(options, host.clone()))).await;
    let mut members = Vec::new();
    let mut named = BTreeMap::new();
    for (host, (state, hello)) in options.hosts.iter().zip(answers) {
        for field in ["hosts", "passives", "arbiters"] {
            let names =
                hello.get_array(field).into_iter().flatten().filter_map(|name| name.as_str());
            named.extend(
                names.filter_map(|name| Some((name.to_owned(), ServerAddress::parse(name).ok()?))),
            );
        }
        members.push(Member { address: host.to_string(), state });
    }
    named.retain(|name, _| members.iter().all(|member| member.address != *name));
    let answers = join_all(named.values().map(|host| probe(options, host.clone()))).await;
    members.extend(
        named.into_keys().zip(answers).map(|(address, (state, _))| Member { address, state }),
    );
    members
}

/// Probes one server: its state, and its reply to `hello`.
async fn probe(options: &ClientOptions, host: ServerAddress) -> (ServerState, Document) {
    let nothing = Document::new;
    if let ServerAddress::Tcp { host, port } = &host {
        let port = port.unwrap_or(27_017);
        match timeout(STEP_TIMEOUT, lookup_host((host.as_str(), port))).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return (ServerState::Unresolved, nothing()),
        }
        if !matches!(
            timeout(STEP_TIMEOUT, TcpStream::connect((host.as_str(), port))).await,
            Ok(Ok(_))
        ) {
            return (ServerState::ConnectionRefused, nothing());
        }
    }
    let options = direct_options(options, host);
    let asking = async move {
        let client = Client::with_options(options)?;
        client.database("admin").run_command(doc! { "hello": 1 }).await
    };
    match run_with_timeout(asking).await {
        Some(Ok(hello)) => (parse_hello(&hello), hello),
        Some(Err(error)) => {
            let text = error.to_string();
            let found = text
                .split_once(WIRE_VERSION_TEXT)
                .and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
            (
                found.map_or_else(
                    || ServerState::NotMongo(innermost_cause(&text)),
                    ServerState::TooOld,
                ),
                nothing(),
            )
        }
        None => (ServerState::NotMongo("no reply".to_owned()), nothing()),
    }
}

/// Options for a direct connection to one server, without credentials.
fn direct_options(options: &ClientOptions, host: ServerAddress) -> ClientOptions {
    let mut options = options.clone();
    options.hosts = vec![host];
    options.direct_connection = Some(true);
    (options.repl_set_name, options.credential, options.load_balanced) = (None, None, None);
    (options.server_selection_timeout, options.connect_timeout) =
        (Some(STEP_TIMEOUT), Some(STEP_TIMEOUT));
    options
}

/// Runs a driver future in its own task; `None` after a timeout.
async fn run_with_timeout<T: Send + 'static>(
    operation: impl Future<Output = mongodb::error::Result<T>> + Send + 'static,
) -> Option<mongodb::error::Result<T>> {
    timeout(STEP_TIMEOUT.saturating_mul(2), tokio::spawn(operation)).await.ok()?.ok()
}

fn parse_hello(hello: &Document) -> ServerState {
    let is = |field| hello.get_bool(field).unwrap_or(false);
    let found = hello.get_i32("maxWireVersion").unwrap_or_default();
    if found < WIRE_VERSION {
        return ServerState::TooOld(found);
    }
    if hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid") {
        return ServerState::Router;
    }
    let Ok(set) = hello.get_str("setName") else {
        return if is("isreplicaset") { ServerState::Uninitiated } else { ServerState::Standalone };
    };
    let role = match () {
        () if is("isWritablePrimary") => Role::Primary,
        () if is("secondary") => Role::Secondary,
        () if is("arbiterOnly") => Role::Arbiter,
        () => Role::Other,
    };
    ServerState::ReplicaSetMember(set.to_owned(), role)
}

/// Innermost cause in a long error text of the driver.
fn innermost_cause(text: &str) -> String {
    let cause = text.rsplit_once("Kind: ").map_or(text, |(_, cause)| cause);
    if cause.starts_with("Server selection timeout") {
        return "no reply".to_owned();
    }
    cause.split(", labels").next().unwrap_or_default().trim_start_matches("I/O error: ").to_owned()
}

/// Explains why a database on these servers cannot be opened by an address that names this replica
/// set; `None` if they show no problem.
fn explain(members: &[Member], set: Option<&str>) -> Option<OpenError> {
    find_fatal_problem(members, set).or_else(|| {
        let missing = members.iter().any(|member| !member.answers());
        let part = || {
            OpenError::Unreachable(format!(
                "the set has a primary, but some members cannot be reached: {}",
                list_members(members)
            ))
        };
        missing.then(part)
    })
}

/// Finds a problem that no retry solves.
pub(super) fn find_fatal_problem(members: &[Member], set: Option<&str>) -> Option<OpenError> {
    // A member that runs standalone for maintenance does not make its set unusable.
    let is_right = |found: &str| set.is_none_or(|set| set == found);
    let has_valid_member = members.iter().any(|member| {
        matches!(&member.state, ServerState::ReplicaSetMember(found, _) if is_right(found))
    });
    for Member { address, state } in members {
        let wrong_set = |set: &str, what: &str| {
            Some(OpenError::WrongReplicaSet(format!(
                "{address} is {what}, not a member of the replica set {set}"
            )))
        };
        match (state, set) {
            (ServerState::TooOld(found), _) => {
                return Some(OpenError::TooOld { found: *found, needed: WIRE_VERSION });
            }
            (
                ServerState::Standalone
                | ServerState::ReplicaSetMember(..)
                | ServerState::Uninitiated,
                _,
            ) if has_valid_member => {}
            (ServerState::Standalone, Some(set)) => return wrong_set(set, "a standalone server"),
            (ServerState::ReplicaSetMember(found, _), Some(set)) if set != found => {
                return wrong_set(set, &format!("a member of the replica set {found}"));
            }
            (ServerState::Uninitiated, _) => {
                return Some(OpenError::Unreachable(format!(
                    "{address} is not initiated: run rs.initiate()"
                )));
            }
            (
                ServerState::Standalone
                | ServerState::ReplicaSetMember(..)
                | ServerState::Router
                | ServerState::Unresolved
                | ServerState::ConnectionRefused
                | ServerState::NotMongo(_),
                Some(_) | None,
            ) => {}
        }
    }
    if !members.iter().any(Member::answers) {
        return Some(OpenError::Unreachable(list_members(members)));
    }
    let is_of_a_set = |member: &Member| matches!(member.state, ServerState::ReplicaSetMember(..));
    let is_primary =
        |member: &Member| matches!(member.state, ServerState::ReplicaSetMember(_, Role::Primary));
    let headless = members.iter().any(is_of_a_set) && !members.iter().any(is_primary);
    headless.then(|| OpenError::Unreachable(format!("no primary: {}", list_members(members))))
}

fn list_members(members: &[Member]) -> String {
    members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Replaces a general connect error by the cause that a probe of the servers finds.
pub(crate) async fn diagnose_connect_error(uri: &str, error: OpenError) -> OpenError {
    let Ok(options) = connection::parse_options(uri).await else {
        return error;
    };
    // Without credentials in the address, "forbidden" means that credentials are missing.
    if matches!(error, OpenError::Forbidden) && options.credential.is_none() {
        return OpenError::Credentials("store.uri names no user".to_owned());
    }
    if !matches!(error, OpenError::Failed(_)) {
        return error;
    }
    let members = members(&options).await;
    explain(&members, options.repl_set_name.as_deref()).unwrap_or(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(address: &str, state: ServerState) -> Member {
        Member { address: address.to_owned(), state }
    }

    fn of(set: &str, role: Role) -> ServerState {
        ServerState::ReplicaSetMember(set.to_owned(), role)
    }

    /// Problems of the configuration are distinguished from transient ones; the worst one is
    /// reported first.
    #[test]
    fn servers_that_cannot_be_used_are_explained() {
        let explained = |members: &[Member], set| {
            explain(members, set).map(|error| (error.is_transient(), error.to_string()))
        };
        let gone =
            [member("a:1", ServerState::ConnectionRefused), member("b:1", ServerState::Unresolved)];
        assert_eq!(
            explained(&gone, Some("rs")),
            Some((
                true,
                "cannot reach MongoDB: a:1 refuses connections, b:1 cannot be resolved".into()
            ))
        );
        let wrong = [
            member("a:1", of("other", Role::Primary)),
            member("b:1", ServerState::ConnectionRefused),
        ];
        assert_eq!(
            explained(&wrong, Some("rs")),
            Some((
                false,
                "store.uri: a:1 is a member of the replica set other, not a member of the replica \
                 set rs"
                    .into()
            ))
        );
        assert_eq!(explained(&[member("a:1", ServerState::Standalone)], None), None);
        let alone = explained(&[member("a:1", ServerState::Standalone)], Some("rs"));
        assert_eq!(
            alone,
            Some((
                false,
                "store.uri: a:1 is a standalone server, not a member of the replica set rs".into()
            ))
        );
        let old = [member("a:1", of("rs", Role::Secondary)), member("b:1", ServerState::TooOld(6))];
        assert!(!explained(&old, Some("rs")).unwrap().0);
        let headless = [
            member("a:1", of("rs", Role::Secondary)),
            member("b:1", ServerState::ConnectionRefused),
            member("c:1", ServerState::ConnectionRefused),
        ];
        let (passes, text) = explained(&headless, Some("rs")).unwrap();
        assert!(
            passes && text.contains("no primary: a:1 secondary, b:1 refuses connections"),
            "{text}"
        );
        let hidden =
            [member("a:1", of("rs", Role::Primary)), member("inner:1", ServerState::Unresolved)];
        assert!(explained(&hidden, Some("rs")).unwrap().1.contains("inner:1 cannot be resolved"));
        assert_eq!(explained(&[member("a:1", of("rs", Role::Primary))], Some("rs")), None);
        let kept_up = [
            member("a:1", of("rs", Role::Primary)),
            member("b:1", ServerState::Standalone),
            member("c:1", ServerState::Uninitiated),
        ];
        assert_eq!(explained(&kept_up, Some("rs")), None);
    }

    #[test]
    fn a_greeting_is_read_as_what_it_is() {
        let modern = |more: Document| {
            let mut hello = doc! { "maxWireVersion": 17 };
            hello.extend(more);
            parse_hello(&hello)
        };
        assert_eq!(modern(doc! { "isWritablePrimary": true }), ServerState::Standalone);
        assert_eq!(modern(doc! { "isreplicaset": true }), ServerState::Uninitiated);
        assert_eq!(
            modern(doc! { "msg": "isdbgrid", "isWritablePrimary": true }),
            ServerState::Router
        );
        assert_eq!(
            modern(doc! { "setName": "rs", "isWritablePrimary": true }),
            of("rs", Role::Primary)
        );
        assert_eq!(modern(doc! { "setName": "rs", "secondary": true }), of("rs", Role::Secondary));
        assert_eq!(modern(doc! { "setName": "rs", "arbiterOnly": true }), of("rs", Role::Arbiter));
        assert_eq!(modern(doc! { "setName": "rs" }), of("rs", Role::Other));
        assert_eq!(
            parse_hello(&doc! { "maxWireVersion": 8, "setName": "rs" }),
            ServerState::TooOld(8)
        );
    }
}
