//! Settings of a client that are the operator's to give, for they are its means against tenants
//! that take too much: a faster rate plan, and lifetimes above the configured ones. An
//! administrator of a tenant may lower them, and write a client that has them without touching
//! them.

use std::time::Duration;

use super::{Administrator, Authority};
use crate::{
    config::Rate,
    error::{Error, Result},
    model::Client,
};

impl Authority {
    /// Checks that an administrator may turn the settings of `before` into those of `after`. A plan
    /// is lower than another one if neither its rate nor its burst is above: a client that the
    /// operator put on a slow plan is not moved back to "standard".
    pub(super) fn may_allow(
        &self,
        admin: &Administrator,
        before: &Client,
        after: &Client,
    ) -> Result<()> {
        if admin.tenant().is_operator() {
            return Ok(());
        }
        let rates = (self.limits.rate_of(&before.rate_plan), self.limits.rate_of(&after.rate_plan));
        let is_lower = matches!(rates, (Some(before), Some(after)) if is_within(after, before));
        if after.rate_plan != before.rate_plan && !is_lower {
            return Err(Error::InsufficientScope(
                "jeton:admin:clients of the tenant \"default\", to give this client.rate_plan",
            ));
        }
        let configured = &self.terms.token;
        let widens = |after: Option<Duration>, before: Option<Duration>, configured: Duration| {
            after != before
                && after.is_some_and(|after| after > before.unwrap_or(configured).max(configured))
        };
        if widens(after.access_ttl, before.access_ttl, configured.access_lifetime())
            || widens(after.refresh_ttl, before.refresh_ttl, configured.refresh_lifetime())
            || widens(after.refresh_idle, before.refresh_idle, configured.refresh_idle())
        {
            return Err(Error::InsufficientScope(
                "jeton:admin:clients of the tenant \"default\", to give a client a lifetime above \
                 the configured one",
            ));
        }
        Ok(())
    }
}

const fn is_within(rate: Rate, bound: Rate) -> bool {
    rate.per_second <= bound.per_second && rate.burst <= bound.burst
}
