//! Check that the service wrote every record of a client and an audience, by the MAC under the
//! master key.

use std::collections::BTreeMap;

use super::Finding;
use crate::{
    cli::{render, transfer::stores},
    config::Config,
    crypto::{master, records::RecordKey, seal::Sealer},
    model::{Audience, ClientId, TenantId},
    store::transfer::{ExportRecord, ExportSource},
};

const SUBJECT: &str = "client records";
/// Maximum listings in the text.
const SHOWN_MAX: usize = 20;
/// Records per page.
const PAGE_SIZE: usize = 500;

/// Checks every such record of the store; `None` without a master key or a store, which other
/// checks report.
pub(super) async fn clients(config: &Config) -> Option<Finding> {
    let master = master::load_or_make(&config.master_key_path(), false).ok()?;
    let key = RecordKey::new(Sealer::new(master).derive("client record"));
    let source = stores::source(config, None).await.ok()?;
    let mut checked = check(source.as_ref(), &key).await;
    if let Ok(checked) = &mut checked {
        // The service itself has no record, and is listed by the operator.
        checked.listed.retain(|(audience, _), _| audience.as_str() != config.issuer.as_str());
    }
    Some(match checked {
        Ok(CheckedRecords { forged, listed, .. }) if forged.is_empty() && !listed.is_empty() => {
            let text =
                listed.iter().map(|((audience, _), client)| format!("{client} lists {audience}"));
            let (more, text) = (
                listed.len().saturating_sub(SHOWN_MAX),
                text.take(SHOWN_MAX).collect::<Vec<_>>().join(", "),
            );
            let text = if more > 0 { format!("{text} and {more} more") } else { text };
            let advice = "these audiences belong to another tenant or to none, shared by the \
                          operator or imported; check that this is intended";
            Finding::note(SUBJECT, text, advice)
        }
        Ok(CheckedRecords { clients, audiences, forged, .. }) if forged.is_empty() => Finding::ok(
            SUBJECT,
            format!(
                "{} and {}, all written by the service",
                render::count(clients, "client"),
                render::count(audiences, "audience")
            ),
        ),
        Ok(CheckedRecords { forged, .. }) => {
            let text = format!("not written by the service and ignored: {}", forged.join(", "));
            let advice = "a process without the master key writes to this store: check who has \
                          access, remove these client records, assign these audiences again";
            Finding::problem(SUBJECT, text, advice)
        }
        Err(problem) => Finding::problem(
            SUBJECT,
            problem,
            "restore a backup, or remove the client record or assign the audience again",
        ),
    })
}

/// Numbers of the records, and the records whose MACs are wrong.
#[derive(Default)]
struct CheckedRecords {
    clients: usize,
    audiences: usize,
    forged: Vec<String>,
    /// Audiences that a tenant's clients list and that are not the tenant's, with one of these
    /// clients.
    listed: BTreeMap<(Audience, TenantId), ClientId>,
}

/// Checks clients and audiences, which a store exports first.
async fn check(store: &dyn ExportSource, key: &RecordKey) -> Result<CheckedRecords, String> {
    let (mut checked, mut last) = (CheckedRecords::default(), None);
    loop {
        let page = store
            .export_page(last.as_ref(), PAGE_SIZE)
            .await
            .map_err(|error| stores::with_source(&error))?;
        for item in &page {
            match item {
                ExportRecord::Client(client) => {
                    checked.clients = checked.clients.saturating_add(1);
                    if !key.is_authentic(client) {
                        checked.forged.push(client.id.to_string());
                    }
                    for audience in client.audiences.iter().chain(&client.serves) {
                        let listed = (audience.clone(), client.tenant.clone());
                        checked.listed.entry(listed).or_insert_with(|| client.id.clone());
                    }
                }
                ExportRecord::Audience(record) => {
                    checked.audiences = checked.audiences.saturating_add(1);
                    if !key.is_authentic_audience(record) {
                        checked.forged.push(record.audience.to_string());
                    }
                    checked.listed.remove(&(record.audience.clone(), record.tenant.clone()));
                }
                ExportRecord::Export { .. }
                | ExportRecord::SecretUse { .. }
                | ExportRecord::DeletedClient { .. } => {}
                ExportRecord::Family(_)
                | ExportRecord::Revocation(_)
                | ExportRecord::Epoch { .. }
                | ExportRecord::Keyset(_)
                | ExportRecord::ChainStart { .. }
                | ExportRecord::Record { .. }
                | ExportRecord::ChainEnd { .. }
                | ExportRecord::End { .. } => return Ok(checked),
            }
        }
        match page.into_iter().next_back() {
            Some(item) => last = Some(item),
            None => return Ok(checked),
        }
    }
}
