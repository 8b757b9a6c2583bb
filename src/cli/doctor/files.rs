//! Checks of files: the data directory, the master key, the certificate.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio_rustls::rustls::{
    self, CertificateError, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};

use super::{Finding, RENEWAL_NOTICE};
use crate::{
    config::{Config, Tls},
    crypto::master::{self, MasterKeyError},
    model::Timestamp,
};

/// Checks that the directory exists and is accessible to its owner only.
pub(super) fn data_directory(directory: &Path) -> Vec<Finding> {
    const SUBJECT: &str = "data directory";
    let shown = directory.display();
    let metadata = match fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => metadata,
        Ok(_) => {
            return vec![Finding::problem(
                SUBJECT,
                format!("{shown} is not a directory"),
                "set data_dir to a directory",
            )];
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return vec![Finding::note(
                SUBJECT,
                format!("{shown} does not exist yet"),
                "`jeton serve` creates it",
            )];
        }
        Err(error) => {
            return vec![Finding::problem(
                SUBJECT,
                format!("{shown}: {error}"),
                "give this user read access",
            )];
        }
    };
    let mut findings = Vec::new();
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        findings.push(Finding::problem(
            SUBJECT,
            format!("{shown} has mode {mode:04o}"),
            format!("chmod 0700 {shown}"),
        ));
    }
    if rustix::process::geteuid().as_raw() != metadata.uid() {
        let text = format!("{shown} belongs to user {}", metadata.uid());
        findings.push(Finding::note(SUBJECT, text, "run doctor and the service as that user"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(SUBJECT, format!("{shown} is accessible to its owner only")));
    }
    findings
}

/// Checks that the master key exists, is readable by its owner only (K06) and has 32 bytes.
pub(super) fn master_key(config: &Config, dev: bool) -> Finding {
    const SUBJECT: &str = "master key";
    let named = !config.master_key_file.as_os_str().is_empty();
    let file = config.master_key_path();
    let shown = file.display();
    let make = format!("(umask 077; openssl rand -base64 32 > {shown})");
    match master::load_or_make(&file, false) {
        Ok(_) => Finding::ok(SUBJECT, format!("{shown} contains a valid key")),
        Err(MasterKeyError::Missing(_)) if !named && dev => {
            Finding::note(SUBJECT, "does not exist yet", "`jeton serve --dev` creates it")
        }
        Err(MasterKeyError::Missing(_)) if !named => {
            Finding::problem(SUBJECT, "is not set", format!("{make} and set master_key_file"))
        }
        Err(error @ MasterKeyError::Exposed { .. }) => {
            Finding::problem(SUBJECT, error.to_string(), format!("chmod 0600 {shown}"))
        }
        Err(error @ MasterKeyError::Missing(_)) => {
            Finding::problem(SUBJECT, error.to_string(), make)
        }
        Err(error) => {
            Finding::problem(SUBJECT, error.to_string(), "restore the master key of this data")
        }
    }
}

