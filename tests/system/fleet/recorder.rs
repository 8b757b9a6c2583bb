//! Makes calls and writes each of them down.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use aws_lc_rs::digest;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jeton::{
    crypto::refresh_token::Presented,
    model::Claims,
    proto::{
        admin::{
            Client, CreateClientRequest, DisableClientRequest, GrantType, RevokeAllRequest,
            client_service_client::ClientServiceClient, create_client_request::Secret,
            revocation_service_client::RevocationServiceClient, revoke_all_request::Target,
        },
        token::{
            BatchIntrospectRequest, IntrospectRequest, RefreshRequest, RevokeRequest, TokenRequest,
            token_service_client::TokenServiceClient,
        },
    },
};
use tokio::{
    sync::broadcast,
    time::{Instant, timeout},
};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;

use crate::{
    fleet::{
        history::{Call, Fault, Issued, Line, Named, Outcome, Run, SECOND, Scribe, Verb},
        nodes::Node,
    },
    support::process,
};

/// A caller with its credentials.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) id: String,
    pub(crate) secret: String,
}

/// Tokens of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) access: String,
    /// Empty where the client does not refresh.
    pub(crate) refresh: String,
}

/// Reason for which a call gave nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nothing was changed; the reason.
    Refused(String),
    /// Nobody knows.
    Unknown,
}

pub(crate) type Answer<T> = Result<T, Failure>;

/// Writes a run down while it happens.
pub(crate) struct Recorder {
    began: Instant,
    scribe: Mutex<Scribe>,
    path: PathBuf,
    requests: AtomicU64,
    seed: u64,
    /// Every secret that was given out; none may be found anywhere.
    secrets: Mutex<Vec<String>>,
    /// Each call as it ends.
    calls: broadcast::Sender<Call>,
}

/// Longest wait of a caller: much longer than any call may take, so that one that hangs is
/// seen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Calls that a test may be behind when it waits for some.
const BEHIND: usize = 4_096;

/// Number of tokens that are looked for in files.
const TOKENS: usize = 40;

impl Recorder {
    pub(crate) fn new(run: Run) -> Arc<Self> {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fleet");
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join(format!("{}.jsonl", run.scenario));
        let mut scribe = Scribe::new(&path);
        let seed = run.seed;
        scribe.write(&Line::Run(run));
        eprintln!("history: {}", path.display());
        let (requests, secrets) = (AtomicU64::new(0), Mutex::default());
        Arc::new(Self {
            began: Instant::now(),
            scribe: Mutex::new(scribe),
            path,
            requests,
            seed,
            secrets,
            calls: broadcast::Sender::new(BEHIND),
        })
    }

