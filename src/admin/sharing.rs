//! Records for the tenant whose audience another tenant's client lists: the operator shares an
//! audience by listing it there, and its tenant has that in its own trail (AUDIT AZ12).

use std::collections::BTreeSet;

use futures_util::future::join_all;

use super::{Administrator, AudienceLists, client_changes::changes, newly_listed::NewlyListed};
use crate::{
    model::{Action, Audience, Call, Client, Event, Stamp, TenantId},
    store::FoundAudience,
};

/// Records of audiences that one change reads at the same time.
const READS: usize = 8;

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
        let lost: Vec<&Audience> = old.difference(&new).copied().collect();
        let mut events = with_sharing(call, admin, own, (before, after), listed);
        for some in lost.chunks(READS) {
            let owners = join_all(some.iter().map(|audience| self.owner(audience))).await;
            let owned = some.iter().zip(&owners).filter_map(|(audience, owner)| {
                Some((*audience, owner.as_ref().filter(|owner| **owner != after.tenant)?))
            });
            events.extend(owned.map(|(audience, owner)| {
                record(call, admin, after, Action::AudienceUnshared, audience, owner)
            }));
        }
        events
    }

    /// The tenant of an audience, if its record can be read.
    async fn owner(&self, audience: &Audience) -> Option<TenantId> {
        if *audience == self.own_audience {
            return None;
        }
        let found = self.store.audience(audience).await.inspect_err(|error| {
            tracing::warn!(%audience, %error, "cannot read whose audience is unshared");
        });
        match found {
            Ok(Some(FoundAudience::Owned(record))) => Some(record.tenant),
            Ok(Some(FoundAudience::NotAuthentic(_)) | None) | Err(_) => None,
        }
    }
}

/// The own record of a change, which says what an update changed, and one for each other tenant whose audience the client lists from
/// now on, or lists no more, by the owners that are recorded in `listed`.
pub(super) fn with_sharing(
    call: &Call,
    admin: &Administrator,
    own: Event,
    (before, after): (&Client, &Client),
    listed: &[NewlyListed],
) -> Vec<Event> {
    let is_unexplained = own.action == Action::ClientUpdated && own.reason.is_empty();
    let own = if is_unexplained { own.because(changes(before, after)) } else { own };
    let (old, new) = (all(before), all(after));
    let gained = new.difference(&old).map(|audience| (*audience, Action::AudienceShared));
    let lost = old.difference(&new).map(|audience| (*audience, Action::AudienceUnshared));
    let shared = gained.chain(lost).filter_map(|(audience, action)| {
        let owner = owner_of(listed, audience)?;
        Some(record(call, admin, after, action, audience, owner))
    });
    std::iter::once(own).chain(shared).collect()
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
        Stamp { tenant: Some(owner.clone()), actor: None, ..Stamp::internal(call.now) }
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
