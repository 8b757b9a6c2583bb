//! `audience`: audiences and the tenants that own them.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    admin::Admin,
    connect::{Options, Remote},
    error::Failure,
    output::Output,
    render,
};
use crate::proto::admin::{
    AssignAudienceRequest, Audience, ListAudiencesRequest, ReleaseAudienceRequest,
    audience_service_client::AudienceServiceClient,
};

/// `jeton audience`
#[derive(Args, Debug)]
pub(super) struct Command {
    #[command(subcommand)]
    command: AudienceCommand,
    #[command(flatten)]
    remote: Options,
}

#[derive(Subcommand, Debug)]
enum AudienceCommand {
    /// List audiences and their tenants
    List {
        /// Show only this tenant
        #[arg(long)]
        tenant: Option<String>,
        /// Show at most this many
        #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
        limit: usize,
    },
    /// Assign an audience to a tenant, unless a client of another tenant lists it; operator only
    Assign {
        /// Audience, an absolute URI
        audience: String,
        /// New tenant of the audience
        #[arg(long)]
        tenant: String,
    },
    /// Release an audience from its tenant, unless a client lists it; for the operator and that
    /// tenant
    Release {
        /// Audience, an absolute URI
        audience: String,
    },
}

impl Command {
    pub(super) async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let remote = Remote::open(&self.remote, environment).await?;
        let admin = Admin::open(remote, "jeton:admin:clients").await?;
        let mut audiences = AudienceServiceClient::new(admin.channel());
        match &self.command {
            AudienceCommand::List { tenant, limit } => {
                list(output, &admin, tenant.clone().unwrap_or_default(), *limit).await
            }
            AudienceCommand::Assign { audience, tenant } => {
                let request =
                    AssignAudienceRequest { audience: audience.clone(), tenant: tenant.clone() };
                let answer = audiences.assign_audience(admin.request(request)).await?.into_inner();
                let assigned = answer.audience;
                let assigned = assigned
                    .ok_or_else(|| Failure::Other("the server returned no audience".to_owned()))?;
                if output.json {
                    return output.document(&json!({ "audience": render::audience(&assigned) }));
                }
                output.record(&[
                    ("audience", assigned.audience),
                    ("tenant", assigned.tenant),
                    ("claimed_by", assigned.claimed_by),
                    ("created", render::time(assigned.create_time.as_ref())),
                ])
            }
            AudienceCommand::Release { audience } => {
                let request = ReleaseAudienceRequest { audience: audience.clone() };
                audiences.release_audience(admin.request(request)).await?;
                if output.json { output.document(&json!({})) } else { output.line("released") }
            }
        }
    }
}

/// Lists the audiences that the caller may see, page by page, up to `limit`.
async fn list(output: Output, admin: &Admin, tenant: String, limit: usize) -> Result<(), Failure> {
    let mut service = AudienceServiceClient::new(admin.channel());
    let (mut audiences, mut forged, mut page_token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let page_size =
            i32::try_from(limit.saturating_sub(audiences.len()).min(1000)).unwrap_or(1000);
        let request = admin.request(ListAudiencesRequest {
            tenant: tenant.clone(),
            page_size: page_size.max(1),
            page_token,
        });
        let answer = service.list_audiences(request).await?.into_inner();
        audiences.extend(answer.audiences);
        forged.extend(answer.not_authentic);
        page_token = answer.next_page_token;
        if page_token.is_empty() || audiences.len() >= limit {
            break;
        }
    }
    audiences.truncate(limit);
    if output.json {
        let audiences = audiences.iter().map(render::audience).collect::<Vec<_>>();
        return output.document(&json!({ "audiences": audiences, "not_authentic": forged }));
    }
    for audience in &forged {
        output.talk(&format!(
            "the record of {audience} was not written by this service and is ignored: assign it \
             again"
        ));
    }
    let row = |audience: &Audience| {
        let created = render::time(audience.create_time.as_ref());
        vec![
            audience.audience.clone(),
            audience.tenant.clone(),
            audience.claimed_by.clone(),
            created,
        ]
    };
    output.table(
        &["audience", "tenant", "claimed by", "created"],
        &audiences.iter().map(row).collect::<Vec<_>>(),
        &["created", "claimed by"],
    )
}
