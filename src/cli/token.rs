//! `token`, `refresh`, `introspect`, `revoke`: the four RPCs of a machine client.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Value, json};

use super::{
    args::{self, TokenArgument},
    connect::{Options, Remote},
    error::Failure,
    output::Output,
    render,
};
use crate::proto::token::{
    BatchIntrospectRequest, IntrospectRequest, IntrospectResponse, RefreshRequest, RefreshResponse,
    RevokeRequest, TokenRequest, TokenResponse, token_service_client::TokenServiceClient,
};

/// Maximum tokens in one BatchIntrospect.
const BATCH_MAX: usize = 1000;

/// `jeton token`
#[derive(Args, Debug)]
pub(super) struct Token {
    /// Scope to request, repeatable [default: the client's default scopes]
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Audience of the token (RFC 8707), repeatable [default: the client's first audience]
    #[arg(long = "resource", value_name = "URI")]
    resources: Vec<String>,
    /// Get no refresh token, although the client may have one
    #[arg(long)]
    no_refresh_token: bool,
    /// Print only the access token; no refresh token is issued then
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    #[command(flatten)]
    remote: Options,
}

impl Token {
    pub(super) async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let remote = Remote::open(&self.remote, environment).await?;
        let credentials = remote.credentials()?;
        let request = remote.request(TokenRequest {
            grant_type: String::new(),
            client_id: credentials.client_id.clone(),
            client_secret: credentials.secret(),
            scopes: self.scopes.clone(),
            resources: self.resources.clone(),
            without_refresh_token: self.no_refresh_token || self.raw,
        });
        let answer = TokenServiceClient::new(remote.channel.clone()).token(request).await;
        let answer = answer.map_err(|status| remote.refused(status))?.into_inner();
        Issued::from(answer).print(output, self.raw)
    }
}

/// `jeton refresh`
#[derive(Args, Debug)]
pub(super) struct Refresh {
    #[command(flatten)]
    token: TokenArgument,
    /// Scope to request, of the scopes of the refresh token, repeatable [default: all of them]
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Print only the new refresh token
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    #[command(flatten)]
    remote: Options,
}

impl Refresh {
    pub(super) async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let token = self.token.read(output)?;
        let remote = Remote::open(&self.remote, environment).await?;
        let credentials = remote.credentials()?;
        let request = remote.request(RefreshRequest {
            client_id: credentials.client_id.clone(),
            client_secret: credentials.secret(),
            refresh_token: token,
            scopes: self.scopes.clone(),
        });
        let answer =
            TokenServiceClient::new(remote.channel.clone()).refresh(request).await?.into_inner();
        let issued = Issued::from(answer);
        if self.raw { output.line(&issued.refresh_token) } else { issued.print(output, false) }
    }
}

/// Tokens of a response of Token or Refresh.
struct Issued {
    access_token: String,
    token_type: String,
    expires_in: i64,
    refresh_token: String,
    scopes: Vec<String>,
}

impl Issued {
    fn print(&self, output: Output, raw: bool) -> Result<(), Failure> {
        if raw {
            return output.line(&self.access_token);
        }
        if output.json {
            return output.document(&json!({
                "access_token": self.access_token,
                "token_type": self.token_type,
                "expires_in": self.expires_in,
                "refresh_token": self.refresh_token,
                "scopes": self.scopes,
            }));
        }
        output.record(&[
            ("access_token", self.access_token.clone()),
            ("token_type", self.token_type.clone()),
            ("expires_in", format!("{} s", self.expires_in)),
            ("refresh_token", self.refresh_token.clone()),
            ("scopes", self.scopes.join(" ")),
        ])
    }
}

impl From<TokenResponse> for Issued {
    fn from(answer: TokenResponse) -> Self {
        let TokenResponse { access_token, token_type, expires_in, refresh_token, scopes } = answer;
        Self { access_token, token_type, expires_in, refresh_token, scopes }
    }
}

impl From<RefreshResponse> for Issued {
    fn from(answer: RefreshResponse) -> Self {
        let RefreshResponse { access_token, token_type, expires_in, refresh_token, scopes } =
            answer;
        Self { access_token, token_type, expires_in, refresh_token, scopes }
    }
}

/// `jeton introspect`
#[derive(Args, Debug)]
pub(super) struct Introspect {
    /// Tokens to introspect, in one call; - reads one from stdin (arguments are visible to every
    /// user of this machine)
    #[arg(value_name = "TOKEN", required_unless_present = "file")]
    tokens: Vec<String>,
    /// Read tokens from this file, one per line
    #[arg(long, value_name = "FILE", conflicts_with = "tokens")]
    file: Option<std::path::PathBuf>,
    /// The token is a refresh token of this client
    #[arg(long)]
    refresh_token: bool,
    /// Exit with 1 unless every token is active
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    remote: Options,
}