/// Checks that certificate and key match, and for how long the certificate is valid.
pub(super) fn certificate(tls: &Tls, now: Timestamp) -> Option<Finding> {
    const SUBJECT: &str = "certificate";
    if tls.cert_file.as_os_str().is_empty() || tls.key_file.as_os_str().is_empty() {
        return None;
    }
    let advice = "set tls.cert_file and tls.key_file to a matching certificate chain and key in \
                  PEM";
    Some(match expiry(&tls.cert_file, &tls.key_file, now) {
        Ok(Validity::Invalid) => Finding::problem(
            SUBJECT,
            format!("{} has expired or is not yet valid", tls.cert_file.display()),
            "renew the certificate",
        ),
        Ok(Validity::EndsSoon) => Finding::note(
            SUBJECT,
            "expires within 14 days",
            "renew the certificate: it is reloaded without a restart",
        ),
        Ok(Validity::Long) => {
            Finding::ok(SUBJECT, "matches its key and is valid for more than 14 days")
        }
        Err(problem) => Finding::problem(SUBJECT, problem, advice),
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Validity {
    Invalid,
    EndsSoon,
    Long,
}

fn expiry(cert_file: &PathBuf, key_file: &PathBuf, now: Timestamp) -> Result<Validity, String> {
    let chain = CertificateDer::pem_file_iter(cert_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| format!("{}: {error}", cert_file.display()))?;
    let key = PrivateKeyDer::from_pem_file(key_file)
        .map_err(|error| format!("{}: {error}", key_file.display()))?;
    let provider = aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain.clone(), key, &provider).map_err(|error| error.to_string())?;
    let leaf = chain.first().ok_or("no certificate in the file")?;
    Ok(
        match (
            is_valid_at(leaf, &provider, now),
            is_valid_at(leaf, &provider, now + RENEWAL_NOTICE),
        ) {
            (false, _) => Validity::Invalid,
            (true, false) => Validity::EndsSoon,
            (true, true) => Validity::Long,
        },
    )
}

/// Returns true if the certificate is within its dates. It is its own trust anchor here: the
/// verifier checks the dates before everything that then may fail.
fn is_valid_at(leaf: &CertificateDer<'static>, provider: &CryptoProvider, at: Timestamp) -> bool {
    let mut roots = RootCertStore::empty();
    let Ok(()) = roots.add(leaf.clone()) else { return true };
    let provider = Arc::new(provider.clone());
    let Ok(verifier) =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()
    else {
        return true;
    };
    let at =
        UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(at.seconds()).unwrap_or(0)));
    let Ok(name) = ServerName::try_from("jeton.invalid") else { return true };
    let verdict = verifier.verify_server_cert(leaf, &[], &name, &[], at);
    !matches!(
        verdict,
        Err(rustls::Error::InvalidCertificate(
            CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. }
        ))
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::{cli::doctor::Verdict, config::Sources};

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_read_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        mode(dir.path(), 0o750);
        let found = data_directory(dir.path());
        assert_eq!(found[0].verdict, Verdict::Problem);
        assert!(found[0].advice.starts_with("chmod 0700 "));
        mode(dir.path(), 0o700);
        assert_eq!(data_directory(dir.path())[0].verdict, Verdict::Ok);
        assert_eq!(data_directory(&dir.path().join("none"))[0].verdict, Verdict::Note);
    }

    /// K06: a key file that others can read is named, with the command that mends it.
    #[test]
    fn a_master_key_that_others_can_read_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let mut config = Config::load(&Sources::default()).unwrap().0;
        config.data_dir = dir.path().to_owned();
        assert_eq!(master_key(&config, false).verdict, Verdict::Problem);
        assert_eq!(master_key(&config, true).verdict, Verdict::Note);
        config.master_key_file = file.clone();
        assert_eq!(master_key(&config, true).verdict, Verdict::Problem);
        fs::write(&file, "Q2Qf8mKTpTqBnSg2OWGLhX0l9H3aiYvHkxS6zVq3r+8=\n").unwrap();
        mode(&file, 0o644);
        assert!(master_key(&config, false).advice.starts_with("chmod 0600 "));
        mode(&file, 0o600);
        assert_eq!(master_key(&config, false).verdict, Verdict::Ok);
        fs::write(&file, "secret").unwrap();
        let found = master_key(&config, false);
        assert_eq!(found.verdict, Verdict::Problem);
        assert!(!found.text.contains("secret"));
    }

    #[test]
    fn a_certificate_is_judged_by_its_dates_and_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2030, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 12, 31);
        let pair = rcgen::KeyPair::generate().unwrap();
        fs::write(&cert, params.self_signed(&pair).unwrap().pem()).unwrap();
        fs::write(&key, pair.serialize_pem()).unwrap();
        let at = |seconds| expiry(&cert, &key, Timestamp::from_seconds(seconds)).unwrap();
        assert_eq!(at(1_890_000_000), Validity::Invalid, "2029: not begun");
        assert_eq!(at(1_910_000_000), Validity::Long, "July 2030");
        assert_eq!(at(1_924_300_000), Validity::EndsSoon, "24 December 2030");
        assert_eq!(at(1_930_000_000), Validity::Invalid, "2031");
        fs::write(&key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert!(
            expiry(&cert, &key, Timestamp::from_seconds(1_910_000_000)).is_err(),
            "another key"
        );
    }
}
