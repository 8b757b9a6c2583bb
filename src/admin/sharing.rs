//! Records for the tenant whose audience another tenant's client lists: the operator shares an
//! audience by listing it there, and its tenant has that in its own trail (AUDIT AZ12).

use std::collections::BTreeSet;

use super::{Administrator, AudienceLists};
use crate::{
    error::Result,
    model::{Action, Audience, Call, Client, Event, TenantId},
    store::FoundAudience,
};

impl AudienceLists {
    /// All records of a client's change: its own, and those in the trails of other tenants whose
    /// audiences the client lists from now on, or lists no more.
    pub(super) async fn events(
        &self,
        call: &Call,
        admin: &Administrator,
        own: Event,
        before: &Client,
        after: &Client,
    ) -> Result<Vec<Event>> {
        let (old, new) = (listed(before), listed(after));
        let gained = new.difference(&old).map(|audience| (*audience, Action::AudienceShared));
        let lost = old.difference(&new).map(|audience| (*audience, Action::AudienceUnshared));
        let mut events = vec![own];
        for (audience, action) in gained.chain(lost) {
            let Some(owner) = self.other_owner(audience, &after.tenant).await? else { continue };
            let reason = format!("client {} of tenant {}", after.id, after.tenant);
            let stamp = admin.stamp_in(call, &owner);
            events.push(stamp.done(action, audience.as_str()).because(reason));
        }
        Ok(events)
    }

    /// The tenant that an audience belongs to, if it is not this one.
    async fn other_owner(
        &self,
        audience: &Audience,
        tenant: &TenantId,
    ) -> Result<Option<TenantId>> {
        if *audience == self.own_audience {
            return Ok(None);
        }
        Ok(match self.store.audience(audience).await? {
            Some(FoundAudience::Owned(record)) if record.tenant != *tenant => Some(record.tenant),
            Some(FoundAudience::Owned(_) | FoundAudience::NotAuthentic(_)) | None => None,
        })
    }
}

fn listed(client: &Client) -> BTreeSet<&Audience> {
    client.audiences.iter().chain(&client.serves).collect()
}
