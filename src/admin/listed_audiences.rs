//! Audiences that clients list (AUDIT AZ10): in `audiences`, which their tokens may be for, and in
//! `serves`, which they introspect for. An audience belongs to the tenant whose client lists it
//! first, or that the operator assigned it to. An administrator of a tenant lists its own alone;
//! one of the operator's tenant shares any with any client. What a client lists already is not
//! judged again, so that a tenant keeps what the operator gave it.
//!
//! A client and the record of an audience are two documents, and there is no transaction over both.
//! So a registration has three steps:
//!
//! | step | if a release or assignment of the same audience comes in between (see `audiences`) |
//! |--|--|
//! | 1. read the records, claim those that are not there; a marked one refuses the registration | before 2: its look sees no client that lists the audience, and it may finish |
//! | 2. write the client | behind its last look: it is found in 3 |
//! | 3. read the records again | marked, or another tenant's: the client is taken back, and the answer is a refusal. Gone: claimed again |
//!
//! Steps 2 and 3 are one task, which no deadline and no hang-up of the caller cuts. Where the
//! outcome of 2 is unknown it is made final (see `fence`) and 3 follows all the same. An audience
//! whose record cannot be read in 3 is taken back. What is claimed in 1 stays the tenant's if 2
//! fails. A node that dies between 2 and 3 leaves a client that lists what was released in that
//! moment; an assignment of the audience is refused while it does.

use std::{sync::Arc, time::Duration};

use super::{
    AdminAuthenticator, Administrator,
    audiences::{TRIES, first_record, must_be_normal, not_authentic},
};
use crate::{
    error::{Error, Result},
    model::{Action, Audience, Call, Client, EpochOf, TenantId},
    oauth::Detached,
    store::{FoundAudience, Proof, ProvenWrite, Spent, Store, Write},
};

/// Field of the audiences that a client's tokens may be for, as in the proto.
const AUDIENCES: &str = "client.audiences";
/// Field of the audiences that it introspects for.
const SERVES: &str = "client.serves";

/// Records that a tenant's administrators claim, at most; the operator assigns more.
const MAX_CLAIMED: usize = 1_000;
/// Waits of step 3 for a store that is away.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(250), Duration::from_secs(1)];
/// Logged where a change is left half made: the server stops, or a record cannot be read.
const UNCONFIRMED: &str = "a client may list an audience that is not its tenant's";

/// An audience that a client comes to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewlyListed {
    /// [`AUDIENCES`] or [`SERVES`].
    field: &'static str,
    audience: Audience,
}

/// Changes of the audiences that clients list.
pub struct AudienceLists {
    pub(crate) gate: Arc<AdminAuthenticator>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) detached: Arc<Detached>,
    /// This service as an audience.
    pub(crate) own_audience: Audience,
}

impl AudienceLists {
    /// Step 1: judges what `after` lists and `before` does not, all of it before the first is
    /// claimed.
    pub(super) async fn claim(
        &self,
        call: &Call,
        admin: &Administrator,
        before: &Client,
        after: &Client,
    ) -> Result<Vec<NewlyListed>> {
        let listed = newly_listed(before, after);
        let mut unclaimed: Vec<&NewlyListed> = Vec::new();
        for new in &listed {
            if new.audience == self.own_audience {
                // Every client may ask for this service without listing it.
                if !admin.tenant().is_operator() {
                    return Err(foreign(new));
                }
                continue;
            }
            if admits(admin, new, self.store.audience(&new.audience).await?.as_ref())? {
                continue;
            }
            must_be_normal(new.field, &new.audience)?;
            if unclaimed.iter().all(|other| other.audience != new.audience) {
                unclaimed.push(new);
            }
        }
        self.must_have_room(admin, &after.tenant, unclaimed.len()).await?;
        for new in unclaimed {
            self.claim_one(call, admin, after, new).await?;
        }
        Ok(listed)
    }

    /// Claims an audience for the client's tenant; one that another call claims in the same moment
    /// is judged again.
    async fn claim_one(
        &self,
        call: &Call,
        admin: &Administrator,
        client: &Client,
        new: &NewlyListed,
    ) -> Result<()> {
        for _ in 0..TRIES {
            let record = first_record(call, admin, &new.audience, &client.tenant);
            let event = admin
                .stamp_in(call, &client.tenant)
                .done(Action::AudienceClaimed, new.audience.as_str());
            let proof = self.gate.prove(admin).await?;
            let claimed = self
                .gate
                .spend(proof, ProvenWrite::ClaimAudience { record: Box::new(record), event })
                .await?;
            if claimed == Spent::Done
                || admits(admin, new, self.store.audience(&new.audience).await?.as_ref())?
            {
                return Ok(());
            }
        }
        Err(Error::Stale("audience"))
    }

