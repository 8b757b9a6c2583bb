//! Parties that act.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::id::ClientId;

/// Party that acts: the actor of an audit record. The written form is tagged with its kind, so that
/// no client is taken for a party of another kind with the same id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Principal {
    /// A client, by its id, which is unique in the whole service.
    Client(ClientId),
    /// The node that makes the record, by itself: at its start, in the background, or for its
    /// command line.
    Node,
}

/// Form for people: `client:orders`, `node`. No client's id has a colon.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(id) => write!(f, "client:{id}"),
            Self::Node => f.write_str("node"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A client of any name is written apart from a node, and an unknown kind is unreadable.
    #[test]
    fn a_principal_is_written_with_its_kind() {
        let client = |id: &str| Principal::Client(id.parse().unwrap());
        for (principal, written, shown) in [
            (client("orders"), json!({"client": "orders"}), "client:orders"),
            (client("node"), json!({"client": "node"}), "client:node"),
            (Principal::Node, json!("node"), "node"),
        ] {
            assert_eq!(serde_json::to_value(&principal).unwrap(), written);
            assert_eq!(serde_json::from_value::<Principal>(written).unwrap(), principal);
            assert_eq!(principal.to_string(), shown);
        }
        for forged in [
            json!("orders"),
            json!({"user": "alice"}),
            json!({"client": "a b"}),
            json!({"client": "a", "user": "b"}),
            json!({"node": "a"}),
            json!({}),
        ] {
            assert!(serde_json::from_value::<Principal>(forged.clone()).is_err(), "{forged}");
        }
    }
}
