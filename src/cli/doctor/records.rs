//! Whether every client record was written by the service: by their codes, under the master key.

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

/// Reads every client of the store; nothing where there is no master key or no store, which is said elsewhere.
pub(super) async fn clients(config: &Config) -> Option<Finding> {
    let master = master::load_or_make(&config.master_key_path(), false).ok()?;
    let key = RecordKey::new(Sealer::new(master).derive("client record"));
    let source = ends::source(config, None).await.ok()?;
    Some(match look(source.as_ref(), &key).await {
        Ok((clients, forged)) if forged.is_empty() => {
            Finding::ok(SUBJECT, format!("{clients} clients, all written by the service"))
        }
        Ok((_, forged)) => {
            let text = format!("not written by the service, and refused: {}", forged.join(", "));
            let advice = "somebody without the master key writes to this store: remove the records, and look at who can";
            Finding::problem(SUBJECT, text, advice)
        }
        Err(problem) => Finding::problem(SUBJECT, problem, "remove the record from the store, or restore a backup"),
    })
}

/// How many there are, and whose codes are wrong. Clients come first in what a store gives away.
async fn look(store: &dyn Dump, key: &RecordKey) -> Result<(usize, Vec<String>), String> {
    let (mut clients, mut forged, mut last) = (0_usize, Vec::new(), None);
    loop {
        let page = store.dump(last.as_ref(), PAGE).await.map_err(|error| ends::with_source(&error))?;
        for item in &page {
            if let Item::Client(client) = item {
                clients = clients.saturating_add(1);
                if !key.is_authentic(client) {
                    forged.push(client.id.to_string());
                }
            } else if !matches!(item, Item::Export { .. }) {
                return Ok((clients, forged));
            }
        }
        match page.into_iter().next_back() {
            Some(item) => last = Some(item),
            None => return Ok((clients, forged)),
        }
    }
}
