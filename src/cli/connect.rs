//! Connection to a server: its address, the caller's credentials, and the calls that all commands
//! share.

use std::{collections::BTreeMap, fs, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use tonic::{
    Request, Status,
    transport::{ClientTlsConfig, Endpoint, Identity},
};

use super::{
    args,
    cause::deepest,
    context::{self, Context, Contexts},
    error::Failure,
    timed::TimedChannel,
    token_cache::TokenCache,
    trust::Trust,
};

/// Default of `listen`, the address of the server.
const DEFAULT_ADDRESS: &str = "127.0.0.1:50051";

/// Interval at which an open stream checks that the server still answers, and the time for that.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Address of the server and credentials of the caller. The ids begin with `caller_`: to clap, the
/// `client_id` of a command and the `client_id` of the caller would be one argument.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Server")]
pub(super) struct Options {
    /// Server address, HOST:PORT or URL [default: from the context]
    #[arg(
        id = "caller_address",
        long = "address",
        global = true,
        env = "JETON_CLI_ADDRESS",
        value_name = "ADDRESS"
    )]
    address: Option<String>,
    /// Context to use [default: the current context]
    #[arg(
        id = "caller_context",
        long = "context",
        global = true,
        env = "JETON_CLI_CONTEXT",
        value_name = "NAME"
    )]
    context: Option<String>,
    /// Client id [default: from the context]
    #[arg(
        id = "caller_client_id",
        long = "client-id",
        global = true,
        env = "JETON_CLI_CLIENT_ID",
        value_name = "ID"
    )]
    client_id: Option<String>,
    /// File with the client secret, - for stdin [default: $JETON_CLI_CLIENT_SECRET, then the
    /// context]
    #[arg(
        id = "caller_client_secret_file",
        long = "client-secret-file",
        global = true,
        env = "JETON_CLI_CLIENT_SECRET_FILE",
        value_name = "FILE"
    )]
    client_secret_file: Option<PathBuf>,
    /// PEM file with the CA of the server's certificate, or with that certificate itself [default:
    /// from the context, then the authorities of this machine]
    #[arg(id = "caller_ca", long = "ca", global = true, env = "JETON_CLI_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// PEM file with the client certificate (mTLS)
    #[arg(
        id = "caller_cert",
        long = "cert",
        global = true,
        env = "JETON_CLI_CERT",
        value_name = "FILE"
    )]
    cert: Option<PathBuf>,
    /// PEM file with the key of the client certificate
    #[arg(
        id = "caller_key",
        long = "key",
        global = true,
        env = "JETON_CLI_KEY",
        value_name = "FILE"
    )]
    key: Option<PathBuf>,
    /// Allow http:// to another machine: credentials and tokens are sent unencrypted
    #[arg(id = "caller_insecure", long = "insecure", global = true)]
    insecure: bool,
    /// Timeout of a call, such as 90s or 15m (units s, m, h, d)
    #[arg(
        id = "caller_timeout",
        long = "timeout",
        global = true,
        value_name = "DURATION",
        default_value = "10s",
        value_parser = args::timeout
    )]
    timeout: Duration,
    /// Keep no token between commands. Otherwise a token for administration is kept, in a file that
    /// only its owner can read, until it expires
    #[arg(
        id = "caller_no_token_cache",
        long = "no-token-cache",
        global = true,
        env = "JETON_CLI_NO_TOKEN_CACHE",
        value_parser = clap::builder::FalseyValueParser::new(),
        action = clap::ArgAction::SetTrue
    )]
    no_token_cache: bool,
}

/// The credentials of the caller.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    pub(super) client_id: String,
    client_secret: SecretString,
}

impl Credentials {
    /// Creates the credentials of a client.
    pub(super) fn new(client_id: &str, client_secret: SecretString) -> Self {
        Self { client_id: client_id.to_owned(), client_secret }
    }

    /// Returns the secret for the field of a message.
    pub(super) fn secret(&self) -> String {
        self.client_secret.expose_secret().to_owned()
    }
}

/// Result of options, context and environment.
#[derive(Debug)]
struct ConnectionSettings {
    /// URL with its scheme.
    url: String,
    credentials: Result<Credentials, &'static str>,
    ca: Option<PathBuf>,
    /// True if `ca` is the file that the context keeps for this server.
    is_ca_of_context: bool,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    /// Advice if the store of the context is gone.
    gone: Option<String>,
}

