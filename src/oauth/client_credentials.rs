//! The client credentials grant (RFC 6749 section 4.4).

use super::{AuthenticatedClient, Issued, TokenIssuer, mint::Mint, token_endpoint::Request};
use crate::{
    crypto::random,
    error::{Error, Result},
    model::{
        Action, Audience, Call, Client, Epochs, Family, FamilyId, Granted, Jti, Scopes, Stamp,
        Subject, family::Answers,
    },
    store::Creation,
};

impl TokenIssuer {
    /// Issues an access token, and a refresh family where the client is registered for it and asks
    /// for one; either is durable with its record before it is given out.
    pub(super) async fn client_credentials(
        &self,
        call: &Call,
        authenticated: &AuthenticatedClient,
        request: &Request,
    ) -> Result<Issued> {
        let client = authenticated.client();
        let stamp = authenticated.stamp(call);
        let subject = Subject::of_client(&client.id);
        let epochs = authenticated.epochs()?;
        let (granted, audience) = match self.grant(client, request) {
            Ok(granted) => granted,
            Err(error) => return Err(self.refuse_grant(call, authenticated, error).await),
        };
        let jti = Jti::new();
        let mint = Mint {
            now: call.now,
            client,
            subject,
            granted: &granted,
            audience,
            epochs,
            jti,
            family: None,
        };
        let issued = stamp.done(Action::TokenIssued, jti.to_string());
        if !client.grants.refresh_token || request.without_refresh_token {
            let (access_token, expires_in) = self.minter.mint(mint)?;
            self.trail.issued(issued).await?;
            self.clients.still_authenticated(call, authenticated).await?;
            return Ok(Issued {
                access_token,
                expires_in,
                refresh_token: None,
                scopes: granted.scopes().clone(),
            });
        }
        let family = self.new_family(call, client, &granted, &mint.audience, epochs);
        let (access_token, expires_in) =
            self.minter.mint(Mint { family: Some((family.id, family.ends_at())), ..mint })?;
        let refresh_token = self.refresh_key.mint(family.id, 0, &family.salt);
        self.open(&family, &stamp, jti).await?;
        if let Err(error) = self.clients.still_authenticated(call, authenticated).await {
            // Its tokens never left. It is ended all the same, so that nothing depends on that.
            let event = stamp.done(Action::TokenRevoked, client.id.as_str()).in_family(family.id);
            self.store
                .end_family(family.id, call.now, call.now + self.terms.revocation_memory(), event)
                .await?;
            return Err(error);
        }
        Ok(Issued {
            access_token,
            expires_in,
            refresh_token: Some(refresh_token),
            scopes: granted.scopes().clone(),
        })
    }

    /// Returns the granted scopes and audiences of a request.
    fn grant(&self, client: &Client, request: &Request) -> Result<(Granted, Vec<Audience>)> {
        if !client.grants.client_credentials {
            return Err(Error::UnauthorizedClient);
        }
        let asked = Scopes::parse(&request.scopes)
            .map_err(|invalid| Error::InvalidScope(invalid.0.into()))?;
        let granted = Granted::asked(&asked, &client.scopes, || client.scopes_by_default())
            .map_err(|scope| {
                let advice = client.scopes.advice(scope);
                Error::InvalidScope(
                    format!("the client is not allowed scope {scope} {advice}").into(),
                )
            })?;
        Ok((granted, self.audience(client, &request.resources)?))
    }

    /// Returns the audience of the token (RFC 8707 section 2): exactly the requested resources,
    /// else the client's first audience, else this service.
    fn audience(&self, client: &Client, resources: &[String]) -> Result<Vec<Audience>> {
        let own = &self.terms.own_audience;
        if resources.is_empty() {
            return Ok(vec![client.audiences.first().unwrap_or(own).clone()]);
        }
        if resources.len() > client.audiences.len() + 1 {
            return Err(Error::InvalidTarget(
                "the request names more resources than the client is allowed".into(),
            ));
        }
        let mut audience = Vec::with_capacity(resources.len());
        for resource in resources {
            let resource: Audience = resource
                .parse()
                .map_err(|invalid: crate::model::Invalid| Error::InvalidTarget(invalid.0.into()))?;
            if resource != *own && !client.audiences.contains(&resource) {
                return Err(Error::InvalidTarget("the client is not allowed this resource".into()));
            }
            if audience.contains(&resource) {
                return Err(Error::InvalidTarget("a resource is repeated".into()));
            }
            audience.push(resource);
        }
        Ok(audience)
    }

    fn new_family(
        &self,
        call: &Call,
        client: &Client,
        granted: &Granted,
        audience: &[Audience],
        epochs: Epochs,
    ) -> Family {
        let terms = &self.terms.token;
        let lifetime = client.refresh_ttl.unwrap_or_else(|| terms.refresh_lifetime());
        let idle = client.refresh_idle.unwrap_or_else(|| terms.refresh_idle());
        Family {
            id: FamilyId::new(),
            tenant: client.tenant.clone(),
            client: client.id.clone(),
            subject: Subject::of_client(&client.id),
            scopes: granted.scopes().clone(),
            audience: audience.to_vec(),
            salt: random::bytes(),
            epochs,
            opened_at: call.now,
            expires_at: call.now + lifetime,
            idle: idle.min(lifetime),
            generation: 0,
            rotated_at: call.now,
            answers: Answers::first(&call.stamp().peer),
            ended_at: None,
        }
    }

    async fn open(&self, family: &Family, stamp: &Stamp, jti: Jti) -> Result<()> {
        let event = stamp.done(Action::TokenIssued, jti.to_string()).in_family(family.id);
        match self.store.open_family(family, event).await? {
            Creation::Created => Ok(()),
            Creation::Taken => Err(Error::Internal("a new family id was taken".into())),
        }
    }
}
