//! Cache of committed clients, of a node and in front of its store.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use papaya::HashMap;

use super::TokenState;
use crate::{
    model::{Client, ClientId},
    store::{Store, StoreError},
};

/// Maximum cached clients, and separately maximum cached unknown names; beyond it the map is
/// cleared. Names are short: this many take some 25 MB.
const ENTRIES_MAX: usize = 100_000;

/// Maximum bytes of the cached clients; beyond it their map is cleared. Administrators choose the
/// size of a record.
const BYTES_MAX: usize = 64 << 20;

/// Cache of clients. Unknown names are cached too, so that the time of a response does not reveal
/// which exist (A02), and separately, so that invented names cannot evict real ones.
///
/// While the token state is stale the cache is neither read nor filled: clients are cached only as
/// long as changes to them arrive.
pub struct ClientCache {
    tokens: Arc<TokenState>,
    known: HashMap<ClientId, Arc<Client>>,
    absent: HashMap<ClientId, ()>,
    /// Locked briefly to insert and to remove, never to find.
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    /// Count of received writes.
    writes: u64,
    /// Bytes of the cached clients.
    weight: usize,
}

impl ClientCache {
    /// Creates an empty cache, used as long as `tokens` is fresh.
    pub fn new(tokens: Arc<TokenState>) -> Self {
        Self { tokens, known: HashMap::new(), absent: HashMap::new(), books: Mutex::default() }
    }

    /// Returns a client from the cache or from the store.
    pub async fn client(
        &self,
        store: &dyn Store,
        id: &ClientId,
    ) -> Result<Option<Arc<Client>>, StoreError> {
        Ok(self.look_up(id, std::future::ready(()), |()| store.client(id)).await?.0)
    }

    /// Returns a cached client, or the result of `read` when its caller has a `place`; and true if
    /// it was read.
    pub async fn look_up<P: Send, R: Future<Output = Result<Option<Client>, StoreError>> + Send>(
        &self,
        id: &ClientId,
        place: impl Future<Output = P> + Send,
        read: impl FnOnce(P) -> R + Send,
    ) -> Result<(Option<Arc<Client>>, bool), StoreError> {
        if self.tokens.ensure_fresh().is_err() {
            return Ok((read(place.await).await?.map(Arc::new), true));
        }
        if let Some(found) = self.find(id) {
            return Ok((found, false));
        }
        // May take long. Callers before this one may have cached the client, and a write in that
        // time makes nothing stale.
        let place = place.await;
        if let Some(found) = self.find(id) {
            return Ok((found, false));
        }
        let before = self.books().writes;
        let client = read(place).await?.map(Arc::new);
        let mut books = self.books();
        // A write that was counted during the read may have made this stale: then it is not cached.
        // A write that is counted from here on removes it after the insertion.
        if books.writes == before {
            match &client {
                Some(client) => self.remember(&mut books, id, client.clone()),
                None => self.remember_absence(id),
            }
        }
        drop(books);
        Ok((client, true))
    }

    /// Returns the cached client; `Some(None)` if it is cached that there is none of this id.
    fn find(&self, id: &ClientId) -> Option<Option<Arc<Client>>> {
        if let Some(client) = self.known.pin().get(id) {
            return Some(Some(client.clone()));
        }
        self.absent.pin().contains_key(id).then_some(None)
    }

    fn remember(&self, books: &mut Books, id: &ClientId, client: Arc<Client>) {
        let (weight, known) = (client.weight(), self.known.pin());
        if known.len() >= ENTRIES_MAX || books.weight.saturating_add(weight) > BYTES_MAX {
            known.clear();
            books.weight = 0;
        }
        let replaced = known.insert(id.clone(), client).map_or(0, |old| old.weight());
        books.weight = books.weight.saturating_add(weight).saturating_sub(replaced);
    }

    fn remember_absence(&self, id: &ClientId) {
        let absent = self.absent.pin();
        if absent.len() >= ENTRIES_MAX {
            absent.clear();
        }
        absent.insert(id.clone(), ());
    }

