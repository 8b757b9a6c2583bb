//! Settings of a client that are the operator's to give, for they are its means against tenants that take too much: a rate plan
//! other than the standard one, and lifetimes above the configured ones. An administrator of a tenant may lower them, and write a
//! client that has them without touching them.

use std::time::Duration;

use super::Administrator;
use crate::{
    config,
    error::{Error, Result},
    model::{Client, PlanName},
};

impl Administrator {
    /// Whether this administrator may turn the settings of `before` into those of `after`.
    pub(super) fn may_allow(&self, before: &Client, after: &Client, configured: &config::Token) -> Result<()> {
        if self.tenant().is_operator() {
            return Ok(());
        }
        if after.rate_plan != before.rate_plan && after.rate_plan != PlanName::standard() {
            return Err(Error::InsufficientScope(
                "jeton:admin:clients of the tenant \"default\", to give this client.rate_plan",
            ));
        }
        let widens = |after: Option<Duration>, before: Option<Duration>, configured: Duration| {
            after != before && after.is_some_and(|after| after > before.unwrap_or(configured).max(configured))
        };
        if widens(after.access_ttl, before.access_ttl, configured.access_lifetime())
            || widens(after.refresh_ttl, before.refresh_ttl, configured.refresh_lifetime())
            || widens(after.refresh_idle, before.refresh_idle, configured.refresh_idle())
        {
            return Err(Error::InsufficientScope(
                "jeton:admin:clients of the tenant \"default\", to give a client a lifetime above the configured one",
            ));
        }
        Ok(())
    }
}
