//! Speaking TLS, and showing a certificate of one's own.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::cli::home::{CliHome, Ran, Server, run};

/// An authority, and a certificate of it for this machine: files `ca`, `cert` and `key`.
pub(crate) fn certificates(home: &CliHome) -> [PathBuf; 3] {
    let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let cert = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    [("ca", authority.pem()), ("cert", cert.pem()), ("key", key.serialize_pem())]
        .map(|(name, pem)| home.file(name, &pem))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn commands_speak_tls_to_the_authority_they_are_given() {
    let home = CliHome::new();
    let [ca, cert, key] = certificates(&home);
    let config = home.file("c.toml", &format!("[tls]\ncert_file = {cert:?}\nkey_file = {key:?}\n"));
    let server = home.serve_dev(&["--config", text(&config)]);
    home.jeton(&["token", "--ca", text(&ca)]).ok();
    home.jeton(&["token"]).ok();
    home.jeton(&["token", "--ca", text(&cert)]).ok();
    let other = CliHome::new();
    let [untrusted, ..] = certificates(&other);
    let refused = home.jeton(&["token", "--ca", text(&untrusted)]);
    assert_untrusted(&refused, "its issuer is unknown", "--ca FILE");
    let doctor = home
        .until(
            &["doctor", "--dev", "--config", text(&config), "--listen", server.address()],
            Ran::is_ok,
        )
        .ok();
    assert!(doctor.out.contains("matches its key"), "{doctor:?}");
    server.stop();
}

#[test]
fn a_developers_own_certificate_needs_no_flags() {
    let home = CliHome::new();
    let key = KeyPair::generate().unwrap();
    let cert =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let (cert, key) = (home.file("cert", &cert.pem()), home.file("key", &key.serialize_pem()));
    let config = home.file("c.toml", &format!("[tls]\ncert_file = {cert:?}\nkey_file = {key:?}\n"));
    let server = home.serve_dev(&["--config", text(&config)]);
    home.jeton(&["token"]).ok();
    server.stop();
}

#[test]
fn a_server_that_wants_a_certificate_gets_one() {
    let home = CliHome::new();
    let [ca, cert, key] = certificates(&home);
    let tls = format!("[tls]\ncert_file = {cert:?}\nkey_file = {key:?}\nclient_ca_file = {ca:?}\n");
    let config = home.file("c.toml", &tls);
    let server = home.serve_dev(&["--config", text(&config)]);
    let bare = home.jeton(&["token", "--ca", text(&ca)]);
    assert!(bare.code == 4 && bare.err.contains("connection lost"), "{bare:?}");
    assert!(bare.err.contains("client certificate"), "{bare:?}");
    assert!(bare.err.contains("--cert"), "{bare:?}");
    assert_eq!(home.jeton(&["token", "--ca", text(&ca), "--cert", text(&cert)]).code, 2);
    home.jeton(&["token", "--ca", text(&ca), "--cert", text(&cert), "--key", text(&key)]).ok();
    // The context of `serve --dev` keeps them from now on, after the next start too.
    let edit = ["context", "edit", "dev", "--cert", text(&cert), "--key", text(&key)];
    home.jeton(&edit).ok();
    home.jeton(&["token"]).ok();
    server.stop();
    let server = home.serve_dev(&["--config", text(&config)]);
    home.jeton(&["token"]).ok();
    server.stop();
}

/// A certificate of its own that is also an authority, as `openssl req -x509` makes it.
fn self_signed(home: &CliHome, names: &[&str]) -> [PathBuf; 2] {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    [home.file("own", &cert.pem()), home.file("own.key", &key.serialize_pem())]
}

fn serve([cert, key]: &[PathBuf; 2], home: &CliHome) -> Server {
    let config =
        home.file("own.toml", &format!("[tls]\ncert_file = {cert:?}\nkey_file = {key:?}\n"));
    home.serve_dev(&["--config", text(&config)])
}

fn assert_untrusted(ran: &Ran, why: &str, advice: &str) {
    assert_eq!(ran.code, 4, "{ran:?}");
    for part in ["the server's certificate is not trusted", why, advice] {
        assert!(ran.err.contains(part), "{part}: {ran:?}");
    }
    assert!(!ran.err.contains("server is running"), "{ran:?}");
}

/// B29
#[test]
fn a_self_signed_certificate_is_trusted_where_it_is_named() {
    let home = CliHome::new();
    let files = self_signed(&home, &["127.0.0.1"]);
    let server = serve(&files, &home);
    home.jeton(&["token"]).ok();
    home.jeton(&["token", "--ca", text(&files[0])]).ok();
    let other = CliHome::new();
    let [another, _] = self_signed(&other, &["127.0.0.1"]);
    let refused = home.jeton(&["token", "--ca", text(&another)]);
    assert_untrusted(&refused, "certificate of an authority", "--ca FILE");
    server.stop();
}

/// B29: the name is checked where the certificate is named by `--ca`, which says nothing of the
/// address; the context's own file is that of this very server.
#[test]
fn a_wrong_name_is_accepted_from_the_contexts_own_certificate_alone() {
    let home = CliHome::new();
    let files = self_signed(&home, &["other.example"]);
    let server = serve(&files, &home);
    home.jeton(&["token"]).ok();
    let refused = home.jeton(&["token", "--ca", text(&files[0])]);
    assert_untrusted(&refused, "other.example", "use a name of the certificate");
    server.stop();
}

/// B28
#[test]
fn the_authorities_of_the_machine_are_trusted_without_a_flag() {
    let home = CliHome::new();
    let [ca, cert, key] = certificates(&home);
    let server = serve(&[cert, key], &home);
    let url = format!("https://{}", server.address());
    let secret = home.file("secret", server.said["client_secret"].as_str().unwrap());
    let elsewhere = CliHome::new();
    let arguments = [
        "token",
        "--address",
        &url,
        "--client-id",
        "bootstrap",
        "--client-secret-file",
        text(&secret),
    ];
    let ask = |authorities: &Path| {
        let mut command = elsewhere.command(&arguments);
        run(command.env("SSL_CERT_FILE", authorities), "")
    };
    ask(&ca).ok();
    let [another, ..] = certificates(&elsewhere);
    assert_untrusted(&ask(&another), "its issuer is unknown", "--ca FILE");
    let none = ask(Path::new("/nonexistent"));
    assert!(none.code == 64 && none.err.contains("--ca FILE"), "{none:?}");
    server.stop();
}

#[test]
fn a_wrong_scheme_is_named() {
    let home = CliHome::new();
    let files = self_signed(&home, &["127.0.0.1"]);
    let server = serve(&files, &home);
    let ask = |home: &CliHome, scheme: &str, address: &str| {
        let secret = home.file("secret", "jcs_x");
        let url = format!("{scheme}://{address}");
        let ca = text(&files[0]);
        let secret = text(&secret);
        home.jeton(&[
            "token",
            "--address",
            &url,
            "--ca",
            ca,
            "--client-id",
            "c",
            "--client-secret-file",
            secret,
        ])
    };
    let plain = ask(&home, "http", server.address());
    assert!(plain.code == 4 && plain.err.contains("https://"), "{plain:?}");
    server.stop();
    let open = CliHome::new();
    let server = open.serve();
    let tls = ask(&open, "https", server.address());
    assert!(tls.code == 4 && tls.err.contains("does not speak TLS"), "{tls:?}");
    assert!(tls.err.contains("use http://"), "{tls:?}");
    server.stop();
}
