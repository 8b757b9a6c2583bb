//! Secrets as they are presented: paid for, compared, refused. Whatever is wrong, the answer is the
//! same and the work is the same.

use secrecy::{ExposeSecret, SecretString};

use super::{AuthenticatedClient, ClientAuthenticator};
use crate::{
    crypto::{
        passwords::{Kept, Match, Origin},
        secrets,
    },
    error::{Error, Result},
    limit::{Guess, GuessTarget},
    model::{
        Action, AuthMethod, Call, ClaimedAccount, Client, Digest, Secret, SecretId, Stamp,
        Timestamp,
    },
};

/// A caller's claim to be a client.
pub(super) struct PresentedSecret<'a> {
    /// The id as presented; of no client's, or malformed, all the same.
    pub(super) name: &'a str,
    /// The client of that id, if there is one.
    pub(super) client: Option<&'a Client>,
    pub(super) secret: &'a SecretString,
}

impl PresentedSecret<'_> {
    /// Secrets to compare with. A disabled client has none, so that its path is that of a client
    /// that does not exist (A02).
    fn live(&self, now: Timestamp) -> impl Iterator<Item = &Secret> {
        self.client
            .into_iter()
            .filter(|client| !client.disabled)
            .flat_map(move |client| client.live_secrets(now))
    }
}

/// Outcome of judging a claim.
pub(super) enum Judgement {
    Right {
        secret: SecretId,
        /// The secret at our own cost, if it was imported at another.
        rehashed: Option<Kept>,
    },
    Refused(Refusal),
}

/// A claim that is refused.
pub(super) enum Refusal {
    /// None was presented: paid for like a secret, and no guess.
    NoSecret(Guess),
    /// The secret was compared, or there was nothing to compare it with. It may have been compared
    /// only with those of the client that are remembered, if one is.
    Wrong(Guess),
    /// The budgets of such callers are empty: the secret was not compared.
    Unpaid(Guess),
    /// The argon2id pool is full: the secret was compared with those of the client that are
    /// remembered, if one is.
    Busy {
        /// The answer.
        error: Error,
        /// True if it was compared with one that is remembered.
        compared: bool,
    },
    /// The secret was right, and its client ended meanwhile.
    Ended,
}

impl Refusal {
    /// Returns true if the secret was compared and paid for.
    const fn is_judged(&self) -> bool {
        matches!(self, Self::Wrong(_) | Self::Ended)
    }

    /// Returns true if the secret was compared in vain, also without a budget.
    const fn is_guess(&self) -> bool {
        matches!(self, Self::Wrong(_) | Self::Busy { compared: true, .. })
    }

    fn answer(self) -> Error {
        match self {
            Self::NoSecret(guess) | Self::Wrong(guess) | Self::Unpaid(guess) => guess.refusal(),
            Self::Busy { error, .. } => error,
            Self::Ended => Error::InvalidClient,
        }
    }
}

impl ClientAuthenticator {
    /// Judges a claim. Drawn before anything is compared, and given back if the secret is right or
    /// was not compared: a secret that is wrong is paid for, and one that is not paid for is not
    /// judged.
    pub(super) async fn judge_claim(&self, call: &Call, claim: &PresentedSecret<'_>) -> Judgement {
        let generated = secrets::is_generated(claim.secret.expose_secret());
        // Guesses at a secret that is valid are counted apart, so that an instance with a retired
        // one costs its neighbours nothing.
        let named =
            if generated { secrets::secret_id_of(claim.secret.expose_secret()) } else { None };
        let valid = named.filter(|named| claim.live(call.now).any(|secret| secret.id == *named));
        let target =
            claim.client.map(|client| GuessTarget::Client { id: client.id.clone(), secret: valid });
        let guess = self.limits.guess(call.peer, target, call.now);
        if generated {
            self.prove_generated(call, claim, guess)
        } else {
            self.prove_imported(call, claim, guess).await
        }
    }

    /// A secret this service made: one HMAC, also where there is nothing to compare with (A02).
    fn prove_generated(&self, call: &Call, claim: &PresentedSecret<'_>, guess: Guess) -> Judgement {
        let presented = claim.secret.expose_secret();
        let id = secrets::secret_id_of(presented);
        let kept = claim
            .live(call.now)
            .filter(|_| guess.may_compare())
            .find(|secret| id.as_ref() == Some(&secret.id));
        let right = match kept {
            Some(secret) => self.secrets.matches(presented, secret).then(|| secret.id.clone()),
            None => {
                self.secrets.burn(presented);
                None
            }
        };
        self.judged(right, guess)
    }

