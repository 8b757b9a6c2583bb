//! Causes of a connection that failed, for people: why, and what to do.

use std::{error::Error, io};

use rustls::{AlertDescription, CertificateError};

/// Next step after a connection that the server ended without a reason that arrived.
const ENDED: &str = "the server ended the connection: it stopped, or it requires TLS (https://) or \
                     a client certificate (--cert and --key)";

/// Returns what a connection that failed says about its reason, and the next step for the user.
pub(super) fn explain(error: &(dyn Error + 'static)) -> Option<(String, &'static str)> {
    explain_chain(error).or_else(|| explain_text(&deepest(error)))
}

/// HTTP/2 keeps only the text of an error of the layer below.
fn explain_text(text: &str) -> Option<(String, &'static str)> {
    let alerts = [
        ("CertificateRequired", AlertDescription::CertificateRequired),
        ("CertificateUnknown", AlertDescription::CertificateUnknown),
        ("UnknownCA", AlertDescription::UnknownCA),
        ("BadCertificate", AlertDescription::BadCertificate),
        ("CertificateExpired", AlertDescription::CertificateExpired),
    ];
    if let Some(name) = text.rsplit_once("received fatal alert: ").map(|(_, name)| name) {
        let alert = alerts.into_iter().find(|(known, _)| name.starts_with(known));
        return alert.and_then(|(_, alert)| explain_tls(&rustls::Error::AlertReceived(alert)));
    }
    if text.contains("frame with invalid size") {
        let problem = "the port does not speak HTTP/2 without TLS".to_owned();
        return Some((problem, "use https:// for a server with TLS, or another port"));
    }
    let is_ended = ["connection closed", "broken pipe", "connection reset", "closed before"];
    let lower = text.to_ascii_lowercase();
    is_ended.iter().any(|ending| lower.contains(ending)).then(|| (text.to_owned(), ENDED))
}

fn explain_chain(error: &(dyn Error + 'static)) -> Option<(String, &'static str)> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return explain_tls(error);
        }
        // The source of an I/O error is the source of the error inside, not the error inside.
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = inside.map(|inside| inside as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

#[expect(clippy::wildcard_enum_match_arm, reason = "most errors of TLS have no advice")]
fn explain_tls(error: &rustls::Error) -> Option<(String, &'static str)> {
    let refused = |why: String| format!("the server's certificate is not trusted: {why}");
    Some(match error {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                (
                    refused(why.to_string()),
                    "use a name of the certificate as the address, or a certificate with this name",
                )
            }
            // A certificate of another authority with the same name has the wrong signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => (
                refused("its issuer is unknown".to_owned()),
                "name the authority, or the server's own certificate, with --ca FILE",
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                (refused(why.to_string()), "renew it, or set the clock of this machine")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                (refused(why.to_string()), "set the clock of this machine or of the server's")
            }
            _ if error.to_string().contains("CaUsedAsEndEntity") => (
                refused("it is a certificate of an authority".to_owned()),
                "name this very certificate with --ca FILE",
            ),
            _ => (
                refused(why.to_string()),
                "check it with `openssl x509 -text`, or name the server's own with --ca FILE",
            ),
        },
        rustls::Error::InvalidMessage(_) => (
            "the port does not speak TLS".to_owned(),
            "use http:// for a server without TLS, or another port",
        ),
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure,
        ) => (
            "the server requires a client certificate".to_owned(),
            "name it with --cert FILE and --key FILE",
        ),
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::DecryptError
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied,
        ) => (
            format!("the server does not trust the client certificate: {error}"),
            "use --cert and --key of an authority in tls.client_ca_file of the server",
        ),
        _ => return None,
    })
}

/// Returns the innermost source of an error: the message of the transport is only "transport
/// error".
pub(super) fn deepest(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
