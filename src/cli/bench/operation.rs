//! Operations that `jeton bench` measures.

use clap::ValueEnum;
use tonic::Status;

use crate::{
    cli::{
        connect::{Credentials, Remote},
        error::Failure,
        timed::TimedChannel,
    },
    proto::token::{
        BatchIntrospectRequest, IntrospectRequest, IntrospectResponse, RefreshRequest,
        RevokeRequest, TokenRequest, TokenResponse, token_service_client::TokenServiceClient,
    },
};

/// Tokens in one BatchIntrospect.
const BATCH: usize = 100;
/// Calls after which the mix of operations begins anew.
const MIX: usize = 50;

/// Operation to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Operation {
    /// Token, without a refresh token
    Token,
    /// Refresh; each call in flight has a refresh family of its own, revoked at the end
    Refresh,
    /// Introspect of one access token, again and again
    Introspect,
    /// Introspect of access tokens that the server sees for the first time
    IntrospectNew,
    /// BatchIntrospect of 100 access tokens
    Batch,
    /// Revoke of access tokens, each issued for it
    Revoke,
    /// Of 50 calls 40 Introspect, 5 Token, 4 Refresh and 1 Revoke
    Mixed,
}

impl Operation {
    /// Name on the command line.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Refresh => "refresh",
            Self::Introspect => "introspect",
            Self::IntrospectNew => "introspect-new",
            Self::Batch => "batch",
            Self::Revoke => "revoke",
            Self::Mixed => "mixed",
        }
    }

    /// Operation of a call of the mix.
    const fn of_mix(number: usize) -> Self {
        match number % MIX {
            0..5 => Self::Token,
            5..9 => Self::Refresh,
            9 => Self::Revoke,
            10.. => Self::Introspect,
        }
    }
}

/// One call in flight, and what its next call needs.
pub(super) struct Caller {
    remote: Remote,
    client: TokenServiceClient<TimedChannel>,
    credentials: Credentials,
    operation: Operation,
    scopes: Vec<String>,
    /// Access token that is introspected again and again.
    token: String,
    /// Access token for the next call, used up by it.
    fresh: Option<String>,
    refresh_token: Option<String>,
    /// Number of calls so far; a mix begins at another place in each caller.
    number: usize,
}

impl Caller {
    /// Prepares a caller that has `token`, an access token of the same client.
    pub(super) async fn prepare(
        remote: Remote,
        operation: Operation,
        scopes: Vec<String>,
        token: String,
    ) -> Result<Self, Failure> {
        let credentials = remote.credentials()?.clone();
        let client = TokenServiceClient::new(remote.channel.clone());
        let (fresh, refresh_token) = (None, None);
        let number = usize::from(token.as_bytes().last().copied().unwrap_or_default());
        let mut caller = Self {
            remote,
            client,
            credentials,
            operation,
            scopes,
            token,
            fresh,
            refresh_token,
            number,
        };
        if matches!(operation, Operation::Refresh | Operation::Mixed) {
            let issued =
                caller.issue(false).await.map_err(|status| caller.remote.refused(status))?;
            if issued.refresh_token.is_empty() {
                return Err(Failure::Other(
                    "the client gets no refresh tokens: give it the grant refresh_token, see \
                     `jeton client update --add-grant refresh_token`"
                        .to_owned(),
                ));
            }
            caller.refresh_token = Some(issued.refresh_token);
        }
        Ok(caller)
    }

    /// Operation of the next call.
    const fn next(&self) -> Operation {
        if matches!(self.operation, Operation::Mixed) {
            Operation::of_mix(self.number)
        } else {
            self.operation
        }
    }

    /// Gets what the next call needs; the error is its reason.
    pub(super) async fn get_ready(&mut self) -> Result<(), String> {
        match self.next() {
            Operation::IntrospectNew | Operation::Revoke if self.fresh.is_none() => {
                let issued = self.issue(true).await.map_err(|status| reason(&status))?;
                self.fresh = Some(issued.access_token);
            }
            Operation::Refresh if self.refresh_token.is_none() => {
                let issued = self.issue(false).await.map_err(|status| reason(&status))?;
                self.refresh_token = Some(issued.refresh_token);
            }
            Operation::Token
            | Operation::Refresh
            | Operation::Introspect
            | Operation::IntrospectNew
            | Operation::Batch
            | Operation::Revoke
            | Operation::Mixed => {}
        }
        Ok(())
    }

    /// Makes the next call; the error is its reason.
    pub(super) async fn call(&mut self) -> Result<(), String> {
        let operation = self.next();
        self.number = self.number.wrapping_add(1);
        match operation {
            Operation::Token => self.issue(true).await.map(drop).map_err(|status| reason(&status)),
            Operation::Refresh => self.refresh().await,
            Operation::Introspect | Operation::Mixed => {
                let token = self.token.clone();
                self.introspect(token).await
            }
            Operation::IntrospectNew => {
                let token = self.fresh.take().unwrap_or_default();
                self.introspect(token).await
            }
            Operation::Batch => self.introspect_batch().await,
            Operation::Revoke => self.revoke().await,
        }
    }

