//! Records for the tenant whose audience another tenant's client lists: the operator shares an
//! audience by listing it there, and its tenant has that in its own trail (AUDIT AZ12).

use std::collections::BTreeSet;

use futures_util::future::join_all;

use super::{
    Administrator, AudienceLists,
    newly_listed::{NewlyListed, other_owner},
};
use crate::model::{Action, Audience, Call, Client, Event, Stamp, TenantId};

impl AudienceLists {
    /// All records of a change of a client that is there: its own, and those in the trails of other
    /// tenants whose audiences it lists from now on, or lists no more. Taking an audience away is
    /// never refused: if its record cannot be read, its tenant gets no record.
    pub(super) async fn events(
        &self,
        call: &Call,
        admin: &Administrator,
        own: Event,
        (before, after): (&Client, &Client),
        listed: &[NewlyListed],
    ) -> Vec<Event> {
        let (old, new) = (all(before), all(after));
        let lost = old.difference(&new).filter(|audience| ***audience != self.own_audience);
        let owners = lost.map(async |audience| {
            let found = self.store.audience(audience).await.inspect_err(|error| {
                tracing::warn!(%audience, %error, "cannot read whose audience is unshared");
            });
            other_owner(found.ok().flatten().as_ref(), &after.tenant)
                .map(|owner| unshared(call, admin, after, audience, &owner))
        });
        let mut events = with_shared(call, admin, own, (before, after), listed);
        events.extend(join_all(owners).await.into_iter().flatten());
        events
    }
}

/// The own record of a change, and one for each tenant whose audience the client newly lists.
pub(super) fn with_shared(
    call: &Call,
    admin: &Administrator,
    own: Event,
    (before, after): (&Client, &Client),
    listed: &[NewlyListed],
) -> Vec<Event> {
    let (old, new) = (all(before), all(after));
    let gained = new.difference(&old).filter_map(|audience| {
        let owner = owner_of(listed, audience)?;
        Some(record(call, admin, after, Action::AudienceShared, audience, owner))
    });
    std::iter::once(own).chain(gained).collect()
}

/// The own record of taking audiences back, and one for each tenant that has one of the sharing.
pub(super) fn with_unshared(
    call: &Call,
    admin: &Administrator,
    own: Event,
    (before, after): (&Client, &Client),
    listed: &[NewlyListed],
) -> Vec<Event> {
    let (old, new) = (all(before), all(after));
    let lost = old.difference(&new).filter_map(|audience| {
        Some(unshared(call, admin, after, audience, owner_of(listed, audience)?))
    });
    std::iter::once(own).chain(lost).collect()
}

fn unshared(
    call: &Call,
    admin: &Administrator,
    client: &Client,
    audience: &Audience,
    owner: &TenantId,
) -> Event {
    record(call, admin, client, Action::AudienceUnshared, audience, owner)
}

/// An administrator of a third tenant is not named to the owner.
fn record(
    call: &Call,
    admin: &Administrator,
    client: &Client,
    action: Action,
    audience: &Audience,
    owner: &TenantId,
) -> Event {
    let stamp = if admin.can_access_tenant(owner) {
        admin.stamp_in(call, owner)
    } else {
        Stamp { tenant: Some(owner.clone()), ..Stamp::internal(call.now) }
    };
    let reason = format!("client {} of tenant {}", client.id, client.tenant);
    stamp.done(action, audience.as_str()).because(reason)
}

fn owner_of<'a>(listed: &'a [NewlyListed], audience: &Audience) -> Option<&'a TenantId> {
    listed.iter().find(|new| new.audience == *audience).and_then(|new| new.owner.as_ref())
}

fn all(client: &Client) -> BTreeSet<&Audience> {
    client.audiences.iter().chain(&client.serves).collect()
}
