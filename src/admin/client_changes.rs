//! Changes of a client in words, for the audit trail.

use std::time::Duration;

use crate::model::{Audience, Client, Grants, Role, Scope};

/// Most bytes of the entries of one list; a client may have 50 audiences of some hundred bytes.
const LIST_MAX_BYTES: usize = 500;

/// Returns what an update changed, by the names of the fields in the protocol: entries of lists that
/// were added and removed, otherwise the old and the new value. Empty: nothing.
pub(super) fn changes(before: &Client, after: &Client) -> String {
    let values = [
        ("display_name", quoted(&before.display_name), quoted(&after.display_name)),
        ("access_token_lifetime", lifetime(before.access_ttl), lifetime(after.access_ttl)),
        ("refresh_token_lifetime", lifetime(before.refresh_ttl), lifetime(after.refresh_ttl)),
        (
            "refresh_token_idle_lifetime",
            lifetime(before.refresh_idle),
            lifetime(after.refresh_idle),
        ),
        ("rate_plan", before.rate_plan.to_string(), after.rate_plan.to_string()),
    ];
    let lists = [
        ("scopes", scopes(&before.scopes), scopes(&after.scopes)),
        ("default_scopes", scopes(&before.default_scopes), scopes(&after.default_scopes)),
        ("roles", roles(&before.roles), roles(&after.roles)),
        ("audiences", audiences(&before.audiences), audiences(&after.audiences)),
        ("serves", audiences(&before.serves), audiences(&after.serves)),
        ("grant_types", grants(before.grants), grants(after.grants)),
    ];
    let lists = lists.iter().filter_map(|(field, before, after)| {
        Some(format!("{field}: {}", list_change(before, after)?))
    });
    let values = values.iter().filter(|(_, before, after)| before != after);
    let values = values.map(|(field, before, after)| format!("{field}: {before} -> {after}"));
    lists.chain(values).collect::<Vec<_>>().join("; ")
}

fn list_change(before: &[&str], after: &[&str]) -> Option<String> {
    if before == after {
        return None;
    }
    let added = after.iter().filter(|entry| !before.contains(entry)).map(|entry| ('+', entry));
    let removed = before.iter().filter(|entry| !after.contains(entry)).map(|entry| ('-', entry));
    let entries: Vec<(char, &&str)> = added.chain(removed).collect();
    if entries.is_empty() {
        return Some("another order".to_owned());
    }
    let (mut text, mut shown) = (String::new(), 0_usize);
    for (sign, entry) in &entries {
        if shown > 0 && text.len().saturating_add(entry.len()) > LIST_MAX_BYTES {
            break;
        }
        if shown > 0 {
            text.push(' ');
        }
        text.push(*sign);
        text.push_str(entry);
        shown = shown.saturating_add(1);
    }
    let more = entries.len().saturating_sub(shown);
    Some(if more == 0 { text } else { format!("{text} and {more} more") })
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

fn lifetime(lifetime: Option<Duration>) -> String {
    lifetime.map_or_else(|| "default".to_owned(), |lifetime| format!("{} s", lifetime.as_secs()))
}

fn scopes(scopes: &crate::model::Scopes) -> Vec<&str> {
    scopes.iter().map(Scope::as_str).collect()
}

fn roles(roles: &[Role]) -> Vec<&str> {
    roles.iter().map(Role::as_str).collect()
}

fn audiences(audiences: &[Audience]) -> Vec<&str> {
    audiences.iter().map(Audience::as_str).collect()
}

fn grants(grants: Grants) -> Vec<&'static str> {
    let all = [
        (grants.client_credentials, "client_credentials"),
        (grants.refresh_token, "refresh_token"),
    ];
    all.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Mac, PlanName, Scopes, TenantId, Timestamp};

    fn orders() -> Client {
        Client {
            id: "orders".parse().unwrap(),
            tenant: TenantId::operator(),
            display_name: String::new(),
            scopes: Scopes::parse(&["a", "b"]).unwrap(),
            default_scopes: Scopes::default(),
            roles: Vec::new(),
            audiences: Vec::new(),
            serves: Vec::new(),
            grants: Grants { client_credentials: true, refresh_token: false },
            access_ttl: None,
            refresh_ttl: None,
            refresh_idle: None,
            rate_plan: PlanName::standard(),
            disabled: false,
            credentials: Vec::new(),
            revision: 1,
            created_at: Timestamp::EPOCH,
            updated_at: Timestamp::EPOCH,
            mac: Mac::default(),
        }
    }

    #[test]
    fn an_update_is_described_by_its_fields() {
        let before = orders();
        assert_eq!(changes(&before, &before), "");
        let after = Client {
            scopes: Scopes::parse(&["b", "c"]).unwrap(),
            display_name: "Orders".to_owned(),
            serves: vec!["https://x.test".parse().unwrap()],
            grants: Grants { client_credentials: true, refresh_token: true },
            access_ttl: Some(Duration::from_secs(60)),
            rate_plan: "bulk".parse().unwrap(),
            revision: 2,
            ..before.clone()
        };
        let expected = "scopes: +c -a; serves: +https://x.test; grant_types: +refresh_token; \
                        display_name: \"\" -> \"Orders\"; access_token_lifetime: default -> 60 s; \
                        rate_plan: standard -> bulk";
        assert_eq!(changes(&before, &after), expected);
        let turned = Client { scopes: Scopes::parse(&["b", "a"]).unwrap(), ..before.clone() };
        assert_eq!(changes(&before, &turned), "scopes: another order");
        let many: Vec<Role> = (0..50).map(|n| format!("role-{n:0>40}").parse().unwrap()).collect();
        let text = changes(&before, &Client { roles: many, ..before.clone() });
        assert!(text.len() < 600 && text.ends_with(" and 40 more"), "{text}");
    }
}
