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
const PATIENCE: Duration = Duration::from_secs(2);
/// How the driver says that a server is too old for itself.
const REPORTS: &str = "reports wire version ";

/// A server that an address names, or that others name as a member of their set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Host and port.
    pub address: String,
    /// What became of asking it.
    pub state: State,
}

/// What a server says of itself, or why it says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its name cannot be resolved here.
    Unresolved,
    /// Nobody takes connections there.
    Silent,
    /// Somebody takes connections and does not answer as MongoDB: with TLS where there is none, or
    /// without.
    Strange(String),
    /// It speaks this wire version, which is too old.
    TooOld(i32),
    /// A server alone, without a replica set.
    Alone,
    /// It shall be of a replica set that was not initiated.
    Uninitiated,
    /// A router of a sharded cluster.
    Router,
    /// Of the replica set of this name.
    Of(String, Role),
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
        !matches!(self.state, State::Unresolved | State::Silent | State::Strange(_))
    }
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match &self.state {
            State::Unresolved => "cannot be resolved",
            State::Silent => "nobody listens",
            State::Strange(problem) => {
                return write!(f, "{} does not answer as MongoDB ({problem})", self.address);
            }
            State::TooOld(found) => {
                return write!(f, "{} speaks wire version {found}", self.address);
            }
            State::Alone => "a server alone",
            State::Uninitiated => "not initiated",
            State::Router => "a router",
            State::Of(_, Role::Primary) => "primary",
            State::Of(_, Role::Secondary) => "secondary",
            State::Of(_, Role::Arbiter) => "arbiter",
            State::Of(_, Role::Other) => "starting or catching up",
        };
        write!(f, "{} {state}", self.address)
    }
}

/// Asks those that the address names, and then those that these name. In the order of the address,
/// then of their names.
pub(super) async fn members(options: &ClientOptions) -> Vec<Member> {
    let answers = join_all(options.hosts.iter().map(|host| ask(options, host.clone()))).await;
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
    let answers = join_all(named.values().map(|host| ask(options, host.clone()))).await;
    members.extend(
        named.into_keys().zip(answers).map(|(address, (state, _))| Member { address, state }),
    );
    members
}

/// What one server is, and what it said.
async fn ask(options: &ClientOptions, host: ServerAddress) -> (State, Document) {
    let nothing = Document::new;
    if let ServerAddress::Tcp { host, port } = &host {
        let port = port.unwrap_or(27_017);
        match timeout(PATIENCE, lookup_host((host.as_str(), port))).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return (State::Unresolved, nothing()),
        }
        if !matches!(timeout(PATIENCE, TcpStream::connect((host.as_str(), port))).await, Ok(Ok(_)))
        {
            return (State::Silent, nothing());
        }
    }
    let options = alone(options, host);
    let asking = async move {
        let client = Client::with_options(options)?;
        client.database("admin").run_command(doc! { "hello": 1 }).await
    };
    match whole(asking).await {
        Some(Ok(hello)) => (state(&hello), hello),
        Some(Err(error)) => {
            let text = error.to_string();
            let found =
                text.split_once(REPORTS).and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
            (found.map_or_else(|| State::Strange(strange(&text)), State::TooOld), nothing())
        }
        None => (State::Strange("no answer".to_owned()), nothing()),
    }
}

/// For a connection to one server, whatever it is, by nobody in particular.
fn alone(options: &ClientOptions, host: ServerAddress) -> ClientOptions {
    let mut options = options.clone();
    options.hosts = vec![host];
    options.direct_connection = Some(true);
    (options.repl_set_name, options.credential, options.load_balanced) = (None, None, None);
    (options.server_selection_timeout, options.connect_timeout) = (Some(PATIENCE), Some(PATIENCE));
    options
}

/// Carries a driver's future out, in a task of its own; `None` if it takes too long.
async fn whole<T: Send + 'static>(
    operation: impl Future<Output = mongodb::error::Result<T>> + Send + 'static,
) -> Option<mongodb::error::Result<T>> {
    timeout(PATIENCE.saturating_mul(2), tokio::spawn(operation)).await.ok()?.ok()
}

fn state(hello: &Document) -> State {
    let is = |field| hello.get_bool(field).unwrap_or(false);
    let found = hello.get_i32("maxWireVersion").unwrap_or_default();
    if found < WIRE_VERSION {
        return State::TooOld(found);
    }
    if hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid") {
        return State::Router;
    }
    let Ok(set) = hello.get_str("setName") else {
        return if is("isreplicaset") { State::Uninitiated } else { State::Alone };
    };
    let role = match () {
        () if is("isWritablePrimary") => Role::Primary,
        () if is("secondary") => Role::Secondary,
        () if is("arbiterOnly") => Role::Arbiter,
        () => Role::Other,
    };
    State::Of(set.to_owned(), role)
}

/// The innermost cause out of the driver's long answer.
fn strange(text: &str) -> String {
    let cause = text.rsplit_once("Kind: ").map_or(text, |(_, cause)| cause);
    if cause.starts_with("Server selection timeout") {
        return "no answer".to_owned();
    }
    cause.split(", labels").next().unwrap_or_default().trim_start_matches("I/O error: ").to_owned()
}

/// Why a database with these servers cannot be opened by an address that names this replica set;
/// `None` if nothing is found to be wrong with them.
fn explain(members: &[Member], set: Option<&str>) -> Option<OpenError> {
    hopeless(members, set).or_else(|| {
        let missing = members.iter().any(|member| !member.answers());
        let part = || {
            OpenError::Unreachable(format!(
                "there is a primary, but not all of its set: {}",
                shown(members)
            ))
        };
        missing.then(part)
    })
}

