//! Credentials of members: a key file, certificates of an authority made for the set.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, PKCS_ECDSA_P256_SHA256,
};
use time::{Duration, OffsetDateTime};

/// Content of the key file: base64, at least 6 characters.
pub(crate) const KEY: &str = "canaryOfTheKeyFile0123456789";

pub(crate) struct Secrets {
    dir: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Secrets {
    pub(crate) fn new(dir: &Path) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority of the tests");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let authority = CertifiedIssuer::self_signed(params, key).unwrap();
        let secrets = Self { dir: dir.to_owned(), authority };
        write(&secrets.authority_file(), &secrets.authority.pem());
        write(&secrets.key_file(), KEY);
        secrets
    }

    /// The certificate that others are checked against.
    pub(crate) fn authority_file(&self) -> PathBuf {
        self.dir.join("authority.pem")
    }

    /// Shared key of the members, where there are users.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.dir.join("key")
    }

    /// Certificate and key of this member.
    pub(crate) fn member_file(&self, member: usize) -> PathBuf {
        self.dir.join(format!("member-{member}.pem"))
    }

    /// Makes the member a certificate that ends after so long.
    pub(crate) fn certify(&self, member: usize, validity: std::time::Duration) {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, format!("member {member}"));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = OffsetDateTime::now_utc() - Duration::HOUR;
        params.not_after = OffsetDateTime::now_utc() + validity;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        write(&self.member_file(member), &format!("{}{}", certificate.pem(), key.serialize_pem()));
    }
}

/// mongod wants its key file to be nobody else's.
fn write(path: &Path, text: &str) {
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
}
