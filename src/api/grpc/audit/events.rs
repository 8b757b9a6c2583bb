//! Messages of audit events.

use crate::{
    api::grpc::parse::timestamp,
    model::{Principal, Record, digits::hex},
    proto::admin::{self as proto, Authentication, Event, principal::Kind},
};

pub(super) fn shown(record: &Record) -> Event {
    let event = &record.event;
    Event {
        chain: record.chain.as_ref().to_owned(),
        sequence: wire(record.sequence),
        node: record.node.as_ref().to_owned(),
        // The one time that is left out is that of a record whose time cannot be decoded.
        time: (event.at.millis() != i64::MIN).then(|| timestamp(event.at)),
        action: event.action.as_str().to_owned(),
        outcome: event.outcome.as_str().to_owned(),
        tenant: event.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()).unwrap_or_default(),
        actor: event.actor.as_ref().map(principal),
        target: event.target.clone(),
        peer: event.peer.as_ref().to_owned(),
        request_id: event.request_id.as_ref().to_owned(),
        reason: event.reason.clone().into_owned(),
        auth: event.auth.as_ref().map(|auth| Authentication {
            method: auth.name().to_owned(),
            id: auth.id().to_string(),
        }),
        hash: hex(&record.hash),
        family: event.family.map(|family| family.to_string()).unwrap_or_default(),
        recovered_from: event.recovered_from.as_deref().unwrap_or_default().to_owned(),
    }
}

pub(super) fn wire(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn principal(actor: &Principal) -> proto::Principal {
    let kind = match actor {
        Principal::Client(id) => Kind::ClientId(id.as_str().to_owned()),
        Principal::Node => Kind::Node(true),
    };
    proto::Principal { kind: Some(kind) }
}
