//! Audiences that clients list (AUDIT AZ10): in `audiences`, which their tokens may be for, and in
//! `serves`, which they introspect for. An audience belongs to the tenant whose client lists it
//! first, or that the operator assigned it to. An administrator of a tenant lists its own alone;
//! one of the operator's tenant shares any with any client. What a client lists already is not
//! judged again, so that a tenant keeps what the operator gave it.
//!
//! A client and the record of an audience are two documents, and there is no transaction over both.
//! So a change of what a client lists has three steps:
//!
//! | step | a release or assignment of the same audience meanwhile (see `audiences`) |
//! |--|--|
//! | 1. read the records, claim missing ones; a marked one refuses the change | before 2 it may finish |
//! | 2. write the client | after its last read of the clients: found in 3 |
//! | 3. read the records again | marked or moved: the change is undone and refused; gone: claimed again |
//!
//! A new client is registered without audiences first, and then changed. So every write that lists
//! an audience is compared with the client's revision: where the outcome of 2 is unknown the
//! revision is moved on before 3, and a write that a shared store makes later finds another one.
//!
//! Steps 2 and 3 are one task, which no deadline and no hang-up of the caller cuts. An audience
//! whose record cannot be read in 3 is taken back. What is claimed in 1 stays the tenant's if 2
//! fails. A node that dies between 2 and 3 leaves a client that lists what was released in that
//! moment; an assignment of the audience is refused while it does.

use std::{collections::BTreeMap, future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::sync::{Mutex, Semaphore};

use super::{
    AdminAuthenticator, Administrator,
    audiences::{TRIES, first_record, must_be_normal, not_authentic},
    newly_listed::{NewlyListed, newly_listed, other_owner, without},
    sharing::with_sharing,
};
use crate::{
    error::{Error, Result},
    model::{Action, Audience, Call, Client, Mac, Stamp, TenantId},
    oauth::Detached,
    store::{FoundAudience, ProvenWrite, Spent, Store, Write},
};

/// Records that a tenant's administrators claim, at most; the operator assigns more.
const MAX_CLAIMED: usize = 1_000;
/// Changes of what clients list that are under way at once; further ones wait.
const MAX_CHANGES: usize = 64;
/// Waits for a record in step 3.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(250), Duration::from_secs(1)];
/// Steps that are repeated at once because others wrote in between.
const MAX_CONTENDED: usize = 1_000;
/// Further waits, in seconds, where a change must be made final or taken back: five minutes.
const LONG_PAUSES: [u64; 13] = [2, 4, 8, 16, 30, 30, 30, 30, 30, 30, 30, 30, 30];
/// Reason in the records of what is taken back.
const LOST: &str = "audience lost";
/// Logged where a change is left half made: the server stops, or a record cannot be read.
const UNCONFIRMED: &str = "client may list an audience of another tenant";

/// A client whose audiences are changed.
struct Change {
    call: Call,
    admin: Administrator,
    /// As it is written.
    client: Client,
    listed: Vec<NewlyListed>,
    /// True where the registration of the client is the same call.
    is_new: bool,
}

impl Change {
    /// A stamp in the client's tenant.
    fn stamp(&self) -> Stamp {
        self.admin.stamp_in(&self.call, &self.client.tenant)
    }

    /// Returns true if a client that is found is as this registration left it: without audiences,
    /// written again so, or with what it lists.
    fn wrote(&self, found: &Client) -> bool {
        let bare = Client { revision: 0, ..unlisted(&self.client) };
        let again = Client { revision: 1, ..bare.clone() };
        [&bare, &again, &self.client].into_iter().any(|written| is_same(written, found))
    }
}

/// An attempt to take audiences back whose outcome may be unknown.
struct Attempt {
    written: Client,
    /// True if the client goes altogether.
    deletes: bool,
}

/// Changes of the audiences that clients list.
pub struct AudienceLists {
    pub(crate) gate: Arc<AdminAuthenticator>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) detached: Arc<Detached>,
    /// This service as an audience.
    pub(crate) own_audience: Audience,
    pub(crate) places: Arc<Semaphore>,
}