    /// Microseconds since the run began.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap()
    }

    pub(crate) fn write(&self, line: &Line) {
        self.scribe.lock().unwrap().write(line);
    }

    /// Waits until so many calls that began at `since` or later end in this way from now on.
    pub(crate) async fn calls(&self, since: u64, count: usize, so: impl Fn(&Call) -> bool) {
        let mut calls = self.calls.subscribe();
        let counted = async {
            let mut left = count;
            while left > 0 {
                // Calls that are missed are made up for by others.
                let Ok(call) = calls.recv().await else { continue };
                left -= usize::from(call.start >= since && so(&call));
            }
        };
        timeout(process::PATIENCE, counted).await.expect("no such calls end");
    }

    /// The file, with everything in it.
    pub(crate) fn finished(&self) -> &Path {
        self.scribe.lock().unwrap().flush();
        &self.path
    }

    /// Whatever must not be found anywhere: of the many tokens, some.
    pub(crate) fn secrets(&self) -> Vec<String> {
        let secrets = self.secrets.lock().unwrap();
        let (tokens, others): (Vec<_>, Vec<_>) = secrets
            .iter()
            .cloned()
            .partition(|secret| secret.starts_with("eyJ") || secret.starts_with("jrt_"));
        let some = tokens.len().div_ceil(TOKENS).max(1);
        others.into_iter().chain(tokens.into_iter().step_by(some)).collect()
    }

    pub(crate) fn keep_secret(&self, secret: &str) {
        self.secrets.lock().unwrap().push(secret.to_owned());
    }

    /// Writes down that something was broken since `begin`, and until now.
    pub(crate) fn fault(&self, name: &str, node: Option<&str>, begin: u64, recovery: Duration) {
        let (name, node, end) = (name.to_owned(), node.map(str::to_owned), self.now());
        let recovery = u64::try_from(recovery.as_micros()).unwrap();
        self.write(&Line::Fault(Fault { name, node, begin, end, recovery }));
    }

    /// Token.
    pub(crate) async fn token(&self, node: &Node, caller: &Caller) -> Answer<Grant> {
        let message = TokenRequest {
            client_id: caller.id.clone(),
            client_secret: caller.secret.clone(),
            ..TokenRequest::default()
        };
        let entry = self.begin(node, Verb::Token, &caller.id, None);
        let answer =
            TokenServiceClient::new(node.channel.clone()).token(entry.request(message)).await;
        let answer = answer.map(|answer| {
            let answer = answer.into_inner();
            (
                Grant { access: answer.access_token, refresh: answer.refresh_token },
                answer.expires_in,
            )
        });
        self.granted(entry, answer)
    }

    /// Refresh.
    pub(crate) async fn refresh(&self, node: &Node, caller: &Caller, token: &str) -> Answer<Grant> {
        let message = RefreshRequest {
            client_id: caller.id.clone(),
            client_secret: caller.secret.clone(),
            refresh_token: token.to_owned(),
            scopes: Vec::new(),
        };
        let entry = self.begin(node, Verb::Refresh, &caller.id, Some(named(token)));
        let answer =
            TokenServiceClient::new(node.channel.clone()).refresh(entry.request(message)).await;
        let answer = answer.map(|answer| {
            let answer = answer.into_inner();
            (
                Grant { access: answer.access_token, refresh: answer.refresh_token },
                answer.expires_in,
            )
        });
        self.granted(entry, answer)
    }

    fn granted(&self, mut entry: Entry, answer: Result<(Grant, i64), Status>) -> Answer<Grant> {
        let granted = answer.map(|(grant, expires_in)| {
            let lives = u64::try_from(expires_in).unwrap() * SECOND;
            let refresh = (!grant.refresh.is_empty()).then(|| named(&grant.refresh));
            let jti = claims(&grant.access).jti.to_string();
            entry.call.issued = Some(Issued { jti, until: entry.call.start + lives, refresh });
            self.keep_secret(&grant.access);
            if !grant.refresh.is_empty() {
                self.keep_secret(&grant.refresh);
            }
            Response::new(grant)
        });
        self.end(entry, granted)
    }

    /// Revoke.
    pub(crate) async fn revoke(&self, node: &Node, caller: &Caller, token: &str) -> Answer<()> {
        let (client_id, client_secret) = (caller.id.clone(), caller.secret.clone());
        let message = RevokeRequest {
            client_id,
            client_secret,
            token: token.to_owned(),
            token_type_hint: String::new(),
        };
        let entry = self.begin(node, Verb::Revoke, &caller.id, Some(named(token)));
        let answer =
            TokenServiceClient::new(node.channel.clone()).revoke(entry.request(message)).await;
        self.end(entry, answer).map(drop)
    }

    /// Introspect.
    pub(crate) async fn introspect(
        &self,
        node: &Node,
        judge: &Caller,
        token: &str,
    ) -> Answer<bool> {
        let (client_id, client_secret) = (judge.id.clone(), judge.secret.clone());
        let message = IntrospectRequest {
            client_id,
            client_secret,
            token: token.to_owned(),
            token_type_hint: String::new(),
        };
        let mut entry = self.begin(node, Verb::Introspect, &judge.id, Some(named(token)));
        let answer =
            TokenServiceClient::new(node.channel.clone()).introspect(entry.request(message)).await;
        let answer = answer.map(|answer| {
            let active = answer.into_inner().active.expect("active is always there");
            entry.call.active = Some(active);
            Response::new(active)
        });
        self.end(entry, answer)
    }

    /// BatchIntrospect, written down as so many judgements of the same moment.
    pub(crate) async fn introspect_all(
        &self,
        node: &Node,
        judge: &Caller,
        tokens: &[String],
    ) -> Answer<Vec<bool>> {
        let (client_id, client_secret) = (judge.id.clone(), judge.secret.clone());
        let message = BatchIntrospectRequest { client_id, client_secret, tokens: tokens.to_vec() };
        let entry = self.begin(node, Verb::Introspect, &judge.id, None);
        let answer = TokenServiceClient::new(node.channel.clone())
            .batch_introspect(entry.request(message))
            .await;
        let results = match answer {
            Ok(answer) => answer.into_inner().results,
            Err(status) => return self.end(entry, Err(status)),
        };
        assert_eq!(results.len(), tokens.len());
        let end = self.now();
        let mut verdicts = Vec::new();
        for (token, result) in tokens.iter().zip(results) {
            let active = result.active.expect("active is always there");
            let call =
                Call { token: Some(named(token)), active: Some(active), end, ..entry.call.clone() };
            self.write(&Line::Call(call));
            verdicts.push(active);
        }
        Ok(verdicts)
    }

    /// RevokeAll of a client.
    pub(crate) async fn revoke_all(&self, node: &Node, bearer: &str, client: &str) -> Answer<()> {
        let target = Some(Target::ClientId(client.to_owned()));
        let message = RevokeAllRequest { target, reason: "the test says so".to_owned() };
        let entry = self.begin(node, Verb::RevokeAll, client, None);
        let request = entry.administer(bearer, message);
        let answer = RevocationServiceClient::new(node.channel.clone()).revoke_all(request).await;
        self.end(entry, answer).map(drop)
    }

    /// CreateClient with this id on this rate plan, which may refresh; the secret is made by the
    /// server, or this one.
    pub(crate) async fn create(
        &self,
        node: &Node,
        bearer: &str,
        id: &str,
        plan: &str,
        secret: Option<&str>,
    ) -> Answer<Caller> {
        let grants = vec![GrantType::ClientCredentials.into(), GrantType::RefreshToken.into()];
        let client = Client {
            client_id: id.to_owned(),
            scopes: vec!["orders:read".to_owned()],
            grant_types: grants,
            rate_plan: plan.to_owned(),
            ..Client::default()
        };
        let chosen = secret.map(|secret| Secret::PlainSecret(secret.to_owned()));
        let entry = self.begin(node, Verb::CreateClient, id, None);
        let request =
            entry.administer(bearer, CreateClientRequest { client: Some(client), secret: chosen });
        let answer = ClientServiceClient::new(node.channel.clone()).create_client(request).await;
        let created = self.end(entry, answer)?;
        let secret = secret.map_or(created.client_secret, str::to_owned);
        self.keep_secret(&secret);
        Ok(Caller { id: id.to_owned(), secret })
    }

    /// DisableClient.
    pub(crate) async fn disable(&self, node: &Node, bearer: &str, client: &str) -> Answer<()> {
        let entry = self.begin(node, Verb::DisableClient, client, None);
        let message = DisableClientRequest {
            client_id: client.to_owned(),
            etag: String::new(),
            allow_no_administrator: false,
        };
        let request = entry.administer(bearer, message);
        let answer = ClientServiceClient::new(node.channel.clone()).disable_client(request).await;
        self.end(entry, answer).map(drop)
    }

    fn begin(&self, node: &Node, verb: Verb, client: &str, token: Option<Named>) -> Entry {
        let request = format!("{:x}-{}", self.seed, self.requests.fetch_add(1, Relaxed));
        let (client, node, outcome) = (client.to_owned(), node.name.clone(), Outcome::Ok);
        let start = self.now();
        Entry {
            call: Call {
                start,
                end: start,
                node,
                verb,
                request,
                client,
                token,
                outcome,
                issued: None,
                active: None,
            },
        }
    }

    fn end<T>(&self, mut entry: Entry, answer: Result<Response<T>, Status>) -> Answer<T> {
        entry.call.end = self.now();
        entry.call.outcome = answer.as_ref().err().map_or(Outcome::Ok, outcome);
        let outcome = entry.call.outcome.clone();
        self.write(&Line::Call(entry.call.clone()));
        // Nobody may be waiting.
        let _ = self.calls.send(entry.call);
        answer.map(Response::into_inner).map_err(|_| match outcome {
            Outcome::Refused { reason, .. } => Failure::Refused(reason),
            Outcome::Ok | Outcome::Unknown { .. } => Failure::Unknown,
        })
    }
}