impl Introspect {
    pub(super) async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let tokens = self.read(output)?;
        let remote = Remote::open(&self.remote, environment).await?;
        let judged = match tokens.as_slice() {
            [token] => vec![self.one(&remote, token.clone()).await?],
            _ if self.refresh_token => {
                return Err(Failure::Usage("--refresh-token takes one token".to_owned()));
            }
            tokens => many(&remote, tokens).await?,
        };
        print(output, &judged)?;
        let all_active = judged.iter().all(|answer| answer.active == Some(true));
        if self.check && !all_active { Err(Failure::Code(1)) } else { Ok(()) }
    }

    fn read(&self, output: Output) -> Result<Vec<String>, Failure> {
        let from = match (self.tokens.as_slice(), &self.file) {
            (_, Some(file)) => file.as_path(),
            ([dash], None) if dash == "-" => std::path::Path::new("-"),
            (tokens, None) => {
                tokens.iter().for_each(|token| args::warn_of_token(token, output));
                return tokens.iter().map(|token| args::token(token)).collect();
            }
        };
        let tokens = args::text_file(from)?
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(args::token)
            .collect::<Result<Vec<_>, _>>()?;
        if tokens.is_empty() {
            return Err(Failure::Usage(format!("no token in {}", from.display())));
        }
        Ok(tokens)
    }

    async fn one(&self, remote: &Remote, token: String) -> Result<IntrospectResponse, Failure> {
        let credentials = remote.credentials()?;
        let request = remote.request(IntrospectRequest {
            client_id: credentials.client_id.clone(),
            client_secret: credentials.secret(),
            token,
            token_type_hint: if self.refresh_token {
                "refresh_token".to_owned()
            } else {
                String::new()
            },
        });
        Ok(TokenServiceClient::new(remote.channel.clone()).introspect(request).await?.into_inner())
    }
}

async fn many(remote: &Remote, tokens: &[String]) -> Result<Vec<IntrospectResponse>, Failure> {
    let credentials = remote.credentials()?;
    let mut judged = Vec::with_capacity(tokens.len());
    for batch in tokens.chunks(BATCH_MAX) {
        let request = remote.request(BatchIntrospectRequest {
            client_id: credentials.client_id.clone(),
            client_secret: credentials.secret(),
            tokens: batch.to_vec(),
        });
        let answer = TokenServiceClient::new(remote.channel.clone())
            .batch_introspect(request)
            .await?
            .into_inner();
        judged.extend(answer.results);
    }
    Ok(judged)
}

fn print(output: Output, judged: &[IntrospectResponse]) -> Result<(), Failure> {
    match judged {
        [only] if output.json => output.document(&judgement(only)),
        [only] => describe(output, only),
        many if output.json => {
            output.document(&json!({ "results": many.iter().map(judgement).collect::<Vec<_>>() }))
        }
        many => {
            let row = |answer: &IntrospectResponse| {
                let active = answer.active.unwrap_or(false).to_string();
                vec![
                    active,
                    answer.client_id.clone(),
                    answer.scopes.join(" "),
                    render::seconds(answer.exp),
                    answer.jti.clone(),
                ]
            };
            output.table(
                &["active", "client", "scopes", "expires", "jti"],
                &many.iter().map(row).collect::<Vec<_>>(),
                &["jti", "client"],
            )
        }
    }
}

/// Converts a response to JSON; for an inactive token only `active: false` (RFC 7662 section 2.2).
fn judgement(answer: &IntrospectResponse) -> Value {
    if answer.active != Some(true) {
        return json!({ "active": false });
    }
    json!({
        "active": true,
        "scopes": answer.scopes,
        "client_id": answer.client_id,
        "sub": answer.sub,
        "aud": answer.aud,
        "iss": answer.iss,
        "jti": answer.jti,
        "iat": answer.iat,
        "nbf": answer.nbf,
        "exp": answer.exp,
        "token_type": answer.token_type,
        "tenant": answer.tenant,
        "roles": answer.roles,
    })
}

fn describe(output: Output, answer: &IntrospectResponse) -> Result<(), Failure> {
    output.record(&[
        ("active", answer.active.unwrap_or(false).to_string()),
        ("scopes", answer.scopes.join(" ")),
        ("client_id", answer.client_id.clone()),
        ("sub", answer.sub.clone()),
        ("aud", answer.aud.join(" ")),
        ("iss", answer.iss.clone()),
        ("jti", answer.jti.clone()),
        ("iat", render::seconds(answer.iat)),
        ("nbf", render::seconds(answer.nbf)),
        ("exp", render::seconds(answer.exp)),
        ("token_type", answer.token_type.clone()),
        ("tenant", answer.tenant.clone()),
        ("roles", answer.roles.join(" ")),
    ])
}

/// `jeton revoke`
#[derive(Args, Debug)]
pub(super) struct Revoke {
    #[command(flatten)]
    token: TokenArgument,
    #[command(flatten)]
    remote: Options,
}

impl Revoke {
    pub(super) async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let token = self.token.read(output)?;
        args::whole_token(&token)?;
        let remote = Remote::open(&self.remote, environment).await?;
        let credentials = remote.credentials()?;
        let request = remote.request(RevokeRequest {
            client_id: credentials.client_id.clone(),
            client_secret: credentials.secret(),
            token,
            token_type_hint: String::new(),
        });
        TokenServiceClient::new(remote.channel.clone()).revoke(request).await?;
        // RFC 7009: the response is the same for an unknown token or another client's.
        if output.json {
            output.document(&json!({}))
        } else {
            output.line("ok (the server answers alike for unknown tokens, RFC 7009)")
        }
    }
}