    /// A secret that was imported: as many argon2id as a client may have secrets, also where there
    /// is nothing to compare with; none where the caller's peer has no budget for them, whatever
    /// the name.
    async fn prove_imported(
        &self,
        call: &Call,
        claim: &PresentedSecret<'_>,
        guess: Guess,
    ) -> Judgement {
        let live = claim.live(call.now).filter(|_| guess.may_compare());
        let imported = live.filter_map(|secret| match &secret.digest {
            Digest::Argon2id { phc } => Some(Kept { id: secret.id.clone(), phc: phc.clone() }),
            Digest::Keyed { .. } => None,
        });
        let imported: Vec<Kept> = imported.collect();
        let account = ClaimedAccount::client(claim.name);
        let recalled = self.passwords.recall(account, &imported, claim.secret);
        if recalled.is_some() {
            return self.judged(recalled, guess);
        }
        // A guess at a secret that is in use is answered by what is remembered: that is a
        // comparison, though the caller may have meant the client's other secret.
        let compared = self.passwords.remembers(account, &imported);
        if !guess.may_hash() {
            return Judgement::Refused(if compared {
                Refusal::Wrong(guess)
            } else {
                Refusal::Unpaid(guess)
            });
        }
        let origin = Origin {
            network: call.peer.network(),
            failed_lately: self.limits.failed_lately(call.peer, call.now),
        };
        let found = match self.passwords.find(origin, account, imported, claim.secret).await {
            Ok(found) => found,
            Err(busy) => {
                // Returned even if it was compared: the rest of the budget must not reveal which
                // names exist (A02).
                self.limits.give_back(guess);
                return Judgement::Refused(Refusal::Busy { error: busy.into(), compared });
            }
        };
        let Some(Match { id, rehashed }) = found else {
            return Judgement::Refused(Refusal::Wrong(guess));
        };
        self.limits.give_back(guess);
        let rehashed = rehashed.map(|phc| Kept { id: id.clone(), phc });
        Judgement::Right { secret: id, rehashed }
    }

    fn judged(&self, right: Option<SecretId>, guess: Guess) -> Judgement {
        match right {
            Some(secret) => {
                self.limits.give_back(guess);
                Judgement::Right { secret, rehashed: None }
            }
            None if guess.may_compare() => Judgement::Refused(Refusal::Wrong(guess)),
            None => Judgement::Refused(Refusal::Unpaid(guess)),
        }
    }

    /// Records a refusal and returns its error. A compared secret of an existing client has a
    /// record of its own, which is not awaited, so that the time is the same for all clients. All
    /// others are counted: those of a client, and those of names that are no client's, are one
    /// record for each peer and minute. `presented` is the id inside the secret, if it has one.
    pub(super) async fn refuse(
        &self,
        call: &Call,
        client: Option<&Client>,
        presented: Option<SecretId>,
        refusal: Refusal,
    ) -> Error {
        crate::metrics::METRICS.authentication_failed.inc();
        let (peer, judged, guessed) = (call.peer.key(), refusal.is_judged(), refusal.is_guess());
        if matches!(refusal, Refusal::Wrong(_)) {
            self.limits.failed(call.peer, call.now);
        }
        let error = refusal.answer();
        // People mix up id and secret: what is no client's name is not written down (O01).
        let target = client.map(|client| client.id.as_str()).unwrap_or_default();
        let reason =
            if judged || guessed || client.is_none() { "invalid_client" } else { "slow_down" };
        // A tenant sees the attacks on its clients. The caller is not authenticated, so there is no
        // calling client.
        let stamp = Stamp { tenant: client.map(|client| client.tenant.clone()), ..call.stamp() };
        // A retired secret that is still in use somewhere is found by its id.
        let stamp = Stamp { auth: client.and(presented).map(AuthMethod::Secret), ..stamp };
        let event = stamp.refused(Action::AuthenticationFailed, target, reason);
        let recorded = match client {
            Some(client) => {
                let raised = if guessed { self.raise_alarm(call, client).await } else { Ok(()) };
                let recorded = if judged {
                    self.trail.kept(peer, event).await
                } else {
                    self.trail.counted(peer, event).await
                };
                raised.and(recorded)
            }
            None => self.trail.counted(peer, event).await,
        };
        recorded.err().unwrap_or(error)
    }

    /// Guesses from many addresses stay below the budget of each: they are counted for their client
    /// too. A secret that was not compared does not count: it may be right. An alarm that the store
    /// fails to record is recorded later.
    async fn raise_alarm(&self, call: &Call, client: &Client) -> Result<()> {
        if !self.limits.is_under_attack(&client.id, call.now) {
            return Ok(());
        }
        tracing::warn!(
            client = %client.id,
            "too many failed authentications of this client within an hour"
        );
        let stamp = Stamp { tenant: Some(client.tenant.clone()), ..call.stamp() };
        self.trail.kept(None, stamp.done(Action::ClientUnderAttack, client.id.as_str())).await
    }

    /// Writes the hash of an imported secret at our own cost. A node that cannot write, or that
    /// another one overtakes, leaves it as it is: the next first use does it.
    pub(super) async fn rehash(
        &self,
        call: &Call,
        who: &AuthenticatedClient,
        kept: Kept,
        secret: &SecretString,
    ) {
        let mut client = who.client().clone();
        let Some(own) = client.secrets_mut().find(|own| own.id == kept.id) else { return };
        own.digest = Digest::Argon2id { phc: kept.phc.clone() };
        client.revision += 1;
        client.updated_at = call.now;
        let event =
            who.stamp(call).done(Action::SecretRehashed, format!("{}/{}", client.id, kept.id));
        match self.store.replace_client(&client, event).await {
            Ok(_) => {
                let account = ClaimedAccount::client(client.id.as_str());
                self.passwords.remember(account, &kept, secret)
            }
            Err(error) => {
                tracing::warn!(
                    client = %client.id, %error,
                    "cannot rehash an imported secret, keeping its hash"
                )
            }
        }
    }

    /// Records the counts of refusals whose minute is over, at the end of the process all of them.
    pub async fn record_refusals(&self, now: Timestamp, all: bool) -> Result<()> {
        self.trail.record_counts(now, all).await
    }
}