/// Places for the changes of what clients list that are under way at once.
pub fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_CHANGES))
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
        let mut listed = newly_listed(before, after);
        let (mut unclaimed, mut owners) = (Vec::new(), BTreeMap::<Audience, _>::new());
        for new in &mut listed {
            // In the other field too: one audience has one owner.
            if let Some(owner) = owners.get(&new.audience) {
                new.owner.clone_from(owner);
                continue;
            }
            if new.audience == self.own_audience {
                // Every client may ask for this service without listing it.
                if !admin.tenant().is_operator() {
                    return Err(foreign(new));
                }
                continue;
            }
            let found = self.store.audience(&new.audience).await?;
            if admits(admin, new, found.as_ref())? {
                new.owner = other_owner(found.as_ref(), &after.tenant);
            } else {
                must_be_normal(new.field, &new.audience)?;
                unclaimed.push(new.clone());
            }
            owners.insert(new.audience.clone(), new.owner.clone());
        }
        self.must_have_room(admin, &after.tenant, unclaimed.len()).await?;
        for new in unclaimed {
            self.claim_one(call, admin, after, &new).await?;
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
            let write = ProvenWrite::ClaimAudience { record: Box::new(record), event };
            let claimed = self.gate.write(admin, write).await?;
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
            let advice = "release some, or ask the operator to assign them";
            return Err(Error::precondition(format!(
                "the tenant has {owned} of at most {MAX_CLAIMED} audiences; {advice}"
            )));
        }
        Ok(())
    }

    /// Registers a client, with what it lists. The outcome is that of the write, or why the client
    /// was taken back.
    pub(super) async fn create(
        self: &Arc<Self>,
        call: &Call,
        admin: &Administrator,
        client: &Client,
        of_any: bool,
        listed: Vec<NewlyListed>,
    ) -> Result<Spent> {
        let created =
            admin.stamp_in(call, &client.tenant).done(Action::ClientCreated, client.id.as_str());
        let bare = if listed.is_empty() {
            client.clone()
        } else {
            // The revision before the first that callers see.
            Client { revision: 0, ..unlisted(client) }
        };
        let create = ProvenWrite::CreateClient { client: Box::new(bare), of_any, event: created };
        if listed.is_empty() {
            return self.gate.write(admin, create).await;
        }
        let lists = self.clone();
        let change = self.change(call, admin, client, listed, true);
        self.run(Box::pin(async move {
            match lists.gate.write(&change.admin, create).await {
                Ok(Spent::Done) => {}
                refused => return refused,
            }
            let Change { call, admin, client, listed, .. } = &change;
            let updated = change.stamp().done(Action::ClientUpdated, client.id.as_str());
            let events = with_sharing(call, admin, updated, (&unlisted(client), client), listed);
            let write = ProvenWrite::ReplaceClient { client: Box::new(client.clone()), events };
            lists.write_and_confirm(&change, write).await
        }))
        .await
    }

    /// Steps 2 and 3 for a client that is there. The outcome is that of its write, or why it was
    /// taken back.
    pub(super) async fn write(
        self: &Arc<Self>,
        call: &Call,
        admin: &Administrator,
        write: ProvenWrite,
        client: &Client,
        listed: Vec<NewlyListed>,
    ) -> Result<Spent> {
        if listed.is_empty() {
            return self.gate.write(admin, write).await;
        }
        let (lists, change) = (self.clone(), self.change(call, admin, client, listed, false));
        self.run(Box::pin(async move { lists.write_and_confirm(&change, write).await })).await
    }

    fn change(
        &self,
        call: &Call,
        admin: &Administrator,
        client: &Client,
        listed: Vec<NewlyListed>,
        is_new: bool,
    ) -> Change {
        Change { call: call.clone(), admin: admin.clone(), client: client.clone(), listed, is_new }
    }

    /// Runs the steps of a change to their end, in one of the places.
    async fn run<T: Send + 'static>(
        &self,
        steps: Pin<Box<dyn Future<Output = Result<T>> + Send>>,
    ) -> Result<T> {
        let place = self.places.clone().acquire_owned().await;
        let place = place.map_err(|closed| Error::Internal(closed.into()))?;
        let placed = async move {
            let outcome = steps.await;
            drop(place);
            outcome
        };
        self.detached.run(placed).await
    }

    /// Steps 2 and 3. The proof is taken here, behind the wait for a place.
    async fn write_and_confirm(&self, change: &Change, write: ProvenWrite) -> Result<Spent> {
        let proof = match self.gate.prove(&change.admin).await {
            Ok(proof) => proof,
            Err(error) => {
                self.take_back_new(change).await?;
                return Err(error);
            }
        };
        let spent = self.gate.spend(proof, write).await;
        match spent {
            Ok(Spent::Done) => {}
            // By these it is sure that nothing was written.
            Ok(Spent::Taken | Spent::Stale | Spent::Unproven)
            | Err(Error::InvalidToken | Error::Exhausted(_)) => {
                self.take_back_new(change).await?;
                return spent;
            }
            Err(_) => self.fence(change).await,
        }
        let confirmed = self.confirm_listed(change).await;
        if confirmed.is_ok() && spent.is_err() {
            self.take_back_new(change).await?;
        }
        spent.and_then(|spent| confirmed.map(|()| spent))
    }

    /// Makes the outcome of step 2 final where it is not known.
    async fn fence(&self, change: &Change) {
        let superseded = self.until_done(|| self.supersede(change)).await;
        if let Err(error) = superseded {
            tracing::error!(client = %change.client.id, %error, "{UNCONFIRMED}");
        }
    }

    /// Writes the stored client again, one revision on, unless the change or a later one was made.
    async fn supersede(&self, change: &Change) -> Result<()> {
        let written = &change.client;
        let found = self.store.client(&written.id).await?;
        let Some(client) = found
            .filter(|found| found.is_registration_of(written) && found.revision < written.revision)
        else {
            return Ok(());
        };
        let next = Client { revision: client.revision + 1, updated_at: change.call.now, ..client };
        let event = change.stamp().done(Action::ClientUpdated, next.id.as_str());
        // A stale write found the revision moved on, which is as good.
        self.store.replace_client(&next, event.because("outcome unknown".to_owned())).await?;
        Ok(())
    }

    /// Step 3, once the client is written. What the client may not keep is taken from it, with the
    /// tokens that it got by then.
    async fn confirm_listed(&self, change: &Change) -> Result<()> {
        let (mut lost, mut refused) = (Vec::new(), Ok(()));
        for new in &change.listed {
            if let Err(why) = self.confirm(change, new).await {
                refused = refused.and(Err(why));
                lost.push(new.clone());
            }
        }
        if !lost.is_empty() {
            self.take_back(change, &lost).await?;
        }
        refused
    }

    /// Fails if a client may not go on listing an audience.
    async fn confirm(&self, change: &Change, new: &NewlyListed) -> Result<()> {
        let Change { call, admin, client, .. } = change;
        if new.audience == self.own_audience {
            return Ok(());
        }
        let mut pauses = PAUSES.into_iter();
        loop {
            let confirmed = match self.store.audience(&new.audience).await {
                Ok(found) => match admits(admin, new, found.as_ref()) {
                    // It was released in between. Whose it is after the claim is read again.
                    Ok(false) => match self.claim_one(call, admin, client, new).await {
                        Ok(()) => continue,
                        failed => failed,
                    },
                    // Its owner has a record of the sharing, and the next one has none.
                    Ok(true) if other_owner(found.as_ref(), &client.tenant) != new.owner => {
                        Err(foreign(new))
                    }
                    judged => judged.map(drop),
                },
                Err(error) => Err(error.into()),
            };
            match (confirmed, pauses.next()) {
                (Err(Error::Unavailable(_)), Some(pause)) => {
                    self.detached.pause(pause).await;
                }
                (confirmed, _) => return confirmed,
            }
        }
    }

    /// Takes a client back whose registration failed between its two writes.
    async fn take_back_new(&self, change: &Change) -> Result<()> {
        if change.is_new { self.take_back(change, &[]).await } else { Ok(()) }
    }

    /// Takes audiences back, until that is sure. A client that is new, and that no other
    /// administrator has changed, goes altogether.
    async fn take_back(&self, change: &Change, lost: &[NewlyListed]) -> Result<()> {
        let attempt = Mutex::new(None);
        let taken = self.until_done(|| self.unlist(change, lost, &attempt)).await;
        taken.inspect_err(|error| {
            tracing::error!(client = %change.client.id, %error, "{UNCONFIRMED}");
        })
    }

    /// Undoes step 2. Without a proof: the change that is undone was proven, and must not stand
    /// because its caller fell.
    async fn unlist(
        &self,
        change: &Change,
        lost: &[NewlyListed],
        attempt: &Mutex<Option<Attempt>>,
    ) -> Result<()> {
        let (stamp, written) = (change.stamp(), &change.client);
        let id = &written.id;
        let mut attempt = attempt.lock().await;
        for _ in 0..TRIES {
            // It may be that it was never written, or is another by now.
            let found = self.store.client(id).await?;
            let Some(client) = found.filter(|found| found.is_registration_of(written)) else {
                return Ok(());
            };
            let ours = attempt.as_ref().filter(|attempt| is_same(&attempt.written, &client));
            let deletes = match ours {
                Some(ours) => ours.deletes,
                // What another administrator has changed by now is that one's to keep.
                None => change.is_new && change.wrote(&client),
            };
            let next = if deletes { unlisted(&client) } else { without(&client, lost) };
            let is_unlisted = is_same(&next, &client);
            if is_unlisted && !deletes {
                return Ok(());
            }
            // It may have got tokens by now, so it is ended before it is deleted.
            if !(is_unlisted && ours.is_some()) {
                let next =
                    Client { revision: client.revision + 1, updated_at: change.call.now, ..next };
                let event = stamp.done(Action::ClientUpdated, id.as_str()).because(LOST.to_owned());
                let ended =
                    stamp.done(Action::ClientRevoked, id.as_str()).because("narrowed".to_owned());
                let Change { call, admin, listed, .. } = change;
                let events = with_sharing(call, admin, event, (&client, &next), listed);
                *attempt = Some(Attempt { written: next.clone(), deletes });
                if self.store.end_client(&next, events, ended).await? == Write::Stale {
                    continue;
                }
                if deletes {
                    self.delete(change, &next).await?;
                }
                return Ok(());
            }
            return self.delete(change, &client).await;
        }
        Err(Error::Stale("client"))
    }

    /// Deletes the client; later changes of it stay.
    async fn delete(&self, change: &Change, client: &Client) -> Result<()> {
        let event = change.stamp().done(Action::ClientDeleted, client.id.as_str());
        self.store.delete_client(client, event.because(LOST.to_owned())).await?;
        Ok(())
    }

    /// Repeats a step while the store is away, for some minutes, and at once while others write. A
    /// server that stops lets it try once more.
    async fn until_done<F: Future<Output = Result<()>>>(&self, step: impl Fn() -> F) -> Result<()> {
        let long = LONG_PAUSES.into_iter().map(Duration::from_secs);
        let (mut pauses, mut contended) = (PAUSES.into_iter().chain(long), 0);
        loop {
            match step().await {
                Err(Error::Stale(_)) if contended < MAX_CONTENDED => contended += 1,
                Err(Error::Unavailable(_)) => match pauses.next() {
                    Some(pause) if self.detached.pause(pause).await => {}
                    Some(_) | None => return step().await,
                },
                outcome => return outcome,
            }
        }
    }
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
            let NewlyListed { field, audience, .. } = new;
            let advice = "ask the operator to assign or release it again";
            Err(Error::precondition(format!(
                "{field}: {audience} is being released; if this persists, {advice}"
            )))
        }
        Some(FoundAudience::Owned(_)) => Ok(true),
    }
}

/// Returns true if two records of a client are the same but for the uses of its secrets and the
/// MAC.
fn is_same(one: &Client, other: &Client) -> bool {
    let plain = |client: &Client| Client { mac: Mac::default(), ..client.without_secret_uses() };
    plain(one) == plain(other)
}

/// The client without an audience.
pub(super) fn unlisted(client: &Client) -> Client {
    Client { audiences: Vec::new(), serves: Vec::new(), ..client.clone() }
}

/// Says nothing of the tenant that has it.
fn foreign(NewlyListed { field, audience, .. }: &NewlyListed) -> Error {
    Error::precondition(format!(
        "{field}: {audience} belongs to another tenant; only the operator may list it"
    ))
}
