//! What the administration services share: the caller must be an administrator.

use tonic::Request;

use super::{Door, credentials::bearer};
use crate::{
    error::Result,
    model::Call,
    oauth::{Administrator, bearer::Office},
};

impl Door {
    /// Who calls, admitted to an office.
    pub(super) async fn admin<T>(
        &self,
        call: &Call,
        request: &Request<T>,
        office: Office,
    ) -> Result<Administrator> {
        self.authority.administrator(call, bearer(request.metadata())?, office).await
    }
}
