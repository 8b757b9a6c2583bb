//! Trust in a server's certificate: by an authority, or because it is the very certificate in the
//! file. The second is for self-signed certificates, which no authority vouches for.

use std::{path::Path, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};

use super::error::Failure;

/// Certificates that are trusted: authorities, and servers' own.
#[derive(Debug)]
pub(super) struct Trust {
    /// Verifier by authorities; `None` if no certificate of the file can be one.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    /// Certificates of the file, any of which a server may also present itself.
    pinned: Vec<CertificateDer<'static>>,
    /// False if the file belongs to this server, so that a pinned certificate may have any name.
    is_name_checked: bool,
    provider: Arc<CryptoProvider>,
}

impl Trust {
    /// Trusts the certificates of a PEM file.
    pub(super) fn file(path: &Path, is_name_checked: bool) -> Result<Self, Failure> {
        let pem = std::fs::read(path).map_err(Failure::reading(path))?;
        let pinned: Vec<_> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .ok()
            .filter(|certificates: &Vec<_>| !certificates.is_empty())
            .ok_or_else(|| {
                let problem = format!("{} is not a PEM file with certificates", path.display());
                Failure::setting("ca", problem)
            })?;
        Ok(Self::new(pinned.clone(), pinned, is_name_checked))
    }

    /// Trusts the authorities of this machine, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
    pub(super) fn system() -> Result<Self, Failure> {
        let found = rustls_native_certs::load_native_certs();
        let trust = Self::new(found.certs, Vec::new(), true);
        if trust.authorities.is_none() {
            let problem = "this machine has no certificate authorities (package ca-certificates): \
                           name the server's with --ca FILE";
            return Err(Failure::setting("ca", problem));
        }
        Ok(trust)
    }

    fn new(
        authorities: Vec<CertificateDer<'static>>,
        pinned: Vec<CertificateDer<'static>>,
        is_name_checked: bool,
    ) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(authorities);
        // Refused only without roots.
        let authorities =
            WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
                .build()
                .ok();
        Self { authorities, pinned, is_name_checked, provider }
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.pinned.iter().any(|pinned| pinned == end_entity) {
            if self.is_name_checked {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match &self.authorities {
            Some(authorities) => authorities.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            ),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
