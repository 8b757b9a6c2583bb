//! Secrets that must not be found in logs, files and metrics, and text that must not break a line of
//! the log. The server is a process of its own, and all of its output is kept.

use std::{
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread::JoinHandle,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use jeton::{
    model::{Call, Peer, Timestamp},
    oauth::Credentials,
    proto::{
        admin::{Client, CreateClientRequest, create_client_request::Secret},
        token::{
            BatchIntrospectRequest, IntrospectRequest, RefreshRequest, RevokeRequest, TokenRequest,
        },
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Request, metadata::MetadataValue};

use crate::{
    service::published::get,
    support::server::{Caller, Rpc, StoreDir, TestServer, bearer, refreshing, with_authorization},
};

/// The program, logging all it can as JSON.
struct Process {
    child: Child,
    log: Option<JoinHandle<Vec<u8>>>,
    home: Arc<StoreDir>,
    address: SocketAddr,
    metrics: SocketAddr,
    admin: Caller,
}

impl Process {
    fn start() -> Self {
        let home = StoreDir::new();
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_jeton"))
            .args(["serve", "--dev", "--json", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(home.data_dir())
            .env_clear()
            .env("HOME", home.master_key_file().parent().unwrap())
            .envs(home.variables())
            .env("JETON_LOG__LEVEL", "trace")
            .env("JETON_LOG__FORMAT", "json")
            .env("JETON_METRICS_LISTEN", metrics.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let log = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let first: serde_json::Value =
            serde_json::from_str(&line).expect("the first line of the program");
        let text = |member: &str| first[member].as_str().unwrap().to_owned();
        let admin = Caller { id: text("client_id"), secret: text("client_secret") };
        Self {
            child,
            log: Some(log),
            home,
            address: text("address").parse().unwrap(),
            metrics,
            admin,
        }
    }

    /// Text that the kernel shows of the process to others.
    fn seen_from_outside(&self) -> String {
        let proc = |file: &str| match std::fs::read(format!("/proc/{}/{file}", self.child.id())) {
            // The process is not dumpable: its environment is root's to read.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Vec::new(),
            read => read.unwrap(),
        };
        String::from_utf8_lossy(&[proc("cmdline"), proc("environ")].concat()).into_owned()
    }

    /// Stops it, and gives back all it logged.
    fn stop(&mut self) -> String {
        Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        self.child.wait().unwrap();
        String::from_utf8(self.log.take().unwrap().join().unwrap()).expect("the log is UTF-8")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Secrets that must stay where they belong: whole, and the part of them that nobody can guess.
#[derive(Default)]
struct Canaries(Vec<String>);

impl Canaries {
    fn add(&mut self, secret: &str) {
        self.0.push(secret.to_owned());
        self.0.push(secret[secret.len().saturating_sub(24)..].to_owned());
    }

    fn found_in<'a>(&'a self, text: &str) -> Option<&'a str> {
        self.0.iter().map(String::as_str).find(|canary| text.contains(canary))
    }
}

/// Every token RPC with these credentials and this token, in each way of presenting them, whatever
/// comes of it.
async fn present(server: &TestServer, caller: &Caller, token: &str) {
    let Caller { id, secret } = caller.clone();
    let basic = format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")));
    let ask = TokenRequest {
        client_id: id.clone(),
        client_secret: secret.clone(),
        ..TokenRequest::default()
    };
    let _ = server.tokens().token(ask.clone()).await;
    let _ = server
        .tokens()
        .token(TokenRequest { grant_type: "password".to_owned(), ..ask.clone() })
        .await;
    let _ =
        server.tokens().token(TokenRequest { scopes: vec![secret.clone()], ..ask.clone() }).await;
    let _ = server
        .tokens()
        .token(TokenRequest { resources: vec![secret.clone(), token.to_owned()], ..ask.clone() })
        .await;
    // In the wrong place: a secret for an id, an id for a secret.
    let _ = server
        .tokens()
        .token(TokenRequest { client_id: secret.clone(), client_secret: id.clone(), ..ask.clone() })
        .await;
    let _ = server.tokens().token(with_authorization(ask, &basic)).await;
    let _ = server.tokens().token(with_authorization(TokenRequest::default(), &basic)).await;
    let judge = IntrospectRequest {
        client_id: id.clone(),
        client_secret: secret.clone(),
        token: token.to_owned(),
        ..IntrospectRequest::default()
    };
    for hint in ["", "refresh_token", secret.as_str()] {
        let _ = server
            .tokens()
            .introspect(IntrospectRequest { token_type_hint: hint.to_owned(), ..judge.clone() })
            .await;
    }
    let _ = server
        .tokens()
        .introspect(bearer(
            IntrospectRequest { token: token.to_owned(), ..Default::default() },
            token,
        ))
        .await;
    let _ = server
        .tokens()
        .introspect(with_authorization(IntrospectRequest::default(), &format!("Digest {secret}")))
        .await;
    let batch = BatchIntrospectRequest {
        client_id: id.clone(),
        client_secret: secret.clone(),
        tokens: vec![token.to_owned(), secret.clone()],
    };
    let _ = server.tokens().batch_introspect(batch).await;
    let refresh = RefreshRequest {
        client_id: id.clone(),
        client_secret: secret.clone(),
        refresh_token: token.to_owned(),
        scopes: Vec::new(),
    };
    for refresh_token in [token.to_owned(), format!("{token}x"), secret.clone()] {
        let _ = server.tokens().refresh(RefreshRequest { refresh_token, ..refresh.clone() }).await;
    }
    let revoke = RevokeRequest {
        client_id: id,
        client_secret: secret,
        token: format!("{token}x"),
        ..Default::default()
    };
    let _ = server.tokens().revoke(revoke).await;
}

/// O01: secrets and tokens sent through every RPC, rightly and wrongly, with everything logged that
/// can be: they are in no line of the log, no file of the data directory, no number, no argument
/// and no variable of the process.
#[tokio::test]
async fn secrets_are_found_nowhere() {
    let mut process = Process::start();
    let server = TestServer::remote(process.address, process.admin.clone()).await;
    let mut canaries = Canaries::default();
    canaries.add(&process.admin.secret);

    let caller = server.register(Client { client_id: "canary".to_owned(), ..refreshing() }).await;
    let plain = "canary-plain-3f9a7c51d0e24b68".to_owned();
    let message = CreateClientRequest {
        client: Some(Client { client_id: "imported".to_owned(), ..refreshing() }),
        secret: Some(Secret::PlainSecret(plain.clone())),
    };
    server.clients().create_client(server.as_admin(message).await).await.unwrap();
    let imported = Caller { id: "imported".to_owned(), secret: plain };
    let wrong =
        Caller { id: "canary".to_owned(), secret: "canary-wrong-77b1e05aa9c84d21".to_owned() };
    let issued = server.token(&caller, &[]).await.unwrap();
    let refreshed = server.refresh(&caller, &issued.refresh_token).await.unwrap();
    let admin_token = server.admin_token().await;
    for caller in [&caller, &imported, &wrong] {
        canaries.add(&caller.secret);
        canaries.add(&STANDARD.encode(format!("{}:{}", caller.id, caller.secret)));
    }
    let tokens = [
        &issued.access_token,
        &issued.refresh_token,
        &refreshed.access_token,
        &refreshed.refresh_token,
    ];
    for token in tokens.into_iter().chain([&admin_token]) {
        canaries.add(token);
    }
    for caller in [&caller, &imported, &wrong] {
        for token in [&issued.access_token, &refreshed.refresh_token] {
            present(&server, caller, token).await;
        }
    }
    for (n, rpc) in Rpc::ALL.into_iter().enumerate() {
        let mark = server.rpc_target(&format!("mark-{n}"), "shop").await;
        canaries.add(&mark.client.secret);
        canaries.add(&mark.access_token);
        canaries.add(&mark.refresh_token);
        for token in [&mark.access_token, &mark.refresh_token, &wrong.secret] {
            server.call_rpc(rpc, token, &mark).await.unwrap_err();
        }
        if matches!(rpc, Rpc::RevokeKey | Rpc::RevokeSigner) {
            continue;
        }
        // A secret where something else belongs.
        let mut strange = mark.clone();
        strange.secret_id = wrong.secret.clone();
        strange.family = wrong.secret.clone();
        strange.jti = wrong.secret.clone();
        let _ = server.call_rpc(rpc, &admin_token, &strange).await;
    }
    // Over HTTP/1.1, where nothing takes it.
    get(process.address, &format!("/.well-known/jwks.json?access_token={}", issued.access_token))
        .await;

    let (_, _, metrics) = get(process.metrics, "/metrics").await;
    let metrics = String::from_utf8(metrics).unwrap();
    assert!(metrics.contains("grpc_server_handled_total"), "{metrics}");
    assert_eq!(canaries.found_in(&metrics), None);
    assert_eq!(canaries.found_in(&process.seen_from_outside()), None);
    let log = process.stop();
    assert!(
        log.lines().count() > 500 && log.contains("TRACE"),
        "the log is there: {} lines",
        log.lines().count()
    );
    let hit = log.lines().find_map(|line| canaries.found_in(line).map(|canary| (canary, line)));
    assert_eq!(hit, None);
    for canary in &canaries.0 {
        assert!(!process.home.holds(canary).await, "{canary} is kept");
    }
}

/// O01: what can be printed of our types does not show what is in them.
#[test]
fn debug_output_shows_no_secret() {
    let secret = "canary-5d0c";
    let credentials = [
        Credentials::Secret { client_id: "a".to_owned(), secret: secret.into() },
        Credentials::Bearer(secret.into()),
        Credentials::None,
    ];
    assert!(!format!("{credentials:?} {credentials:#?}").contains(secret));
    let digests = [
        jeton::model::Digest::Keyed { hmac: secret.to_owned() },
        jeton::model::Digest::Argon2id { phc: secret.to_owned() },
    ];
    assert!(!format!("{digests:?}").contains(secret));
    let key = jeton::model::SigningKey {
        kid: "k".parse().unwrap(),
        alg: jeton::model::keyset::Algorithm::EdDsa,
        state: jeton::model::KeyState::Prepared { activate_at: None },
        created_at: Timestamp::from_seconds(0),
        sealed: secret.to_owned(),
    };
    let keyset = jeton::model::Keyset {
        revision: 1,
        keys: vec![key],
        sealed_root: secret.to_owned(),
        mac: String::new(),
    };
    assert!(!format!("{keyset:?}").contains(secret));
    let call = Call { now: Timestamp::from_seconds(0), peer: Peer::Local, request_id: "r".into() };
    assert!(format!("{call:?}").contains("Local"));
}

/// O02: whatever is in an id, a header or a path, an event is one line of JSON of bounded length
/// without control characters.
#[tokio::test]
async fn nothing_that_is_sent_breaks_a_line_of_the_log() {
    let mut process = Process::start();
    let server = TestServer::remote(process.address, process.admin.clone()).await;
    let nasty =
        "a\r\n{\"level\":\"ERROR\",\"message\":\"forged\"}\u{1b}[31m\u{2028}\u{202e}\u{9b}\0\u{7f}";
    let long = format!("{nasty}{}", "x\u{2028}".repeat(15_000));
    let mebibyte = "y\n".repeat(512 * 1024);
    for id in [nasty, &long, &mebibyte] {
        let caller = Caller { id: id.to_owned(), secret: "jcs_x".to_owned() };
        let _ = server.token(&caller, &[id]).await;
        let _ = server.introspect_as(&caller, id).await;
        let _ = server.revoke(&caller, id).await;
        let _ = server.refresh(&caller, id).await;
        let _ = server
            .create(Client {
                client_id: id.to_owned(),
                display_name: id.to_owned(),
                ..Client::default()
            })
            .await;
        let _ = server.try_get(id).await;
    }
    // What a header of HTTP/2 may hold: no line break, but everything beyond ASCII.
    for value in ["\u{2028}\u{202e}", "a\u{9b}b", "\u{feff}", &"z".repeat(8_000)] {
        let mut request = Request::new(TokenRequest::default());
        for name in ["x-request-id", "x-user-agent", "authorization", "x-forwarded-for"] {
            if let Ok(value) = MetadataValue::try_from(value.as_bytes()) {
                request.metadata_mut().insert(name, value);
            }
        }
        let _ = server.tokens().token(request).await;
    }
    // And of HTTP/1.1, by hand.
    let mut raws: Vec<Vec<u8>> = ["\u{1b}[31m", "\u{2028}", "a\rb", "a\n b", "\u{9b}", "\0"]
        .iter()
        .map(|text| {
            format!(
                "GET /{text} HTTP/1.1\r\nhost: x\r\nuser-agent: {text}\r\nx-request-id: \
                 {text}\r\nconnection: close\r\n\r\n"
            )
            .into_bytes()
        })
        .collect();
    raws.push(
        format!("GET /healthz HTTP/1.1\r\nhost: x\r\nuser-agent: {}\r\n\r\n", "u".repeat(1 << 20))
            .into_bytes(),
    );
    raws.push(
        format!(
            "GET /{} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            "%0d%0a%1b".repeat(1_000)
        )
        .into_bytes(),
    );
    for raw in raws {
        let mut stream = TcpStream::connect(process.address).await.unwrap();
        let _ = stream.write_all(&raw).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    let log = process.stop();
    assert!(log.lines().count() > 100);
    let deceives = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    for line in log.split('\n').filter(|line| !line.is_empty()) {
        assert!(!line.chars().any(|c| c.is_control() || deceives(c)), "{line:?}");
        assert!(line.len() <= 20 * 1024, "{} bytes", line.len());
        let event: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(event["level"].is_string() && event["timestamp"].is_string(), "{line}");
        assert_ne!(event["message"], "forged");
    }
}
