//! Composition of the rules: each service, and what it holds. The doors and the server take them
//! from here.

use std::{sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    sync::{Mutex, Semaphore},
};

use crate::{
    admin::{
        AdminAuthenticator, AudienceLists, Audiences, AuditReader, Clients, ClockReset,
        ForgedRecords, Keys, LastAdministrator, Reported, Revocations, SecretMaker, SettingRules,
        audit::VERIFICATIONS_MAX, places,
    },
    audit::Trail,
    clock::{Clock, ClockOffset},
    config,
    crypto::{
        chain::ChainKey, page_tokens::PageTokens, passwords::Passwords, refresh_token::RefreshKey,
        seal::Sealer, secrets::ClientSecrets,
    },
    limit::Limits,
    oauth::{
        ClientAuthenticator, Detached, Introspector, Minter, Revoker, Terms, TokenIssuer,
        client_auth::SecretUses,
    },
    standing::NodeState,
    store::{Store, authentic::Authentic},
};

/// Everything that the services are made of.
pub struct Parts {
    /// The store, with its records checked.
    pub store: Arc<Authentic>,
    /// State of the node, which follows that store; each service gets the parts that it uses.
    pub standing: Arc<NodeState>,
    /// Budgets.
    pub limits: Arc<Limits>,
    /// The argon2id pool.
    pub passwords: Arc<Passwords>,
    /// The master key, for new signing keys.
    pub sealer: Arc<Sealer>,
    /// Key of the heads of audit chains.
    pub chain: Arc<ChainKey>,
    /// Durability of the record of an issued token.
    pub issue: config::Issue,
    /// Time for background work; calls bring their own.
    pub clock: Arc<dyn Clock>,
    /// Offset of the clock that the store's nodes have in common.
    pub clock_offset: Arc<ClockOffset>,
    /// Time after which a list is returned as far as it is.
    pub list_patience: Duration,
    /// Terms that tokens are issued under.
    pub terms: Terms,
    /// Runtime of work that outlives its callers; it ends after those that answer calls.
    pub runtime: Handle,
}

/// The services of one server.
pub struct Services {
    /// Authenticates clients.
    pub clients: Arc<ClientAuthenticator>,
    /// Issues and refreshes tokens.
    pub tokens: TokenIssuer,
    /// Judges tokens for other services.
    pub introspector: Introspector,
    /// Ends tokens for their clients.
    pub revoker: Arc<Revoker>,
    /// Administration.
    pub admin: AdminServices,
    /// State of the node, for housekeeping and readiness.
    pub standing: Arc<NodeState>,
    /// Budgets.
    pub limits: Arc<Limits>,
    /// The argon2id pool.
    pub passwords: Arc<Passwords>,
    /// Terms that tokens are issued under.
    pub terms: Arc<Terms>,
    /// Work that outlives its callers.
    pub detached: Arc<Detached>,
}

/// The services for administrators.
pub struct AdminServices {
    /// Admits administrators.
    pub gate: Arc<AdminAuthenticator>,
    /// Clients and their secrets.
    pub clients: Clients,
    /// Audiences and their tenants.
    pub audiences: Arc<Audiences>,
    /// Signing keys.
    pub keys: Arc<Keys>,
    /// Return to the machine's clock, without a server.
    pub clock_reset: ClockReset,
    /// Revocation of everything that a target was issued.
    pub revocations: Revocations,
    /// The audit trail.
    pub audit: AuditReader,
    /// Reports of records that this service did not write.
    pub forged_records: ForgedRecords,
    /// Tokens that continue a listing.
    pub pages: PageTokens,
}

