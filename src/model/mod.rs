//! NOUNS: plain data, parsed once and valid from then on. No I/O, no clock, no framework.

pub mod account;
pub mod audience;
pub mod auth_method;
pub mod call;
pub mod claims;
pub mod client;
pub mod digits;
pub mod event;
pub mod family;
pub mod id;
pub mod keyset;
pub mod mac;
pub mod peer_key;
pub mod principal;
pub mod revocation;
pub mod scope;
mod scope_advice;
pub mod text;
pub mod time;
pub mod weight;

pub use account::{AccountKey, ClaimedAccount};
pub use audience::{Audience, AudienceRecord};
pub use auth_method::AuthMethod;
pub use call::{Call, Peer};
pub use claims::{Claims, Epochs, VERIFIER_BEHIND};
pub use client::{Client, ClientCredential, Digest, Grants, Secret};
pub use event::{Action, Event, Place, Record, Stamp};
pub use family::Family;
pub use id::{ClientId, FamilyId, Invalid, Jti, Kid, PlanName, Role, SecretId, Subject, TenantId};
pub use keyset::{KeyState, Keyset, SigningKey};
pub use mac::Mac;
pub use peer_key::PeerKey;
pub use principal::Principal;
pub use revocation::{EpochOf, Revocation, Revoked};
pub use scope::{Granted, Scope, Scopes};
pub use time::Timestamp;