impl ConnectionSettings {
    /// Resolves the settings. A context's secret is sent to the context's own address only: another
    /// address needs other credentials too.
    fn resolve(
        options: &Options,
        contexts: &Contexts,
        secret: Option<SecretString>,
    ) -> Result<Self, Failure> {
        let named = contexts.find(options.context.as_deref());
        let context = named.map(|(_, context)| context);
        if let (Some(name), None) = (&options.context, context) {
            return Err(Failure::setting(
                "context",
                format!("unknown context {name}; see `jeton context list`"),
            ));
        }
        let address =
            options.address.as_deref().or_else(|| context.map(|context| context.address.as_str()));
        let url = with_scheme(address.unwrap_or(DEFAULT_ADDRESS));
        // The id of a client is no secret: it may be used at another address.
        let client_id =
            options.client_id.clone().or_else(|| context.map(|context| context.client_id.clone()));
        let context =
            context.filter(|context| is_same_server(&with_scheme(&context.address), &url));
        let own = context.filter(|context| Some(&context.client_id) == client_id.as_ref());
        let secret = match (secret, own) {
            (Some(secret), _) => Some(secret),
            (None, Some(own)) => own.secret()?,
            (None, None) => None,
        };
        let (cert, key) = match (&options.cert, &options.key) {
            (None, None) => context
                .map(|context| (context.cert_file.clone(), context.key_file.clone()))
                .unwrap_or_default(),
            (cert, key) => (cert.clone(), key.clone()),
        };
        Ok(Self {
            credentials: credentials(client_id, secret),
            cert,
            key,
            ca: options.ca.clone().or_else(|| context.and_then(|context| context.ca_file.clone())),
            is_ca_of_context: options.ca.is_none(),
            gone: named.filter(|_| context.is_some_and(Context::is_gone)).map(|(name, _)| {
                format!(
                    "the data directory of context {name} is gone: `jeton context list` shows \
                     others, `jeton context remove {name}` removes it"
                )
            }),
            url,
        })
    }
}

fn credentials(
    client_id: Option<String>,
    client_secret: Option<SecretString>,
) -> Result<Credentials, &'static str> {
    let client_id =
        client_id.ok_or("no client id: use --client-id and --client-secret-file, or a context")?;
    let client_secret = client_secret.ok_or(
        "no client secret: use --client-secret-file or JETON_CLI_CLIENT_SECRET (the secret of a \
         context is sent to its own address only)",
    )?;
    Ok(Credentials::new(&client_id, client_secret))
}

