//! gRPC: parse the message, call one rule, build the answer. No decision is made here.

pub mod admin;
mod audiences;
mod audit;
mod clients;
mod dispatch;
mod keys;
mod pages;
mod parse;
mod revocations;
mod token;

use std::sync::Arc;

use axum::Router;
use tonic::{Request, Status, service::Routes};

use crate::{
    api::status::status,
    error::{Error, Result},
    model::Call,
    proto::{
        admin::{
            audience_service_server::AudienceServiceServer,
            audit_service_server::AuditServiceServer, client_service_server::ClientServiceServer,
            key_service_server::KeyServiceServer,
            revocation_service_server::RevocationServiceServer,
        },
        token::token_service_server::TokenServiceServer,
    },
    services::Services,
};

pub use dispatch::Dispatch;

/// Length of the longest message, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Length of the longest message of the RPCs that take many tokens, positions or heads, in bytes.
pub const MAX_BATCH_MESSAGE: usize = 2 * 1024 * 1024;

/// Path of the RPC of the token service whose message may be longer.
const BATCH_INTROSPECT: &str = "/jeton.token.v1.TokenService/BatchIntrospect";

/// Paths of the RPCs of the audit service whose messages may be longer: with a position or a head of
/// each chain.
const OF_ALL_CHAINS: [&str; 3] = [
    "/jeton.admin.v1.AuditService/TailEvents",
    "/jeton.admin.v1.AuditService/VerifyChain",
    "/jeton.admin.v1.AuditService/VerifyTrail",
];

/// Implementation of all our gRPC services.
#[derive(Clone)]
pub struct GrpcServices {
    services: Arc<Services>,
    /// Ends streams when the server drains.
    stopping: tokio::sync::watch::Receiver<bool>,
}

impl GrpcServices {
    /// Creates the services; `stopping` turns true when streams must end.
    pub fn new(services: Arc<Services>, stopping: tokio::sync::watch::Receiver<bool>) -> Self {
        Self { services, stopping }
    }

    /// Returns the token service, for all methods but `BatchIntrospect`.
    pub fn token_service(&self) -> TokenServiceServer<Self> {
        TokenServiceServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Returns the other services, and the RPCs with longer messages, as routes.
    pub fn routes(&self) -> Router {
        let mut routes = Routes::builder();
        routes
            .add_service(
                ClientServiceServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE),
            )
            .add_service(
                AudienceServiceServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE),
            )
            .add_service(KeyServiceServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE))
            .add_service(
                RevocationServiceServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE),
            )
            .add_service(
                AuditServiceServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE),
            );
        let batch =
            TokenServiceServer::new(self.clone()).max_decoding_message_size(MAX_BATCH_MESSAGE);
        let router = routes.routes().into_axum_router().route_service(BATCH_INTROSPECT, batch);
        let audit =
            AuditServiceServer::new(self.clone()).max_decoding_message_size(MAX_BATCH_MESSAGE);
        OF_ALL_CHAINS
            .into_iter()
            .fold(router, |router, path| router.route_service(path, audit.clone()))
    }

    /// Returns the context of a request, as the guard recorded it.
    fn call_context<T>(request: &Request<T>) -> Result<Call, Status> {
        let call = request.extensions().get::<Call>().cloned();
        call.ok_or_else(|| {
            status(&Error::Internal("a request reached a handler without its call context".into()))
        })
    }
}

/// Converts the result of a rule into a response.
fn into_response<T>(result: Result<T>) -> Result<tonic::Response<T>, Status> {
    result.map(tonic::Response::new).map_err(|error| status(&error))
}
