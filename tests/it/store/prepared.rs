//! Stores with something in them, and what happens to their files.

use std::{fs, path::Path};

use jeton::{
    model::{Action, Client, EpochOf, Event, Jti, Revoked, revocation::Revocation},
    store::{SecretUse, Store, embedded::Embedded},
};
use tempfile::TempDir;

use crate::store::backend::StoreCase;
use crate::store::fixtures::{at, client, client_of, event, family, id, keyset, present, stamp};
use crate::store::suite::audiences::record;

/// Writes `rounds` of everything a store keeps; may be called again on the same store.
pub(crate) async fn fill(store: &dyn Store, rounds: usize) {
    let from = store.clients(None, None, usize::MAX).await.unwrap().len();
    for n in from..from + rounds {
        let name = format!("client-{n:05}");
        store.create_client(&client(&name), event(Action::ClientCreated)).await.unwrap();
        let used =
            SecretUse { client: id(&name), secret: "s1".parse().unwrap(), at: at(5), count: 2 };
        store.record_secret_uses(&[used]).await.unwrap();
        let changed = Client { revision: 2, ..client(&name) };
        store.replace_client(&changed, event(Action::ClientUpdated)).await.unwrap();
        let family = family(&name);
        store.open_family(&family, event(Action::TokenIssued)).await.unwrap();
        store.rotate(&present(&family, 0, 1), &stamp(), "jti").await.unwrap();
        let revocation = Revocation { revoked: Revoked::Token(Jti::new()), until: at(1_000_000) };
        store.revoke(&revocation, event(Action::TokenRevoked)).await.unwrap();
        store.raise_epoch(&EpochOf::Client(id(&name)), event(Action::ClientRevoked)).await.unwrap();
        store
            .append(Event { at: at(i64::try_from(n).unwrap()), ..event(Action::TokenIssued) })
            .await
            .unwrap();
        store
            .claim_audience(
                &record(&format!("https://{name}"), "acme"),
                event(Action::AudienceClaimed),
            )
            .await
            .unwrap();
    }
    let revision = store.keyset().await.unwrap().map_or(0, |keyset| keyset.revision);
    store.replace_keyset(&keyset(revision + 1), event(Action::KeysRotated)).await.unwrap();
}

/// Clients of two tenants that are gone.
pub(crate) async fn delete_some(store: &dyn Store) {
    for (tenant, name) in [("default", "gone"), ("other", "gone-too")] {
        store.create_client(&client_of(tenant, name), event(Action::ClientCreated)).await.unwrap();
        store.delete_client(&client_of(tenant, name), event(Action::ClientDeleted)).await.unwrap();
    }
}

/// The files of a data directory as they lie there: what a process that is killed at this moment
/// leaves behind.
pub(crate) fn killed(dir: &Path) -> TempDir {
    let copy = copied(dir);
    Embedded::adopt(copy.path(), StoreCase::key()).unwrap();
    copy
}

/// A copy of a data directory, as an operator makes one.
pub(crate) fn copied(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    // The note first: were it newer than the rest, it would tell of a loss.
    for name in ["anchor", "jeton.db", "jeton.db-wal"] {
        if dir.join(name).exists() {
            fs::copy(dir.join(name), copy.path().join(name)).unwrap();
        }
    }
    copy
}
