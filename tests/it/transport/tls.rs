//! The port under TLS.

use std::{fs, path::Path, sync::Arc, time::Duration};

use http::Version;
use jeton::{
    api::listen::{Options, TlsError, TlsReloader},
    clock::ManualClock,
    config,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::transport::proxies;
use crate::transport::support::{
    NOW, Server, TOKEN, connect_from,
    frames::{PREFACE, closes},
    http::{Answer, ask_over, get, grpc, play},
    options,
};

type Ca = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Ca {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate and key, as PEM.
fn pair(ca: &Ca, usage: ExtendedKeyUsagePurpose, until: i32) -> (String, String) {
    let mut params = CertificateParams::new(["port.example".to_owned()]).unwrap();
    params.extended_key_usages = vec![usage];
    params.not_after = date_time_ymd(until, 1, 1);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, ca).unwrap().pem(), key.serialize_pem())
}

fn server_pair(ca: &Ca) -> (String, String) {
    pair(ca, ExtendedKeyUsagePurpose::ServerAuth, 2100)
}

/// The files of a server.
struct Files {
    dir: TempDir,
}

impl Files {
    fn new(pair: &(String, String)) -> Self {
        let files = Self { dir: TempDir::new().unwrap() };
        files.write(pair);
        files
    }

    fn write(&self, (cert, key): &(String, String)) {
        fs::write(self.dir.path().join("cert.pem"), cert).unwrap();
        fs::write(self.dir.path().join("key.pem"), key).unwrap();
    }

    fn config(&self) -> config::Tls {
        let path = |name: &str| self.dir.path().join(name);
        config::Tls {
            cert_file: path("cert.pem"),
            key_file: path("key.pem"),
            ..config::Tls::default()
        }
    }

    fn open(&self) -> Arc<TlsReloader> {
        open(&self.config()).unwrap().unwrap()
    }
}

fn open(files: &config::Tls) -> Result<Option<Arc<TlsReloader>>, TlsError> {
    TlsReloader::open(files, Arc::new(ManualClock::at(NOW)))
}

async fn serve(tls: Arc<TlsReloader>) -> Server {
    Server::with(Options { tls: Some(tls), ..options() }, Duration::from_secs(60)).await
}

/// A client that trusts `ca` and offers `alpn`.
async fn connect(
    server: &Server,
    ca: &Ca,
    alpn: &[&str],
    own: Option<&(String, String)>,
) -> std::io::Result<TlsStream<TcpStream>> {
    connect_over(TcpStream::connect(server.address).await.unwrap(), ca, alpn, own).await
}

async fn connect_over(
    stream: TcpStream,
    ca: &Ca,
    alpn: &[&str],
    own: Option<&(String, String)>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
            builder
                .with_client_auth_cert(
                    vec![cert],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap()
        }
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("port.example").unwrap(), stream)
        .await
}

async fn call(stream: TlsStream<TcpStream>) -> Result<Answer, hyper::Error> {
    ask_over(stream, grpc(TOKEN).body(play("")).unwrap()).await
}

/// OPERATORS 4.11: a balancer of TCP sends its header before the handshake that it passes on.
#[tokio::test]
async fn the_header_of_a_proxy_comes_before_tls() {
    let ca = authority();
    let tls = Some(Files::new(&server_pair(&ca)).open());
    let options = Options { tls, proxies: proxies::announcing("127.0.0.2"), ..options() };
    let server = Server::with(options, Duration::from_secs(60)).await;
    let mut stream = connect_from([127, 0, 0, 2], server.address).await;
    stream.write_all(&proxies::header(0x21, 0x11, &proxies::v4([192, 0, 2, 7]))).await.unwrap();
    call(connect_over(stream, &ca, &["h2"], None).await.unwrap()).await.unwrap().token();
    assert_eq!(*server.peers.lock().unwrap(), ["192.0.2.7"]);
    let stream = connect_from([127, 0, 0, 2], server.address).await;
    assert!(connect_over(stream, &ca, &["h2"], None).await.is_err(), "without a header");
    call(connect(&server, &ca, &["h2"], None).await.unwrap()).await.unwrap().token();
    assert_eq!(server.peers.lock().unwrap().last().unwrap(), "127.0.0.1");
}

