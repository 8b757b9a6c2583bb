//! A server whose store and keys are in the test's hands: to sign what the server never would, and
//! to fail its store.

use std::sync::Arc;

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jeton::{
    config::Config,
    crypto::{chain::ChainKey, master, seal::Sealer},
    model::KeyState,
    store::KeyStore,
};
use serde_json::{Value, json};

use crate::{
    service::{
        harness::{ISSUER, World},
        home::Home,
        scenes::unlimited,
    },
    support::faulty::FaultyStore,
};

/// A server and what is usually its secret.
pub struct Lab {
    pub world: World,
    pub store: Arc<FaultyStore>,
    pub kid: String,
    pair: Ed25519KeyPair,
}

impl Lab {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Without budgets, and with what `change` changes.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::on(Home::new(), change).await
    }

    /// Another server, with its clock at the start again, on what this one leaves.
    pub async fn back_in_time(mut self) -> Self {
        self.world.end().await;
        let mut lab = Self::on(self.world.home.clone(), |_| {}).await;
        lab.world.admin = self.world.admin;
        lab
    }

    async fn on(home: Arc<Home>, change: impl FnOnce(&mut Config)) -> Self {
        let master_key_file = home.master_key_file();
        let sealer = Sealer::new(*master::load_or_make(&master_key_file, true).unwrap());
        let store = home.open_store(ChainKey::new(sealer.derive("audit head"))).await;
        let store = Arc::new(FaultyStore::new(store));
        let configure = |config: &mut Config| {
            unlimited(config);
            config.master_key_file = master_key_file;
            change(config);
        };
        let world = World::over(home, configure, store.clone()).await;
        let keyset = store.keyset().await.unwrap().unwrap();
        let active =
            keyset.keys.iter().find(|key| matches!(key.state, KeyState::Active { .. })).unwrap();
        let kid = active.kid.as_str().to_owned();
        let pkcs8 = sealer
            .open("signing key", &kid, &URL_SAFE_NO_PAD.decode(&active.sealed).unwrap())
            .unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).unwrap();
        Self { world, store, kid, pair }
    }

    /// Signs whatever is given with the very key of the server.
    pub fn forge(&self, header: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> String {
        let signed =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(self.pair.sign(signed.as_bytes())))
    }

    pub const fn pair(&self) -> &Ed25519KeyPair {
        &self.pair
    }

    pub fn header(&self) -> Value {
        json!({"typ": "at+jwt", "alg": "EdDSA", "kid": self.kid})
    }

    /// Claims that the server would sign.
    pub fn claims(&self) -> Value {
        let now = self.world.now();
        json!({
            "iss": ISSUER, "sub": "client:orders", "aud": [ISSUER], "client_id": "orders", "scope": "orders:read",
            "iat": now, "nbf": now, "exp": now + 900, "jti": "01990000-0000-7000-8000-000000000001",
            "tenant": "default", "ep": [0, 0, 0],
        })
    }

    /// A token with the right header and these claims instead of the usual ones; `null` leaves one
    /// out.
    pub fn claiming(&self, changes: &Value) -> String {
        self.forge(self.header().to_string(), changed(self.claims(), changes).to_string())
    }

    /// A token with the right claims and these members in its header.
    pub fn headed(&self, changes: &Value) -> String {
        self.forge(changed(self.header(), changes).to_string(), self.claims().to_string())
    }
}

/// An object with other members; `null` removes one.
pub fn changed(mut object: Value, changes: &Value) -> Value {
    let members = object.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    object
}
