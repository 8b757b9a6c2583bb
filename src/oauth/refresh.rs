//! Refresh and rotation (RFC 6749 section 6, RFC 9700 section 4.14).

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::{AuthenticatedClient, Credentials, Issued, TokenIssuer, mint::Mint};
use crate::{
    crypto::refresh_token::Presented,
    error::{Error, Result},
    model::{Action, Call, Client, Family, Granted, Jti, Scopes, Stamp},
    store::{LastRotation, Rotate, Rotation},
};

/// Refresh request of a client.
pub struct Request {
    /// As it was issued.
    pub refresh_token: SecretString,
    /// Empty: all scopes of the family.
    pub scopes: Vec<String>,
}

impl TokenIssuer {
    /// Exchanges a refresh token for its successor and a new access token. Everything that can be
    /// refused is refused before the token is spent, but for a secret that was removed meanwhile;
    /// the spending is one conditional write.
    pub async fn refresh(
        &self,
        call: &Call,
        credentials: Credentials,
        request: Request,
    ) -> Result<Issued> {
        let authenticated = self.clients.authenticate(call, credentials).await?;
        let client = authenticated.client();
        if !client.grants.refresh_token {
            let refused = authenticated.stamp(call).refused(
                Action::AccessRefused,
                "refresh",
                "unauthorized_client",
            );
            return Err(self.trail.refusal(refused, Error::UnauthorizedClient).await);
        }
        let (presented, family) = self
            .load_presented_family(call, &authenticated, request.refresh_token.expose_secret())
            .await?;
        let granted = narrow(&family, client, &request.scopes)?;
        let jti = Jti::new();
        // A rotation moves the family's end, a repetition does not.
        let rotated_at =
            if presented.generation == family.generation { call.now } else { family.rotated_at };
        let lawful = self.is_acceptable_on_arrival(call, &presented, &family);
        let family = Family { rotated_at, ..family };
        let (access_token, expires_in) = self.mint_of(call, client, &family, &granted, jti)?;
        let rotate = Rotate {
            family: family.id,
            presented: presented.generation,
            client: client.id.clone(),
            now: call.now,
            cluster_now: self.clock_offset.cluster_time(call.now),
            was_acceptable_on_arrival: lawful,
            grace: self.terms.token.refresh_grace(),
            retain_for: None,
        };
        let stamp = authenticated.stamp(call);
        let rotation = self.rotate(rotate.clone(), &family, &stamp, jti).await?;
        if let Some(verdict) = rotation.unrecorded() {
            if verdict.ends() {
                self.revoker
                    .end_client_instead(call, &authenticated, &family.tenant, client.id.clone())
                    .await?;
            }
            let refused = rotate.event(verdict, &stamp, "", Some(&family));
            return Err(self.trail.refusal(refused, Error::InvalidGrant).await);
        }
        accept_rotation(&rotation, call, &family)?;
        // The successor is derived anew for a caller that presents the spent token in time with a
        // secret that works.
        self.clients.still_authenticated(call, &authenticated).await?;
        let successor = presented.generation.saturating_add(1);
        let refresh_token = Some(self.refresh_key.mint(family.id, successor, &family.salt));
        Ok(Issued { access_token, expires_in, refresh_token, scopes: granted.scopes().clone() })
    }

    /// Presents the token to the store. A family that is to be ended takes one of its client's
    /// places among the revocations that are remembered. Where that can be foreseen from the family
    /// as it was `found`, the place is taken before, so that one write judges and ends, also for a
    /// caller that hangs up; else once the store says so. Without a place the outcome is
    /// [`Rotation::Unended`].
    async fn rotate(
        &self,
        mut rotate: Rotate,
        found: &Family,
        stamp: &Stamp,
        jti: Jti,
    ) -> Result<Rotation> {
        let foreseen = rotate.decide(found, LastRotation { at: found.rotated_at, unanswered: 0 });
        let mut takes_place = !rotate.was_acceptable_on_arrival || foreseen.ends();
        loop {
            if takes_place
                && self.limits.remembers_revocation(
                    &rotate.client,
                    rotate.now,
                    self.terms.revocation_memory(),
                )
            {
                rotate.retain_for = Some(self.terms.revocation_memory());
            }
            let rotation = self.store.rotate(&rotate, stamp, &jti.to_string()).await;
            let has_ended = matches!(rotation, Ok(Rotation::Reused | Rotation::Shared(_)));
            if rotate.retain_for.is_some() && !has_ended {
                self.limits.forgets_revocation(&rotate.client);
            }
            let rotation = rotation?;
            if takes_place || !matches!(rotation, Rotation::Unended(_)) {
                return Ok(rotation);
            }
            takes_place = true;
        }
    }