/// What is so wrong with these servers that nothing can be done with them.
pub(super) fn hopeless(members: &[Member], set: Option<&str>) -> Option<OpenError> {
    // One that is elsewhere for a while, for its upkeep, condemns no set that is there.
    let is_right = |found: &str| set.is_none_or(|set| set == found);
    let stands = members
        .iter()
        .any(|member| matches!(&member.state, State::Of(found, _) if is_right(found)));
    for Member { address, state } in members {
        let misfit = |set: &str, what: &str| {
            Some(OpenError::WrongReplicaSet(format!(
                "{address} is {what}, not of the replica set {set}"
            )))
        };
        match (state, set) {
            (State::TooOld(found), _) => {
                return Some(OpenError::TooOld { found: *found, needed: WIRE_VERSION });
            }
            (State::Alone | State::Of(..) | State::Uninitiated, _) if stands => {}
            (State::Alone, Some(set)) => return misfit(set, "a server alone"),
            (State::Of(found, _), Some(set)) if set != found => {
                return misfit(set, &format!("of the replica set {found}"));
            }
            (State::Uninitiated, _) => {
                return Some(OpenError::Unreachable(format!("{address} waits for rs.initiate()")));
            }
            (
                State::Alone
                | State::Of(..)
                | State::Router
                | State::Unresolved
                | State::Silent
                | State::Strange(_),
                Some(_) | None,
            ) => {}
        }
    }
    if !members.iter().any(Member::answers) {
        return Some(OpenError::Unreachable(shown(members)));
    }
    let is_of_a_set = |member: &Member| matches!(member.state, State::Of(..));
    let is_primary = |member: &Member| matches!(member.state, State::Of(_, Role::Primary));
    let headless = members.iter().any(is_of_a_set) && !members.iter().any(is_primary);
    headless.then(|| OpenError::Unreachable(format!("there is no primary: {}", shown(members))))
}

fn shown(members: &[Member]) -> String {
    members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What is known better than that the database could not be opened.
pub(crate) async fn why(uri: &str, error: OpenError) -> OpenError {
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

    fn member(address: &str, state: State) -> Member {
        Member { address: address.to_owned(), state }
    }

    fn of(set: &str, role: Role) -> State {
        State::Of(set.to_owned(), role)
    }

    /// What must be mended is told from what may pass, and the worst comes first.
    #[test]
    fn servers_that_cannot_be_used_are_explained() {
        let said = |members: &[Member], set| {
            explain(members, set).map(|error| (error.is_transient(), error.to_string()))
        };
        let gone = [member("a:1", State::Silent), member("b:1", State::Unresolved)];
        assert_eq!(
            said(&gone, Some("rs")),
            Some((true, "cannot reach MongoDB: a:1 nobody listens, b:1 cannot be resolved".into()))
        );
        let wrong = [member("a:1", of("other", Role::Primary)), member("b:1", State::Silent)];
        assert_eq!(
            said(&wrong, Some("rs")),
            Some((
                false,
                "store.uri: a:1 is of the replica set other, not of the replica set rs".into()
            ))
        );
        assert_eq!(said(&[member("a:1", State::Alone)], None), None);
        let alone = said(&[member("a:1", State::Alone)], Some("rs"));
        assert_eq!(
            alone,
            Some((false, "store.uri: a:1 is a server alone, not of the replica set rs".into()))
        );
        let old = [member("a:1", of("rs", Role::Secondary)), member("b:1", State::TooOld(6))];
        assert!(!said(&old, Some("rs")).unwrap().0);
        let headless = [
            member("a:1", of("rs", Role::Secondary)),
            member("b:1", State::Silent),
            member("c:1", State::Silent),
        ];
        let (passes, text) = said(&headless, Some("rs")).unwrap();
        assert!(passes && text.contains("no primary: a:1 secondary, b:1 nobody listens"), "{text}");
        let hidden = [member("a:1", of("rs", Role::Primary)), member("inner:1", State::Unresolved)];
        assert!(said(&hidden, Some("rs")).unwrap().1.contains("inner:1 cannot be resolved"));
        assert_eq!(said(&[member("a:1", of("rs", Role::Primary))], Some("rs")), None);
        let kept_up = [
            member("a:1", of("rs", Role::Primary)),
            member("b:1", State::Alone),
            member("c:1", State::Uninitiated),
        ];
        assert_eq!(said(&kept_up, Some("rs")), None);
    }

    #[test]
    fn a_greeting_is_read_as_what_it_is() {
        let modern = |more: Document| {
            let mut hello = doc! { "maxWireVersion": 17 };
            hello.extend(more);
            state(&hello)
        };
        assert_eq!(modern(doc! { "isWritablePrimary": true }), State::Alone);
        assert_eq!(modern(doc! { "isreplicaset": true }), State::Uninitiated);
        assert_eq!(modern(doc! { "msg": "isdbgrid", "isWritablePrimary": true }), State::Router);
        assert_eq!(
            modern(doc! { "setName": "rs", "isWritablePrimary": true }),
            of("rs", Role::Primary)
        );
        assert_eq!(modern(doc! { "setName": "rs", "secondary": true }), of("rs", Role::Secondary));
        assert_eq!(modern(doc! { "setName": "rs", "arbiterOnly": true }), of("rs", Role::Arbiter));
        assert_eq!(modern(doc! { "setName": "rs" }), of("rs", Role::Other));
        assert_eq!(state(&doc! { "maxWireVersion": 8, "setName": "rs" }), State::TooOld(8));
    }
}
