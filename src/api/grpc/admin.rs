//! What the administration services share: the caller must be an administrator.

use tonic::Request;

use super::GrpcServices;
use crate::{
    admin::{AdminScope, Administrator},
    api::credentials::bearer,
    error::Result,
    model::Call,
};

impl GrpcServices {
    /// Who calls, admitted to a scope.
    pub(super) async fn admin<T>(
        &self,
        call: &Call,
        request: &Request<T>,
        scope: AdminScope,
    ) -> Result<Administrator> {
        self.services.admin.gate.admit(call, bearer(request.metadata().as_ref())?, scope).await
    }
}
