//! Messages as JSON and as text. JSON names are those of the proto; times are RFC 3339 in UTC,
//! durations whole seconds.

use std::fmt::Display;

use prost_types::{Duration, Timestamp as ProtoTime};
use serde_json::{Value, json};

use crate::{
    model::Timestamp,
    proto::admin::{
        Audience, ChainState, ChainVerdict, Client, Event, GrantType, KeyState, Secret, SecretKind,
        SigningKey, principal::Kind,
    },
};

/// Formats a time as RFC 3339; empty if it is unset.
pub(super) fn time(time: Option<&ProtoTime>) -> String {
    time.map(|time| moment(time).to_string()).unwrap_or_default()
}

fn moment(time: &ProtoTime) -> Timestamp {
    Timestamp::from_millis(
        time.seconds.saturating_mul(1000).saturating_add(i64::from(time.nanos / 1_000_000)),
    )
}

/// Converts a point in time for a message.
pub(super) fn proto_time(time: Timestamp) -> ProtoTime {
    let nanos = time.millis().rem_euclid(1000) * 1_000_000;
    ProtoTime { seconds: time.seconds(), nanos: i32::try_from(nanos).unwrap_or(0) }
}

/// Converts a duration for a message.
pub(super) fn proto_duration(duration: std::time::Duration) -> Duration {
    Duration { seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX), nanos: 0 }
}

/// Formats a NumericDate as RFC 3339; empty for 0.
pub(super) fn seconds(seconds: i64) -> String {
    if seconds == 0 { String::new() } else { Timestamp::from_seconds(seconds).to_string() }
}

fn optional_time(value: Option<&ProtoTime>) -> Value {
    value.map_or(Value::Null, |value| moment(value).to_string().into())
}

fn optional_seconds(duration: Option<&Duration>) -> Value {
    duration.map_or(Value::Null, |duration| duration.seconds.into())
}

/// Returns the name of a grant in RFC 6749.
pub(super) fn grant(grant: i32) -> &'static str {
    match GrantType::try_from(grant) {
        Ok(GrantType::ClientCredentials) => "client_credentials",
        Ok(GrantType::RefreshToken) => "refresh_token",
        Ok(GrantType::Unspecified) | Err(_) => "unknown",
    }
}

/// Returns the name of the state of a key.
pub(super) fn key_state(state: i32) -> &'static str {
    match KeyState::try_from(state) {
        Ok(KeyState::Prepared) => "prepared",
        Ok(KeyState::Active) => "active",
        Ok(KeyState::Retiring) => "retiring",
        Ok(KeyState::Revoked) => "revoked",
        Ok(KeyState::Unspecified) | Err(_) => "unknown",
    }
}

/// Returns the name of the kind of a secret.
pub(super) fn secret_kind(kind: i32) -> &'static str {
    match SecretKind::try_from(kind) {
        Ok(SecretKind::Generated) => "generated",
        Ok(SecretKind::Argon2id) => "argon2id",
        Ok(SecretKind::Unspecified) | Err(_) => "unknown",
    }
}

/// A client.
pub(super) fn client(client: &Client) -> Value {
    json!({
        "client_id": client.client_id,
        "display_name": client.display_name,
        "tenant": client.tenant,
        "scopes": client.scopes,
        "default_scopes": client.default_scopes,
        "roles": client.roles,
        "audiences": client.audiences,
        "serves": client.serves,
        "grant_types": client.grant_types.iter().map(|value| grant(*value)).collect::<Vec<_>>(),
        "access_token_lifetime_seconds": optional_seconds(client.access_token_lifetime.as_ref()),
        "refresh_token_lifetime_seconds": optional_seconds(client.refresh_token_lifetime.as_ref()),
        "refresh_token_idle_lifetime_seconds":
            optional_seconds(client.refresh_token_idle_lifetime.as_ref()),
        "rate_plan": client.rate_plan,
        "disabled": client.disabled,
        "secrets": client.secrets.iter().map(secret).collect::<Vec<_>>(),
        "etag": client.etag,
        "create_time": optional_time(client.create_time.as_ref()),
        "update_time": optional_time(client.update_time.as_ref()),
    })
}

fn secret(secret: &Secret) -> Value {
    json!({
        "secret_id": secret.secret_id,
        "kind": secret_kind(secret.kind),
        "create_time": optional_time(secret.create_time.as_ref()),
        "expire_time": optional_time(secret.expire_time.as_ref()),
        "last_used_time": optional_time(secret.last_used_time.as_ref()),
        "use_count": secret.use_count,
    })
}

/// An audience and its tenant.
pub(super) fn audience(audience: &Audience) -> Value {
    json!({
        "audience": audience.audience,
        "tenant": audience.tenant,
        "claimed_by": audience.claimed_by,
        "create_time": optional_time(audience.create_time.as_ref()),
    })
}

/// Returns a number with its noun, such as `1 record` or `2 records`.
pub(super) fn count<N: Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    match noun.strip_suffix('y') {
        _ if number == N::from(1) => format!("1 {noun}"),
        Some(stem) => format!("{number} {stem}ies"),
        None => format!("{number} {noun}s"),
    }
}

