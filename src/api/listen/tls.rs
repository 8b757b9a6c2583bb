//! Certificates of the port, and their replacement while connections are open.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use rustls::{
    CertificateError, RootCertStore, ServerConfig,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::{CryptoProvider, aws_lc_rs::default_provider},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{ParsedCertificate, WebPkiClientVerifier},
};
use zeroize::Zeroizing;

use crate::{clock::Clock, config, metrics::METRICS, model::Timestamp};

/// Interval at which the files are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Reason that there is no TLS configuration, or no new one.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A setting requires another one that is empty.
    #[error("{0} is set but {1} is not")]
    Half(&'static str, &'static str),
    /// A file cannot be read.
    #[error("cannot read {}{}", .0.display(), advice(.1))]
    Read(PathBuf, #[source] io::Error),
    /// A file holds no complete PEM section of the expected kind. Its content is not repeated.
    #[error("{} contains no valid {what}", file.display())]
    Pem {
        /// Path of the file.
        file: PathBuf,
        /// Expected kind.
        what: &'static str,
    },
    /// The certificate is expired or not yet valid.
    #[error("the certificate in {} has expired or is not yet valid", .0.display())]
    Expired(PathBuf),
    /// The pair does not match, or the certificates cannot be used.
    #[error("cannot use the certificate and private key")]
    Unusable(#[from] Box<dyn std::error::Error + Send + Sync>),
}

/// Returns what to do about a file that this user may not read, where platforms hand it over.
fn advice(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied {
        " (chown it to the user of this process; from a Kubernetes Secret, set defaultMode: 0400 \
         and fsGroup; from Swarm or Podman, uid=65532 and mode=0400; from systemd, LoadCredential)"
    } else {
        ""
    }
}

/// TLS configuration of the port, reloaded when its files change. New handshakes use the current
/// one; open connections keep theirs.
pub struct TlsReloader {
    files: config::Tls,
    clock: Arc<dyn Clock>,
    current: ArcSwap<ServerConfig>,
    state: Mutex<FileState>,
}

/// Digests of the files when last used, and when last found unusable.
struct FileState {
    used: Fingerprint,
    refused: Option<Fingerprint>,
}

/// Digest of the files' contents, so that neither a touched file nor a coarse clock decides.
type Fingerprint = [u8; 32];

struct Files {
    cert: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    client_ca: Option<Vec<u8>>,
}

impl TlsReloader {
    /// HTTP/2 in ALPN.
    pub(super) const HTTP2: &'static [u8] = b"h2";
    const HTTP1: &'static [u8] = b"http/1.1";

    /// Reads the files; `None` if none is set.
    ///
    /// # Errors
    /// Any half set, unreadable, broken or expired pair: the port is not opened without the
    /// configured TLS.
    pub fn open(files: &config::Tls, clock: Arc<dyn Clock>) -> Result<Option<Arc<Self>>, TlsError> {
        let set = |path: &Path| !path.as_os_str().is_empty();
        match (set(&files.cert_file), set(&files.key_file), set(&files.client_ca_file)) {
            (false, false, false) => return Ok(None),
            (true, true, _) => {}
            (true, false, _) => return Err(TlsError::Half("tls.cert_file", "tls.key_file")),
            (false, true, _) => return Err(TlsError::Half("tls.key_file", "tls.cert_file")),
            (false, false, true) => {
                return Err(TlsError::Half("tls.client_ca_file", "tls.cert_file"));
            }
        }
        let read = Files::read(files)?;
        let current = read.parse(files, &*clock)?;
        Ok(Some(Arc::new(Self {
            files: files.clone(),
            clock,
            current: ArcSwap::from_pointee(current),
            state: Mutex::new(FileState { used: read.fingerprint(), refused: None }),
        })))
    }

    /// Returns the configuration for the next handshake.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Checks the files now; returns true if they had changed. Reads files, so not for a runtime's
    /// thread.
    ///
    /// # Errors
    /// The new files cannot be used; the old configuration stays in use. The same broken contents
    /// are reported once.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let read = Files::read(&self.files)?;
        let fingerprint = read.fingerprint();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.used == fingerprint {
            return Ok(false);
        }
        // Tried again even if refused before: the certificate may have been not yet valid.
        match read.parse(&self.files, &*self.clock) {
            Ok(config) => {
                self.current.store(Arc::new(config));
                *state = FileState { used: fingerprint, refused: None };
                Ok(true)
            }
            Err(_) if state.refused == Some(fingerprint) => Ok(false),
            Err(error) => {
                state.refused = Some(fingerprint);
                Err(error)
            }
        }
    }

    /// Reloads now and logs the result: for SIGHUP and for [`watch`](Self::watch).
    pub fn reload_and_report(&self) {
        match self.reload() {
            Ok(true) => tracing::info!("certificates reloaded"),
            Ok(false) => {}
            Err(error) => {
                METRICS.tls_reload_errors.inc();
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(
                    %error, cause,
                    "certificate reload failed, still using the old certificates"
                );
            }
        }
    }

    /// Checks the files every few seconds, until dropped.
    pub async fn watch(self: Arc<Self>) {
        let mut look = tokio::time::interval(CHECK_INTERVAL);
        loop {
            look.tick().await;
            let tls = Arc::clone(&self);
            // A panic while parsing must not end the watch.
            let _ = tokio::task::spawn_blocking(move || tls.reload_and_report()).await;
        }
    }
}

