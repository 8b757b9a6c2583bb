//! `jeton.admin.v1.AuditService`.

mod events;
mod tail;
mod verify;

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use self::events::shown;
use super::{
    GrpcServices, into_response, pages,
    parse::{optional, required, time, timestamp},
};
use crate::{
    admin::AdminScope,
    error::{Error, Result},
    model::{
        ClientId, Place, Principal, SecretId, Timestamp,
        event::{Filter, Outcome},
    },
    proto::admin::{
        self as proto, Event, EventFilter, ListEventsRequest, ListEventsResponse,
        TailEventsRequest, TailEventsResponse, VerifyChainRequest, VerifyChainResponse,
        VerifyTrailRequest, VerifyTrailResponse, audit_service_server::AuditService,
        principal::Kind,
    },
};

#[tonic::async_trait]
impl AuditService for GrpcServices {
    type TailEventsStream = Pin<Box<dyn Stream<Item = Result<TailEventsResponse, Status>> + Send>>;
    type VerifyTrailStream =
        Pin<Box<dyn Stream<Item = Result<VerifyTrailResponse, Status>> + Send>>;

    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Audit).await?;
                let ListEventsRequest { filter, page_size, page_token } = request.into_inner();
                let size = pages::size(page_size)?;
                let filter = parsed(filter.unwrap_or_default())?;
                let question = format!("events/{}/{filter:?}", admin.tenant());
                let before = pages::open(&self.services.admin.pages, &question, &page_token)?;
                let unfit =
                    || Error::field("page_token", "must be a page token returned by this service");
                let before = before.map(|cursor| place(&cursor).ok_or_else(unfit)).transpose()?;
                let page = self
                    .services
                    .admin
                    .audit
                    .events(&admin, filter.clone(), before.as_ref(), size + 1)
                    .await?;
                let (mut records, next) = (page.records, page.next);
                // A page that its time or its size cut short goes on where it was.
                let found = records.len();
                records.truncate(size);
                let mut events: Vec<Event> = records.iter().map(shown).collect();
                events.truncate(pages::fitting(events.iter().map(pages::bytes)));
                let next = match events.len().checked_sub(1).and_then(|last| records.get(last)) {
                    Some(last) if found > events.len() => Some(last.place()),
                    Some(_) | None => next,
                };
                let cut = match next {
                    None => self.services.admin.audit.cut_until(&filter).await?,
                    Some(_) => None,
                };
                let seal = |next: Place| self.services.admin.pages.seal(&question, &cursor(&next));
                let next_page_token = next.map(seal).unwrap_or_default();
                Ok(ListEventsResponse { events, next_page_token, cut_time: cut.map(timestamp) })
            }
            .await,
        )
    }

    async fn tail_events(
        &self,
        request: Request<TailEventsRequest>,
    ) -> Result<Response<Self::TailEventsStream>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Audit).await?;
                let TailEventsRequest { filter, after, report_positions } = request.into_inner();
                let filter = parsed(filter.unwrap_or_default())?;
                let after = tail::positions(after)?;
                let tail = self.services.admin.audit.tail(&admin, filter, after).await?;
                Ok(self.stream_events(admin, tail, report_positions))
            }
            .await,
        )
    }

    async fn verify_chain(
        &self,
        request: Request<VerifyChainRequest>,
    ) -> Result<Response<VerifyChainResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Audit).await?;
                self.verify_in_one_go(&admin, request.into_inner()).await
            }
            .await,
        )
    }

    async fn verify_trail(
        &self,
        request: Request<VerifyTrailRequest>,
    ) -> Result<Response<Self::VerifyTrailStream>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Audit).await?;
                let request = verify::parsed(request.into_inner())?;
                let permit = self.services.admin.audit.permit_verification(&admin)?;
                Ok(self.stream_verification(admin, permit, request))
            }
            .await,
        )
    }
}

/// Formats a place for a page token; the chain is last, because a name may contain anything.
fn cursor(place: &Place) -> String {
    format!("{}/{}/{}", place.at.millis(), place.sequence, place.chain)
}

fn place(cursor: &str) -> Option<Place> {
    let mut parts = cursor.splitn(3, '/');
    let at = Timestamp::from_millis(parts.next()?.parse().ok()?);
    let sequence = parts.next()?.parse().ok()?;
    Some(Place { at, sequence, chain: parts.next()?.into() })
}

fn parsed(filter: EventFilter) -> Result<Filter> {
    let text = |field, text: String| {
        if text.len() > 256 {
            Err(Error::field(field, "must be at most 256 bytes"))
        } else {
            Ok(text)
        }
    };
    let action = text("filter.action", filter.action)?;
    let target = text("filter.target", filter.target)?;
    Ok(Filter {
        tenant: optional("filter.tenant", &filter.tenant)?,
        actor: filter.actor.map(actor).transpose()?,
        action: (!action.is_empty()).then_some(action),
        outcome: match filter.outcome.as_str() {
            "" => None,
            "ok" => Some(Outcome::Ok),
            "refused" => Some(Outcome::Refused),
            _ => return Err(Error::field("filter.outcome", "must be \"ok\" or \"refused\"")),
        },
        target: (!target.is_empty()).then_some(target),
        from: time("filter.start_time", filter.start_time)?,
        to: time("filter.end_time", filter.end_time)?,
        about: optional("filter.about", &filter.about)?,
        secret: secret(&filter.secret)?,
        family: optional("filter.family", &filter.family)?,
    })
}

/// Parses a secret as the trail shows it: the client's id and the secret's.
fn secret(text: &str) -> Result<Option<(ClientId, SecretId)>> {
    const FIELD: &str = "filter.secret";
    if text.is_empty() {
        return Ok(None);
    }
    let parts = text.split_once('/');
    let (client, id) = parts.ok_or_else(|| Error::field(FIELD, "must be CLIENT/SECRET"))?;
    Ok(Some((required(FIELD, client)?, required(FIELD, id)?)))
}

/// Parses the actor of a filter.
fn actor(actor: proto::Principal) -> Result<Principal> {
    match actor.kind {
        Some(Kind::ClientId(id)) => Ok(Principal::Client(required("filter.actor.client_id", &id)?)),
        Some(Kind::Node(true)) => Ok(Principal::Node),
        Some(Kind::Node(false)) => Err(Error::field("filter.actor.node", "must be true")),
        None => Err(Error::field("filter.actor", "must have a kind")),
    }
}