    /// Refuses claims beyond what one tenant may have of its own accord, so that none takes all
    /// names before the others.
    async fn must_have_room(
        &self,
        admin: &Administrator,
        tenant: &TenantId,
        claims: usize,
    ) -> Result<()> {
        if claims == 0 || admin.tenant().is_operator() {
            return Ok(());
        }
        let owned = self.store.audiences(Some(tenant), None, MAX_CLAIMED + 1).await?.len();
        if owned.saturating_add(claims) > MAX_CLAIMED {
            let advice = "release some, or have the operator assign them";
            return Err(Error::precondition(format!(
                "the tenant has {owned} of at most {MAX_CLAIMED} audiences: {advice}"
            )));
        }
        Ok(())
    }

    /// Steps 2 and 3. The outcome is that of the client's write, or why it was taken back.
    pub(super) async fn write(
        self: &Arc<Self>,
        call: &Call,
        admin: &Administrator,
        (proof, write): (Proof, ProvenWrite),
        client: &Client,
        listed: Vec<NewlyListed>,
    ) -> Result<Spent> {
        if listed.is_empty() {
            return self.gate.spend(proof, write).await;
        }
        let is_new = matches!(write, ProvenWrite::CreateClient { .. });
        let (lists, call, admin, client) =
            (self.clone(), call.clone(), admin.clone(), client.clone());
        let steps = async move {
            let spent = lists.gate.spend(proof, write).await;
            match spent {
                // By these it is sure that nothing was written.
                Ok(Spent::Taken | Spent::Stale | Spent::Unproven)
                | Err(Error::InvalidToken | Error::Exhausted(_)) => return spent,
                Ok(Spent::Done) => {}
                Err(_) => lists.fence(&call, &admin, &client, is_new).await?,
            }
            let confirmed = lists.confirm_listed(&call, &admin, &client, listed, is_new).await;
            spent.and_then(|spent| confirmed.map(|()| spent))
        };
        self.detached.run(steps).await
    }

    /// Makes the outcome of step 2 final where it is not known: on MongoDB a write whose call gave
    /// up may be made later, behind every look at the audiences. Once the client's revision has
    /// moved on, or the epoch of one that `is_new` was raised, it finds no document to change.
    async fn fence(
        &self,
        call: &Call,
        admin: &Administrator,
        written: &Client,
        is_new: bool,
    ) -> Result<()> {
        let mut pauses = pauses_without_end();
        loop {
            let fenced = if is_new {
                let reason = "outcome unknown".to_owned();
                let stamp = admin.stamp_in(call, &written.tenant);
                let event = stamp.done(Action::ClientRevoked, written.id.as_str()).because(reason);
                let of = EpochOf::Client(written.id.clone());
                self.store.raise_epoch(&of, event).await.map(drop).map_err(Error::from)
            } else {
                self.supersede(call, admin, written).await
            };
            match (fenced, pauses.next()) {
                (Err(Error::Unavailable(_)), Some(pause)) if self.detached.pause(pause).await => {}
                (Ok(()), _) => return Ok(()),
                (Err(error), _) => {
                    tracing::error!(client = %written.id, %error, "{UNCONFIRMED}");
                    return Err(error);
                }
            }
        }
    }

    /// Writes the stored client again, one revision on, unless `written` or a later change of it
    /// was made.
    async fn supersede(&self, call: &Call, admin: &Administrator, written: &Client) -> Result<()> {
        let found = self.store.client(&written.id).await?;
        let Some(client) = found
            .filter(|found| found.is_registration_of(written) && found.revision < written.revision)
        else {
            return Ok(());
        };
        let next = Client { revision: client.revision + 1, updated_at: call.now, ..client };
        let stamp = admin.stamp_in(call, &next.tenant);
        let event = stamp.done(Action::ClientUpdated, next.id.as_str());
        // A stale write found the revision moved on, which is as good.
        self.store.replace_client(&next, event.because("outcome unknown".to_owned())).await?;
        Ok(())
    }

    /// Step 3, once the client is written. What the client may not keep is taken from it, with the
    /// tokens that it got by then; a client that `is_new` goes altogether.
    async fn confirm_listed(
        &self,
        call: &Call,
        admin: &Administrator,
        client: &Client,
        listed: Vec<NewlyListed>,
        is_new: bool,
    ) -> Result<()> {
        let (mut lost, mut refused) = (Vec::new(), Ok(()));
        for new in listed {
            if let Err(why) = self.confirm(call, admin, client, &new).await {
                refused = refused.and(Err(why));
                lost.push(new);
            }
        }
        let mut pauses = pauses_without_end();
        while !lost.is_empty() {
            match (self.unlist(call, admin, client, &lost, is_new).await, pauses.next()) {
                (Ok(()), _) => break,
                (Err(Error::Unavailable(_) | Error::Stale(_)), Some(pause))
                    if self.detached.pause(pause).await => {}
                (Err(error), _) => {
                    tracing::error!(client = %client.id, %error, "{UNCONFIRMED}");
                    return Err(error);
                }
            }
        }
        refused
    }

