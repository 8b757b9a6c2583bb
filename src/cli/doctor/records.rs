//! Whether every record of a client or an audience was written by the service: by their codes, under the master key.

use super::Finding;
use crate::{
    cli::transfer::ends,
    config::Config,
    crypto::{master, records::RecordKey, seal::Sealer},
    store::transfer::{Dump, Item},
};

const SUBJECT: &str = "client records";
/// Records read together.
const PAGE: usize = 500;

/// Reads every such record of the store; nothing where there is no master key or no store, which is said elsewhere.
pub(super) async fn clients(config: &Config) -> Option<Finding> {
    let master = master::load_or_make(&config.master_key_path(), false).ok()?;
    let key = RecordKey::new(Sealer::new(master).derive("client record"));
    let source = ends::source(config, None).await.ok()?;
    Some(match look(source.as_ref(), &key).await {
        Ok(Looked { clients, audiences, forged }) if forged.is_empty() => {
            Finding::ok(SUBJECT, format!("{clients} clients and {audiences} audiences, all written by the service"))
        }
        Ok(Looked { forged, .. }) => {
            let text = format!("not written by the service, and refused: {}", forged.join(", "));
            let advice = "somebody without the master key writes to this store: remove the records, and look at who can";
            Finding::problem(SUBJECT, text, advice)
        }
        Err(problem) => Finding::problem(SUBJECT, problem, "remove the record from the store, or restore a backup"),
    })
}

/// Numbers of the records, and those whose codes are wrong.
#[derive(Default)]
struct Looked {
    clients: usize,
    audiences: usize,
    forged: Vec<String>,
}

/// Looks at clients and audiences, which come first in what a store gives away.
async fn look(store: &dyn Dump, key: &RecordKey) -> Result<Looked, String> {
    let (mut looked, mut last) = (Looked::default(), None);
    loop {
        let page = store.dump(last.as_ref(), PAGE).await.map_err(|error| ends::with_source(&error))?;
        for item in &page {
            match item {
                Item::Client(client) => {
                    looked.clients = looked.clients.saturating_add(1);
                    if !key.is_authentic(client) {
                        looked.forged.push(client.id.to_string());
                    }
                }
                Item::Audience(record) => {
                    looked.audiences = looked.audiences.saturating_add(1);
                    if !key.is_authentic_audience(record) {
                        looked.forged.push(record.audience.to_string());
                    }
                }
                Item::Export { .. } | Item::SecretUse { .. } | Item::DeletedClient { .. } => {}
                Item::Family(_)
                | Item::Revocation(_)
                | Item::Epoch { .. }
                | Item::Keyset(_)
                | Item::Record { .. }
                | Item::ChainEnd { .. }
                | Item::End { .. } => return Ok(looked),
            }
        }
        match page.into_iter().next_back() {
            Some(item) => last = Some(item),
            None => return Ok(looked),
        }
    }
}
