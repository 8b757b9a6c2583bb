//! What the administration services share: the caller must be an administrator.

use tonic::Request;

use super::{Door, credentials::bearer};
use crate::{
    admin::{AdminScope, Administrator},
    error::Result,
    model::Call,
};

impl Door {
    /// Who calls, admitted to an office.
    pub(super) async fn admin<T>(
        &self,
        call: &Call,
        request: &Request<T>,
        office: AdminScope,
    ) -> Result<Administrator> {
        self.services.admin.gate.admit(call, bearer(request.metadata())?, office).await
    }
}