/// Returns true if two URLs name one server, in any spelling of the host's case and the default port:
/// the authority that a context keeps for it holds for all of them.
fn is_same_server(one: &str, other: &str) -> bool {
    let parts = |url: &str| {
        let url = url.parse::<http::Uri>().ok()?;
        let scheme = url.scheme_str()?.to_ascii_lowercase();
        let port = url.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        Some((scheme, url.host()?.trim_end_matches('.').to_ascii_lowercase(), port))
    };
    match (parts(one), parts(other)) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

/// Adds a scheme to an address without one: `http` for this machine, `https` for all others.
fn with_scheme(address: &str) -> String {
    let address = address.trim_end_matches('/');
    if address.contains("://") {
        return address.to_owned();
    }
    let scheme = if is_this_machine(address) { "http" } else { "https" };
    format!("{scheme}://{address}")
}

/// Returns true if `HOST:PORT` is this machine.
fn is_this_machine(authority: &str) -> bool {
    is_loopback(authority.rsplit_once(':').map_or(authority, |(host, _)| host))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.trim_matches(['[', ']']).parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// A connection to a server.
#[derive(Clone)]
pub(super) struct Remote {
    pub(super) channel: TimedChannel,
    /// URL of the server.
    url: String,
    token_cache: Option<TokenCache>,
    credentials: Result<Credentials, &'static str>,
    timeout: Duration,
    /// Advice if the store of the context is gone.
    gone: Option<String>,
}

impl Remote {
    /// Connects.
    pub(super) async fn open(
        options: &Options,
        environment: &BTreeMap<String, String>,
    ) -> Result<Self, Failure> {
        let contexts = match context::path(environment) {
            Some(path) => context::load(&path).map_err(Failure::reading(&path))?,
            None => Contexts::default(),
        };
        let secret = match (&options.client_secret_file, environment.get("JETON_CLI_CLIENT_SECRET"))
        {
            (Some(file), _) => Some(args::secret_file(file)?),
            (None, secret) => secret.cloned(),
        };
        let settings =
            ConnectionSettings::resolve(options, &contexts, secret.map(SecretString::from))?;
        let endpoint = endpoint(options, &settings)?;
        // The transport bounds neither the lookup of the name nor the handshake of TLS.
        let connecting = tokio::time::timeout(options.timeout, endpoint.connect());
        let channel = match connecting.await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => {
                return Err(unreachable(&settings.url, &error).advised(&settings.gone));
            }
            Err(_) => return Err(Failure::late(&settings.url, options.timeout)),
        };
        let ConnectionSettings { credentials, gone, url, .. } = settings;
        let channel = TimedChannel::new(channel, options.timeout);
        let kept = context::path(environment).filter(|_| !options.no_token_cache);
        let token_cache = kept.as_deref().map(TokenCache::beside);
        Ok(Self { channel, url, token_cache, credentials, timeout: options.timeout, gone })
    }

    /// Returns the URL of the server.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Returns the tokens that earlier commands left, unless none are to be kept.
    pub(super) const fn token_cache(&self) -> Option<&TokenCache> {
        self.token_cache.as_ref()
    }

    /// Returns the timeout of a call.
    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Converts a refused request for a token; says if the context is of a store that is gone.
    pub(super) fn refused(&self, status: Status) -> Failure {
        let failure = Failure::from(status);
        if failure.has_reason("invalid_client") { failure.advised(&self.gone) } else { failure }
    }

    /// Returns the credentials of the caller.
    pub(super) fn credentials(&self) -> Result<&Credentials, Failure> {
        self.credentials.as_ref().map_err(|problem| Failure::setting("", *problem))
    }

    /// Creates a request with the timeout of the options.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}

fn endpoint(options: &Options, settings: &ConnectionSettings) -> Result<Endpoint, Failure> {
    let invalid =
        || Failure::setting("address", "must be HOST:PORT, or a URL with http:// or https://");
    let endpoint = Endpoint::from_shared(settings.url.clone())
        .map_err(|_| invalid())?
        .connect_timeout(options.timeout)
        // A stream that waits finds out that the server's machine is gone.
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    // The scheme as the transport parses it: without https it does not encrypt.
    match endpoint.uri().scheme_str() {
        Some("http") if endpoint.uri().host().is_some_and(is_loopback) || options.insecure => {
            return Ok(endpoint);
        }
        Some("http") => {
            let problem = "http:// sends credentials and tokens unencrypted to another machine: \
                           use https://, or allow it with --insecure";
            return Err(Failure::setting("address", problem));
        }
        Some("https") => {}
        Some(_) | None => return Err(invalid()),
    }
    let read = |path: &PathBuf| fs::read(path).map_err(Failure::reading(path));
    let trust = match &settings.ca {
        Some(file) => Trust::file(file, !settings.is_ca_of_context)?,
        None => Trust::system()?,
    };
    let mut tls = ClientTlsConfig::new();
    match (&settings.cert, &settings.key) {
        (Some(cert), Some(key)) => tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?)),
        (None, None) => {}
        (Some(_), None) | (None, Some(_)) => {
            return Err(Failure::Usage("--cert and --key must be used together".to_owned()));
        }
    }
    endpoint
        .tls_config_with_verifier(tls, Arc::new(trust))
        .map_err(|error| Failure::setting("", format!("cannot use TLS: {}", deepest(&error))))
}