    /// Removes a client: the next caller reads it from the store.
    pub(super) fn forget(&self, id: &ClientId) {
        let mut books = self.books();
        books.writes = books.writes.wrapping_add(1);
        let removed = self.known.pin().remove(id).map_or(0, |old| old.weight());
        books.weight = books.weight.saturating_sub(removed);
        self.absent.pin().remove(id);
    }

    /// Removes all clients.
    pub(super) fn forget_all(&self) {
        let mut books = self.books();
        *books = Books { writes: books.writes.wrapping_add(1), weight: 0 };
        self.known.pin().clear();
        self.absent.pin().clear();
    }

    /// Removes all clients if other nodes share the store: one that was read while the store
    /// elected a primary may be older than a change that was received before.
    pub(super) fn sweep(&self) {
        if self.tokens.age().is_some() {
            self.forget_all();
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl ClientCache {
    /// [`Self::look_up`] by a caller that waits for no place.
    pub(super) async fn look_up_now(
        &self,
        id: &ClientId,
        read: impl Future<Output = Result<Option<Client>, StoreError>> + Send,
    ) -> Result<(Option<Arc<Client>>, bool), StoreError> {
        self.look_up(id, std::future::ready(()), |()| read).await
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU64, Ordering::SeqCst},
        time::Duration,
    };

    use super::*;
    use crate::{
        crypto::verifying_keys::{ClaimLimits, VerifyingKeys},
        model::{Grants, Mac, PlanName, Scopes, TenantId, Timestamp},
    };

    /// A cache beside a state that is never stale.
    fn cache() -> ClientCache {
        let claim_limits = ClaimLimits { max_lifetime: Duration::ZERO, skew: Duration::ZERO };
        let keys = VerifyingKeys::new(1, "https://jeton.test", claim_limits, []);
        ClientCache::new(Arc::new(TokenState::new(keys, Duration::ZERO)))
    }

    fn client(revision: u64) -> Client {
        Client {
            id: "a".parse().unwrap(),
            tenant: TenantId::operator(),
            display_name: String::new(),
            scopes: Scopes::default(),
            default_scopes: Scopes::default(),
            roles: Vec::new(),
            audiences: Vec::new(),
            serves: Vec::new(),
            grants: Grants { client_credentials: true, refresh_token: true },
            access_ttl: None,
            refresh_ttl: None,
            refresh_idle: None,
            rate_plan: PlanName::standard(),
            disabled: false,
            credentials: Vec::new(),
            revision,
            created_at: Timestamp::EPOCH,
            updated_at: Timestamp::EPOCH,
            mac: Mac::default(),
        }
    }

    /// A record that was read before a write, or before changes were missed, and that arrives after
    /// it is not remembered, be it a client or the lack of one.
    #[tokio::test]
    async fn what_a_write_overtook_is_not_remembered() {
        for (found, missed) in
            [(Some(client(1)), false), (None, false), (Some(client(1)), true), (None, true)]
        {
            let (clients, id) = (cache(), "a".parse().unwrap());
            let overtaken = async {
                if missed {
                    clients.forget_all()
                } else {
                    clients.forget(&id)
                }
                Ok(found)
            };
            clients.look_up_now(&id, overtaken).await.unwrap();
            let now =
                clients.look_up_now(&id, async { Ok(Some(client(2))) }).await.unwrap().0.unwrap();
            assert_eq!(now.revision, 2);
            let kept = clients
                .look_up_now(&id, async { panic!("it is remembered") })
                .await
                .unwrap()
                .0
                .unwrap();
            assert_eq!(kept.revision, 2);
        }
    }

    /// TL2: what is written while a caller waits for its place does not make what it reads
    /// afterwards be thrown away, and a client that another caller has read in that time is not
    /// read again.
    #[tokio::test]
    async fn the_wait_for_a_place_is_no_part_of_the_read() {
        let (clients, id, other) = (cache(), "a".parse().unwrap(), "b".parse().unwrap());
        for missed in [false, true] {
            let place =
                async { if missed { clients.forget_all() } else { clients.forget(&other) } };
            clients.forget(&id);
            assert!(
                clients.look_up(&id, place, |()| async { Ok(Some(client(1))) }).await.unwrap().1
            );
            let kept =
                clients.look_up_now(&id, async { panic!("it is remembered") }).await.unwrap();
            assert_eq!((kept.0.unwrap().revision, kept.1), (1, false));
        }
        for found in [Some(client(2)), None] {
            clients.forget(&id);
            let place = async {
                clients.look_up_now(&id, async { Ok(found.clone()) }).await.unwrap();
            };
            let read = clients
                .look_up(&id, place, |()| async { panic!("another caller has read it") })
                .await
                .unwrap();
            assert_eq!(
                (read.0.map(|client| client.revision), read.1),
                (found.as_ref().map(|client| client.revision), false)
            );
        }
    }

    /// Once changes may have been missed nothing that was remembered is shown again, neither a
    /// client nor the lack of one.
    #[tokio::test]
    async fn what_was_remembered_goes_when_changes_were_missed() {
        let (clients, real, none) = (cache(), "a".parse().unwrap(), "b".parse().unwrap());
        clients.look_up_now(&real, async { Ok(Some(client(1))) }).await.unwrap();
        clients.look_up_now(&none, async { Ok(None) }).await.unwrap();
        clients.forget_all();
        let found = clients.look_up_now(&real, async { Ok(Some(client(2))) }).await.unwrap();
        assert_eq!((found.0.unwrap().revision, found.1), (2, true));
        assert!(
            clients.look_up_now(&none, async { Ok(Some(client(1))) }).await.unwrap().0.is_some()
        );
    }

    /// TL6: records as large as they may be take no more than their bytes, however many there are.
    #[tokio::test]
    async fn large_clients_are_bounded_by_their_bytes() {
        let name = |n: usize| format!("{n:04}{}", "x".repeat(120)).parse::<ClientId>().unwrap();
        let clients = cache();
        let held = |clients: &ClientCache| {
            clients.known.pin().values().map(|client| client.weight()).sum::<usize>()
        };
        let roles = |n: usize| {
            (0..50).map(|role| format!("{n}-{role}-{}", "r".repeat(100)).parse().unwrap()).collect()
        };
        let large = |n: usize| Client {
            id: name(n),
            scopes: Scopes::parse(
                &(0..100).map(|s| format!("{n}-{s}-{}", "s".repeat(90))).collect::<Vec<_>>(),
            )
            .unwrap(),
            roles: roles(n),
            serves: (0..50)
                .map(|s| format!("https://{n}-{s}.{}", "a".repeat(200)).parse().unwrap())
                .collect(),
            ..client(1)
        };
        assert!(large(1).weight() > 25_000, "{}", large(1).weight());
        for n in 0..4_000 {
            clients.look_up_now(&name(n), async { Ok(Some(large(n))) }).await.unwrap();
            if n % 100 == 99 {
                let counted = clients.books().weight;
                assert!(
                    counted == held(&clients) && counted <= BYTES_MAX,
                    "{n}: {counted}, {}",
                    held(&clients)
                );
            }
        }
        assert!(clients.known.pin().len() > 100);
        // Read again after a change, and forgotten: the count goes along.
        clients.forget(&name(3_999));
        clients.look_up_now(&name(3_999), async { Ok(Some(client(2))) }).await.unwrap();
        assert_eq!(clients.books().weight, held(&clients));
        clients.forget_all();
        assert_eq!((clients.books().weight, held(&clients)), (0, 0));
    }

    /// R10: once a write has arrived, no reader finds what was there before it, not even for a
    /// moment.
    #[test]
    fn readers_never_find_what_was_there_before_a_write() {
        let (clients, id, stored) = (cache(), "a".parse::<ClientId>().unwrap(), AtomicU64::new(0));
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let last = 50_000;
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let runtime = runtime();
                    while stored.load(SeqCst) < last {
                        let read = async { Ok(Some(client(stored.load(SeqCst)))) };
                        runtime.block_on(clients.look_up_now(&id, read)).unwrap();
                    }
                });
            }
            scope.spawn(|| {
                for revision in 1..=last {
                    stored.store(revision, SeqCst);
                    clients.forget(&id);
                    for _ in 0..8 {
                        if let Some(found) = clients.known.pin().get(&id) {
                            assert_eq!(found.revision, revision);
                        }
                    }
                }
            });
        });
    }
}
