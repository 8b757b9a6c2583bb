//! `jeton.admin.v1.AudienceService`.

use tonic::{Request, Response, Status};

use super::{
    GrpcServices, into_response, pages,
    parse::{optional, required, timestamp},
};
use crate::{
    admin::{AdminScope, audiences::FoundAudience},
    error::{Error, Result},
    model::{Audience, AudienceRecord, TenantId},
    proto::admin::{
        self as proto, AssignAudienceRequest, AssignAudienceResponse, ListAudiencesRequest,
        ListAudiencesResponse, ReleaseAudienceRequest, ReleaseAudienceResponse,
        audience_service_server::AudienceService,
    },
};

#[tonic::async_trait]
impl AudienceService for GrpcServices {
    async fn list_audiences(
        &self,
        request: Request<ListAudiencesRequest>,
    ) -> Result<Response<ListAudiencesResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Clients).await?;
                let ListAudiencesRequest { tenant, page_size, page_token } = request.into_inner();
                let size = pages::size(page_size)?;
                // Bound to the caller's tenant too: a token gives no access to another's listing.
                let question = format!("audiences/{}/{tenant}", admin.tenant());
                let after = pages::open(&self.services.admin.pages, &question, &page_token)?;
                let after = after
                    .as_deref()
                    .map(str::parse)
                    .transpose()
                    .map_err(Error::invalid("page_token"))?;
                let tenant = optional("tenant", &tenant)?;
                let mut listed = self
                    .services
                    .admin
                    .audiences
                    .list(&admin, tenant, after.as_ref(), size + 1)
                    .await?;
                let found = listed.len();
                listed.truncate(size);
                let bytes = |entry: &FoundAudience| match entry {
                    FoundAudience::Owned(record) => {
                        pages::bytes(&proto::Audience::from(record.clone()))
                    }
                    FoundAudience::NotAuthentic(audience) => {
                        pages::bytes(&audience.as_str().to_owned())
                    }
                };
                listed.truncate(pages::fitting(listed.iter().map(bytes)));
                let next_page_token = match listed.last() {
                    Some(last) if found > listed.len() => {
                        self.services.admin.pages.seal(&question, last.audience().as_str())
                    }
                    _ => String::new(),
                };
                let mut answer =
                    ListAudiencesResponse { next_page_token, ..ListAudiencesResponse::default() };
                for found in listed {
                    match found {
                        FoundAudience::Owned(record) => answer.audiences.push(record.into()),
                        FoundAudience::NotAuthentic(audience) => {
                            answer.not_authentic.push(audience.as_str().to_owned())
                        }
                    }
                }
                Ok(answer)
            }
            .await,
        )
    }

    async fn assign_audience(
        &self,
        request: Request<AssignAudienceRequest>,
    ) -> Result<Response<AssignAudienceResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Clients).await?;
                let AssignAudienceRequest { audience, tenant } = request.into_inner();
                let audience = required::<Audience>("audience", &audience)?;
                let tenant = required::<TenantId>("tenant", &tenant)?;
                let record =
                    self.services.admin.audiences.assign(&call, &admin, &audience, &tenant).await?;
                Ok(AssignAudienceResponse { audience: Some(record.into()) })
            }
            .await,
        )
    }

    async fn release_audience(
        &self,
        request: Request<ReleaseAudienceRequest>,
    ) -> Result<Response<ReleaseAudienceResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Clients).await?;
                let audience = required("audience", &request.get_ref().audience)?;
                self.services
                    .admin
                    .audiences
                    .release(&call, &admin, &audience)
                    .await
                    .map(|()| ReleaseAudienceResponse {})
            }
            .await,
        )
    }
}

impl From<AudienceRecord> for proto::Audience {
    fn from(record: AudienceRecord) -> Self {
        Self {
            audience: record.audience.as_str().to_owned(),
            tenant: record.tenant.as_str().to_owned(),
            claimed_by: record.claimed_by.as_str().to_owned(),
            create_time: Some(timestamp(record.created_at)),
        }
    }
}
