//! Witnesses: each node records the heads of the other chains in its own chain. So a chain that is
//! truncated or removed later is detected by all others.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::Mutex;

use crate::{
    crypto::chain::{ChainKey, Claim, Head, Walk},
    error::Result,
    model::{
        Action, Place, Record, Stamp, Timestamp,
        digits::{hex, unhex},
    },
    store::{AuditStore, ChainReader, Writer},
};

/// Maximum heads in one record.
const HEADS: usize = 32;
/// Records per read.
const STRIDE: usize = 500;

/// A recorded place of a chain and its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The chain.
    pub chain: Arc<str>,
    /// The record.
    pub sequence: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

impl Known {
    fn text(&self) -> String {
        format!("{}:{}:{}", self.chain, self.sequence, hex(&self.hash))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.rsplitn(3, ':');
        let (digits, sequence) = (parts.next()?, parts.next()?.parse().ok()?);
        Some(Self { chain: parts.next()?.into(), sequence, hash: unhex(digits)? })
    }
}

/// Visits the heads that the nodes of a store have witnessed, in any chain. Records without a
/// node's seal do not count.
///
/// # Errors
///
/// The store fails.
pub async fn witnessed<S: ChainReader + ?Sized>(
    store: &S,
    mut visit: impl FnMut(Known) + Send,
) -> Result<()> {
    let mut after = None::<Place>;
    loop {
        let records = store.witnesses(after.as_ref(), STRIDE).await?;
        let Some(last) = records.last() else { return Ok(()) };
        after = Some(last.place());
        let heads = records.iter().flat_map(|record| record.event.target.split(' '));
        heads.filter_map(Known::parse).for_each(&mut visit);
    }
}

/// Task of a node that witnesses heads.
#[derive(Default)]
pub struct Witness(Mutex<Option<HashMap<Arc<str>, Progress>>>);

/// Progress with one chain.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// The newest record that was witnessed.
    witnessed: u64,
    /// The newest record that was read, and its hash.
    read: (u64, [u8; 32]),
}

impl Witness {
    /// Records the heads of all other chains that are due, and returns how many. The first call of
    /// a process only reads which heads are recorded already, so that a closed chain is not
    /// recorded again by every new process.
    ///
    /// A head is due if its chain has new records other than witnesses, so that idle nodes do not
    /// record each other's records forever; and if its node no longer writes.
    ///
    /// # Errors
    ///
    /// The store fails; the next call records the rest.
    pub async fn record_moved<S: AuditStore + ?Sized>(
        &self,
        store: &S,
        key: &ChainKey,
        now: Timestamp,
    ) -> Result<usize> {
        let (mut held, chains) = (self.0.lock().await, store.chains().await?);
        if chains.len() < 2 {
            // Its own.
            return Ok(0);
        }
        let Some(seen) = held.as_mut() else {
            *held = Some(first(store).await?);
            return Ok(0);
        };
        let mut due = Vec::new();
        for chain in chains {
            let before = seen.get(&chain).copied().unwrap_or_default();
            // Names of nodes have no blanks; a list of others could not be read back.
            let known =
                store.head(&chain).await?.filter(|head| key.check(head) && !chain.contains(' '));
            // A record's seal covers its node, not the chain it was copied into.
            let known = known.filter(|head| head.claim.is_head() || *head.node == *chain);
            let Some(head) = known.filter(|head| head.sequence > before.witnessed) else {
                continue;
            };
            if is_due(store, &chain, &head, before).await? {
                due.push(Known { chain, sequence: head.sequence, hash: head.hash });
            } else {
                seen.entry(chain).or_default().read = (head.sequence, head.hash);
            }
        }
        for some in due.chunks(HEADS) {
            let target: Vec<String> = some.iter().map(Known::text).collect();
            store
                .append(Stamp::internal(now).done(Action::HeadsWitnessed, target.join(" ")))
                .await?;
            for known in some {
                let read = (known.sequence, known.hash);
                seen.insert(known.chain.clone(), Progress { witnessed: known.sequence, read });
            }
        }
        Ok(due.len())
    }
}

async fn first<S: AuditStore + ?Sized>(store: &S) -> Result<HashMap<Arc<str>, Progress>> {
    let mut seen = HashMap::<_, Progress>::new();
    let visit = |Known { chain, sequence, hash }| {
        let so_far: &mut Progress = seen.entry(chain).or_default();
        if sequence > so_far.witnessed {
            *so_far = Progress { witnessed: sequence, read: (sequence, hash) };
        }
    };
    witnessed(store, visit).await?;
    Ok(seen)
}

/// Returns true if the `head` of a chain is due to be recorded.
async fn is_due<S: AuditStore + ?Sized>(
    store: &S,
    chain: &str,
    head: &Head,
    seen: Progress,
) -> Result<bool> {
    let writer = store.writer(chain).await?;
    match writer {
        Writer::This => return Ok(false),
        Writer::NotRunning => return Ok(true),
        Writer::Another if head.claim == Claim::Closed => return Ok(true),
        Writer::Another => {}
    }
    let (sequence, hash) = seen.read;
    if head.sequence <= sequence {
        // No new record since the last read, which found only witnesses.
        return Ok(false);
    }
    let mut walk = Walk::after(sequence, hash);
    loop {
        let records = store.chain(chain, walk.sequence(), STRIDE).await?;
        let is_witness = |record: &Record| record.event.action == Action::HeadsWitnessed;
        for record in records.iter().take_while(|record| record.sequence <= head.sequence) {
            // A record that does not follow the last one is found by the verification, with the
            // help of this witness.
            if walk.record(record).is_err() || !is_witness(record) {
                return Ok(true);
            }
        }
        if walk.sequence() >= head.sequence {
            return Ok(walk.hash() != head.hash);
        }
        if records.len() < STRIDE {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reads_back_as_it_was_noted() {
        for chain in ["node-1", "a:7:b", ":", "é"] {
            let known = Known {
                chain: chain.into(),
                sequence: u64::MAX,
                hash: std::array::from_fn(|at| at as u8),
            };
            assert_eq!(Known::parse(&known.text()), Some(known));
        }
        let hash = "00".repeat(32);
        for bad in [
            "",
            "a:1",
            "a:1:00",
            &format!("a:x:{hash}"),
            &format!("1:{hash}"),
            &format!("a:1:+{}", &hash[1..63]),
        ] {
            assert_eq!(Known::parse(bad), None, "{bad}");
        }
    }
}
