//! The servers of an address, asked one by one and without credentials: who is there, and what they
//! are. The driver says of a database that it cannot reach only that it could not; here is why.

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

use crate::store::mongo::{
    WIRE_VERSION,
    driver::{connection, error::OpenError},
};

/// How long each step of asking one server may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);
/// How the driver says that a server is too old for itself.
const WIRE_VERSION_TEXT: &str = "reports wire version ";

/// A server that an address names, or that others name as a member of their set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Host and port.
    pub address: String,
    /// What became of asking it.
    pub state: ServerState,
}

/// What a server says of itself, or why it says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// Its name cannot be resolved here.
    Unresolved,
    /// Nobody takes connections there.
    ConnectionRefused,
    /// Somebody takes connections and does not answer as MongoDB: with TLS where there is none, or
    /// without.
    NotMongo(String),
    /// It speaks this wire version, which is too old.
    TooOld(i32),
    /// A server alone, without a replica set.
    Standalone,
    /// It shall be of a replica set that was not initiated.
    Uninitiated,
    /// A router of a sharded cluster.
    Router,
    /// Of the replica set of this name.
    ReplicaSetMember(String, Role),
}

/// What a member of a replica set is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It takes writes.
    Primary,
    /// It follows.
    Secondary,
    /// It votes and holds nothing.
    Arbiter,
    /// It is starting, catching up, or no longer of the set.
    Other,
}

impl Member {
    /// Whether it answers as MongoDB does.
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
            ServerState::ConnectionRefused => "nobody listens",
            ServerState::NotMongo(problem) => {
                return write!(f, "{} does not answer as MongoDB ({problem})", self.address);
            }
            ServerState::TooOld(found) => {
                return write!(f, "{} speaks wire version {found}", self.address);
            }
            ServerState::Standalone => "a server alone",
            ServerState::Uninitiated => "not initiated",
            ServerState::Router => "a router",
            ServerState::ReplicaSetMember(_, Role::Primary) => "primary",
            ServerState::ReplicaSetMember(_, Role::Secondary) => "secondary",
            ServerState::ReplicaSetMember(_, Role::Arbiter) => "arbiter",
            ServerState::ReplicaSetMember(_, Role::Other) => "starting or catching up",
        };
        write!(f, "{} {state}", self.address)
    }
}

/// Asks those that the address names, and then those that these name. In the order of the address,
/// then of their names.
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

/// What one server is, and what it said.
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
        None => (ServerState::NotMongo("no answer".to_owned()), nothing()),
    }
}

/// For a connection to one server, whatever it is, by nobody in particular.
fn direct_options(options: &ClientOptions, host: ServerAddress) -> ClientOptions {
    let mut options = options.clone();
    options.hosts = vec![host];
    options.direct_connection = Some(true);
    (options.repl_set_name, options.credential, options.load_balanced) = (None, None, None);
    (options.server_selection_timeout, options.connect_timeout) =
        (Some(STEP_TIMEOUT), Some(STEP_TIMEOUT));
    options
}

/// Carries a driver's future out, in a task of its own; `None` if it takes too long.
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

/// The innermost cause out of the driver's long answer.
fn innermost_cause(text: &str) -> String {
    let cause = text.rsplit_once("Kind: ").map_or(text, |(_, cause)| cause);
    if cause.starts_with("Server selection timeout") {
        return "no answer".to_owned();
    }
    cause.split(", labels").next().unwrap_or_default().trim_start_matches("I/O error: ").to_owned()
}

/// Why a database with these servers cannot be opened by an address that names this replica set;
/// `None` if nothing is found to be wrong with them.
fn explain(members: &[Member], set: Option<&str>) -> Option<OpenError> {
    find_fatal_problem(members, set).or_else(|| {
        let missing = members.iter().any(|member| !member.answers());
        let part = || {
            OpenError::Unreachable(format!(
                "there is a primary, but not all of its set: {}",
                list_members(members)
            ))
        };
        missing.then(part)
    })
}

/// What is so wrong with these servers that nothing can be done with them.
pub(super) fn find_fatal_problem(members: &[Member], set: Option<&str>) -> Option<OpenError> {
    // One that is elsewhere for a while, for its upkeep, condemns no set that is there.
    let is_right = |found: &str| set.is_none_or(|set| set == found);
    let has_valid_member = members.iter().any(|member| {
        matches!(&member.state, ServerState::ReplicaSetMember(found, _) if is_right(found))
    });
    for Member { address, state } in members {
        let wrong_set = |set: &str, what: &str| {
            Some(OpenError::WrongReplicaSet(format!(
                "{address} is {what}, not of the replica set {set}"
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
            (ServerState::Standalone, Some(set)) => return wrong_set(set, "a server alone"),
            (ServerState::ReplicaSetMember(found, _), Some(set)) if set != found => {
                return wrong_set(set, &format!("of the replica set {found}"));
            }
            (ServerState::Uninitiated, _) => {
                return Some(OpenError::Unreachable(format!("{address} waits for rs.initiate()")));
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
    headless
        .then(|| OpenError::Unreachable(format!("there is no primary: {}", list_members(members))))
}

fn list_members(members: &[Member]) -> String {
    members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What is known better than that the database could not be opened.
pub(crate) async fn diagnose_connect_error(uri: &str, error: OpenError) -> OpenError {
    let Ok(options) = connection::parse_options(uri).await else {
        return error;
    };
    // Who does not say who they are is told that they may not.
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

    /// What must be mended is told from what may pass, and the worst comes first.
    #[test]
    fn servers_that_cannot_be_used_are_explained() {
        let explained = |members: &[Member], set| {
            explain(members, set).map(|error| (error.is_transient(), error.to_string()))
        };
        let gone =
            [member("a:1", ServerState::ConnectionRefused), member("b:1", ServerState::Unresolved)];
        assert_eq!(
            explained(&gone, Some("rs")),
            Some((true, "cannot reach MongoDB: a:1 nobody listens, b:1 cannot be resolved".into()))
        );
        let wrong = [
            member("a:1", of("other", Role::Primary)),
            member("b:1", ServerState::ConnectionRefused),
        ];
        assert_eq!(
            explained(&wrong, Some("rs")),
            Some((
                false,
                "store.uri: a:1 is of the replica set other, not of the replica set rs".into()
            ))
        );
        assert_eq!(explained(&[member("a:1", ServerState::Standalone)], None), None);
        let alone = explained(&[member("a:1", ServerState::Standalone)], Some("rs"));
        assert_eq!(
            alone,
            Some((false, "store.uri: a:1 is a server alone, not of the replica set rs".into()))
        );
        let old = [member("a:1", of("rs", Role::Secondary)), member("b:1", ServerState::TooOld(6))];
        assert!(!explained(&old, Some("rs")).unwrap().0);
        let headless = [
            member("a:1", of("rs", Role::Secondary)),
            member("b:1", ServerState::ConnectionRefused),
            member("c:1", ServerState::ConnectionRefused),
        ];
        let (passes, text) = explained(&headless, Some("rs")).unwrap();
        assert!(passes && text.contains("no primary: a:1 secondary, b:1 nobody listens"), "{text}");
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
