//! Audiences that clients list (AUDIT AZ10): in `audiences`, which their tokens may be for, and in `serves`, which they introspect for.
//! An audience belongs to the tenant whose client lists it first, or that the operator assigned it to. An administrator of a tenant
//! lists its own alone; one of the operator's tenant shares any with any client. What a client lists already is not judged again, so
//! that a tenant keeps what the operator gave it.
//!
//! A client and the record of an audience are two documents, and there is no transaction over both. So a registration has three steps:
//!
//! | step | if a release of the same audience comes in between (see `audiences`) |
//! |--|--|
//! | 1. read the records, claim those that are not there | before 2: the release sees no client that lists it and may finish |
//! | 2. write the client | behind the release's last look: it is found in 3 |
//! | 3. read the records again | marked: the mark is taken back, and the release refused. Gone: claimed again. Another tenant's: the client is taken back, and the answer is a refusal |
//!
//! What is claimed in 1 stays the tenant's if 2 fails. A node that dies between 2 and 3 leaves a client that lists what was released in
//! that moment: the next tenant that lists it gets the audience, and the operator finds the client by its list.

use super::{
    Administrator, Authority,
    audiences::{TRIES, first_record, not_authentic},
};
use crate::{
    error::{Error, Result},
    model::{Action, Audience, Call, Client},
    store::{Creation, FoundAudience, ProvenWrite, Spent, Write},
};

/// Where a client lists what its tokens may be for, as in the proto.
const AUDIENCES: &str = "client.audiences";
/// Where it lists what it introspects for.
const SERVES: &str = "client.serves";

/// An audience that a client comes to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewlyListed {
    /// [`AUDIENCES`] or [`SERVES`].
    field: &'static str,
    audience: Audience,
}

impl Authority {
    /// Step 1: judges what `after` lists and `before` does not, all of it before the first is claimed.
    pub(super) async fn claim_listed(
        &self,
        call: &Call,
        admin: &Administrator,
        before: &Client,
        after: &Client,
    ) -> Result<Vec<NewlyListed>> {
        let listed = newly_listed(before, after);
        let mut unclaimed: Vec<&NewlyListed> = Vec::new();
        for new in &listed {
            if new.audience == self.terms.own_audience {
                // Every client may ask for this service without listing it.
                if !admin.tenant().is_operator() {
                    return Err(foreign(new));
                }
            } else if !admits(admin, new, self.store.audience(&new.audience).await?.as_ref())?
                && unclaimed.iter().all(|other| other.audience != new.audience)
            {
                unclaimed.push(new);
            }
        }
        for new in unclaimed {
            self.claim(call, admin, after, new).await?;
        }
        Ok(listed)
    }

    /// Claims an audience for the client's tenant; one that another call claims in the same moment is judged again.
    async fn claim(&self, call: &Call, admin: &Administrator, client: &Client, new: &NewlyListed) -> Result<()> {
        for _ in 0..TRIES {
            let record = first_record(call, admin, &new.audience, &client.tenant);
            let event = admin.stamp_in(call, &client.tenant).done(Action::AudienceClaimed, new.audience.as_str());
            let proof = self.prove(admin).await?;
            let claimed = self.spend(proof, ProvenWrite::ClaimAudience { record: Box::new(record), event }).await?;
            if claimed == Spent::Done || admits(admin, new, self.store.audience(&new.audience).await?.as_ref())? {
                return Ok(());
            }
        }
        Err(Error::Stale("audience"))
    }

    /// Step 3, once the client is written. What the client may not keep is taken from it, with the tokens that it got by then; a
    /// client that `is_new` goes altogether.
    pub(super) async fn confirm_listed(
        &self,
        call: &Call,
        admin: &Administrator,
        client: &Client,
        listed: Vec<NewlyListed>,
        is_new: bool,
    ) -> Result<()> {
        let (mut lost, mut refused) = (Vec::new(), Ok(()));
        for new in listed {
            if let Some(why) = self.lost(call, admin, client, &new).await? {
                refused = refused.and(Err(why));
                lost.push(new);
            }
        }
        if !lost.is_empty() {
            self.unlist(call, admin, client, &lost, is_new).await?;
        }
        refused
    }