/// Omits the key.
impl fmt::Debug for TlsReloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsReloader").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Files {
    fn read(files: &config::Tls) -> Result<Self, TlsError> {
        let read =
            |path: &Path| fs::read(path).map_err(|error| TlsError::Read(path.to_owned(), error));
        let client_ca = !files.client_ca_file.as_os_str().is_empty();
        Ok(Self {
            cert: read(&files.cert_file)?,
            key: Zeroizing::new(read(&files.key_file)?),
            client_ca: client_ca.then(|| read(&files.client_ca_file)).transpose()?,
        })
    }

    fn fingerprint(&self) -> Fingerprint {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [&self.cert, &*self.key, self.client_ca.as_deref().unwrap_or_default()] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut fingerprint = Fingerprint::default();
        fingerprint.copy_from_slice(context.finish().as_ref());
        fingerprint
    }

    fn parse(&self, files: &config::Tls, clock: &dyn Clock) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(default_provider());
        let chain = certificates(&self.cert, &files.cert_file)?;
        let now = clock.now();
        let mut expiry = None;
        if let Some(leaf) = chain.first() {
            if !is_valid_at(leaf, &provider, now) {
                return Err(TlsError::Expired(files.cert_file.clone()));
            }
            expiry = Some(valid_until(leaf, &provider, now));
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| TlsError::Pem { file: files.key_file.clone(), what: "private key" })?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(client_ca) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(client_ca, &files.client_ca_file)? {
                    roots.add(root).map_err(unusable)?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(unusable)?)
            }
        };
        // Refuses a key that does not match the certificate.
        let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
        config.alpn_protocols = vec![TlsReloader::HTTP2.to_vec(), TlsReloader::HTTP1.to_vec()];
        if let Some(expiry) = expiry {
            METRICS.readings.certificate_expiry.set(expiry.seconds() as f64);
        }
        Ok(config)
    }
}

fn unusable(error: impl std::error::Error + Send + Sync + 'static) -> TlsError {
    TlsError::Unusable(Box::new(error))
}

fn certificates(pem: &[u8], file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let broken = || TlsError::Pem { file: file.to_owned(), what: "certificate" };
    let chain =
        CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|_| broken())?;
    if chain.is_empty() { Err(broken()) } else { Ok(chain) }
}

/// Returns the end of the validity of a certificate that is valid at `now`, within a century.
/// webpki compares the dates and does not return them, so the end is found by bisection.
fn valid_until(leaf: &CertificateDer<'_>, provider: &CryptoProvider, now: Timestamp) -> Timestamp {
    const CENTURY_SECONDS: u64 = 100 * 365 * 24 * 60 * 60;
    let (mut valid, mut invalid) = (0, CENTURY_SECONDS);
    while invalid - valid > 1 {
        let middle = u64::midpoint(valid, invalid);
        if is_valid_at(leaf, provider, now + Duration::from_secs(middle)) {
            valid = middle;
        } else {
            invalid = middle;
        }
    }
    now + Duration::from_secs(valid)
}

/// Returns false if the certificate is expired or not yet valid. webpki checks that before it
/// searches an issuer, which it cannot find here.
fn is_valid_at(leaf: &CertificateDer<'_>, provider: &CryptoProvider, at: Timestamp) -> bool {
    use CertificateError as E;
    let at =
        UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(at.millis()).unwrap_or(0)));
    let algorithms = provider.signature_verification_algorithms.all;
    let judged = ParsedCertificate::try_from(leaf).and_then(|leaf| {
        verify_server_cert_signed_by_trust_anchor(
            &leaf,
            &RootCertStore::empty(),
            &[],
            at,
            algorithms,
        )
    });
    // Any other problem is reported where the pair is used.
    !matches!(
        judged,
        Err(rustls::Error::InvalidCertificate(
            E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. },
        ))
    )
}
