//! Settings of clients (the metadata of RFC 7591 section 2): what they may be, and which of them
//! are the operator's to give, for they are its means against tenants that take too much: a faster
//! rate plan, and lifetimes above the configured ones. An administrator of a tenant may lower them,
//! and write a client that has them without touching them.

use std::{sync::Arc, time::Duration};

use super::Administrator;
use crate::{
    config::Rate,
    error::{Error, Result},
    limit::Limits,
    model::{Audience, Client, Grants, PlanName, Role, Scope, Scopes, text},
    oauth::Terms,
};

/// Lifetimes a client may be given, in seconds: a minute to 366 days.
const LIFETIMES: std::ops::RangeInclusive<u64> = 60..=366 * 86_400;

/// The fields of a client that its administrator sets; `None` leaves a field as it is, or at its
/// default.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// For people, at most 200 characters.
    pub display_name: Option<String>,
    /// Scopes that it may request.
    pub scopes: Option<Scopes>,
    /// Scopes of a request that names none.
    pub default_scopes: Option<Scopes>,
    /// Copied into tokens.
    pub roles: Option<Vec<Role>>,
    /// Audiences that its tokens may have.
    pub audiences: Option<Vec<Audience>>,
    /// Audiences whose tokens it may introspect.
    pub serves: Option<Vec<Audience>>,
    /// Grant types that it may use.
    pub grants: Option<Grants>,
    /// Lifetime of access tokens; the inner `None` means the configured one.
    pub access_ttl: Option<Option<Duration>>,
    /// Absolute lifetime of families.
    pub refresh_ttl: Option<Option<Duration>>,
    /// Idle lifetime of families.
    pub refresh_idle: Option<Option<Duration>>,
    /// Rate plan.
    pub rate_plan: Option<PlanName>,
}

/// Rules for the settings of clients.
pub struct SettingRules {
    pub(crate) limits: Arc<Limits>,
    pub(crate) terms: Arc<Terms>,
}

impl SettingRules {
    /// Applies settings and checks the whole: every way of writing a client ends here.
    pub(super) fn apply(&self, client: Client, settings: Settings) -> Result<Client> {
        let client = Client {
            display_name: settings.display_name.unwrap_or(client.display_name),
            scopes: settings.scopes.unwrap_or(client.scopes),
            default_scopes: settings.default_scopes.unwrap_or(client.default_scopes),
            roles: settings.roles.unwrap_or(client.roles),
            audiences: settings.audiences.unwrap_or(client.audiences),
            serves: settings.serves.unwrap_or(client.serves),
            grants: settings.grants.unwrap_or(client.grants),
            access_ttl: settings.access_ttl.unwrap_or(client.access_ttl),
            refresh_ttl: settings.refresh_ttl.unwrap_or(client.refresh_ttl),
            refresh_idle: settings.refresh_idle.unwrap_or(client.refresh_idle),
            rate_plan: settings.rate_plan.unwrap_or(client.rate_plan),
            ..client
        };
        if client.display_name.chars().count() > 200 {
            return Err(Error::field("client.display_name", "must be at most 200 characters"));
        }
        check_texts(&client)?;
        if let Some(scope) = client.scopes.lacks(&client.default_scopes) {
            return Err(Error::field(
                "client.default_scopes",
                format!("{scope} is not one of the client's scopes"),
            ));
        }
        for (field, len) in [
            ("client.roles", client.roles.len()),
            ("client.audiences", client.audiences.len()),
            ("client.serves", client.serves.len()),
        ] {
            if len > 50 {
                return Err(Error::field(field, "must have at most 50 entries"));
            }
        }
        let max = self.terms.token.access_lifetime_max_seconds;
        if client.access_ttl.is_some_and(|ttl| !(60..=max).contains(&ttl.as_secs())) {
            return Err(Error::field(
                "client.access_token_lifetime",
                format!("must be 60 s to {max} s"),
            ));
        }
        for (field, lifetime) in [
            ("client.refresh_token_lifetime", client.refresh_ttl),
            ("client.refresh_token_idle_lifetime", client.refresh_idle),
        ] {
            if lifetime.is_some_and(|lifetime| !LIFETIMES.contains(&lifetime.as_secs())) {
                return Err(Error::field(field, "must be 60 s to 366 days"));
            }
        }
        if !self.limits.has_plan(&client.rate_plan) {
            return Err(Error::field(
                "client.rate_plan",
                format!("unknown, the rate plans are {}", self.limits.plan_names()),
            ));
        }
        Ok(client)
    }

    /// Checks that an administrator may turn the settings of `before` into those of `after`. A plan
    /// is lower than another one if neither its rate nor its burst is above: a client that the
    /// operator put on a slow plan is not moved back to "standard".
    pub(super) fn must_be_allowed(
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
                "jeton:admin:clients of the tenant \"default\" to set this client.rate_plan",
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
                "jeton:admin:clients of the tenant \"default\" to set a lifetime above the \
                 configured one",
            ));
        }
        Ok(())
    }
}

/// Refuses secrets in every text of a client that people choose.
fn check_texts(client: &Client) -> Result<()> {
    let fields: [(&str, Vec<&str>); 6] = [
        ("client.client_id", vec![client.id.as_str()]),
        ("client.display_name", vec![&client.display_name]),
        ("client.scopes", client.scopes.iter().map(Scope::as_str).collect()),
        ("client.roles", client.roles.iter().map(Role::as_str).collect()),
        ("client.audiences", client.audiences.iter().map(Audience::as_str).collect()),
        ("client.serves", client.serves.iter().map(Audience::as_str).collect()),
    ];
    for (field, texts) in fields {
        texts.into_iter().try_for_each(text::check).map_err(Error::invalid(field))?;
    }
    Ok(())
}

const fn is_within(rate: Rate, bound: Rate) -> bool {
    rate.per_second <= bound.per_second && rate.burst <= bound.burst
}
