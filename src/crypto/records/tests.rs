use std::time::Duration;

use super::*;
use crate::model::{PlanName, Scopes, TenantId, Timestamp};

fn key() -> RecordKey {
    RecordKey::new([7; 32])
}

fn secret(id: &str) -> ClientCredential {
    ClientCredential::Secret(Secret {
        id: id.parse().unwrap(),
        digest: Digest::Keyed { hmac: "hmac".into() },
        created_at: Timestamp::EPOCH,
        expires_at: None,
        last_used_at: None,
        use_count: 0,
    })
}

fn first(client: &mut Client) -> &mut Secret {
    client.secrets_mut().next().unwrap()
}

fn client() -> Client {
    key().seal_client(Client {
        id: "a".parse().unwrap(),
        tenant: TenantId::operator(),
        display_name: "Orders".into(),
        scopes: Scopes::parse(&["a", "b"]).unwrap(),
        default_scopes: Scopes::parse(&["a"]).unwrap(),
        roles: vec!["r".parse().unwrap()],
        audiences: vec!["urn:a".parse().unwrap(), "urn:b".parse().unwrap()],
        serves: vec!["urn:c".parse().unwrap()],
        grants: Grants { client_credentials: true, refresh_token: false },
        access_ttl: None,
        refresh_ttl: Some(Duration::from_secs(60)),
        refresh_idle: None,
        rate_plan: PlanName::standard(),
        disabled: false,
        credentials: vec![secret("s1"), secret("s2")],
        revision: 3,
        created_at: Timestamp::EPOCH,
        updated_at: Timestamp::EPOCH,
        mac: Mac::default(),
    })
}

