//! Administration of the tenants that own audiences: list, assign and release. Listing of an
//! audience by a client is in `listed_audiences`.
//!
//! A release, and an assignment from another tenant, has four steps, each one write or one read of
//! the clients, so that it never takes an audience that a client lists. A release that has begun to
//! mark and an assignment run to completion even if the caller disconnects.
//!
//! | step | record | possible in between |
//! |--|--|--|
//! | 1. read the clients: one that lists it refuses the change | unchanged | anything |
//! | 2. mark the record as `releasing` | owned, not claimable, not listable | a registration that read it before |
//! | 3. read again: a new client refuses the change and clears the mark | marked | a client is written |
//! | 4. remove or replace the record, if still marked | removed, or the next tenant's | another change: no effect |
//!
//! A client that is written after step 3 finds the mark, no record, or another tenant's record when
//! its registration reads the record again: it is unlisted, or claims the audience again if there
//! is no record. So a tenant cannot keep an audience by registering clients. A node that dies in
//! between leaves a marked record: the tenant still owns the audience and cannot list it on further
//! clients, until the next release completes, or an assignment to the same tenant clears the mark.
//!
//! For an assignment the clients of the new tenant do not count. A record that is not authentic is
//! replaced by a marked one of that tenant; the mark is cleared after step 3.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::{AdminAuthenticator, Administrator};
use crate::{
    error::{Error, Result},
    model::{Action, Audience, AudienceRecord, Call, Client, Mac, TenantId, text},
    oauth::Detached,
    store::{Listed, ProvenWrite, Spent, Store},
};

pub use crate::store::FoundAudience;

/// Clients per page.
const PAGE: usize = 1_000;
/// Tries of a write when others write in between.
pub(super) const TRIES: usize = 8;
/// Time after which a tenant may ask again while another's release reads the clients.
const WAIT: Duration = Duration::from_secs(1);

/// Administration of audiences.
pub struct Audiences {
    pub(crate) gate: Arc<AdminAuthenticator>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) detached: Arc<Detached>,
    /// One place: a release reads all clients.
    pub(crate) releases: Arc<Semaphore>,
    /// This service as an audience.
    pub(crate) own_audience: Audience,
}

impl Audiences {
    /// A page of records in the order of the audiences, and of those that are not authentic.
    pub async fn list(
        &self,
        admin: &Administrator,
        tenant: Option<TenantId>,
        after: Option<&Audience>,
        limit: usize,
    ) -> Result<Vec<FoundAudience>> {
        let tenant = admin.tenant_filter(tenant)?;
        Ok(self.store.audiences(tenant.as_ref(), after, limit).await?)
    }

    /// Gives an audience to a tenant, which need have no client yet, also from another tenant, or
    /// in the place of a record that is not authentic. Refused while a client of any other tenant
    /// lists it. Again for the same tenant is the same.
    pub async fn assign(
        self: &Arc<Self>,
        call: &Call,
        admin: &Administrator,
        audience: &Audience,
        tenant: &TenantId,
    ) -> Result<AudienceRecord> {
        admin.must_be_operator()?;
        self.must_not_be_own(audience)?;
        text::check(audience.as_str()).map_err(Error::invalid("audience"))?;
        let (audiences, call, admin) = (self.clone(), call.clone(), admin.clone());
        let (audience, tenant) = (audience.clone(), tenant.clone());
        self.detached
            .run(async move { audiences.assign_now(&call, &admin, &audience, &tenant).await })
            .await
    }