    /// Revokes the refresh family that was opened for the run.
    pub(super) async fn finish(mut self) {
        if let Some(token) = self.refresh_token.take() {
            let request = self.remote.request(self.revocation(token));
            // It expires by itself otherwise.
            let _ = self.client.revoke(request).await;
        }
    }

    async fn issue(&mut self, without_refresh_token: bool) -> Result<TokenResponse, Status> {
        let request = self.remote.request(token_request(
            &self.credentials,
            &self.scopes,
            without_refresh_token,
        ));
        Ok(self.client.token(request).await?.into_inner())
    }

    async fn refresh(&mut self) -> Result<(), String> {
        let request = self.remote.request(RefreshRequest {
            client_id: self.credentials.client_id.clone(),
            client_secret: self.credentials.secret(),
            refresh_token: self.refresh_token.clone().unwrap_or_default(),
            scopes: Vec::new(),
        });
        match self.client.refresh(request).await {
            Ok(answer) => {
                self.refresh_token = Some(answer.into_inner().refresh_token);
                Ok(())
            }
            Err(status) => {
                let reason = reason(&status);
                // Otherwise the same token is presented again: the server may have refused it
                // before it was spent, and repeats the successor where it has spent it.
                if reason == "invalid_grant" {
                    self.refresh_token = None;
                }
                Err(reason)
            }
        }
    }

    async fn introspect(&mut self, token: String) -> Result<(), String> {
        let request = self.remote.request(IntrospectRequest {
            client_id: self.credentials.client_id.clone(),
            client_secret: self.credentials.secret(),
            token,
            ..IntrospectRequest::default()
        });
        let answer = self.client.introspect(request).await.map_err(|status| reason(&status))?;
        active(answer.get_ref())
    }

    async fn introspect_batch(&mut self) -> Result<(), String> {
        let request = self.remote.request(BatchIntrospectRequest {
            client_id: self.credentials.client_id.clone(),
            client_secret: self.credentials.secret(),
            tokens: vec![self.token.clone(); BATCH],
        });
        let answer = self.client.batch_introspect(request).await;
        let answer = answer.map_err(|status| reason(&status))?.into_inner();
        answer.results.iter().try_for_each(active)
    }

    async fn revoke(&mut self) -> Result<(), String> {
        let token = self.fresh.take().unwrap_or_default();
        let request = self.remote.request(self.revocation(token));
        self.client.revoke(request).await.map(drop).map_err(|status| reason(&status))
    }

    fn revocation(&self, token: String) -> RevokeRequest {
        RevokeRequest {
            client_id: self.credentials.client_id.clone(),
            client_secret: self.credentials.secret(),
            token,
            ..RevokeRequest::default()
        }
    }
}

/// Gets an access token for the scopes.
pub(super) async fn access_token(remote: &Remote, scopes: &[String]) -> Result<String, Failure> {
    let request = remote.request(token_request(remote.credentials()?, scopes, true));
    let answer = TokenServiceClient::new(remote.channel.clone()).token(request).await;
    Ok(answer.map_err(|status| remote.refused(status))?.into_inner().access_token)
}

fn token_request(
    credentials: &Credentials,
    scopes: &[String],
    without_refresh_token: bool,
) -> TokenRequest {
    TokenRequest {
        client_id: credentials.client_id.clone(),
        client_secret: credentials.secret(),
        scopes: scopes.to_vec(),
        without_refresh_token,
        ..TokenRequest::default()
    }
}

/// An answer that says inactive about a valid token is an error here.
fn active(answer: &IntrospectResponse) -> Result<(), String> {
    if answer.active == Some(true) { Ok(()) } else { Err("inactive".to_owned()) }
}

/// Reason of a failed call: that of the server, else the code of gRPC.
fn reason(status: &Status) -> String {
    Failure::from(status.clone()).reason().unwrap_or_else(|| format!("{:?}", status.code()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mix is the one that the help text names.
    #[test]
    fn the_mix_is_as_described() {
        let count = |operation: Operation| {
            (0..MIX).filter(|number| Operation::of_mix(*number) == operation).count()
        };
        let all = [Operation::Introspect, Operation::Token, Operation::Refresh, Operation::Revoke];
        assert_eq!(all.map(count), [40, 5, 4, 1]);
        for operation in Operation::value_variants() {
            let shown = operation.to_possible_value().unwrap();
            assert_eq!(shown.get_name(), operation.name());
        }
    }
}