    /// Fails if a client may not go on listing an audience.
    async fn confirm(
        &self,
        call: &Call,
        admin: &Administrator,
        client: &Client,
        new: &NewlyListed,
    ) -> Result<()> {
        if new.audience == self.own_audience {
            return Ok(());
        }
        let mut pauses = PAUSES.into_iter();
        loop {
            let confirmed = match self.store.audience(&new.audience).await {
                Ok(found) => match admits(admin, new, found.as_ref()) {
                    // It was released in between.
                    Ok(false) => self.claim_one(call, admin, client, new).await,
                    judged => judged.map(drop),
                },
                Err(error) => Err(error.into()),
            };
            match (confirmed, pauses.next()) {
                (Err(Error::Unavailable(_)), Some(pause)) if self.detached.pause(pause).await => {}
                (confirmed, _) => return confirmed,
            }
        }
    }

    /// Undoes step 2. Without a proof: the change that is undone was proven, and must not stand
    /// because its caller fell.
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
            // It may be that it was never written, or is another by now.
            let found = self.store.client(id).await?;
            let Some(client) = found.filter(|found| found.is_registration_of(written)) else {
                return Ok(());
            };
            let lists = |NewlyListed { field, audience }: &NewlyListed| {
                if *field == SERVES {
                    client.serves.contains(audience)
                } else {
                    client.audiences.contains(audience)
                }
            };
            if !is_new && !lost.iter().any(lists) {
                return Ok(());
            }
            // One that another administrator has changed by now is that one's to keep.
            let is_deleted = is_new && client.revision == written.revision;
            let before = client.clone();
            let mut next = Client { revision: client.revision + 1, updated_at: call.now, ..client };
            for NewlyListed { field, audience } in lost {
                let list = if *field == SERVES { &mut next.serves } else { &mut next.audiences };
                list.retain(|own| own != audience);
            }
            let event =
                stamp.done(Action::ClientUpdated, id.as_str()).because("audience lost".to_owned());
            let ended =
                stamp.done(Action::ClientRevoked, id.as_str()).because("narrowed".to_owned());
            let events = self.events(call, admin, event, &before, &next).await?;
            if self.store.end_client(&next, events, ended).await? == Write::Stale {
                continue;
            }
            if is_deleted {
                // What was changed since then stays.
                let event = stamp
                    .done(Action::ClientDeleted, id.as_str())
                    .because("audience lost".to_owned());
                self.store.delete_client(&next, event).await?;
            }
            return Ok(());
        }
        Err(Error::Stale("client"))
    }
}

/// The same waits, the last of them again and again.
fn pauses_without_end() -> impl Iterator<Item = Duration> {
    PAUSES.into_iter().chain(std::iter::repeat(Duration::from_secs(1)))
}

/// Returns true if an administrator may list an audience with this record, and false if it belongs
/// to no tenant yet.
fn admits(admin: &Administrator, new: &NewlyListed, found: Option<&FoundAudience>) -> Result<bool> {
    match found {
        None => Ok(false),
        Some(FoundAudience::NotAuthentic(audience)) => Err(not_authentic(audience)),
        Some(FoundAudience::Owned(record)) if !admin.can_access_tenant(&record.tenant) => {
            Err(foreign(new))
        }
        Some(FoundAudience::Owned(record)) if record.releasing => {
            let NewlyListed { field, audience } = new;
            let advice = "the operator assigns it to its tenant again, or releases it";
            Err(Error::precondition(format!(
                "{field}: {audience} is being released; if that does not end, {advice}"
            )))
        }
        Some(FoundAudience::Owned(_)) => Ok(true),
    }
}

fn newly_listed(before: &Client, after: &Client) -> Vec<NewlyListed> {
    let fields =
        [(AUDIENCES, &before.audiences, &after.audiences), (SERVES, &before.serves, &after.serves)];
    let new = fields.into_iter().flat_map(|(field, before, after)| {
        let new = after.iter().filter(|audience| !before.contains(audience));
        new.map(move |audience| NewlyListed { field, audience: audience.clone() })
    });
    new.collect()
}

/// Says nothing of the tenant that has it.
fn foreign(NewlyListed { field, audience }: &NewlyListed) -> Error {
    Error::precondition(format!(
        "{field}: {audience} belongs to another tenant; the operator may list it"
    ))
}
