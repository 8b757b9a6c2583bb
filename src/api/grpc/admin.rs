//! Shared check of the administration services: the caller must be an administrator.

use tonic::Request;

use super::GrpcServices;
use crate::{
    admin::{AdminScope, Administrator},
    api::credentials::bearer,
    error::Result,
    model::Call,
};

impl GrpcServices {
    /// Authenticates the caller and checks its scope.
    pub(super) async fn admin<T>(
        &self,
        call: &Call,
        request: &Request<T>,
        scope: AdminScope,
    ) -> Result<Administrator> {
        self.services.admin.gate.admit(call, bearer(request.metadata().as_ref())?, scope).await
    }
}
