//! Those who write all the time, and note what was acknowledged.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tonic::{Status, transport::Channel};

use crate::{
    crash::callers::{Admin, Caller, claim},
    support::seed::Chance,
};

/// Acknowledged changes. Each must hold for ever.
#[derive(Default)]
pub(crate) struct Ledger {
    /// Access tokens that stand.
    pub(crate) live: Vec<String>,
    /// Access tokens that were ended.
    pub(crate) ended: Vec<String>,
    /// Clients with their secrets.
    pub(crate) clients: Vec<(String, String)>,
    /// Action and target of each record that must be in the trail.
    pub(crate) records: HashSet<(&'static str, String)>,
}

impl Ledger {
    pub(crate) fn merge(&mut self, other: Self) {
        self.live.extend(other.live);
        self.ended.extend(other.ended);
        self.clients.extend(other.clients);
        self.records.extend(other.records);
    }

    /// Checks that none of it was lost; `since` is the sequence after which its records must
    /// be.
    pub(crate) async fn check(&self, admin: &mut Admin, since: i64) {
        let events = admin.events_after(since).await;
        let found: HashSet<(&str, &str)> =
            events.iter().map(|event| (event.action.as_str(), event.target.as_str())).collect();
        let lost: Vec<_> = self
            .records
            .iter()
            .filter(|(action, target)| !found.contains(&(*action, target.as_str())))
            .collect();
        assert!(lost.is_empty(), "acknowledged and not in the trail: {lost:?}");
        self.check_tokens(admin).await;
        for (id, secret) in &self.clients {
            let mut client = admin.caller.clone();
            client.id.clone_from(id);
            client.secret.clone_from(secret);
            client
                .token(&[])
                .await
                .unwrap_or_else(|status| panic!("the client {id} was acknowledged: {status}"));
        }
    }

    /// True if every token is what was acknowledged of it.
    pub(crate) async fn check_tokens(&self, admin: &mut Admin) {
        let live = admin.caller.active(&self.live).await;
        assert!(
            live.iter().all(|&active| active),
            "{} of {} issued tokens are lost",
            count(&live, false),
            live.len()
        );
        let ended = admin.caller.active(&self.ended).await;
        assert!(
            !ended.contains(&true),
            "{} of {} revoked tokens stand again",
            count(&ended, true),
            ended.len()
        );
    }
}

fn count(verdicts: &[bool], which: bool) -> usize {
    verdicts.iter().filter(|&&active| active == which).count()
}

/// One who writes. What it does not know the outcome of, it does again after the restart, and it
/// must come out right.
pub(crate) struct Writer {
    pub(crate) caller: Caller,
    admin: Admin,
    chance: Chance,
    /// The newest refresh token it knows of.
    refresh_token: String,
    /// True if it is the one that the server knows of, too.
    heard: bool,
    /// Access tokens whose revocation it was not told the outcome of.
    unsure: Vec<String>,
    noted: Ledger,
}

impl Writer {
    pub(crate) async fn new(admin: &Admin, chance: Chance) -> Self {
        let mut caller = admin.registered().await;
        let refresh_token = caller.token(&[]).await.unwrap().refresh_token;
        let noted = Ledger::default();
        Self {
            caller,
            admin: admin.clone(),
            chance,
            refresh_token,
            heard: true,
            unsure: Vec::new(),
            noted,
        }
    }

    /// Works on this connection until a call fails, which it may once `killed`; answers what was
    /// acknowledged.
    pub(crate) async fn work(
        mut self,
        channel: Channel,
        killed: Arc<AtomicBool>,
    ) -> (Self, Ledger) {
        self.caller = self.caller.over(channel.clone());
        self.admin = self.admin.over(channel);
        loop {
            if let Err(status) = self.step().await {
                assert!(killed.load(Ordering::SeqCst), "refused by a living server: {status:?}");
                self.heard = false;
                let noted = std::mem::take(&mut self.noted);
                return (self, noted);
            }
        }
    }

    async fn step(&mut self) -> Result<(), Status> {
        while let Some(token) = self.unsure.last().cloned() {
            self.caller.revoke(&token).await?;
            self.noted.ended.push(token);
            self.unsure.pop();
        }
        match self.chance.within(0..10) {
            0..4 => {
                let issued = self.caller.token(&[]).await?;
                self.note("token.issued", issued.access_token);
            }
            4..7 => self.refresh().await?,
            7..9 => {
                let Some(token) = self.noted.live.pop() else { return Ok(()) };
                let ended = claim(&token, "jti");
                self.unsure.push(token.clone());
                self.caller.revoke(&token).await?;
                self.unsure.pop();
                self.noted.ended.push(token);
                self.noted.records.insert(("token.revoked", ended));
            }
            _ => {
                let (id, secret) = self.admin.register().await?;
                self.noted.records.insert(("client.created", id.clone()));
                self.noted.clients.push((id, secret));
            }
        }
        Ok(())
    }

    async fn refresh(&mut self) -> Result<(), Status> {
        let token = self.refresh_token.clone();
        let refreshed = self.caller.refresh(&token).await?;
        self.refresh_token = refreshed.refresh_token;
        // The first of a connection may repeat one whose answer was lost: that is recorded as what
        // it is.
        if std::mem::replace(&mut self.heard, true) {
            self.note("token.refreshed", refreshed.access_token);
        } else {
            self.noted.live.push(refreshed.access_token);
        }
        Ok(())
    }

    /// Asks for an answer that was lost, and goes on by one, while nobody kills the server. An
    /// answer may be lost four times, and in two generations running: one who loses more is taken
    /// for two (AUDIT TL7). A slow server that is killed every time is asked no more than once in
    /// between.
    pub(crate) async fn settle(&mut self, channel: Channel) {
        if !self.heard {
            self.caller = self.caller.over(channel);
            self.refresh().await.unwrap();
            self.refresh().await.unwrap();
        }
    }

    fn note(&mut self, action: &'static str, access_token: String) {
        self.noted.records.insert((action, claim(&access_token, "jti")));
        self.noted.live.push(access_token);
    }
}
