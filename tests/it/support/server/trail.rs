//! The audit trail as administrators read it.

use jeton::proto::admin::{
    Event, EventFilter, ListEventsRequest, VerifyChainRequest, VerifyChainResponse,
};

use super::{TestServer, bearer};

impl TestServer {
    /// Every event that a filter admits, newest first.
    pub async fn trail(&self, filter: EventFilter) -> Vec<Event> {
        let request =
            ListEventsRequest { filter: Some(filter), page_size: 1_000, page_token: String::new() };
        self.audit().list_events(self.as_admin(request).await).await.unwrap().into_inner().events
    }

    /// Events of one action.
    pub async fn trail_of(&self, action: &str) -> Vec<Event> {
        self.trail(EventFilter { action: action.to_owned(), ..EventFilter::default() }).await
    }

    /// The records of an action, newest first. Asking takes a token, whose durable record comes
    /// after every earlier one.
    pub async fn events_of(&self, action: &str) -> Vec<Event> {
        let pass = self.pass().await;
        let mut events = Vec::new();
        let mut page_token = String::new();
        loop {
            let filter = Some(EventFilter { action: action.to_owned(), ..EventFilter::default() });
            let message = ListEventsRequest { filter, page_size: 1_000, page_token };
            let page = self.audit().list_events(bearer(message, &pass)).await.unwrap().into_inner();
            events.extend(page.events);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return events;
            }
        }
    }

    /// One page of the trail.
    pub async fn page_of(&self, pass: &str, size: i32, page_token: &str) -> (Vec<Event>, String) {
        let page_token = page_token.to_owned();
        let message =
            ListEventsRequest { filter: Some(EventFilter::default()), page_size: size, page_token };
        let page = self.audit().list_events(bearer(message, pass)).await.unwrap().into_inner();
        (page.events, page.next_page_token)
    }

    /// Actions about an audience in the trail that an administrator sees, oldest first.
    pub async fn actions_about(&self, audience: &str, token: &str) -> Vec<(String, String)> {
        let request = bearer(ListEventsRequest { page_size: 1_000, ..Default::default() }, token);
        let events = self.audit().list_events(request).await.unwrap().into_inner().events;
        let of_audience = events.into_iter().rev().filter(|event| event.target == audience);
        of_audience.map(|event| (event.action, event.tenant)).collect()
    }

    /// Sharing of an audience, oldest first, as an administrator reads it: what happened and to
    /// which client.
    pub async fn sharing(&self, audience: &str, token: &str) -> Vec<(String, String)> {
        let request = bearer(ListEventsRequest { page_size: 1_000, ..Default::default() }, token);
        let events = self.audit().list_events(request).await.unwrap().into_inner().events;
        let sharing = events.into_iter().rev().filter(|event| {
            event.target == audience
                && ["audience.shared", "audience.unshared"].contains(&event.action.as_str())
        });
        sharing.map(|event| (event.action, event.reason)).collect()
    }

    pub async fn verify_chain(&self) -> VerifyChainResponse {
        self.audit()
            .verify_chain(self.as_admin(VerifyChainRequest::default()).await)
            .await
            .unwrap()
            .into_inner()
    }
}
