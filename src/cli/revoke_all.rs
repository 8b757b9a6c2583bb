//! `revoke-all`: revokes many tokens in one durable write.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::json;
use tonic::{Code, Status};

use super::{
    admin::Admin,
    connect::{Options, Remote},
    error::Failure,
    output::Output,
    render,
};
use crate::{
    proto::admin::{
        RevokeAllRequest, RevokeAllResponse, revocation_service_client::RevocationServiceClient,
        revoke_all_request::Target as Revoked,
    },
    telemetry::escape,
};

/// `jeton revoke-all`
#[derive(Args, Debug)]
pub(super) struct Command {
    #[command(flatten)]
    target: RevocationTarget,
    /// Reason, for the audit trail
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Do not ask before the tokens of a whole client, tenant, subject or key are revoked
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    remote: Options,
}

/// Target of the revocation; exactly one.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct RevocationTarget {
    /// Every token issued to this client so far
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// Every token issued in this tenant so far
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Every token with this sub so far, such as client:orders
    #[arg(long, value_name = "SUB")]
    subject: Option<String>,
    /// This refresh family (fam) and its access tokens
    #[arg(long, value_name = "FAM")]
    family: Option<String>,
    /// Every token signed by this key; revokes the key
    #[arg(long, value_name = "KID", allow_hyphen_values = true)]
    kid: Option<String>,
    /// This access token
    #[arg(long, value_name = "JTI")]
    jti: Option<String>,
}

impl RevocationTarget {
    /// Returns a target that may stand for any number of tokens, in words.
    fn wide(&self) -> Option<String> {
        let named = [
            ("client", &self.client),
            ("tenant", &self.tenant),
            ("subject", &self.subject),
            ("key", &self.kid),
        ];
        named.into_iter().find_map(|(kind, name)| Some(format!("{kind} {}", name.as_ref()?)))
    }

    /// Returns the subject that was probably meant, for one that does not exist.
    fn probable_subject(&self, status: &Status) -> Option<String> {
        let subject = self.subject.as_ref().filter(|subject| !subject.starts_with("client:"))?;
        (status.code() == Code::NotFound).then(|| {
            format!("did you mean client:{subject}? The sub of a client is client: and its id")
        })
    }

    /// Returns the reach of the revocation in words.
    fn reached(&self, reach: &RevokeAllResponse) -> String {
        let client = escape(&reach.client_id);
        if let Some(tenant) = &self.tenant {
            let tenant = escape(tenant);
            return match reach.clients {
                Some(clients) => {
                    let clients = render::count(clients, "client");
                    format!("revoked: every token of tenant {tenant}, of {clients}")
                }
                None => format!("revoked: every token of tenant {tenant}"),
            };
        }
        if self.family.is_some() {
            return format!(
                "revoked: the refresh family and its access tokens, of client {client}"
            );
        }
        if let Some(kid) = &self.kid {
            return format!("revoked: key {}, and every token that it signed", escape(kid));
        }
        match (&self.jti, reach.token_known) {
            (None, _) => format!("revoked: every token of client {client}"),
            (Some(_), Some(true)) => format!("revoked: the token, of client {client}"),
            (Some(_), Some(false)) => "recorded: the audit trail contains no token with this jti; \
                                       if there is one, it is not active"
                .to_owned(),
            (Some(_), None) => "revoked: the token; its client is not known".to_owned(),
        }
    }

    fn revoked(&self) -> Option<Revoked> {
        let client = self.client.clone().map(Revoked::ClientId);
        let tenant = self.tenant.clone().map(Revoked::Tenant);
        let subject = self.subject.clone().map(Revoked::Subject);
        let family = self.family.clone().map(Revoked::Family);
        let kid = self.kid.clone().map(Revoked::Kid);
        client
            .or(tenant)
            .or(subject)
            .or(family)
            .or(kid)
            .or_else(|| self.jti.clone().map(Revoked::Jti))
    }
}

impl Command {
    pub(super) async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        if let Some(wide) = self.target.wide().filter(|_| !self.yes) {
            output.confirm(&format!("revoke every token of {wide}?"))?;
        }
        let scopes = if self.target.kid.is_some() {
            "jeton:admin:revocations jeton:admin:keys"
        } else {
            "jeton:admin:revocations"
        };
        let remote = Remote::open(&self.remote, environment).await?;
        let admin = Admin::open(remote, scopes).await?;
        let request = admin.request(RevokeAllRequest {
            target: self.target.revoked(),
            reason: self.reason.clone(),
        });
        let response = RevocationServiceClient::new(admin.channel()).revoke_all(request).await;
        let reach = response
            .map_err(|status| {
                let advice = self.target.probable_subject(&status);
                Failure::from(status).advised(&advice)
            })?
            .into_inner();
        if output.json {
            return output.document(&json!({
                "clients": reach.clients,
                "client_id": Some(&reach.client_id).filter(|id| !id.is_empty()),
                "token_known": reach.token_known,
            }));
        }
        output.line(&self.target.reached(&reach))
    }
}