/// T02: what was agreed in the handshake is what is spoken.
#[tokio::test]
async fn both_versions_are_negotiated() {
    let ca = authority();
    let server = serve(Files::new(&server_pair(&ca)).open()).await;
    for offered in [&["h2"][..], &["h2", "http/1.1"], &[]] {
        call(connect(&server, &ca, offered, None).await.unwrap()).await.unwrap().token();
    }
    for offered in [&["http/1.1"][..], &[]] {
        let stream = connect(&server, &ca, offered, None).await.unwrap();
        assert_eq!(ask_over(stream, get("/healthz", Version::HTTP_11)).await.unwrap().status, 200);
    }
    let other = connect(&server, &ca, &["http/1.1"], None).await.unwrap();
    assert!(call(other).await.is_err(), "agreed to HTTP/1.1 and spoke HTTP/2");
    assert!(connect(&server, &ca, &["spdy/3"], None).await.is_err());
}

/// T02: plaintext to the port is closed, not answered and not sent elsewhere.
#[tokio::test]
async fn plaintext_is_closed() {
    let ca = authority();
    let server = serve(Files::new(&server_pair(&ca)).open()).await;
    for said in [PREFACE, b"GET /healthz HTTP/1.1\r\nhost: port\r\n\r\n"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        // A reset is a way of closing too.
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.len() <= 7, "at most an alert: {answer:?}");
    }
}

/// T01: nothing before TLS 1.2.
#[tokio::test]
async fn tls_1_1_is_refused() {
    let ca = authority();
    let server = serve(Files::new(&server_pair(&ca)).open()).await;
    for version in [[3, 1], [3, 2]] {
        // A ClientHello of one suite (TLS_RSA_WITH_AES_128_CBC_SHA) and no extensions.
        let body = [&version[..], &[7; 32], &[0, 0, 2, 0, 0x2f, 1, 0]].concat();
        let hello = [&[1, 0, 0, body.len() as u8][..], &body].concat();
        let record = [&[22, 3, 1, 0, hello.len() as u8][..], &hello].concat();
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&record).await.unwrap();
        let mut alert = [0; 7];
        stream.read_exact(&mut alert).await.unwrap();
        assert_eq!((alert[0], alert[5]), (21, 2), "a fatal alert: {alert:?}");
    }
}

/// L09: half a handshake is not waited for.
#[tokio::test]
async fn half_a_handshake_is_closed() {
    let ca = authority();
    let tls = Some(Files::new(&server_pair(&ca)).open());
    let patience = Duration::from_secs(10);
    let server =
        Server::with(Options { tls, handshake: patience, ..options() }, Duration::from_secs(60))
            .await;
    let mut half = Vec::new();
    for said in [&b""[..], &[22], &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]] {
        for _ in 0..100 {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(said).await.unwrap();
            half.push(stream);
        }
    }
    // Also those that shake hands and then say nothing.
    let mut silent = connect(&server, &ca, &["h2"], None).await.unwrap();
    call(connect(&server, &ca, &["h2"], None).await.unwrap()).await.unwrap().token();
    for mut stream in half {
        assert!(closes(&mut stream).await);
    }
    assert!(closes(&mut silent).await);
}

/// T04: a new pair is used by the next handshake, and by no open connection.
#[tokio::test]
async fn a_new_pair_is_taken_up_without_dropping_a_connection() {
    let (old, new) = (authority(), authority());
    let files = Files::new(&server_pair(&old));
    let tls = files.open();
    let server = serve(Arc::clone(&tls)).await;
    let open = connect(&server, &old, &["h2"], None).await.unwrap();
    assert!(!tls.reload().unwrap(), "nothing is new");

    files.write(&server_pair(&new));
    assert!(tls.reload().unwrap());
    call(open).await.unwrap().token();
    assert!(connect(&server, &old, &["h2"], None).await.is_err());
    call(connect(&server, &new, &["h2"], None).await.unwrap()).await.unwrap().token();
}

