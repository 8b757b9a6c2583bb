//! The stream of TailEvents.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::lazy, stream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::events::{shown, wire};
use crate::{
    admin::{Administrator, tail::Tail},
    api::{grpc::GrpcServices, status::status},
    error::{Error, Result},
    proto::admin::{ChainPosition, Event, TailEventsResponse, audit_service_server::AuditService},
};

/// Interval at which a stream checks that its reader may still read, and reports positions.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Maximum positions in a request or response: a response with them is below 4 MiB.
const POSITIONS_MAX: usize = 20_000;
/// Messages that a stream has ready for its reader.
const READY_MAX: usize = 64;

impl GrpcServices {
    /// Forwards records until the caller disconnects, is no longer an administrator, or the server
    /// drains.
    pub(super) fn stream_events(
        &self,
        admin: Administrator,
        mut tail: Tail,
        report_positions: bool,
    ) -> <Self as AuditService>::TailEventsStream {
        let (sender, receiver) = mpsc::channel(READY_MAX);
        let mut stopping = self.stopping.clone();
        let services = Arc::clone(&self.services);
        let mut look = tokio::time::interval(LOOK_AGAIN);
        tokio::spawn(async move {
            // Before any event: a reader that has positions of some chains only would get all
            // records of the others.
            let mut ready = if report_positions { reports(&tail.moved()) } else { Vec::new() };
            loop {
                for message in ready {
                    let sent = tokio::select! {
                        sent = sender.send(Ok(message)) => sent.is_ok(),
                        () = stopped(&mut stopping) => false,
                    };
                    if !sent {
                        return;
                    }
                }
                let next = tokio::select! {
                    next = tail.next() => next.map(Some),
                    _ = look.tick() => Ok(None),
                    () = sender.closed() => return,
                    () = stopped(&mut stopping) => return,
                };
                ready = match services.admin.gate.still_administers(&admin).await.and(next) {
                    Ok(Some(records)) => records.iter().map(|record| of(shown(record))).collect(),
                    Ok(None) if report_positions => reports(&tail.moved()),
                    Ok(None) => Vec::new(),
                    Err(error) => {
                        let _ = sender.send(Err(status(&error))).await;
                        return;
                    }
                };
            }
        });
        // Every other end is an error: OK would say that there is nothing more to come.
        let end = stream::once(lazy(|_| Err(status(&Error::Stopping))));
        Box::pin(ReceiverStream::<Result<TailEventsResponse, Status>>::new(receiver).chain(end))
    }
}

/// Resolves when the server is to stop.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

fn of(event: Event) -> TailEventsResponse {
    TailEventsResponse { event: Some(event), positions: Vec::new() }
}

fn reports(moved: &[(Arc<str>, u64)]) -> Vec<TailEventsResponse> {
    let position = |(chain, sequence): &(Arc<str>, u64)| ChainPosition {
        chain: chain.as_ref().to_owned(),
        sequence: wire(*sequence),
    };
    let report = |some: &[(Arc<str>, u64)]| TailEventsResponse {
        event: None,
        positions: some.iter().map(position).collect(),
    };
    moved.chunks(POSITIONS_MAX).map(report).collect()
}

/// Parses the positions of a request.
pub(super) fn positions(after: Vec<ChainPosition>) -> Result<BTreeMap<Arc<str>, u64>> {
    if after.len() > POSITIONS_MAX {
        return Err(Error::field("after", "must have at most 20000 entries"));
    }
    let position = |ChainPosition { chain, sequence }: ChainPosition| {
        let sequence = u64::try_from(sequence)
            .map_err(|_| Error::field("after.sequence", "must not be negative"))?;
        if chain.is_empty() {
            return Err(Error::field("after.chain", "is required"));
        }
        Ok((chain.into(), sequence))
    };
    after.into_iter().map(position).collect()
}