    async fn assign_now(
        &self,
        call: &Call,
        admin: &Administrator,
        audience: &Audience,
        tenant: &TenantId,
    ) -> Result<AudienceRecord> {
        for _ in 0..TRIES {
            let found = match self.store.audience(audience).await? {
                Some(FoundAudience::Owned(record))
                    if record.tenant == *tenant && !record.releasing =>
                {
                    return Ok(record);
                }
                found => found,
            };
            self.must_be_unlisted(audience, Some(tenant), admin).await?;
            let assigned = first_record(call, admin, audience, tenant);
            let event = |action| {
                admin
                    .stamp_in(call, tenant)
                    .done(action, audience.as_str())
                    .because("assigned".to_owned())
            };
            let (record, write) = match found {
                None => {
                    must_be_normal("audience", audience)?;
                    let record = Box::new(assigned.clone());
                    (
                        Some(assigned),
                        ProvenWrite::ClaimAudience {
                            record,
                            event: event(Action::AudienceClaimed),
                        },
                    )
                }
                // Marked, so that no client can list it before the clients are read again.
                Some(FoundAudience::NotAuthentic(_)) => {
                    let record = Box::new(AudienceRecord { releasing: true, ..assigned });
                    let events = vec![event(Action::AudienceClaimed)];
                    (None, ProvenWrite::MoveAudience { from: None, record, events })
                }
                Some(FoundAudience::Owned(record)) if record.tenant == *tenant => {
                    let kept = unmarked(record);
                    let record = Box::new(kept.clone());
                    (
                        Some(kept),
                        ProvenWrite::ReplaceAudience { record, event: event(Action::AudienceKept) },
                    )
                }
                Some(FoundAudience::Owned(record)) => {
                    let from = self.mark(call, admin, record, Some(tenant)).await?;
                    let moved = AudienceRecord { revision: from.revision + 1, ..assigned };
                    let released = admin
                        .stamp_in(call, &from.tenant)
                        .done(Action::AudienceReleased, audience.as_str());
                    let events = vec![
                        released.because("assigned".to_owned()),
                        event(Action::AudienceClaimed),
                    ];
                    let (from, record) = (Some(Box::new(from)), Box::new(moved.clone()));
                    (Some(moved), ProvenWrite::MoveAudience { from, record, events })
                }
            };
            if let (Spent::Done, Some(record)) = (self.gate.write(admin, write).await?, record) {
                return Ok(record);
            }
        }
        Err(Error::Stale("audience"))
    }

    /// Takes an audience from its tenant, unless a client lists it: the operator's to do, and that
    /// tenant's. Of tenants, one release at a time; [`Error::Throttled`] to the others, since each
    /// reads all clients.
    pub async fn release(
        self: &Arc<Self>,
        call: &Call,
        admin: &Administrator,
        audience: &Audience,
    ) -> Result<()> {
        self.must_not_be_own(audience)?;
        let record = match self.store.audience(audience).await? {
            Some(FoundAudience::Owned(record)) if admin.can_access_tenant(&record.tenant) => record,
            Some(FoundAudience::NotAuthentic(_)) => {
                return admin.must_be_operator().and(Err(not_authentic(audience)));
            }
            Some(FoundAudience::Owned(_)) | None => return Err(Error::NotFound("audience")),
        };
        let turn = if admin.tenant().is_operator() {
            None
        } else {
            Some(
                self.releases
                    .clone()
                    .try_acquire_owned()
                    .map_err(|_| Error::Throttled { retry_after: WAIT })?,
            )
        };
        // Nothing was changed yet, so this read stops with its caller.
        if let Err(refused) = self.must_be_unlisted(audience, None, admin).await {
            if record.releasing {
                // The mark of an unfinished release: cleared here.
                self.keep_audience(call, admin, record).await?;
            }
            return Err(refused);
        }
        let (audiences, call, admin) = (self.clone(), call.clone(), admin.clone());
        let work = async move {
            let _turn = turn;
            audiences.release_now(&call, &admin, record).await
        };
        self.detached.run(work).await
    }

    async fn release_now(
        &self,
        call: &Call,
        admin: &Administrator,
        record: AudienceRecord,
    ) -> Result<()> {
        let marked = self.mark(call, admin, record, None).await?;
        let event = admin
            .stamp_in(call, &marked.tenant)
            .done(Action::AudienceReleased, marked.audience.as_str());
        let write = ProvenWrite::ReleaseAudience { record: Box::new(marked), event };
        match self.gate.write(admin, write).await? {
            Spent::Done => Ok(()),
            Spent::Taken | Spent::Stale | Spent::Unproven => Err(Error::Stale("audience")),
        }
    }

