//! `jeton.admin.v1.KeyService`.

use tonic::{Request, Response, Status};

use super::{
    GrpcServices, into_response,
    parse::{required, timestamp},
};
use crate::{
    admin::AdminScope,
    model::{KeyState, Kid, SigningKey},
    proto::admin::{
        self as proto, ListKeysRequest, ListKeysResponse, RevokeKeyRequest, RevokeKeyResponse,
        RotateKeysRequest, RotateKeysResponse, key_service_server::KeyService,
    },
};

#[tonic::async_trait]
impl KeyService for GrpcServices {
    async fn list_keys(
        &self,
        request: Request<ListKeysRequest>,
    ) -> Result<Response<ListKeysResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Keys).await?;
                let keyset = self.services.admin.keys.list(&admin).await?;
                Ok(ListKeysResponse { keys: newest_first(keyset.keys) })
            }
            .await,
        )
    }

    async fn rotate_keys(
        &self,
        request: Request<RotateKeysRequest>,
    ) -> Result<Response<RotateKeysResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Keys).await?;
                let keyset = self.services.admin.keys.rotate(&call, &admin).await?;
                Ok(RotateKeysResponse { keys: newest_first(keyset.keys) })
            }
            .await,
        )
    }

    async fn revoke_key(
        &self,
        request: Request<RevokeKeyRequest>,
    ) -> Result<Response<RevokeKeyResponse>, Status> {
        let call = Self::call_context(&request)?;
        into_response(
            async {
                let admin = self.admin(&call, &request, AdminScope::Keys).await?;
                let kid: Kid = required("kid", &request.get_ref().kid)?;
                let keyset =
                    self.services.admin.keys.revoke(&call, &admin, &kid, String::new()).await?;
                Ok(RevokeKeyResponse { keys: newest_first(keyset.keys) })
            }
            .await,
        )
    }
}

fn newest_first(keys: Vec<SigningKey>) -> Vec<proto::SigningKey> {
    keys.into_iter().rev().map(Into::into).collect()
}

impl From<SigningKey> for proto::SigningKey {
    fn from(key: SigningKey) -> Self {
        let (state, activate, remove) = match key.state {
            KeyState::Prepared { activate_at } => (proto::KeyState::Prepared, activate_at, None),
            KeyState::Active { since } => (proto::KeyState::Active, Some(since), None),
            KeyState::Retiring { remove_at } => (proto::KeyState::Retiring, None, Some(remove_at)),
            KeyState::Revoked { remove_at } => (proto::KeyState::Revoked, None, Some(remove_at)),
        };
        Self {
            kid: key.kid.as_str().to_owned(),
            alg: key.alg.as_str().to_owned(),
            state: state.into(),
            create_time: Some(timestamp(key.created_at)),
            activate_time: activate.map(timestamp),
            remove_time: remove.map(timestamp),
        }
    }
}
