//! Lists of a client that an update changes by single entries, and what it replaced.

use clap::Args;

use super::Grant;
use crate::{
    cli::{error::Failure, render},
    proto::admin::Client,
};

/// Lists of texts that a client has, by their names in the proto.
const TEXTS: [&str; 5] = ["scopes", "default_scopes", "roles", "audiences", "serves"];
const GRANTS: &str = "grant_types";

/// Entries to add and to remove.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Changes of lists, which keep the other entries")]
pub(super) struct ListChanges {
    /// Add a scope, repeatable
    #[arg(long = "add-scope", value_name = "SCOPE")]
    add_scopes: Vec<String>,
    /// Remove a scope, repeatable
    #[arg(long = "remove-scope", value_name = "SCOPE")]
    remove_scopes: Vec<String>,
    /// Add a default scope, repeatable
    #[arg(long = "add-default-scope", value_name = "SCOPE")]
    add_default_scopes: Vec<String>,
    /// Remove a default scope, repeatable
    #[arg(long = "remove-default-scope", value_name = "SCOPE")]
    remove_default_scopes: Vec<String>,
    /// Add a role, repeatable
    #[arg(long = "add-role", value_name = "ROLE")]
    add_roles: Vec<String>,
    /// Remove a role, repeatable
    #[arg(long = "remove-role", value_name = "ROLE")]
    remove_roles: Vec<String>,
    /// Add an audience, repeatable
    #[arg(long = "add-audience", value_name = "URI")]
    add_audiences: Vec<String>,
    /// Remove an audience, repeatable
    #[arg(long = "remove-audience", value_name = "URI")]
    remove_audiences: Vec<String>,
    /// Add an audience whose tokens the client may introspect, repeatable
    #[arg(long = "add-serves", value_name = "URI")]
    add_serves: Vec<String>,
    /// Remove an audience whose tokens the client may introspect, repeatable
    #[arg(long = "remove-serves", value_name = "URI")]
    remove_serves: Vec<String>,
    /// Add a grant type, repeatable
    #[arg(long = "add-grant", value_name = "GRANT")]
    add_grants: Vec<Grant>,
    /// Remove a grant type, repeatable
    #[arg(long = "remove-grant", value_name = "GRANT")]
    remove_grants: Vec<Grant>,
}

impl ListChanges {
    /// Returns what is added to and removed from a list of texts.
    fn texts(&self, path: &str) -> (&[String], &[String]) {
        match path {
            "scopes" => (&self.add_scopes, &self.remove_scopes),
            "default_scopes" => (&self.add_default_scopes, &self.remove_default_scopes),
            "roles" => (&self.add_roles, &self.remove_roles),
            "audiences" => (&self.add_audiences, &self.remove_audiences),
            "serves" => (&self.add_serves, &self.remove_serves),
            _ => (&[], &[]),
        }
    }

    /// Returns the names of the lists that are changed.
    pub(super) fn paths(&self) -> Vec<&'static str> {
        let is_changed = |path: &&str| {
            let (added, removed) = self.texts(path);
            !added.is_empty() || !removed.is_empty()
        };
        let mut paths: Vec<_> = TEXTS.into_iter().filter(is_changed).collect();
        if !self.add_grants.is_empty() || !self.remove_grants.is_empty() {
            paths.push(GRANTS);
        }
        paths
    }

    /// Sets the changed lists of `new` from those of `old`, and the version that they are made
    /// from.
    pub(super) fn apply(&self, old: &Client, new: &mut Client) -> Result<(), Failure> {
        let paths = self.paths();
        if !paths.is_empty() && new.etag.is_empty() {
            new.etag.clone_from(&old.etag);
        }
        for path in paths {
            if path == GRANTS {
                let number = |grants: &[Grant]| -> Vec<i32> {
                    grants.iter().map(|grant| grant.number()).collect()
                };
                new.grant_types = changed(
                    &old.grant_types,
                    &number(&self.add_grants),
                    &number(&self.remove_grants),
                )
                .map_err(|grant| missing(old, path, render::grant(grant)))?;
                if new.grant_types.is_empty() {
                    let problem = "a client has at least one grant: disable it instead";
                    return Err(Failure::Usage(problem.to_owned()));
                }
            } else {
                let (added, removed) = self.texts(path);
                let list = changed(texts(old, path), added, removed)
                    .map_err(|entry| missing(old, path, &entry))?;
                set_texts(new, path, list);
            }
        }
        Ok(())
    }
}

