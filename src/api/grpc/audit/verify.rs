//! The verification of audit chains: VerifyChain, and the stream of VerifyTrail.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, future::lazy, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, interval},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{events::wire, tail::stopped};
use crate::{
    admin::{
        Administrator,
        audit::{Known, Step, Verdict, VerifyRequest},
    },
    api::{
        grpc::{GrpcServices, pages},
        status::status,
    },
    error::{Error, Result},
    model::digits::{hex, unhex},
    proto::admin::{
        ChainState, ChainVerdict, KnownHead, VerifyChainRequest, VerifyChainResponse,
        VerifyTrailRequest, VerifyTrailResponse, audit_service_server::AuditService,
    },
    services::Services,
};

/// Maximum heads of each kind in a request.
const HEADS_MAX: usize = 10_000;
/// Interval of the reports of progress, and of checks that the caller may still verify.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Bytes of results from which on they are sent before the next report is due.
const RESULTS_BYTES: usize = 256 << 10;
/// Messages that a stream has ready for its reader.
const READY_MAX: usize = 4;

impl GrpcServices {
    /// Verifies in one go.
    pub(super) async fn verify_in_one_go(
        &self,
        admin: &Administrator,
        VerifyChainRequest { chain, known }: VerifyChainRequest,
    ) -> Result<VerifyChainResponse> {
        let only = (!chain.is_empty()).then_some(chain.as_str());
        let known = heads("known", known, only)?;
        let verdicts = self.services.admin.audit.verify(admin, only, &known).await?;
        let state = verdicts.iter().map(state).max().unwrap_or(ChainState::Intact);
        let checked = wire(verdicts.iter().map(|verdict| verdict.checked).sum());
        let chains: Vec<ChainVerdict> = verdicts.into_iter().map(judged).collect();
        if pages::fitting(chains.iter().map(pages::bytes)) < chains.len() {
            let problem = "the results of all chains are larger than 4 MiB: call VerifyTrail";
            return Err(Error::precondition(problem));
        }
        let intact = Some(state == ChainState::Intact);
        Ok(VerifyChainResponse { intact, state: state.into(), checked, chains })
    }

    /// Verifies and reports the progress, until the result, or until the caller disconnects, is no
    /// longer an administrator, or the server drains.
    pub(super) fn stream_verification(
        &self,
        admin: Administrator,
        permit: OwnedSemaphorePermit,
        request: VerifyRequest,
    ) -> <Self as AuditService>::VerifyTrailStream {
        let (sender, receiver) = mpsc::channel::<Result<VerifyTrailResponse, Status>>(READY_MAX);
        let (mut stopping, services) = (self.stopping.clone(), Arc::clone(&self.services));
        let is_complete = Arc::new(AtomicBool::new(false));
        let completed = Arc::clone(&is_complete);
        tokio::spawn(async move {
            let work = async {
                let outcome = verify(&services, &admin, request, &sender).await;
                // The caller may begin another one before it has read the result.
                drop(permit);
                match outcome {
                    Ok(()) => completed.store(true, Ordering::Release),
                    Err(error) => drop(sender.send(Err(status(&error))).await),
                }
            };
            tokio::select! {
                () = work => {}
                () = sender.closed() => {}
                () = stopped(&mut stopping) => {}
            }
        });
        // OK without a result would say that nothing is wrong.
        let end = stream::once(lazy(move |_| {
            let is_complete = is_complete.load(Ordering::Acquire);
            (!is_complete).then(|| Err(status(&Error::Stopping)))
        }));
        let end = end.filter_map(|end| async { end });
        Box::pin(ReceiverStream::new(receiver).chain(end))
    }
}

async fn verify(
    services: &Services,
    admin: &Administrator,
    request: VerifyRequest,
    sender: &mpsc::Sender<Result<VerifyTrailResponse, Status>>,
) -> Result<()> {
    let mut ticks = interval(REPORT_EVERY);
    let mut report = Report::default();
    let mut verification = {
        let mut beginning = pin!(async {
            let mut verification = services.admin.audit.verification(request).await?;
            verification.measure().await?;
            Ok::<_, Error>(verification)
        });
        loop {
            tokio::select! {
                begun = &mut beginning => break begun?,
                _ = ticks.tick() => report.show(sender),
            }
        }
    };
    let mut checked_at = Instant::now();
    loop {
        let step = {
            let mut step = pin!(verification.step());
            loop {
                tokio::select! {
                    step = &mut step => break step?,
                    // A store that is slow to answer is no reason to be silent.
                    _ = ticks.tick() => report.show(sender),
                }
            }
        };
        (report.checked, report.total) = verification.progress();
        report.reached = verification.reached();
        let is_end = matches!(step, Step::End);
        if let Step::Chain(verdict) = step {
            report.add(verdict);
        }
        let is_due = is_end || checked_at.elapsed() >= REPORT_EVERY;
        if is_due {
            services.admin.gate.still_administers(admin).await?;
            checked_at = Instant::now();
        }
        // Nothing of the store is held while the reader does not read.
        let is_sent = !(is_due || report.bytes >= RESULTS_BYTES)
            || sender.send(Ok(report.take(is_end))).await.is_ok();
        if is_end || !is_sent {
            return Ok(());
        }
    }
}