    /// Why a client may not go on listing an audience; `None`: it may, and its tenant has the audience again if it was released.
    async fn lost(&self, call: &Call, admin: &Administrator, client: &Client, new: &NewlyListed) -> Result<Option<Error>> {
        if new.audience == self.terms.own_audience {
            return Ok(None);
        }
        for _ in 0..TRIES {
            let found = self.store.audience(&new.audience).await?;
            match (admits(admin, new, found.as_ref()), found) {
                (Err(why), _) => return Ok(Some(why)),
                (Ok(_), Some(FoundAudience::Owned(record))) if record.releasing => {
                    if self.keep_audience(call, admin, record).await? {
                        return Ok(None);
                    }
                }
                (Ok(_), Some(_)) => return Ok(None),
                (Ok(_), None) => {
                    let record = first_record(call, admin, &new.audience, &client.tenant);
                    let event = admin.stamp_in(call, &client.tenant).done(Action::AudienceClaimed, new.audience.as_str());
                    // Without a proof: it completes a change that was proven.
                    if self.store.claim_audience(&record, event).await? == Creation::Created {
                        return Ok(None);
                    }
                }
            }
        }
        Err(Error::Stale("audience"))
    }

    /// Undoes step 2. Without a proof: the change that is undone was proven, and must not stand because its caller fell.
    async fn unlist(
        &self,
        call: &Call,
        admin: &Administrator,
        written: &Client,
        lost: &[NewlyListed],
        is_new: bool,
    ) -> Result<()> {
        let stamp = admin.stamp_in(call, &written.tenant);
        let id = &written.id;
        for _ in 0..TRIES {
            let Some(client) = self.store.client(id).await? else { return Ok(()) };
            let mut next = Client { revision: client.revision + 1, updated_at: call.now, ..client };
            for NewlyListed { field, audience } in lost {
                let list = if *field == SERVES { &mut next.serves } else { &mut next.audiences };
                list.retain(|own| own != audience);
            }
            let event = stamp.done(Action::ClientUpdated, id.as_str()).because("audience lost".to_owned());
            let ended = stamp.done(Action::ClientRevoked, id.as_str()).because("narrowed".to_owned());
            if self.store.end_client(&next, event, ended).await? == Write::Stale {
                continue;
            }
            if is_new {
                // One that another administrator has changed by now is that one's to keep.
                let event = stamp.done(Action::ClientDeleted, id.as_str()).because("audience lost".to_owned());
                self.store.delete_client(id, next.revision, event).await?;
            }
            return Ok(());
        }
        Err(Error::Stale("client"))
    }
}

/// Whether an administrator may list an audience whose record was found so: true if it belongs to a tenant, false if to none yet.
fn admits(admin: &Administrator, new: &NewlyListed, found: Option<&FoundAudience>) -> Result<bool> {
    match found {
        None => Ok(false),
        Some(FoundAudience::NotAuthentic(audience)) => Err(not_authentic(audience)),
        Some(FoundAudience::Owned(record)) if admin.governs(&record.tenant) => Ok(true),
        Some(FoundAudience::Owned(_)) => Err(foreign(new)),
    }
}

fn newly_listed(before: &Client, after: &Client) -> Vec<NewlyListed> {
    let fields = [(AUDIENCES, &before.audiences, &after.audiences), (SERVES, &before.serves, &after.serves)];
    let new = fields.into_iter().flat_map(|(field, before, after)| {
        let new = after.iter().filter(|audience| !before.contains(audience));
        new.map(move |audience| NewlyListed { field, audience: audience.clone() })
    });
    new.collect()
}

/// Says nothing of the tenant that has it.
fn foreign(NewlyListed { field, audience }: &NewlyListed) -> Error {
    Error::precondition(format!("{field}: {audience} belongs to another tenant; the operator may list it"))
}
