//! Verification by a server, over as many tokens as it takes.

use super::report::Report;
use crate::{
    cli::{admin::Admin, connect::Remote, error::Failure},
    proto::admin::{VerifyTrailRequest, audit_service_client::AuditServiceClient},
};

/// Maximum refusals of a token without any progress; then it is not its age.
const REFUSALS_MAX: u32 = 3;

/// Verifies, until the result; a stream that ended with its token is continued with a new one.
pub(super) async fn verify(
    remote: &Remote,
    scope: &str,
    mut request: VerifyTrailRequest,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut admin = Admin::open(remote.clone(), scope).await?;
    let mut refusals = 0;
    loop {
        let before = report.checked();
        let Err(failure) = stream(remote, &admin, request.clone(), report).await else {
            return Ok(());
        };
        refusals = if report.checked() > before { 0 } else { refusals + 1 };
        if !failure.has_reason("invalid_token") || refusals >= REFUSALS_MAX {
            return Err(failure);
        }
        report.resume(&mut request);
        admin = Admin::renewed(remote.clone(), scope).await?;
    }
}

async fn stream(
    remote: &Remote,
    admin: &Admin,
    request: VerifyTrailRequest,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut service = AuditServiceClient::new(admin.channel());
    // The timeout is for the beginning: a long trail takes long.
    let opening =
        tokio::time::timeout(remote.timeout(), service.verify_trail(admin.stream(request)));
    let late = |_| tonic::Status::deadline_exceeded("the verification did not begin in time");
    let mut messages = opening.await.map_err(late)??.into_inner();
    let ended = || tonic::Status::unavailable("the server ended the stream without a result");
    while !report.take(messages.message().await?.ok_or_else(ended)?)? {}
    Ok(())
}
