//! A server over a store that fails as a test plans it.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use base64::{Engine, engine::general_purpose::STANDARD};
use jeton::{
    config::Config,
    crypto::{chain::ChainKey, seal::Sealer},
};

use super::{StoreDir, TestServer, on_mongodb};
use crate::support::faulty::{Act, FaultyStore};

/// A store that can be told to fail, the configuration of a server over it, and where it is.
pub struct PreparedServer<F: FnOnce(&mut Config)> {
    pub faulty: Arc<FaultyStore>,
    pub config: F,
    pub home: Arc<StoreDir>,
}

impl<F: FnOnce(&mut Config)> PreparedServer<F> {
    /// The server, and the store again.
    pub async fn served(self) -> (TestServer, Arc<FaultyStore>) {
        (TestServer::start_on(self.home, self.config, self.faulty.clone()).await, self.faulty)
    }
}

/// A store of its own, under a master key that the server is given too.
pub async fn prepare() -> PreparedServer<impl FnOnce(&mut Config)> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let home = StoreDir::new();
    let mut master = [0; 32];
    aws_lc_rs::rand::fill(&mut master).unwrap();
    let file = home.master_key_file();
    let mut written =
        std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&file).unwrap();
    written.write_all(STANDARD.encode(master).as_bytes()).unwrap();
    let chain = ChainKey::new(Sealer::new(master).derive("audit head"));
    let faulty = Arc::new(FaultyStore::new(home.open_store(chain).await));
    PreparedServer {
        faulty,
        config: move |config: &mut Config| config.master_key_file = file,
        home,
    }
}

impl TestServer {
    /// Judgements of tokens that the administrator is answered while every call of the store meets
    /// `act`; none does afterwards.
    ///
    /// Nodes that share a store forget every client once a minute, and when they may have missed a
    /// change: then the administrator itself has to be read from the store, and asks again.
    pub async fn active_from_memory<const N: usize>(
        &self,
        faulty: &FaultyStore,
        act: Act,
        tokens: [&str; N],
    ) -> [bool; N] {
        loop {
            faulty.always(None);
            self.introspect("x").await;
            let reads = faulty.reads.load(SeqCst);
            faulty.always(Some(act));
            let mut judged = [false; N];
            let mut refused = None;
            for (token, is_active) in tokens.iter().zip(&mut judged) {
                match self.introspect_as(&self.admin, token).await {
                    Ok(answer) => *is_active = answer.active.unwrap(),
                    Err(status) => refused = Some(status),
                }
            }
            faulty.always(None);
            let Some(refused) = refused else { return judged };
            assert!(on_mongodb() && faulty.reads.load(SeqCst) > reads, "{refused:?}");
        }
    }
}
