//! `audit`: reads and verifies the audit trail.

use std::{collections::BTreeMap, path::PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    admin::Admin,
    args::{self, Moment},
    connect::{Options, Remote},
    error::Failure,
    output::Output,
    render,
    tail::Tail,
    verify::Verify,
};
use crate::{
    model::event::Action,
    proto::admin::{
        Event, EventFilter, ListEventsRequest, Principal, audit_service_client::AuditServiceClient,
        principal::Kind,
    },
};

/// Scope of a caller that may not request `jeton:admin`.
const SCOPE: &str = "jeton:admin:audit";

/// `jeton audit`
#[derive(Args, Debug)]
pub(super) struct Command {
    #[command(subcommand)]
    command: AuditCommand,
    #[command(flatten)]
    remote: Options,
}

#[derive(Subcommand, Debug)]
enum AuditCommand {
    /// List events, newest first
    List {
        #[command(flatten)]
        filter: Filter,
        /// Show at most this many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Follow new events until Ctrl-C or SIGTERM. Connects again after a break and continues
    /// without gap or repetition
    Tail {
        #[command(flatten)]
        filter: Filter,
        /// File that keeps the positions reached: a later run continues after them. Events are
        /// printed before they are kept, so a run that was killed may repeat its last ones
        #[arg(long, value_name = "FILE")]
        from_last: Option<PathBuf>,
    },
    /// Verify every audit chain: find removed, altered, reordered or truncated records; exit with 1
    /// if there are any. "end not sure" (exit with 0): the node is not running and did not close
    /// its chain, so its newest records may be missing
    ///
    /// Prints the result of each chain as soon as it is there. A run that was stopped or failed
    /// exits with another code than 0 and 1, and prints the place reached: a later run with
    /// --from-head continues there. With --data-dir, --store, --store-file or --config it needs no
    /// server but the master key, and changes nothing.
    Verify(Box<Verify>),
}

/// Filter of events.
#[derive(Args, Debug)]
struct Filter {
    /// Show only this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Show only calls of this client
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// Show only this action, such as token.issued, or all actions with a prefix that ends with a
    /// dot, such as token. (docs/audit.md lists the actions)
    #[arg(long)]
    action: Option<String>,
    /// Show only this outcome
    #[arg(long, value_parser = ["ok", "refused"])]
    outcome: Option<String>,
    /// Show only this target
    #[arg(long)]
    target: Option<String>,
    /// Show only events by or about this client: it acted, or it or one of its secrets is the target
    #[arg(long, value_name = "ID")]
    about: Option<String>,
    /// Show only events about this secret and calls with it, failed ones too
    #[arg(long, value_name = "CLIENT/SECRET")]
    secret_id: Option<String>,
    /// Show only this refresh family
    #[arg(long, value_name = "FAM")]
    family: Option<String>,
    /// Start time: RFC 3339, or a duration before now, such as 90s, 15m, 2h or 7d
    #[arg(long, value_name = "TIME", value_parser = args::moment)]
    since: Option<Moment>,
    /// End time (exclusive): RFC 3339, or a duration before now
    #[arg(long, value_name = "TIME", value_parser = args::moment)]
    until: Option<Moment>,
}

impl Filter {
    fn message(&self) -> Result<EventFilter, Failure> {
        if let Some(action) = &self.action {
            check_action(action)?;
        }
        let time = |moment: Option<Moment>| {
            moment.map(|moment| render::proto_time(moment.before(args::now())))
        };
        Ok(EventFilter {
            tenant: self.tenant.clone().unwrap_or_default(),
            actor: self.client.clone().map(|id| Principal { kind: Some(Kind::ClientId(id)) }),
            action: self.action.clone().unwrap_or_default(),
            outcome: self.outcome.clone().unwrap_or_default(),
            target: self.target.clone().unwrap_or_default(),
            start_time: time(self.since),
            end_time: time(self.until),
            about: self.about.clone().unwrap_or_default(),
            secret: self.secret_id.clone().unwrap_or_default(),
            family: self.family.clone().unwrap_or_default(),
        })
    }
}

/// Refuses an action, or a prefix of actions, that does not exist: its list would always be empty.
fn check_action(text: &str) -> Result<(), Failure> {
    let mut names = Action::ALL.iter().map(|action| action.as_str());
    let matches = |name: &str| {
        if text.ends_with('.') { name.starts_with(text) } else { name == text }
    };
    if text.is_empty() || names.clone().any(matches) {
        return Ok(());
    }
    let first = names.next().unwrap_or_default().to_owned();
    let names = names.fold(first, |list, name| list + ", " + name);
    Err(Failure::setting(
        "action",
        format!("must be an action or a prefix with a dot at its end, one of {names}"),
    ))
}

impl Command {
    pub(super) async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        // Errors in the arguments are reported before any call.
        let filter = match &self.command {
            AuditCommand::List { filter, .. } | AuditCommand::Tail { filter, .. } => {
                filter.message()?
            }
            AuditCommand::Verify(verify) => {
                return verify.run(output, &self.remote, SCOPE, environment).await;
            }
        };
        let remote = Remote::open(&self.remote, environment).await?;
        match &self.command {
            AuditCommand::List { limit, .. } => {
                list(output, &Admin::open(remote, SCOPE).await?, filter, *limit).await
            }
            AuditCommand::Tail { from_last, .. } => {
                Tail::new(output, remote, SCOPE, filter, from_last.clone())?.run().await
            }
            // Has run above.
            AuditCommand::Verify(_) => Ok(()),
        }
    }
}