/// Returns the old list with the added entries and without the removed ones, or a removed entry
/// that is not there.
fn changed<T: Clone + PartialEq>(old: &[T], added: &[T], removed: &[T]) -> Result<Vec<T>, T> {
    if let Some(missing) = removed.iter().find(|entry| !old.contains(entry)) {
        return Err(missing.clone());
    }
    let mut new: Vec<T> = old.iter().filter(|entry| !removed.contains(entry)).cloned().collect();
    for entry in added {
        if !new.contains(entry) {
            new.push(entry.clone());
        }
    }
    Ok(new)
}

fn missing(client: &Client, path: &str, entry: &str) -> Failure {
    Failure::Other(format!(
        "nothing was changed: {entry} is not among the {path} of {}",
        client.client_id
    ))
}

fn texts<'a>(client: &'a Client, path: &str) -> &'a [String] {
    match path {
        "scopes" => &client.scopes,
        "default_scopes" => &client.default_scopes,
        "roles" => &client.roles,
        "audiences" => &client.audiences,
        "serves" => &client.serves,
        _ => &[],
    }
}

fn set_texts(client: &mut Client, path: &str, list: Vec<String>) {
    match path {
        "scopes" => client.scopes = list,
        "default_scopes" => client.default_scopes = list,
        "roles" => client.roles = list,
        "audiences" => client.audiences = list,
        "serves" => client.serves = list,
        _ => {}
    }
}

/// Returns a line for each list of `old` that lost entries.
pub(super) fn removed(old: &Client, new: &Client) -> Vec<String> {
    let grants = |client: &Client| -> Vec<String> {
        client.grant_types.iter().map(|grant| render::grant(*grant).to_owned()).collect()
    };
    let mut lists: Vec<(&str, Vec<String>, Vec<String>)> = TEXTS
        .into_iter()
        .map(|path| (path, texts(old, path).to_vec(), texts(new, path).to_vec()))
        .collect();
    lists.push((GRANTS, grants(old), grants(new)));
    let line = |(path, old, new): (&str, Vec<String>, Vec<String>)| {
        let gone: Vec<String> = old.into_iter().filter(|entry| !new.contains(entry)).collect();
        (!gone.is_empty()).then(|| format!("removed from {path}: {}", gone.join(" ")))
    };
    lists.into_iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old() -> Client {
        Client {
            client_id: "c".to_owned(),
            scopes: vec!["a".to_owned(), "b".to_owned()],
            grant_types: vec![1, 2],
            etag: "7".to_owned(),
            ..Client::default()
        }
    }

    #[test]
    fn entries_are_added_and_removed_and_the_others_kept() {
        let changes = ListChanges {
            add_scopes: vec!["c".to_owned(), "b".to_owned()],
            remove_scopes: vec!["a".to_owned()],
            remove_grants: vec![Grant::RefreshToken],
            ..ListChanges::default()
        };
        assert_eq!(changes.paths(), ["scopes", "grant_types"]);
        let mut new = Client::default();
        changes.apply(&old(), &mut new).unwrap();
        assert_eq!((new.scopes.join(" ").as_str(), new.etag.as_str()), ("b c", "7"));
        assert_eq!(new.grant_types, [1]);
        let said = ["removed from scopes: a", "removed from grant_types: refresh_token"];
        assert_eq!(removed(&old(), &new), said);
        assert!(removed(&old(), &old()).is_empty());
    }

    #[test]
    fn what_is_not_there_is_not_removed() {
        let typo = ListChanges { remove_scopes: vec!["aa".to_owned()], ..ListChanges::default() };
        let failure = typo.apply(&old(), &mut Client::default()).unwrap_err();
        assert!(failure.to_string().contains("aa is not among the scopes of c"), "{failure}");
        let all = ListChanges {
            remove_grants: vec![Grant::RefreshToken, Grant::ClientCredentials],
            ..ListChanges::default()
        };
        assert_eq!(all.apply(&old(), &mut Client::default()).unwrap_err().exit_code(), 2);
    }
}
