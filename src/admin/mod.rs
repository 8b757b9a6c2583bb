//! RULES for administrators: clients, audiences, keys, revocations and the audit trail. Each service
//! holds what it needs and nothing else.

mod administrator;
pub mod audiences;
pub mod audit;
mod client_changes;
pub mod client_secrets;
pub mod client_settings;
pub mod clients;
mod clock_reset;
mod first_client;
mod forged_records;
pub mod keys;
mod last_administrator;
mod listed_audiences;
mod newly_listed;
pub mod restore_policy;
pub mod revocations;
mod sharing;
pub mod tail;
pub mod verification;
pub mod witness;

pub(crate) use self::last_administrator::LastAdministrator;
pub use self::{
    administrator::{AdminAuthenticator, AdminScope, Administrator},
    audiences::Audiences,
    audit::AuditReader,
    client_secrets::{NewSecret, SecretMaker},
    client_settings::{SettingRules, Settings},
    clients::Clients,
    clock_reset::{ClockReset, ClockResetDone},
    forged_records::{ForgedRecords, Reported},
    keys::Keys,
    last_administrator::Conditions,
    listed_audiences::{AudienceLists, places},
    revocations::{Reach, Revocations, Target},
};