async fn list(
    output: Output,
    admin: &Admin,
    filter: EventFilter,
    limit: usize,
) -> Result<(), Failure> {
    let mut service = AuditServiceClient::new(admin.channel());
    let (mut events, mut page_token) = (Vec::new(), String::new());
    let cut_time = loop {
        let page_size =
            i32::try_from(limit.saturating_sub(events.len()).min(1000)).unwrap_or(1000).max(1);
        let request = admin.request(ListEventsRequest {
            filter: Some(filter.clone()),
            page_size,
            page_token,
        });
        let answer = service.list_events(request).await?.into_inner();
        events.extend(answer.events);
        page_token = answer.next_page_token;
        if page_token.is_empty() || events.len() >= limit {
            break answer.cut_time;
        }
    };
    events.truncate(limit);
    if let Some(cut) = &cut_time {
        output.talk(&format!(
            "records up to {} were cut by audit.keep; those that are not listed are in its archive",
            render::time(Some(cut))
        ));
    }
    if output.json {
        return output.document(&json!({
            "events": events.iter().map(render::event).collect::<Vec<_>>(),
            "cut_time": cut_time.as_ref().map(|cut| render::time(Some(cut))),
        }));
    }
    let row = |event: &Event| {
        let time = render::time(event.time.as_ref());
        let Event { chain, sequence, action, outcome, tenant, target, peer, .. } = event.clone();
        let (actor, reason) = (render::actor(event), render::reason(event));
        vec![
            chain,
            sequence.to_string(),
            time,
            action,
            outcome,
            tenant,
            actor,
            target,
            reason,
            peer,
        ]
    };
    let header = [
        "chain", "seq", "time", "action", "outcome", "tenant", "actor", "target", "reason", "peer",
    ];
    let spare = ["tenant", "peer", "chain", "outcome", "reason"];
    output.table(&header, &events.iter().map(row).collect::<Vec<_>>(), &spare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_action_is_refused_with_the_list_of_actions() {
        for good in ["", "token.issued", "token.", "revocation.client"] {
            assert!(check_action(good).is_ok(), "{good}");
        }
        for bad in ["bogus", "token", "bogus.", "token.issued."] {
            let failure = check_action(bad).unwrap_err();
            assert_eq!(failure.exit_code(), 64, "{bad}");
            assert!(failure.to_string().contains("token.issued, "), "{failure}");
        }
    }
}
