//! Changes that need a proof: made while it holds, and not at all once it has fallen, in each way
//! it can fall.

use jeton::{
    model::{
        Action, AudienceRecord, Claims, Client, ClientId, EpochOf, Epochs, Family, FamilyId, Jti,
        Keyset, Kid, Revocation, Revoked, Scopes, Subject, Timestamp, keyset::KeyState,
    },
    store::{FoundAudience, Proof, ProvenWrite, Spent, Store},
};

use crate::store::{
    backend::StoreCase,
    fixtures::{NOW, at, client, end_of_chain, event, family, id, keyset, whole_chain},
    suite::audiences::record,
};

const ADMIN: &str = "jeton:admin";
const UNTIL: Timestamp = at(900_000);
/// Number of changes.
const WRITES: usize = 12;

fn scopes(names: &[&str]) -> Scopes {
    Scopes::parse(names).unwrap()
}

/// An administrator with a token of a family, and what it aims at.
struct Scene {
    admin: Client,
    claims: Claims,
    kid: Kid,
    target: ClientId,
    family: FamilyId,
    audience: AudienceRecord,
    new: ClientId,
    keyset: Keyset,
}

impl Scene {
    async fn set(store: &dyn Store, n: usize) -> Self {
        if store.keyset().await.unwrap().is_none() {
            store.replace_keyset(&keyset(1), event(Action::KeysCreated)).await.unwrap();
        }
        let keyset = store.keyset().await.unwrap().unwrap();
        let active =
            keyset.keys.iter().find(|key| matches!(key.state, KeyState::Active { .. })).unwrap();
        let admin = Client {
            tenant: format!("tenant-{n}").parse().unwrap(),
            scopes: scopes(&["orders:read", ADMIN]),
            ..client(&format!("admin-{n}"))
        };
        let target = client(&format!("target-{n}"));
        for client in [&admin, &target] {
            store.create_client(client, event(Action::ClientCreated)).await.unwrap();
        }
        let (own, its) = (family(admin.id.as_str()), family(target.id.as_str()));
        for family in [&own, &its] {
            store.open_family(family, event(Action::TokenIssued)).await.unwrap();
        }
        let audience = record(&format!("urn:{n}"), "acme");
        store.claim_audience(&audience, event(Action::AudienceClaimed)).await.unwrap();
        Self {
            audience,
            claims: claims(&admin, &own),
            kid: active.kid.clone(),
            admin,
            target: target.id,
            family: its.id,
            new: id(&format!("new-{n}")),
            keyset,
        }
    }

    fn by_token(&self) -> Proof {
        Proof::by_token(&self.claims, &self.kid, scopes(&[ADMIN]))
    }

    fn by_secret(&self) -> Proof {
        Proof::by_secret(&self.admin, "s1".parse().unwrap(), NOW, scopes(&[ADMIN]))
    }

    /// The administrator's record, one revision on.
    fn admin_with(&self, change: impl FnOnce(&mut Client)) -> Client {
        let mut next = Client { revision: 2, ..self.admin.clone() };
        change(&mut next);
        next
    }

