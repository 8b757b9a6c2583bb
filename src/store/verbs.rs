//! Table of the store's verbs, from which stores that wrap another one are made. A new verb is
//! added here once for all of them.

use std::future::Future;

use super::{Result, Store};

/// Store that passes its verbs to another one. [`pass_verbs!`](crate::pass_verbs) writes the verbs
/// of the traits that a wrapper does not implement itself.
pub trait Wrapper: Send + Sync {
    /// Type of the wrapped store.
    type Wrapped: Store + ?Sized;

    /// Returns the wrapped store.
    fn wrapped(&self) -> &Self::Wrapped;

    /// Runs `call`, a verb of the wrapped store.
    fn around<T: Send>(
        &self,
        verb: &'static str,
        call: impl Future<Output = Result<T>> + Send,
    ) -> impl Future<Output = Result<T>> + Send {
        let _ = verb;
        call
    }
}

/// Implements store traits for a [`Wrapper`](crate::store::Wrapper): each verb is called on the
/// wrapped store within its `around`. Invoked as
/// `pass_verbs!([S: Store] Metered<S>: ClientStore, KeyStore);`, with the generic parameters in
/// brackets; or, for a store that is made of parts, as `pass_verbs!({ keys } Mongo: KeyStore);`,
/// with the field of the part that implements the trait in braces.
#[macro_export]
#[doc(hidden)]
macro_rules! pass_verbs {
    (@ClientStore $generics:tt $wrapper:ty) => {
        $crate::pass_verbs!(@impl ClientStore $generics $wrapper, use {
            model::{Client, ClientId, Event, TenantId},
            store::{Creation, Listed, SecretUse, Write},
        } {
            async fn client(id: &ClientId) -> Option<Client>;
            async fn clients(
                tenant: Option<&TenantId>, after: Option<&ClientId>, limit: usize
            ) -> Vec<Listed>;
            async fn create_client(client: &Client, event: Event) -> Creation;
            async fn create_client_of_any(client: &Client, event: Event) -> Creation;
            async fn replace_client(client: &Client, event: Event) -> Write;
            async fn end_client(client: &Client, events: Vec<Event>, ended: Event) -> Write;
            async fn delete_client(client: &Client, event: Event) -> Write;
            async fn record_secret_uses(uses: &[SecretUse]) -> ();
        });
    };
    (@AudienceStore $generics:tt $wrapper:ty) => {
        $crate::pass_verbs!(@impl AudienceStore $generics $wrapper, use {
            model::{Audience, AudienceRecord, Event, TenantId},
            store::{Creation, FoundAudience, Write},
        } {
            async fn audience(audience: &Audience) -> Option<FoundAudience>;
            async fn audiences(
                tenant: Option<&TenantId>, after: Option<&Audience>, limit: usize
            ) -> Vec<FoundAudience>;
            async fn claim_audience(record: &AudienceRecord, event: Event) -> Creation;
            async fn replace_audience(record: &AudienceRecord, event: Event) -> Write;
            async fn release_audience(record: &AudienceRecord, event: Event) -> Write;
        });
    };
    (@FamilyStore $generics:tt $wrapper:ty) => {
        $crate::pass_verbs!(@impl FamilyStore $generics $wrapper, use {
            model::{Event, Family, FamilyId, Stamp, Timestamp},
            store::{Creation, Rotate, Rotation},
        } {
            async fn open_family(family: &Family, event: Event) -> Creation;
            async fn family(id: FamilyId, now: Timestamp) -> Option<Family>;
            async fn rotate(rotate: &Rotate, stamp: &Stamp, jti: &str) -> Rotation;
            async fn end_family(
                id: FamilyId, now: Timestamp, until: Timestamp, event: Event
            ) -> ();
        });
    };
    (@RevocationStore $generics:tt $wrapper:ty) => {
        $crate::pass_verbs!(@impl RevocationStore $generics $wrapper, use {
            model::{EpochOf, Event, Revocation, Timestamp},
            store::{Follower, Snapshot},
        } {
            async fn revoke(revocation: &Revocation, event: Event) -> ();
            async fn raise_epoch(of: &EpochOf, event: Event) -> u64;
            async fn follow(now: Timestamp, follower: std::sync::Arc<dyn Follower>) -> Snapshot;
            async fn sweep(now: Timestamp, limit: usize) -> usize;
        });
    };
    (@AuditStore $generics:tt $wrapper:ty) => {
        $crate::pass_verbs!(@impl AuditStore $generics $wrapper, use {
            crypto::chain::{CutMark, Head},
            model::{Event, Place, Record, Timestamp, event::Filter},
            store::{EventPage, TrailSize, Writer},
        } {
            async fn append(event: Event) -> ();
            async fn append_soon(event: Event) -> ();
            async fn page(
                filter: &Filter, before: Option<&Place>, limit: usize,
                patience: std::time::Duration
            ) -> EventPage;
            async fn chains() -> Vec<std::sync::Arc<str>>;
            async fn chain(name: &str, after: u64, limit: usize) -> Vec<Record>;
            async fn head(chain: &str) -> Option<Head>;
            async fn writer(chain: &str) -> Writer;
            async fn witnesses(after: Option<&Place>, limit: usize) -> Vec<Record>;
            async fn cut_mark(chain: &str) -> Option<CutMark>;
            async fn cut_marks() -> Vec<(std::sync::Arc<str>, CutMark)>;
            async fn trail_size(now: Timestamp) -> TrailSize;
            fn tail() -> tokio::sync::broadcast::Receiver<Option<std::sync::Arc<Record>>>;
        });
    };
    (@RetentionStore $generics:tt $wrapper:ty) => {
        $crate::pass_verbs!(@impl RetentionStore $generics $wrapper, use {
            crypto::chain::{ChainPlace, CutMark},
            model::{Event, Timestamp},
            store::{Surplus, Write},
        } {
            async fn sealed_place(
                chain: &str, after: u64, until: Timestamp, limit: u64
            ) -> Option<ChainPlace>;
            async fn cut(chain: &str, after: u64, mark: &CutMark, event: Event) -> Write;
            async fn remove_cut(now: Timestamp, limit: usize) -> usize;
            async fn surplus(bytes: u64) -> Option<Surplus>;
            async fn recorded_before(until: Timestamp, from: Timestamp) -> Option<Timestamp>;
            async fn shrink() -> bool;
            async fn hold_retention() -> bool;
        });
    };
    (@KeyStore $generics:tt $wrapper:ty) => {
        $crate::pass_verbs!(@impl KeyStore $generics $wrapper, use {
            model::{Event, Keyset},
            store::Write,
        } {
            async fn keyset() -> Option<Keyset>;
            async fn replace_keyset(keyset: &Keyset, event: Event) -> Write;
        });
    };
    (@CounterStore $generics:tt $wrapper:ty) => {
        $crate::pass_verbs!(@impl CounterStore $generics $wrapper, use { model::Timestamp } {
            async fn count(hits: &[(String, u64)], until: Timestamp) -> Vec<u64>;
        });
    };
    (@ProofStore $generics:tt $wrapper:ty) => {
        $crate::pass_verbs!(@impl ProofStore $generics $wrapper, use {
            store::{Proof, ProvenWrite, Spent},
        } {
            async fn spend(proof: Proof, write: ProvenWrite) -> Spent;
        });
    };
    (@Store $generics:tt $wrapper:ty) => {
        $crate::pass_verbs!(@impl Store $generics $wrapper, use {
            model::{Event, Timestamp}, store::StoreShape,
        } {
            async fn ready() -> ();
            async fn close() -> ();
            async fn latest_time() -> Timestamp;
            async fn reset_time(to: Timestamp, event: Event) -> ();
            async fn time() -> Option<Timestamp>;
            async fn shape() -> Option<StoreShape>;
            fn newest_time() -> Timestamp;
        });
    };
    (@impl $trait:ident [$($generics:tt)*] $wrapper:ty, use { $($types:tt)* } {
        $(async fn $verb:ident($($argument:ident: $type:ty),*) -> $output:ty;)*
        $(fn $plain:ident() -> $plain_output:ty;)*
    }) => {
        // A block of its own, so that the types of the table do not meet the wrapper's imports.
        const _: () = {
            use $crate::{$($types)*};

            #[async_trait::async_trait]
            impl<$($generics)*> $crate::store::$trait for $wrapper {
                $(async fn $verb(&self, $($argument: $type),*) -> $crate::store::Result<$output> {
                    let wrapped = $crate::store::Wrapper::wrapped(self);
                    let call = $crate::store::$trait::$verb(wrapped, $($argument),*);
                    $crate::store::Wrapper::around(self, stringify!($verb), call).await
                })*
                $(fn $plain(&self) -> $plain_output {
                    $crate::store::$trait::$plain($crate::store::Wrapper::wrapped(self))
                })*
            }
        };
    };
    (@impl $trait:ident {$part:ident} $whole:ty, use { $($types:tt)* } {
        $(async fn $verb:ident($($argument:ident: $type:ty),*) -> $output:ty;)*
        $(fn $plain:ident() -> $plain_output:ty;)*
    }) => {
        const _: () = {
            use $crate::{$($types)*};

            #[async_trait::async_trait]
            impl $crate::store::$trait for $whole {
                $(async fn $verb(&self, $($argument: $type),*) -> $crate::store::Result<$output> {
                    self.$part.$verb($($argument),*).await
                })*
                $(fn $plain(&self) -> $plain_output {
                    self.$part.$plain()
                })*
            }
        };
    };
    ($generics:tt $wrapper:ty: $($trait:ident),+) => {
        $($crate::pass_verbs!(@$trait $generics $wrapper);)+
    };
}