    /// The family of a token that is whole, of this client, and minted under epochs that still
    /// stand.
    async fn load_presented_family(
        &self,
        call: &Call,
        who: &AuthenticatedClient,
        token: &str,
    ) -> Result<(Presented, Family)> {
        // A text that is no token, or does not verify, belongs to no client: there is nothing to
        // record, and the budget bounds it (R13).
        let presented = Presented::parse(token).ok_or(Error::InvalidGrant)?;
        let family =
            self.store.family(presented.family, call.now).await?.ok_or(Error::InvalidGrant)?;
        if !self.refresh_key.verify(&presented, &family.salt) {
            return Err(Error::InvalidGrant);
        }
        let current = self.tokens.epochs(&family.tenant, &family.client, &family.subject)?;
        // A revocation is final: one that this node knows is not undone by a store that no longer
        // shows it.
        let undone = family.ended_at.is_none() && self.tokens.is_family_revoked(family.id);
        let client = who.client();
        let audience_stands = family.audience.iter().all(|audience| {
            *audience == self.terms.own_audience || client.audiences.contains(audience)
        });
        if undone
            || family.client != client.id
            || !family.epochs.covers(current)
            || !audience_stands
        {
            let stamp = who.stamp_in(call, &family.tenant);
            let refused =
                stamp.refused(Action::RefreshRefused, "", "invalid_grant").in_family(family.id);
            return Err(self.trail.refusal(refused, Error::InvalidGrant).await);
        }
        Ok((presented, family))
    }

    /// Returns true if a token that arrives now is the current one, or within grace by the clock of
    /// any node.
    fn is_acceptable_on_arrival(
        &self,
        call: &Call,
        presented: &Presented,
        family: &Family,
    ) -> bool {
        let lately = || {
            family.rotated_at + self.terms.token.refresh_grace()
                >= self.tokens.verifying_keys().earliest_node_time(call.now)
        };
        match family.generation.checked_sub(presented.generation) {
            Some(0) => true,
            Some(1) => lately(),
            Some(_) | None => false,
        }
    }

    /// Mints the access token before the refresh token is used, so that a failure costs nothing.
    fn mint_of(
        &self,
        call: &Call,
        client: &Client,
        family: &Family,
        granted: &Granted,
        jti: Jti,
    ) -> Result<(SecretString, Duration)> {
        self.minter.mint(Mint {
            now: call.now,
            client,
            subject: family.subject.clone(),
            granted,
            audience: family.audience.clone(),
            // Those of the opening: what was raised since, also while this call runs, ends this
            // token too.
            epochs: family.epochs,
            jti,
            family: Some((family.id, family.ends_at())),
        })
    }
}

/// Returns an error if there is no token to return; logs signs of theft.
fn accept_rotation(rotation: &Rotation, call: &Call, found: &Family) -> Result<()> {
    let (id, client, peer) = (found.id, &found.client, call.peer.to_string());
    match rotation {
        Rotation::Rotated => return Ok(()),
        Rotation::Repeated(family) => {
            if family.answers.is_from_elsewhere(&peer) {
                let rotated_by = &*family.answers.rotated_by;
                tracing::warn!(
                    family = %id, %client, rotated_by, peer,
                    "refresh token repeated from another network address"
                );
            }
            return Ok(());
        }
        Rotation::Reused => {
            tracing::warn!(family = %id, %client, peer, "refresh token reused, family revoked");
        }
        Rotation::Shared(family) => {
            let rotated_by = &*family.answers.rotated_by;
            tracing::warn!(
                family = %id, %client, rotated_by, peer,
                "two callers use one refresh family, family revoked"
            );
        }
        Rotation::Refused | Rotation::Unended(_) | Rotation::Unknown => {}
    }
    Err(Error::InvalidGrant)
}

/// "The requested scope MUST NOT include any scope not originally granted" (RFC 6749 section 6),
/// nor one the client has lost since.
fn narrow(family: &Family, client: &Client, asked: &[String]) -> Result<Granted> {
    let asked = Scopes::parse(asked).map_err(|invalid| Error::InvalidScope(invalid.0.into()))?;
    let still = Granted::still(&family.scopes, &client.scopes);
    Granted::asked(&asked, still.scopes(), || still.scopes().clone()).map_err(|scope| {
        let advice = still.scopes().advice(scope);
        let problem = format!("the refresh token does not include scope {scope} {advice}");
        Error::InvalidScope(problem.into())
    })
}
