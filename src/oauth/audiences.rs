//! Administration of the tenants that audiences belong to: lists, assignment and release. How a client comes to list an audience
//! is in `listed`.
//!
//! A release has four steps, each one write or one look, so that it never takes an audience that a client lists:
//!
//! | step | record | what can come in between |
//! |--|--|--|
//! | look at the clients: one that lists it refuses the release | unchanged | anything |
//! | mark the record as `releasing` | still the tenant's: no other can claim the audience | a registration by the tenant |
//! | look again: a client that was written by now refuses it, and the mark is taken back | marked | a client is written behind the look |
//! | remove the record, if it is still the marked one | gone | a registration that took the mark back: nothing is removed |
//!
//! A client that is written behind the second look finds the mark, or no record, when its registration reads the record again, and
//! takes the mark back or claims the audience anew. A node that dies in between leaves a marked record: the tenant has the audience
//! still, and the next release goes on.

use super::{Administrator, Authority};
use crate::{
    error::{Error, Result},
    model::{Action, Audience, AudienceRecord, Call, Client, ClientId, Mac, TenantId, text},
    store::{Listed, ProvenWrite, Spent, Write},
};

pub use crate::store::FoundAudience;

/// Clients looked at together.
const PAGE: usize = 1_000;
/// How often a write is tried again when others write in between.
pub(super) const TRIES: usize = 8;

impl Authority {
    /// A page of records in the order of the audiences, and of those that are not authentic.
    pub async fn audiences(
        &self,
        admin: &Administrator,
        tenant: Option<TenantId>,
        after: Option<&Audience>,
        limit: usize,
    ) -> Result<Vec<FoundAudience>> {
        let tenant = admin.confined_to(tenant)?;
        Ok(self.store.audiences(tenant.as_ref(), after, limit).await?)
    }

    /// Gives an audience that belongs to no tenant to one, which need have no client yet. Again for the same tenant is the same.
    pub async fn assign_audience(
        &self,
        call: &Call,
        admin: &Administrator,
        audience: &Audience,
        tenant: &TenantId,
    ) -> Result<AudienceRecord> {
        admin.must_govern_all()?;
        self.must_not_be_own(audience)?;
        text::check(audience.as_str()).map_err(Error::invalid("audience"))?;
        for _ in 0..TRIES {
            match self.store.audience(audience).await? {
                Some(FoundAudience::Owned(record)) if record.tenant == *tenant => return Ok(record),
                Some(FoundAudience::Owned(_)) => {
                    return Err(Error::precondition(format!("{audience} belongs to another tenant: release it first")));
                }
                Some(FoundAudience::NotAuthentic(_)) => return Err(not_authentic(audience)),
                None => {}
            }
            let record = first_record(call, admin, audience, tenant);
            let event = admin.stamp_in(call, tenant).done(Action::AudienceClaimed, audience.as_str());
            let event = event.because("assigned".to_owned());
            let write = ProvenWrite::ClaimAudience { record: Box::new(record.clone()), event };
            let proof = self.prove(admin).await?;
            if self.spend(proof, write).await? == Spent::Done {
                return Ok(record);
            }
        }
        Err(Error::Stale("audience"))
    }

    /// Takes an audience from its tenant, unless a client lists it.
    pub async fn release_audience(&self, call: &Call, admin: &Administrator, audience: &Audience) -> Result<()> {
        admin.must_govern_all()?;
        self.must_not_be_own(audience)?;
        let record = match self.store.audience(audience).await? {
            Some(FoundAudience::Owned(record)) => record,
            Some(FoundAudience::NotAuthentic(_)) => return Err(not_authentic(audience)),
            None => return Err(Error::NotFound("audience")),
        };
        self.must_not_be_listed(audience).await?;
        let stamp = admin.stamp_in(call, &record.tenant);
        let marked = AudienceRecord { releasing: true, revision: record.revision + 1, ..record };
        let event = stamp.done(Action::AudienceReleasing, audience.as_str());
        let write = ProvenWrite::ReplaceAudience { record: Box::new(marked.clone()), event };
        let proof = self.prove(admin).await?;
        if self.spend(proof, write).await? != Spent::Done {
            return Err(Error::Stale("audience"));
        }
        if let Err(refused) = self.must_not_be_listed(audience).await {
            // A record that stays marked is the tenant's all the same, so how this ends does not matter.
            self.keep_audience(call, admin, marked).await?;
            return Err(refused);
        }
        let event = stamp.done(Action::AudienceReleased, audience.as_str());
        let proof = self.prove(admin).await?;
        match self.spend(proof, ProvenWrite::ReleaseAudience { record: Box::new(marked), event }).await? {
            Spent::Done => Ok(()),
            Spent::Taken | Spent::Stale | Spent::Unproven => Err(Error::Stale("audience")),
        }
    }

    /// Takes the mark of a release back; whether it was there still. It needs no proof: it undoes a release, or completes a
    /// registration that was proven.
    pub(super) async fn keep_audience(&self, call: &Call, admin: &Administrator, marked: AudienceRecord) -> Result<bool> {
        let kept = AudienceRecord { releasing: false, revision: marked.revision + 1, ..marked };
        let event = admin.stamp_in(call, &kept.tenant).done(Action::AudienceKept, kept.audience.as_str());
        Ok(self.store.replace_audience(&kept, event).await? == Write::Done)
    }

    /// The audience of this service is the operator's, without a record and for ever.
    fn must_not_be_own(&self, audience: &Audience) -> Result<()> {
        if *audience == self.terms.own_audience {
            return Err(Error::precondition(format!(
                "{audience} is this service, and belongs to the tenant \"default\" for ever"
            )));
        }
        Ok(())
    }

    async fn must_not_be_listed(&self, audience: &Audience) -> Result<()> {
        match self.lister(audience).await? {
            None => Ok(()),
            Some(id) => Err(Error::precondition(format!(
                "the client {id} lists {audience}: take it from its audiences and serves first"
            ))),
        }
    }

    /// A client that lists an audience, disabled ones too.
    async fn lister(&self, audience: &Audience) -> Result<Option<ClientId>> {
        let lists = |client: &Client| client.audiences.contains(audience) || client.serves.contains(audience);
        let mut after = None;
        loop {
            let page = self.store.clients(None, after.as_ref(), PAGE).await?;
            let found = page.iter().find(|entry| matches!(entry, Listed::Client(client) if lists(client)));
            if let Some(found) = found {
                return Ok(Some(found.id().clone()));
            }
            match page.last() {
                Some(last) if page.len() >= PAGE => after = Some(last.id().clone()),
                Some(_) | None => return Ok(None),
            }
        }
    }
}

/// The record that a claim or an assignment keeps.
pub(super) fn first_record(call: &Call, admin: &Administrator, audience: &Audience, tenant: &TenantId) -> AudienceRecord {
    AudienceRecord {
        audience: audience.clone(),
        tenant: tenant.clone(),
        claimed_by: admin.id().clone(),
        created_at: call.now,
        releasing: false,
        revision: 1,
        mac: Mac::default(),
    }
}

pub(super) fn not_authentic(audience: &Audience) -> Error {
    Error::precondition(format!("the record of {audience} was not written by this service: remove it from the store"))
}