/// Progress that is to be reported.
#[derive(Default)]
struct Report {
    checked: u64,
    total: u64,
    reached: Option<Known>,
    /// Results that were not sent yet, and their size.
    chains: Vec<ChainVerdict>,
    bytes: usize,
    worst: Option<ChainState>,
}

impl Report {
    fn add(&mut self, verdict: Verdict) {
        self.worst = self.worst.max(Some(state(&verdict)));
        let verdict = judged(verdict);
        self.bytes = self.bytes.saturating_add(pages::bytes(&verdict));
        self.chains.push(verdict);
    }

    /// Sends the numbers, unless the reader has not read the last ones.
    fn show(&self, sender: &mpsc::Sender<Result<VerifyTrailResponse, Status>>) {
        let (checked, total) = (wire(self.checked), wire(self.total));
        // A place counts with the results before it.
        let reached = self.reached.clone().filter(|_| self.chains.is_empty()).map(head);
        let message = VerifyTrailResponse { checked, total, reached, ..Default::default() };
        let _ = sender.try_send(Ok(message));
    }

    fn take(&mut self, is_end: bool) -> VerifyTrailResponse {
        self.bytes = 0;
        let state =
            if is_end { self.worst.unwrap_or(ChainState::Intact) } else { ChainState::Unspecified };
        VerifyTrailResponse {
            checked: wire(self.checked),
            total: wire(self.total),
            chains: std::mem::take(&mut self.chains),
            reached: self.reached.clone().map(head),
            state: state.into(),
        }
    }
}

/// Parses a request of a stream.
pub(super) fn parsed(request: VerifyTrailRequest) -> Result<VerifyRequest> {
    let VerifyTrailRequest { chain, known, start_after, after_chain } = request;
    let named = |name: String| (!name.is_empty()).then(|| Arc::<str>::from(name));
    let only = named(chain);
    Ok(VerifyRequest {
        known: heads("known", known, only.as_deref())?,
        from: heads("start_after", start_after, only.as_deref())?,
        after_chain: named(after_chain),
        only,
    })
}

/// Parses heads that the caller saved outside the store.
fn heads(field: &'static str, known: Vec<KnownHead>, only: Option<&str>) -> Result<Vec<Known>> {
    let [chain_field, sequence_field, hash_field] = match field {
        "known" => ["known.chain", "known.sequence", "known.hash"],
        _ => ["start_after.chain", "start_after.sequence", "start_after.hash"],
    };
    if known.len() > HEADS_MAX {
        return Err(Error::field(field, "must have at most 10000 entries"));
    }
    let head = |KnownHead { chain, sequence, hash }: KnownHead| {
        let sequence = u64::try_from(sequence).ok().filter(|sequence| *sequence > 0);
        let sequence = sequence.ok_or_else(|| Error::field(sequence_field, "must be above 0"))?;
        if chain.is_empty() || only.is_some_and(|only| only != chain) {
            return Err(Error::field(chain_field, "must name a chain that the request verifies"));
        }
        let hash = unhex(&hash.to_ascii_lowercase())
            .ok_or_else(|| Error::field(hash_field, "must be 64 hexadecimal digits"))?;
        Ok(Known { chain: chain.into(), sequence, hash })
    };
    known.into_iter().map(head).collect()
}

fn head(known: Known) -> KnownHead {
    let Known { chain, sequence, hash } = known;
    KnownHead { chain: chain.as_ref().to_owned(), sequence: wire(sequence), hash: hex(&hash) }
}

/// Converts a verdict, in the order of the enum: the worst is the greatest.
fn state(verdict: &Verdict) -> ChainState {
    match verdict.flaw {
        Some(_) => ChainState::Broken,
        None if verdict.is_end_sure => ChainState::Intact,
        None => ChainState::EndNotSure,
    }
}

fn judged(verdict: Verdict) -> ChainVerdict {
    let state = state(&verdict);
    let (first_bad, problem) = verdict.flaw.unwrap_or_default();
    ChainVerdict {
        chain: verdict.chain.as_ref().to_owned(),
        intact: Some(state == ChainState::Intact),
        state: state.into(),
        witnessed_sequence: wire(verdict.witnessed),
        cut_sequence: wire(verdict.cut),
        checked: wire(verdict.checked),
        first_bad_sequence: wire(first_bad),
        problem,
        head_sequence: wire(verdict.head.0),
        head_hash: hex(&verdict.head.1),
    }
}