/// A signing key.
pub(super) fn key(key: &SigningKey) -> Value {
    json!({
        "kid": key.kid,
        "alg": key.alg,
        "state": key_state(key.state),
        "create_time": optional_time(key.create_time.as_ref()),
        "activate_time": optional_time(key.activate_time.as_ref()),
        "remove_time": optional_time(key.remove_time.as_ref()),
    })
}

/// Actor of an audit record, as a line shows it; empty if there is none.
pub(super) fn actor(event: &Event) -> String {
    match event.actor.as_ref().and_then(|actor| actor.kind.as_ref()) {
        Some(Kind::ClientId(id)) => format!("client:{id}"),
        Some(Kind::Node(_)) => "node".to_owned(),
        None => String::new(),
    }
}

/// Returns the reason of an event, the id of a secret that was refused, and the former node of an
/// event that was recovered.
pub(super) fn reason(event: &Event) -> String {
    let recovered = if event.recovered_from.is_empty() {
        String::new()
    } else {
        format!("recovered from {}", event.recovered_from)
    };
    let refused = event.auth.as_ref().filter(|_| event.action == "client.authentication_failed");
    let refused = refused.map(|auth| format!("secret {}", auth.id)).unwrap_or_default();
    [event.reason.as_str(), &refused, &recovered]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

/// An audit record.
pub(super) fn event(event: &Event) -> Value {
    json!({
        "chain": event.chain,
        "sequence": event.sequence,
        "node": event.node,
        "time": optional_time(event.time.as_ref()),
        "action": event.action,
        "outcome": event.outcome,
        "tenant": event.tenant,
        "actor": event.actor.as_ref().and_then(|actor| actor.kind.as_ref()).map(|kind| match kind {
            Kind::ClientId(id) => json!({ "client_id": id }),
            Kind::Node(is_node) => json!({ "node": is_node }),
        }),
        "target": event.target,
        "family": event.family,
        "peer": event.peer,
        "request_id": event.request_id,
        "reason": event.reason,
        "auth": event.auth.as_ref().map(|auth| json!({ "method": auth.method, "id": auth.id })),
        "hash": event.hash,
        "recovered_from": event.recovered_from,
    })
}

/// Converts the verdict on an audit chain.
pub(super) fn verdict(verdict: &ChainVerdict) -> Value {
    json!({
        "chain": verdict.chain,
        "intact": verdict.intact.unwrap_or(false),
        "state": state(verdict.state()),
        "checked": verdict.checked,
        "first_bad_sequence": verdict.first_bad_sequence,
        "problem": verdict.problem,
        "head_sequence": verdict.head_sequence,
        "head_hash": verdict.head_hash,
        "witnessed_sequence": verdict.witnessed_sequence,
        "cut_sequence": verdict.cut_sequence,
    })
}

/// Returns the name of the state of audit chains.
pub(super) const fn state(state: ChainState) -> &'static str {
    match state {
        ChainState::Intact => "intact",
        ChainState::EndNotSure => "end not sure",
        ChainState::Broken | ChainState::Unspecified => "broken",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::admin::Authentication;

    #[test]
    fn nouns_are_counted() {
        for (number, noun, text) in [
            (0, "client", "0 clients"),
            (1, "client", "1 client"),
            (2, "client", "2 clients"),
            (1, "family", "1 family"),
            (2, "family", "2 families"),
        ] {
            assert_eq!(count(number, noun), text);
        }
    }

    #[test]
    fn times_come_back_as_they_went() {
        for millis in [0, 1_763_769_600_123, -1] {
            let sent = proto_time(Timestamp::from_millis(millis));
            assert_eq!(moment(&sent), Timestamp::from_millis(millis));
        }
        assert_eq!(time(None), "");
        assert_eq!(seconds(0), "");
    }

    #[test]
    fn a_client_is_printed_with_every_field_of_the_proto() {
        let printed = client(&Client {
            client_id: "a".to_owned(),
            grant_types: vec![1, 2],
            ..Client::default()
        });
        assert_eq!(printed.as_object().unwrap().len(), 18);
        assert_eq!(printed["grant_types"], json!(["client_credentials", "refresh_token"]));
        assert_eq!(printed["access_token_lifetime_seconds"], Value::Null);
    }

    #[test]
    fn the_reason_names_a_refused_secret_and_a_former_node() {
        let auth = Some(Authentication { method: "client_secret".to_owned(), id: "s1".to_owned() });
        let mut event = Event {
            action: "client.authentication_failed".to_owned(),
            reason: "invalid_client".to_owned(),
            recovered_from: "node-2".to_owned(),
            auth,
            ..Event::default()
        };
        assert_eq!(reason(&event), "invalid_client; secret s1; recovered from node-2");
        event.action = "token.issued".to_owned();
        assert_eq!(reason(&event), "invalid_client; recovered from node-2");
    }

    #[test]
    fn an_event_is_printed_with_every_field_of_the_proto() {
        assert_eq!(event(&Event::default()).as_object().unwrap().len(), 16);
    }
}