/// A named change of a client.
type Change = (&'static str, fn(&mut Client));

/// Every field by itself, and what would read the same without lengths: a text that moves from one
/// field or entry to the next.
const CHANGES: &[Change] = &[
    ("id", |client| client.id = "b".parse().unwrap()),
    ("tenant", |client| client.tenant = "acme".parse().unwrap()),
    ("display_name", |client| client.display_name.push('x')),
    ("scopes", |client| client.scopes = Scopes::parse(&["a", "b", "jeton:admin"]).unwrap()),
    ("scopes in another order", |client| client.scopes = Scopes::parse(&["b", "a"]).unwrap()),
    ("scopes joined", |client| client.scopes = Scopes::parse(&["ab"]).unwrap()),
    ("default_scopes", |client| client.default_scopes = Scopes::default()),
    ("a scope moved to the defaults", |client| {
        client.scopes = Scopes::parse(&["a"]).unwrap();
        client.default_scopes = Scopes::parse(&["b", "a"]).unwrap();
    }),
    ("roles", |client| client.roles.clear()),
    ("audiences", |client| client.audiences.reverse()),
    ("an audience moved to serves", |client| {
        let moved = client.audiences.pop().unwrap();
        client.serves.insert(0, moved);
    }),
    ("serves", |client| client.serves.clear()),
    ("grants", |client| client.grants.refresh_token = true),
    ("grants swapped", |client| {
        client.grants = Grants { client_credentials: false, refresh_token: true }
    }),
    ("access_ttl", |client| client.access_ttl = Some(Duration::ZERO)),
    ("refresh_ttl", |client| client.refresh_ttl = Some(Duration::from_secs(61))),
    ("a lifetime moved", |client| client.refresh_idle = client.refresh_ttl.take()),
    ("rate_plan", |client| client.rate_plan = "bulk".parse().unwrap()),
    ("disabled", |client| client.disabled = true),
    ("revision", |client| client.revision = 2),
    ("created_at", |client| client.created_at = Timestamp::from_millis(1)),
    ("updated_at", |client| client.updated_at = Timestamp::from_millis(1)),
    ("a secret less", |client| drop(client.credentials.pop())),
    ("a secret's id", |client| first(client).id = "s3".parse().unwrap()),
    ("a secret's digest", |client| first(client).digest = Digest::Keyed { hmac: "hmad".into() }),
    ("a digest's kind", |client| first(client).digest = Digest::Argon2id { phc: "hmac".into() }),
    ("a secret's expiry", |client| first(client).expires_at = Some(Timestamp::EPOCH)),
    ("secrets swapped", |client| client.credentials.swap(0, 1)),
    ("the code", |client| client.mac.0[31] ^= 1),
    ("no code", |client| client.mac = Mac::default()),
];

/// The client record MAC: whatever is changed without the key, the record is no longer authentic.
#[test]
fn no_field_can_be_changed_without_the_key() {
    assert!(key().is_authentic(&client()));
    for (what, change) in CHANGES {
        let mut changed = client();
        change(&mut changed);
        assert!(!key().is_authentic(&changed), "{what}");
        if !what.ends_with("code") {
            assert!(key().is_authentic(&key().seal_client(changed)), "{what}: sealed again it is");
        }
    }
    assert!(!RecordKey::new([8; 32]).is_authentic(&client()), "another key");
}

/// Uses are counted beside the record, many a minute, and are no part of what is sealed.
#[test]
fn uses_of_secrets_are_not_sealed() {
    let mut used = client();
    (first(&mut used).use_count, first(&mut used).last_used_at) =
        (9, Some(Timestamp::from_millis(5)));
    assert!(key().is_authentic(&used));
}

/// A record is written as JSON and as BSON: what is no code there is a record without one, not one
/// that cannot be read.
#[test]
fn a_code_reads_back_and_a_wrong_one_is_none() {
    let written = serde_json::to_value(client()).unwrap();
    assert_eq!(serde_json::from_value::<Client>(written.clone()).unwrap(), client());
    for wrong in ["", "AAAA", "not base64", &"A".repeat(44)] {
        let mut other = written.clone();
        other["mac"] = wrong.into();
        assert_eq!(serde_json::from_value::<Client>(other).unwrap().mac, Mac::default(), "{wrong}");
    }
    let mut none = written;
    none.as_object_mut().unwrap().remove("mac");
    assert!(!key().is_authentic(&serde_json::from_value(none).unwrap()));
}

/// A kind of credential that this version does not know makes the record unreadable; it is never
/// left out and the rest accepted.
#[test]
fn an_unknown_kind_of_credential_is_no_client() {
    let written = serde_json::to_value(client()).unwrap();
    assert!(written["credentials"][0]["secret"].is_object());
    let second = &written["credentials"][1]["secret"];
    for forged in [
        serde_json::json!({"key": second}),
        serde_json::json!({"secret": second, "key": second}),
        serde_json::json!("secret"),
        serde_json::json!({}),
    ] {
        let mut other = written.clone();
        other["credentials"][1] = forged.clone();
        assert!(serde_json::from_value::<Client>(other).is_err(), "{forged}");
    }
    let mut none = written;
    none.as_object_mut().unwrap().remove("credentials");
    assert!(serde_json::from_value::<Client>(none).is_err(), "no list");
}

/// A named change of an audience's record.
type AudienceChange = (&'static str, fn(&mut AudienceRecord));

/// AUDIT AZ10: the code of an audience's record covers every field, and is no client's.
#[test]
fn a_code_fits_one_record_of_an_audience_alone() {
    let record = key().seal_audience(AudienceRecord {
        audience: "urn:a".parse().unwrap(),
        tenant: "acme".parse().unwrap(),
        claimed_by: "root".parse().unwrap(),
        created_at: Timestamp::EPOCH,
        releasing: false,
        revision: 1,
        mac: Mac::default(),
    });
    assert!(key().is_authentic_audience(&record));
    let changes: [AudienceChange; 7] = [
        ("audience", |record| record.audience = "urn:b".parse().unwrap()),
        ("tenant", |record| record.tenant = "globex".parse().unwrap()),
        ("claimed_by", |record| record.claimed_by = "other".parse().unwrap()),
        ("created_at", |record| record.created_at = Timestamp::from_millis(1)),
        ("releasing", |record| record.releasing = true),
        ("revision", |record| record.revision = 2),
        ("mac", |record| record.mac = Mac::default()),
    ];
    for (what, change) in changes {
        let mut changed = record.clone();
        change(&mut changed);
        assert!(!key().is_authentic_audience(&changed), "{what}");
    }
    assert!(!RecordKey::new([8; 32]).is_authentic_audience(&record), "another key");
}