    fn write(&self, nth: usize, keyset: &Keyset) -> ProvenWrite {
        let next = Box::new(Client { revision: 2, ..client(self.target.as_str()) });
        let keyset = Keyset { revision: keyset.revision + 1, ..keyset.clone() };
        let writes: [ProvenWrite; WRITES] = [
            ProvenWrite::CreateClient {
                client: Box::new(client(self.new.as_str())),
                of_any: false,
                event: event(Action::ClientCreated),
            },
            ProvenWrite::ReplaceClient {
                client: next.clone(),
                events: vec![event(Action::ClientUpdated)],
            },
            ProvenWrite::EndClient {
                client: next,
                events: vec![event(Action::ClientDisabled)],
                ended: event(Action::ClientRevoked),
            },
            ProvenWrite::DeleteClient {
                client: Box::new(client(self.target.as_str())),
                ended: event(Action::ClientRevoked),
                events: vec![event(Action::ClientDeleted)],
            },
            ProvenWrite::RaiseEpoch {
                of: EpochOf::Client(self.target.clone()),
                event: event(Action::ClientRevoked),
            },
            ProvenWrite::Revoke {
                revocation: Revocation { revoked: Revoked::Token(Jti::new()), until: UNTIL },
                event: event(Action::JtiRevoked),
            },
            ProvenWrite::EndFamily {
                id: self.family,
                now: NOW,
                until: UNTIL,
                event: event(Action::FamilyRevoked),
            },
            ProvenWrite::ReplaceKeyset { keyset, event: event(Action::KeysRotated) },
            ProvenWrite::ClaimAudience {
                record: Box::new(record(&format!("urn:new:{}", self.new), "acme")),
                event: event(Action::AudienceClaimed),
            },
            ProvenWrite::ReplaceAudience {
                record: Box::new(AudienceRecord {
                    releasing: true,
                    revision: 2,
                    ..self.audience.clone()
                }),
                event: event(Action::AudienceReleasing),
            },
            ProvenWrite::MoveAudience {
                from: Some(Box::new(self.audience.clone())),
                record: Box::new(AudienceRecord {
                    tenant: "globex".parse().unwrap(),
                    revision: 2,
                    ..self.audience.clone()
                }),
                events: vec![event(Action::AudienceReleased), event(Action::AudienceClaimed)],
            },
            ProvenWrite::ReleaseAudience {
                record: Box::new(self.audience.clone()),
                event: event(Action::AudienceReleased),
            },
        ];
        writes.into_iter().nth(nth).unwrap()
    }
}

fn claims(admin: &Client, family: &Family) -> Claims {
    Claims {
        iss: "https://jeton.test".into(),
        sub: Subject::of_client(&admin.id),
        aud: Vec::new(),
        client_id: admin.id.clone(),
        scope: ADMIN.into(),
        iat: NOW.seconds(),
        nbf: NOW.seconds(),
        exp: NOW.seconds() + 900,
        jti: Jti::new(),
        tenant: admin.tenant.clone(),
        roles: Vec::new(),
        fam: Some(family.id),
        ep: Epochs::default(),
    }
}

/// A way in which a proof falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fall {
    Disabled,
    Deleted,
    ScopeTaken,
    SecretRetired,
    ClientEpoch,
    TenantEpoch,
    SubjectEpoch,
    Token,
    Family,
    Key,
}

impl Fall {
    const ALL: [Self; 10] = [
        Self::Disabled,
        Self::Deleted,
        Self::ScopeTaken,
        Self::SecretRetired,
        Self::ClientEpoch,
        Self::TenantEpoch,
        Self::SubjectEpoch,
        Self::Token,
        Self::Family,
        Self::Key,
    ];

    fn ends_tokens(self) -> bool {
        self != Self::SecretRetired
    }

    fn ends_secrets(self) -> bool {
        matches!(self, Self::Disabled | Self::Deleted | Self::ScopeTaken | Self::SecretRetired)
    }

    async fn happen(self, store: &dyn Store, scene: &Scene) {
        let rewritten = match self {
            Self::Disabled => Some(scene.admin_with(|admin| admin.disabled = true)),
            Self::ScopeTaken => {
                Some(scene.admin_with(|admin| admin.scopes = scopes(&["orders:read"])))
            }
            Self::SecretRetired => {
                Some(scene.admin_with(|admin| drop(admin.credentials.remove(0))))
            }
            Self::Deleted
            | Self::ClientEpoch
            | Self::TenantEpoch
            | Self::SubjectEpoch
            | Self::Token
            | Self::Family
            | Self::Key => None,
        };
        if let Some(admin) = rewritten {
            store.replace_client(&admin, event(Action::ClientUpdated)).await.unwrap();
            return;
        }
        let raise = async |of| {
            store.raise_epoch(&of, event(Action::ClientRevoked)).await.unwrap();
        };
        match self {
            Self::Deleted => {
                store.delete_client(&scene.admin, event(Action::ClientDeleted)).await.unwrap();
            }
            Self::ClientEpoch => raise(EpochOf::Client(scene.admin.id.clone())).await,
            Self::TenantEpoch => raise(EpochOf::Tenant(scene.admin.tenant.clone())).await,
            Self::SubjectEpoch => raise(EpochOf::Subject(scene.claims.sub.clone())).await,
            Self::Token => {
                let revocation =
                    Revocation { revoked: Revoked::Token(scene.claims.jti), until: UNTIL };
                store.revoke(&revocation, event(Action::JtiRevoked)).await.unwrap();
            }
            Self::Family => {
                let family = scene.claims.fam.unwrap();
                store.end_family(family, NOW, UNTIL, event(Action::FamilyRevoked)).await.unwrap();
            }
            Self::Key => {
                let mut next =
                    Keyset { revision: scene.keyset.revision + 1, ..scene.keyset.clone() };
                next.keys
                    .iter_mut()
                    .for_each(|key| key.state = KeyState::Revoked { remove_at: UNTIL });
                next.keys.extend(keyset(next.revision).keys);
                store.replace_keyset(&next, event(Action::KeyRevoked)).await.unwrap();
            }
            Self::Disabled | Self::ScopeTaken | Self::SecretRetired => {}
        }
    }
}

