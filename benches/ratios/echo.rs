//! A bare tonic server: decodes the same requests as jeton, does nothing, and answers with what
//! jeton answered once.

use std::{fs, net::SocketAddr, path::Path};

use jeton::proto::token::{
    BatchIntrospectRequest, BatchIntrospectResponse, IntrospectRequest, IntrospectResponse,
    RefreshRequest, RefreshResponse, RevokeRequest, RevokeResponse, TokenRequest, TokenResponse,
    token_service_server::{TokenService, TokenServiceServer},
};
use prost::Message;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

struct Echo {
    token: TokenResponse,
    refresh: RefreshResponse,
    introspect: IntrospectResponse,
}

#[tonic::async_trait]
impl TokenService for Echo {
    async fn token(&self, _: Request<TokenRequest>) -> Result<Response<TokenResponse>, Status> {
        Ok(Response::new(self.token.clone()))
    }

    async fn refresh(
        &self,
        _: Request<RefreshRequest>,
    ) -> Result<Response<RefreshResponse>, Status> {
        Ok(Response::new(self.refresh.clone()))
    }

    async fn revoke(&self, _: Request<RevokeRequest>) -> Result<Response<RevokeResponse>, Status> {
        Ok(Response::new(RevokeResponse {}))
    }

    async fn introspect(
        &self,
        _: Request<IntrospectRequest>,
    ) -> Result<Response<IntrospectResponse>, Status> {
        Ok(Response::new(self.introspect.clone()))
    }

    async fn batch_introspect(
        &self,
        _: Request<BatchIntrospectRequest>,
    ) -> Result<Response<BatchIntrospectResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }
}

/// Serves until it is killed; prints its address. `answers` holds the encoded answers by the name
/// of their method.
#[tokio::main]
pub(crate) async fn run(answers: &Path) {
    fn read<M: Message + Default>(answers: &Path, name: &str) -> M {
        M::decode(fs::read(answers.join(name)).unwrap().as_slice()).unwrap()
    }
    let echo = Echo {
        token: read(answers, "Token"),
        refresh: read(answers, "Refresh"),
        introspect: read(answers, "Introspect"),
    };
    let incoming =
        TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap().with_nodelay(Some(true));
    println!("{}", incoming.local_addr().unwrap());
    Server::builder()
        .add_service(TokenServiceServer::new(echo))
        .serve_with_incoming(incoming)
        .await
        .unwrap();
}