impl Services {
    /// Puts the parts together; symmetric keys come from the keyset's root.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            store: authentic,
            standing,
            limits,
            passwords,
            sealer,
            chain,
            issue,
            clock,
            ..
        } = parts;
        let (clock_offset, terms) = (parts.clock_offset, Arc::new(parts.terms));
        let store: Arc<dyn Store> = authentic.clone();
        let (token_state, cache) = (standing.tokens.clone(), standing.clients.clone());
        let node_keys = standing.keys.clone();
        let signing = node_keys.signing_keys();
        let root = signing.root();
        let secrets = Arc::new(ClientSecrets::new(root));
        let refresh_key = Arc::new(RefreshKey::new(root));
        let trail = Arc::new(Trail::new(store.clone(), issue));
        let detached = Arc::new(Detached::on(parts.runtime));

        let clients = Arc::new(ClientAuthenticator {
            store: store.clone(),
            tokens: token_state.clone(),
            cache: cache.clone(),
            trail: trail.clone(),
            limits: limits.clone(),
            secrets: secrets.clone(),
            passwords: passwords.clone(),
            uses: SecretUses::default(),
            clock: clock.clone(),
            detached: detached.clone(),
            own_audience: terms.own_audience.clone(),
        });
        let revoker = Arc::new(Revoker {
            clients: clients.clone(),
            store: store.clone(),
            tokens: token_state.clone(),
            trail: trail.clone(),
            limits: limits.clone(),
            refresh_key: refresh_key.clone(),
            terms: terms.clone(),
        });
        let tokens = TokenIssuer {
            clients: clients.clone(),
            minter: Minter {
                tokens: token_state.clone(),
                node_keys: node_keys.clone(),
                terms: terms.clone(),
            },
            revoker: revoker.clone(),
            store: store.clone(),
            tokens: token_state.clone(),
            trail: trail.clone(),
            limits: limits.clone(),
            refresh_key: refresh_key.clone(),
            clock_offset,
            terms: terms.clone(),
        };
        let introspector = Introspector {
            clients: clients.clone(),
            store: store.clone(),
            tokens: token_state.clone(),
            trail: trail.clone(),
            limits: limits.clone(),
            refresh_key,
        };

        let gate = Arc::new(AdminAuthenticator {
            clients: clients.clone(),
            store: store.clone(),
            tokens: token_state.clone(),
            cache: cache.clone(),
            trail: trail.clone(),
            clock: clock.clone(),
        });
        let keys = Arc::new(Keys {
            gate: gate.clone(),
            store: store.clone(),
            node_keys: node_keys.clone(),
            sealer: sealer.clone(),
            clock: clock.clone(),
            terms: terms.clone(),
        });
        let admin = AdminServices {
            clients: Clients {
                store: store.clone(),
                last_administrator: LastAdministrator {
                    own_audience: terms.own_audience.clone(),
                    changes: Mutex::default(),
                },
                settings: SettingRules { limits: limits.clone(), terms: terms.clone() },
                secrets: SecretMaker { secrets, passwords: passwords.clone() },
                audiences: Arc::new(AudienceLists {
                    gate: gate.clone(),
                    store: store.clone(),
                    detached: detached.clone(),
                    own_audience: terms.own_audience.clone(),
                    places: places(),
                }),
            },
            audiences: Arc::new(Audiences {
                gate: gate.clone(),
                store: store.clone(),
                detached: detached.clone(),
                releases: Arc::new(Semaphore::new(1)),
                own_audience: terms.own_audience.clone(),
            }),
            keys: keys.clone(),
            clock_reset: ClockReset { store: store.clone(), sealer, terms: terms.clone() },
            revocations: Revocations {
                gate: gate.clone(),
                store: store.clone(),
                keys,
                terms: terms.clone(),
            },
            audit: AuditReader {
                gate: gate.clone(),
                store,
                chain,
                verifications: Arc::new(Semaphore::new(VERIFICATIONS_MAX)),
                patience: parts.list_patience,
            },
            forged_records: ForgedRecords {
                store: authentic.clone(),
                trail,
                clock: clock.clone(),
                reported: Reported::default(),
            },
            pages: PageTokens::new(root),
            gate,
        };
        Self {
            clients,
            tokens,
            introspector,
            revoker,
            admin,
            standing,
            limits,
            passwords,
            terms,
            detached,
        }
    }
}
