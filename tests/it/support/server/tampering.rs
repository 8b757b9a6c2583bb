//! A server whose store and keys are in the test's hands: to sign what the server never would, and
//! to fail its store.

use std::{collections::BTreeSet, sync::Arc};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jeton::{
    config::Config,
    crypto::{chain::ChainKey, master, seal::Sealer},
    model::KeyState,
    store::KeyStore,
};
use serde_json::{Value, json};

use super::{INACTIVE, ISSUER, StoreDir, TestServer, bytes, unlimited};
use crate::support::faulty::FaultyStore;

/// A server and what is usually its secret.
pub struct TamperableServer {
    pub server: TestServer,
    pub store: Arc<FaultyStore>,
    pub kid: String,
    pair: Ed25519KeyPair,
}

impl TamperableServer {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Without budgets, and with what `change` changes.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::on(StoreDir::new(), change).await
    }

    /// Another server, with its clock at the start again, on what this one leaves.
    pub async fn back_in_time(mut self) -> Self {
        self.server.end().await;
        let mut lab = Self::on(self.server.home.clone(), |_| {}).await;
        lab.server.admin = self.server.admin;
        lab
    }

    async fn on(home: Arc<StoreDir>, change: impl FnOnce(&mut Config)) -> Self {
        let master_key_file = home.master_key_file();
        let sealer = Sealer::new(*master::load_or_make(&master_key_file, true).unwrap());
        let store = home.open_store(ChainKey::new(sealer.derive("audit head"))).await;
        let store = Arc::new(FaultyStore::new(store));
        let configure = |config: &mut Config| {
            unlimited(config);
            config.master_key_file = master_key_file;
            change(config);
        };
        let server = TestServer::start_on(home, configure, store.clone()).await;
        let keyset = store.keyset().await.unwrap().unwrap();
        let active =
            keyset.keys.iter().find(|key| matches!(key.state, KeyState::Active { .. })).unwrap();
        let kid = active.kid.as_str().to_owned();
        let pkcs8 = sealer
            .open("signing key", &kid, &URL_SAFE_NO_PAD.decode(&active.sealed).unwrap())
            .unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).unwrap();
        Self { server, store, kid, pair }
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
        let now = self.server.now();
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

    /// Every one of these is answered with the same bytes and metadata, and they say `active=false`
    /// alone (I04).
    pub async fn refuses_all(&self, tokens: impl IntoIterator<Item = (String, String)>) {
        let server = &self.server;
        let mut answers = BTreeSet::new();
        for (what, token) in tokens {
            let answer = bytes(&server.introspected(&server.admin, &token, "").await);
            assert_eq!(answer.0, INACTIVE, "{what}: {}", &token[..token.len().min(300)]);
            answers.insert(answer);
        }
        assert_eq!(answers.len(), 1, "told apart by their metadata: {answers:?}");
    }

    /// The table below stands on this: what is forged without a flaw is accepted.
    pub async fn accepts(&self, token: &str) {
        assert!(self.server.is_active(token).await, "{token}");
    }

    pub fn public_key(&self) -> Vec<u8> {
        self.pair().public_key().as_ref().to_vec()
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
