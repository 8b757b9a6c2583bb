//! Messages of a generator: the places where requests differ, and the parts it keeps of the
//! answers.

use std::collections::VecDeque;

use jeton::proto::token::{
    RefreshRequest, RefreshResponse, RevokeRequest, TokenRequest, TokenResponse,
};
use prost::Message;

use crate::scene::Caller;

/// One side of a load's conversation.
pub(crate) trait Talk {
    /// The method's name.
    fn method(&self) -> &'static str;
    /// The next request, without its prefix; nothing when there is none left.
    fn next(&mut self) -> Option<Vec<u8>>;
    /// Takes in an answer.
    fn answered(&mut self, message: &[u8]);
}

/// Asks for so many tokens and keeps them.
pub(crate) struct Issuing {
    pub(crate) caller: Caller,
    pub(crate) left: usize,
    pub(crate) issued: Vec<TokenResponse>,
}

impl Talk for Issuing {
    fn method(&self) -> &'static str {
        "Token"
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        self.left = self.left.checked_sub(1)?;
        let Caller { id, secret } = self.caller.clone();
        Some(
            TokenRequest { client_id: id, client_secret: secret, ..TokenRequest::default() }
                .encode_to_vec(),
        )
    }

    fn answered(&mut self, message: &[u8]) {
        self.issued.push(TokenResponse::decode(message).unwrap());
    }
}

/// Presents each refresh token once, the oldest first, and puts its successor at the end of the
/// line.
pub(crate) struct Refreshing {
    pub(crate) caller: Caller,
    pub(crate) tokens: VecDeque<String>,
}

impl Talk for Refreshing {
    fn method(&self) -> &'static str {
        "Refresh"
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let refresh_token = self.tokens.pop_front()?;
        let Caller { id, secret } = self.caller.clone();
        let request = RefreshRequest {
            client_id: id,
            client_secret: secret,
            refresh_token,
            scopes: Vec::new(),
        };
        Some(request.encode_to_vec())
    }

    fn answered(&mut self, message: &[u8]) {
        self.tokens.push_back(RefreshResponse::decode(message).unwrap().refresh_token);
    }
}

/// Ends each token once.
pub(crate) struct Revoking {
    pub(crate) caller: Caller,
    pub(crate) tokens: Vec<String>,
}

impl Talk for Revoking {
    fn method(&self) -> &'static str {
        "Revoke"
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let token = self.tokens.pop()?;
        let Caller { id, secret } = self.caller.clone();
        let request = RevokeRequest {
            client_id: id,
            client_secret: secret,
            token,
            token_type_hint: String::new(),
        };
        Some(request.encode_to_vec())
    }

    fn answered(&mut self, _: &[u8]) {}
}