/// T04: whatever is wrong with the new files, the old pair stays, and it is said once.
#[tokio::test]
async fn a_broken_pair_leaves_the_old_one_in_use() {
    let ca = authority();
    let good = server_pair(&ca);
    let other = server_pair(&ca);
    let half = |text: &str| text[..text.len() / 2].to_owned();
    let files = Files::new(&good);
    let tls = files.open();
    let server = serve(Arc::clone(&tls)).await;
    let expired = pair(&ca, ExtendedKeyUsagePurpose::ServerAuth, 2020);
    for (what, broken) in [
        ("half a certificate", (half(&good.0), good.1.clone())),
        ("half a key", (good.0.clone(), half(&good.1))),
        ("empty", (String::new(), String::new())),
        ("another's key", (good.0.clone(), other.1.clone())),
        ("expired", expired),
    ] {
        files.write(&broken);
        let error = tls.reload().expect_err(what);
        assert!(!format!("{error} {error:?}").contains("BEGIN"), "{error:?}");
        assert!(!tls.reload().unwrap(), "{what}: said once");
        call(connect(&server, &ca, &["h2"], None).await.unwrap()).await.unwrap().token();
    }
    fs::remove_file(&files.config().cert_file).unwrap();
    assert!(tls.reload().is_err());
    files.write(&other);
    assert!(tls.reload().unwrap());
    call(connect(&server, &ca, &["h2"], None).await.unwrap()).await.unwrap().token();
}

/// T03, T04: a port that was to have TLS has it, or is not opened.
#[test]
fn half_a_configuration_is_an_error() {
    let ca = authority();
    let files = Files::new(&server_pair(&ca));
    let whole = files.config();
    assert!(open(&config::Tls::default()).unwrap().is_none());
    assert!(open(&whole).unwrap().is_some());
    let none = || Path::new("").to_owned();
    for half in [
        config::Tls { key_file: none(), ..whole.clone() },
        config::Tls { cert_file: none(), ..whole.clone() },
        config::Tls { client_ca_file: whole.cert_file.clone(), ..config::Tls::default() },
    ] {
        assert!(matches!(open(&half), Err(TlsError::Half(..))), "{half:?}");
    }
    let missing = config::Tls { cert_file: "no/such/file".into(), ..whole.clone() };
    assert!(matches!(open(&missing), Err(TlsError::Read(..))));
    files.write(&pair(&ca, ExtendedKeyUsagePurpose::ServerAuth, 2020));
    assert!(matches!(open(&whole), Err(TlsError::Expired(_))));
}

/// With a client CA set, who has no certificate of it does not get in, and who has is known to the
/// handlers.
#[tokio::test]
async fn client_certificates_are_required_where_asked_for() {
    let (ca, clients, strangers) = (authority(), authority(), authority());
    let files = Files::new(&server_pair(&ca));
    let client_ca_file = files.dir.path().join("clients.pem");
    fs::write(&client_ca_file, clients.pem()).unwrap();
    let server =
        serve(open(&config::Tls { client_ca_file, ..files.config() }).unwrap().unwrap()).await;

    let known = pair(&clients, ExtendedKeyUsagePurpose::ClientAuth, 2100);
    let answer = call(connect(&server, &ca, &["h2"], Some(&known)).await.unwrap()).await.unwrap();
    assert_eq!(answer.token().scopes[1], "1", "one certificate was seen");

    let stranger = pair(&strangers, ExtendedKeyUsagePurpose::ClientAuth, 2100);
    let expired = pair(&clients, ExtendedKeyUsagePurpose::ClientAuth, 2020);
    let servers = pair(&clients, ExtendedKeyUsagePurpose::ServerAuth, 2100);
    for own in [None, Some(&stranger), Some(&expired), Some(&servers)] {
        // In TLS 1.3 the client hears of it only when it goes on.
        if let Ok(stream) = connect(&server, &ca, &["h2"], own).await {
            assert!(call(stream).await.is_err());
        }
    }
}
