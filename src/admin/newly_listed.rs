//! Audiences that a change adds to a client's lists, and the tenants that own them.

use crate::{
    model::{Audience, Client, TenantId},
    store::FoundAudience,
};

/// Field of the audiences that a client's tokens may be for, as in the proto.
const AUDIENCES: &str = "client.audiences";

/// Field of the audiences that it introspects for.
const SERVES: &str = "client.serves";

/// An audience that a change adds to a client's lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewlyListed {
    /// [`AUDIENCES`] or [`SERVES`].
    pub(super) field: &'static str,
    pub(super) audience: Audience,
    /// The tenant that it belongs to, if that is not the client's: the operator shares it.
    pub(super) owner: Option<TenantId>,
}

/// Audiences that `after` lists and `before` does not.
pub(super) fn newly_listed(before: &Client, after: &Client) -> Vec<NewlyListed> {
    let fields =
        [(AUDIENCES, &before.audiences, &after.audiences), (SERVES, &before.serves, &after.serves)];
    let new = fields.into_iter().flat_map(|(field, before, after)| {
        let new = after.iter().filter(|audience| !before.contains(audience));
        new.map(move |audience| NewlyListed { field, audience: audience.clone(), owner: None })
    });
    new.collect()
}

/// The tenant that an audience belongs to, if that is not `tenant`.
pub(super) fn other_owner(found: Option<&FoundAudience>, tenant: &TenantId) -> Option<TenantId> {
    match found {
        Some(FoundAudience::Owned(record)) if record.tenant != *tenant => {
            Some(record.tenant.clone())
        }
        Some(FoundAudience::Owned(_) | FoundAudience::NotAuthentic(_)) | None => None,
    }
}

/// The client without what it newly lists.
pub(super) fn without(client: &Client, lost: &[NewlyListed]) -> Client {
    let mut next = client.clone();
    for NewlyListed { field, audience, .. } in lost {
        let list = if *field == SERVES { &mut next.serves } else { &mut next.audiences };
        list.retain(|own| own != audience);
    }
    next
}
