//! `revoke-all`: revokes many tokens in one durable write.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::json;

use super::{
    admin::Admin,
    connect::{Options, Remote},
    error::Failure,
    output::Output,
};
use crate::proto::admin::{
    RevokeAllRequest, revocation_service_client::RevocationServiceClient,
    revoke_all_request::Target as Revoked,
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
    /// Every token with this sub so far
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
        RevocationServiceClient::new(admin.channel()).revoke_all(request).await?;
        if output.json { output.document(&json!({})) } else { output.line("revoked") }
    }
}