    /// Marks a record, also one that was marked before, and reads the clients again. If one lists
    /// the audience the mark is cleared.
    async fn mark(
        &self,
        call: &Call,
        admin: &Administrator,
        record: AudienceRecord,
        next: Option<&TenantId>,
    ) -> Result<AudienceRecord> {
        let marked = AudienceRecord { releasing: true, revision: record.revision + 1, ..record };
        let event = admin
            .stamp_in(call, &marked.tenant)
            .done(Action::AudienceReleasing, marked.audience.as_str());
        let write = ProvenWrite::ReplaceAudience { record: Box::new(marked.clone()), event };
        if self.gate.write(admin, write).await? != Spent::Done {
            return Err(Error::Stale("audience"));
        }
        if let Err(refused) = self.must_be_unlisted(&marked.audience, next, admin).await {
            // A record that stays marked is the tenant's all the same.
            self.keep_audience(call, admin, marked).await?;
            return Err(refused);
        }
        Ok(marked)
    }

    /// Takes the mark of a release back, unless the record was changed meanwhile. It needs no
    /// proof: it undoes a release.
    async fn keep_audience(
        &self,
        call: &Call,
        admin: &Administrator,
        marked: AudienceRecord,
    ) -> Result<()> {
        let kept = unmarked(marked);
        let event =
            admin.stamp_in(call, &kept.tenant).done(Action::AudienceKept, kept.audience.as_str());
        self.store.replace_audience(&kept, event).await?;
        Ok(())
    }

    /// The audience of this service is the operator's, without a record and for ever.
    fn must_not_be_own(&self, audience: &Audience) -> Result<()> {
        if *audience == self.own_audience {
            return Err(Error::precondition(format!(
                "{audience} is this service and always belongs to the tenant \"default\""
            )));
        }
        Ok(())
    }

    /// Refuses a change while a client lists the audience, disabled ones too, but for those of the
    /// tenant that gets it.
    async fn must_be_unlisted(
        &self,
        audience: &Audience,
        next: Option<&TenantId>,
        admin: &Administrator,
    ) -> Result<()> {
        let lists = |client: &Client| {
            client.audiences.contains(audience) || client.serves.contains(audience)
        };
        let mut after = None;
        loop {
            let page = self.store.clients(None, after.as_ref(), PAGE).await?;
            for entry in &page {
                if let Listed::Client(client) = entry
                    && lists(client)
                    && next != Some(&client.tenant)
                {
                    let named = if admin.can_access_tenant(&client.tenant) {
                        client.id.as_str()
                    } else {
                        "of another tenant"
                    };
                    let advice = "remove it from its audiences and serves first";
                    return Err(Error::precondition(format!(
                        "the client {named} lists {audience}: {advice}"
                    )));
                }
            }
            match page.last() {
                Some(last) if page.len() >= PAGE => after = Some(last.id().clone()),
                Some(_) | None => return Ok(()),
            }
        }
    }
}

/// Refuses other spellings of an http or https audience than the normal one, which would be another
/// audience.
pub(super) fn must_be_normal(field: &'static str, audience: &Audience) -> Result<()> {
    match audience.normal_form() {
        None => Ok(()),
        Some(normal) => {
            Err(Error::field(field, format!("{audience} is not in normal form: write {normal}")))
        }
    }
}

fn unmarked(marked: AudienceRecord) -> AudienceRecord {
    AudienceRecord { releasing: false, revision: marked.revision + 1, ..marked }
}

/// The record that a claim or an assignment keeps.
pub(super) fn first_record(
    call: &Call,
    admin: &Administrator,
    audience: &Audience,
    tenant: &TenantId,
) -> AudienceRecord {
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
    Error::precondition(format!(
        "the record of {audience} was not written by this service; ask the operator to assign it \
         again"
    ))
}