/// A call that is on its way.
struct Entry {
    call: Call,
}

impl Entry {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("x-request-id", self.call.request.parse().unwrap());
        request
    }

    fn administer<T>(&self, bearer: &str, message: T) -> Request<T> {
        let mut request = self.request(message);
        request.metadata_mut().insert("authorization", format!("Bearer {bearer}").parse().unwrap());
        request
    }
}

/// Details of a failed call.
fn outcome(status: &Status) -> Outcome {
    let reason = status.get_details_error_info().map(|info| info.reason);
    // The server says why in every error of its own. What is without comes from the transport on
    // this side.
    let Some(reason) = reason else {
        let why = format!("{:?}: {}", status.code(), status.message());
        return Outcome::Unknown { code: "TRANSPORT".to_owned(), why, retry: false };
    };
    let unknown = matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Internal
            | Code::Unknown
            | Code::Cancelled
            | Code::DataLoss
    );
    let code = grpc_name(status.code());
    if unknown || reason == "STORE_FULL" {
        let retry = status.get_details_retry_info().is_some();
        Outcome::Unknown { code, why: reason, retry }
    } else {
        Outcome::Refused { code, reason }
    }
}

/// As the protocol writes it.
fn grpc_name(code: Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

/// A token by its ids.
pub(crate) fn named(token: &str) -> Named {
    match Presented::parse(token) {
        Some(presented) => Named::Refresh {
            family: presented.family.to_string(),
            generation: presented.generation,
            print: print(token),
        },
        None => Named::Access { jti: claims(token).jti.to_string() },
    }
}

fn print(token: &str) -> String {
    let hash = digest::digest(&digest::SHA256, token.as_bytes());
    hash.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Claims of an access token, read without verifying it.
pub(crate) fn claims(token: &str) -> Claims {
    let payload = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    serde_json::from_slice(&payload).unwrap()
}
