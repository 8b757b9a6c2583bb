//! `jeton.admin.v1.RevocationService`.

use tonic::{Request, Response, Status};

use super::{GrpcServices, into_response, parse::required};
use crate::{
    admin::{AdminScope, Target},
    error::{Error, Result},
    model::text,
    proto::admin::{
        RevokeAllRequest, RevokeAllResponse, revocation_service_server::RevocationService,
        revoke_all_request::Target as Named,
    },
};

#[tonic::async_trait]
impl RevocationService for GrpcServices {
    async fn revoke_all(
        &self,
        request: Request<RevokeAllRequest>,
    ) -> Result<Response<RevokeAllResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Revocations).await?;
                let RevokeAllRequest { target, reason } = request.into_inner();
                if reason.chars().count() > 200 {
                    return Err(Error::field("reason", "must be at most 200 characters"));
                }
                text::check(&reason).map_err(Error::invalid("reason"))?;
                let target = named(
                    target.ok_or_else(|| Error::field("target", "must name what to revoke"))?,
                )?;
                self.services.admin.revocations.revoke(&call, &admin, target, reason).await.map(
                    |reach| RevokeAllResponse {
                        clients: reach.clients,
                        client_id: reach.client.map(|id| id.to_string()).unwrap_or_default(),
                        token_known: reach.is_token_known,
                    },
                )
            }
            .await,
        )
    }
}

fn named(target: Named) -> Result<Target> {
    Ok(match target {
        Named::ClientId(id) => Target::Client(required("client_id", &id)?),
        Named::Tenant(tenant) => Target::Tenant(required("tenant", &tenant)?),
        Named::Subject(subject) => {
            text::check(&subject).map_err(Error::invalid("subject"))?;
            Target::Subject(required("subject", &subject)?)
        }
        Named::Family(family) => Target::Family(required("family", &family)?),
        Named::Kid(kid) => Target::Key(required("kid", &kid)?),
        Named::Jti(jti) => Target::Token(required("jti", &jti)?),
    })
}
