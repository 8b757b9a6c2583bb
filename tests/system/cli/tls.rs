//! Speaking TLS, and showing a certificate of one's own.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::cli::home::{House, Ran};

/// An authority, and a certificate of it for this machine: files `ca`, `cert` and `key`.
fn certificates(house: &House) -> [PathBuf; 3] {
    let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let cert = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    [("ca", authority.pem()), ("cert", cert.pem()), ("key", key.serialize_pem())]
        .map(|(name, pem)| house.file(name, &pem))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn commands_speak_tls_to_the_authority_they_are_given() {
    let house = House::new();
    let [ca, cert, key] = certificates(&house);
    let config =
        house.file("c.toml", &format!("[tls]\ncert_file = {cert:?}\nkey_file = {key:?}\n"));
    let server = house.serve_dev(&["--config", text(&config)]);
    let url = format!("https://{}", server.address());
    house.jeton(&["token", "--ca", text(&ca)]).ok();
    let unknown = house.jeton(&["token"]);
    assert!(
        unknown.code == 4 && unknown.err.contains("certificate"),
        "the certificate is not its own authority: {unknown:?}"
    );
    let other = House::new();
    let [untrusted, ..] = certificates(&other);
    let refused = house.jeton(&["token", "--ca", text(&untrusted)]);
    assert!(refused.code == 4 && refused.err.contains("certificate"), "{refused:?}");
    let without = other.jeton(&["token", "--address", &url]);
    assert!(without.code == 64 && without.err.contains("--ca"), "{without:?}");
    let doctor = house
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
    let house = House::new();
    let key = KeyPair::generate().unwrap();
    let cert =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let (cert, key) = (house.file("cert", &cert.pem()), house.file("key", &key.serialize_pem()));
    let config =
        house.file("c.toml", &format!("[tls]\ncert_file = {cert:?}\nkey_file = {key:?}\n"));
    let server = house.serve_dev(&["--config", text(&config)]);
    house.jeton(&["token"]).ok();
    server.stop();
}

#[test]
fn a_server_that_wants_a_certificate_gets_one() {
    let house = House::new();
    let [ca, cert, key] = certificates(&house);
    let tls = format!("[tls]\ncert_file = {cert:?}\nkey_file = {key:?}\nclient_ca_file = {ca:?}\n");
    let config = house.file("c.toml", &tls);
    let server = house.serve_dev(&["--config", text(&config)]);
    let bare = house.jeton(&["token", "--ca", text(&ca)]);
    assert!(bare.code == 4 && bare.err.contains("connection lost"), "{bare:?}");
    assert_eq!(house.jeton(&["token", "--ca", text(&ca), "--cert", text(&cert)]).code, 2);
    house.jeton(&["token", "--ca", text(&ca), "--cert", text(&cert), "--key", text(&key)]).ok();
    server.stop();
}