fn unreachable(url: &str, error: &tonic::transport::Error) -> Failure {
    Failure::connection(&format!("cannot reach {url}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contexts() -> Contexts {
        let mut contexts = Contexts::default();
        contexts.remember(Context {
            address: "127.0.0.1:7".to_owned(),
            client_id: "bootstrap".to_owned(),
            client_secret: Some("canary".into()),
            ..Context::default()
        });
        contexts
    }

    fn resolve(options: &Options, secret: Option<&str>) -> Result<ConnectionSettings, Failure> {
        ConnectionSettings::resolve(options, &contexts(), secret.map(SecretString::from))
    }

    #[test]
    fn the_current_context_needs_no_flags() {
        let settings = resolve(&Options::default(), None).unwrap();
        assert_eq!(settings.url, "http://127.0.0.1:7");
        let credentials = settings.credentials.unwrap();
        assert_eq!(
            (credentials.client_id.as_str(), credentials.secret().as_str()),
            ("bootstrap", "canary")
        );
        assert!(!format!("{credentials:?}").contains("canary"));
    }

    #[test]
    fn a_contexts_secret_goes_to_no_other_address_and_no_other_client() {
        let elsewhere =
            Options { address: Some("evil.example:7".to_owned()), ..Options::default() };
        assert!(resolve(&elsewhere, None).unwrap().credentials.is_err());
        let other = Options { client_id: Some("other".to_owned()), ..Options::default() };
        assert!(resolve(&other, None).unwrap().credentials.is_err());
        assert_eq!(resolve(&other, Some("own")).unwrap().credentials.unwrap().secret(), "own");
        // The id is kept, so that the secret alone has to be given.
        let moved = resolve(&elsewhere, Some("own")).unwrap().credentials.unwrap();
        assert_eq!((moved.client_id.as_str(), moved.secret().as_str()), ("bootstrap", "own"));
        let same =
            Options { address: Some("http://127.0.0.1:7/".to_owned()), ..Options::default() };
        assert!(resolve(&same, None).unwrap().credentials.is_ok());
    }

    /// The authority of a context holds for every spelling of its server: none falls back to those of
    /// the machine.
    #[test]
    fn a_server_spelled_otherwise_keeps_its_authority() {
        let mut contexts = Contexts::default();
        contexts.remember(Context {
            address: "https://Auth.example".to_owned(),
            client_id: "bootstrap".to_owned(),
            client_secret: Some("canary".into()),
            ca_file: Some("ca.pem".into()),
            ..Context::default()
        });
        for (address, same) in [
            ("https://auth.example", true),
            ("https://AUTH.example:443/", true),
            ("auth.example:443", true),
            ("https://auth.example.", true),
            ("https://auth.example:8443", false),
            ("https://auth.example.org", false),
        ] {
            let options = Options { address: Some(address.to_owned()), ..Options::default() };
            let settings = ConnectionSettings::resolve(&options, &contexts, None).unwrap();
            assert_eq!(settings.ca.is_some(), same, "{address}");
            assert_eq!(settings.credentials.is_ok(), same, "{address}");
        }
    }

    #[test]
    fn a_context_that_is_not_there_is_a_wrong_setting() {
        let named = Options { context: Some("prod".to_owned()), ..Options::default() };
        assert_eq!(resolve(&named, None).unwrap_err().exit_code(), 64);
        let none =
            ConnectionSettings::resolve(&Options::default(), &Contexts::default(), None).unwrap();
        assert_eq!(none.url, "http://127.0.0.1:50051");
        assert!(none.credentials.is_err());
    }

    /// AZ16: a secret goes to another machine in clear only where that is asked for.
    #[test]
    fn another_machine_is_not_spoken_to_in_clear() {
        let open = |address: &str, insecure: bool| {
            let options =
                Options { address: Some(address.to_owned()), insecure, ..Options::default() };
            endpoint(&options, &resolve(&options, Some("own")).unwrap()).map(drop)
        };
        for address in [
            "http://10.0.0.1:1",
            "http://id.example.com",
            "http://localhost:x@10.0.0.1:1",
            "http://localhost:x@id.example",
            "HTTP://10.0.0.1:1",
            "grpc://10.0.0.1:1",
        ] {
            assert_eq!(open(address, false).unwrap_err().exit_code(), 64, "{address}");
        }
        assert!(open("http://10.0.0.1:1", true).is_ok());
        for address in [
            "http://127.0.0.1:1",
            "http://localhost:1",
            "http://[::1]:1",
            "localhost:1",
            "HTTP://localhost:1",
        ] {
            assert!(open(address, false).is_ok(), "{address}");
        }
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_clear_unless_asked() {
        for (address, url) in [
            ("localhost:1", "http://localhost:1"),
            ("[::1]:1", "http://[::1]:1"),
            ("127.0.0.1:1", "http://127.0.0.1:1"),
            ("10.0.0.1:1", "https://10.0.0.1:1"),
            ("id.example.com:443", "https://id.example.com:443"),
            ("http://10.0.0.1:1/", "http://10.0.0.1:1"),
        ] {
            assert_eq!(with_scheme(address), url);
        }
    }
}
