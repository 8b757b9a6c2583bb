//! `audit`: reading the trail.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    failure::Failure,
    output::Output,
    remote::{Admin, Options, Remote},
    render,
    values::{self, Moment},
};
use crate::proto::admin::{
    Event, EventFilter, ListEventsRequest, TailEventsRequest, VerifyChainRequest, audit_service_client::AuditServiceClient,
};

/// `jeton audit`
#[derive(Args, Debug)]
pub(super) struct Command {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    remote: Options,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Show events, newest first
    List {
        #[command(flatten)]
        filter: Filter,
        /// At most this many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Follow events as they are committed
    Tail {
        #[command(flatten)]
        filter: Filter,
    },
    /// Read the whole chain and find what was removed, altered, reordered or cut off; exit with 1 when something was
    Verify {
        /// A head noted earlier, to find a cut of the end: SEQUENCE:HASH
        #[arg(long, value_name = "HEAD", value_parser = head)]
        known: Option<(i64, String)>,
    },
}

/// Which events.
#[derive(Args, Debug)]
struct Filter {
    /// Only this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Only this calling client
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// Only this action, or all that begin with it when it ends in a dot
    #[arg(long)]
    action: Option<String>,
    /// Only this outcome
    #[arg(long, value_parser = ["ok", "refused"])]
    outcome: Option<String>,
    /// Only this target
    #[arg(long)]
    target: Option<String>,
    /// From this time on: RFC 3339, or how long ago, such as 15m
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    since: Option<Moment>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    until: Option<Moment>,
}

impl Filter {
    fn message(&self) -> EventFilter {
        let time = |moment: Option<Moment>| moment.map(|moment| render::proto_time(moment.before(values::now())));
        EventFilter {
            tenant: self.tenant.clone().unwrap_or_default(),
            client_id: self.client.clone().unwrap_or_default(),
            action: self.action.clone().unwrap_or_default(),
            outcome: self.outcome.clone().unwrap_or_default(),
            target: self.target.clone().unwrap_or_default(),
            start_time: time(self.since),
            end_time: time(self.until),
        }
    }
}

/// `SEQUENCE:HASH`, as `audit verify` prints it.
fn head(text: &str) -> Result<(i64, String), String> {
    let problem = || "a head is SEQUENCE:HASH, as `jeton audit verify` prints it".to_owned();
    let (sequence, hash) = text.split_once(':').ok_or_else(problem)?;
    let sequence = sequence.parse().ok().filter(|sequence| *sequence > 0).ok_or_else(problem)?;
    if hash.is_empty() || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(problem());
    }
    Ok((sequence, hash.to_owned()))
}

impl Command {
    pub(super) async fn run(&self, output: Output, environment: &BTreeMap<String, String>) -> Result<(), Failure> {
        let admin = Remote::open(&self.remote, environment).await?.admin("jeton:admin:audit").await?;
        match &self.verb {
            Verb::List { filter, limit } => list(output, &admin, filter.message(), *limit).await,
            Verb::Tail { filter } => tail(output, &admin, filter.message()).await,
            Verb::Verify { known } => verify(output, &admin, known.clone().unwrap_or_default()).await,
        }
    }
}

async fn list(output: Output, admin: &Admin, filter: EventFilter, limit: usize) -> Result<(), Failure> {
    let mut service = AuditServiceClient::new(admin.channel());
    let (mut events, mut page_token) = (Vec::new(), String::new());
    loop {
        let page_size = i32::try_from(limit.saturating_sub(events.len()).min(1000)).unwrap_or(1000).max(1);
        let request = admin.request(ListEventsRequest { filter: Some(filter.clone()), page_size, page_token });
        let answer = service.list_events(request).await?.into_inner();
        events.extend(answer.events);
        page_token = answer.next_page_token;
        if page_token.is_empty() || events.len() >= limit {
            break;
        }
    }
    events.truncate(limit);
    if output.json {
        return output.document(&json!({ "events": events.iter().map(render::event).collect::<Vec<_>>() }));
    }
    let row = |event: &Event| {
        let time = render::time(event.time.as_ref());
        let Event { sequence, action, outcome, tenant, client_id, target, reason, peer, .. } = event.clone();
        vec![sequence.to_string(), time, action, outcome, tenant, client_id, target, reason, peer]
    };
    let header = ["seq", "time", "action", "outcome", "tenant", "client", "target", "reason", "peer"];
    output.table(&header, &events.iter().map(row).collect::<Vec<_>>())
}

/// Ends when the server does, or with Ctrl-C.
async fn tail(output: Output, admin: &Admin, filter: EventFilter) -> Result<(), Failure> {
    let request = admin.stream(TailEventsRequest { filter: Some(filter) });
    let mut events = AuditServiceClient::new(admin.channel()).tail_events(request).await?.into_inner();
    while let Some(answer) = events.message().await? {
        let Some(event) = answer.event else { continue };
        if output.json {
            output.document(&render::event(&event))?;
            continue;
        }
        let Event { action, outcome, client_id, target, reason, .. } = &event;
        let line = format!("{}  {outcome:7}  {action}  {client_id}  {target}  {reason}", render::time(event.time.as_ref()));
        output.line(&crate::telemetry::escape(line.trim_end()))?;
    }
    Ok(())
}

async fn verify(output: Output, admin: &Admin, (known_sequence, known_hash): (i64, String)) -> Result<(), Failure> {
    let request = admin.request(VerifyChainRequest { known_sequence, known_hash });
    let answer = AuditServiceClient::new(admin.channel()).verify_chain(request).await?.into_inner();
    let intact = answer.intact.unwrap_or(false);
    if output.json {
        output.document(&json!({
            "intact": intact, "checked": answer.checked, "first_bad_sequence": answer.first_bad_sequence,
            "problem": answer.problem, "head_sequence": answer.head_sequence, "head_hash": answer.head_hash,
        }))?;
    } else {
        let bad = if intact { String::new() } else { answer.first_bad_sequence.to_string() };
        output.record(&[
            ("intact", intact.to_string()),
            ("checked", answer.checked.to_string()),
            ("first bad", bad),
            ("problem", answer.problem.clone()),
            ("head", format!("{}:{}", answer.head_sequence, answer.head_hash)),
        ])?;
    }
    if intact { Ok(()) } else { Err(Failure::Code(1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_is_printed() {
        assert_eq!(head("12:00ffAA"), Ok((12, "00ffAA".to_owned())));
        for bad in ["12", "x:00", "0:00", "-1:00", "12:", "12:zz"] {
            assert!(head(bad).is_err(), "{bad}");
        }
    }
}