/// Every change, by a token and by a secret; each leaves its record.
pub(crate) async fn a_change_is_made_while_its_proof_holds(case: &StoreCase) {
    let store = &*case.store();
    for n in 0..2 * WRITES {
        let scene = Scene::set(store, n).await;
        let proof = if n < WRITES { scene.by_token() } else { scene.by_secret() };
        let before = whole_chain(store).await.len();
        let write = scene.write(n % WRITES, &scene.keyset);
        assert_eq!(store.spend(proof, write.clone()).await.unwrap(), Spent::Done, "{write:?}");
        assert!(whole_chain(store).await.len() > before, "{write:?}");
    }
}

/// S03 (AUDIT TL3): every change, in every way its proof can have fallen: refused, and neither
/// changed nor recorded.
pub(crate) async fn a_change_without_its_proof_is_not_made(case: &StoreCase) {
    let store = &*case.store();
    let (mut n, mut end) = (0, 0);
    for fall in Fall::ALL {
        for nth in 0..WRITES {
            n += 1;
            let scene = Scene::set(store, n).await;
            fall.happen(store, &scene).await;
            let keyset = store.keyset().await.unwrap().unwrap();
            let target = store.client(&scene.target).await.unwrap();
            end = end_of_chain(store, end).await;
            let write = || scene.write(nth, &keyset);
            let fallen =
                [(scene.by_token(), fall.ends_tokens()), (scene.by_secret(), fall.ends_secrets())];
            for (proof, _) in fallen.into_iter().filter(|(_, falls)| *falls) {
                assert_eq!(
                    store.spend(proof, write()).await.unwrap(),
                    Spent::Unproven,
                    "{fall:?} {:?}",
                    write()
                );
            }
            assert_eq!(end_of_chain(store, end).await, end, "{fall:?}");
            assert_eq!(store.client(&scene.target).await.unwrap(), target);
            assert_eq!(store.client(&scene.new).await.unwrap(), None);
            let new = format!("urn:new:{}", scene.new).parse().unwrap();
            assert_eq!(store.audience(&new).await.unwrap(), None);
            let kept = store.audience(&scene.audience.audience).await.unwrap();
            assert_eq!(kept, Some(FoundAudience::Owned(scene.audience.clone())));
            assert_eq!(store.keyset().await.unwrap().as_ref(), Some(&keyset));
        }
    }
}

/// A deletion with a proof leaves no tokens behind, also for a later client of its name.
pub(crate) async fn a_proven_removal_raises_the_epoch(case: &StoreCase) {
    let store = &*case.store();
    let scene = Scene::set(store, 0).await;
    let delete = |revision| ProvenWrite::DeleteClient {
        client: Box::new(Client { revision, ..client(scene.target.as_str()) }),
        ended: event(Action::ClientRevoked),
        events: vec![event(Action::ClientDeleted)],
    };
    assert_eq!(store.spend(scene.by_token(), delete(7)).await.unwrap(), Spent::Stale);
    assert_eq!(store.spend(scene.by_token(), delete(1)).await.unwrap(), Spent::Done);
    assert_eq!(store.client(&scene.target).await.unwrap(), None);
    let epoch = store
        .raise_epoch(&EpochOf::Client(scene.target.clone()), event(Action::ClientRevoked))
        .await
        .unwrap();
    assert_eq!(epoch, 2);
    let taken = ProvenWrite::CreateClient {
        client: Box::new(scene.admin.clone()),
        of_any: false,
        event: event(Action::ClientCreated),
    };
    assert_eq!(store.spend(scene.by_token(), taken).await.unwrap(), Spent::Taken);
}
