//! Output of clients, as text and as JSON.

use serde_json::{Value, json};

use crate::{
    cli::{admin::Admin, error::Failure, output::Output, render},
    proto::admin::{
        Client, ListClientsRequest, Secret, client_service_client::ClientServiceClient,
    },
};

/// Lists the clients that the caller may see, page by page, up to `limit`.
pub(super) async fn list(
    output: Output,
    admin: &Admin,
    tenant: String,
    limit: usize,
) -> Result<(), Failure> {
    let mut service = ClientServiceClient::new(admin.channel());
    let (mut clients, mut forged, mut page_token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let page_size =
            i32::try_from(limit.saturating_sub(clients.len()).min(1000)).unwrap_or(1000);
        let request = admin.request(ListClientsRequest {
            tenant: tenant.clone(),
            page_size: page_size.max(1),
            page_token,
        });
        let answer = service.list_clients(request).await?.into_inner();
        clients.extend(answer.clients);
        forged.extend(answer.not_authentic);
        page_token = answer.next_page_token;
        if page_token.is_empty() || clients.len() >= limit {
            break;
        }
    }
    clients.truncate(limit);
    if output.json {
        let clients = clients.iter().map(render::client).collect::<Vec<_>>();
        return output.document(&json!({ "clients": clients, "not_authentic": forged }));
    }
    for id in &forged {
        output.talk(&format!(
            "the record of client {id} was not written by this service and is ignored: remove it \
             from the store"
        ));
    }
    let row = |client: &Client| {
        let state = if client.disabled { "disabled" } else { "" };
        let scopes = client.scopes.join(" ");
        let plan = client.rate_plan.clone();
        vec![
            client.client_id.clone(),
            client.tenant.clone(),
            client.display_name.clone(),
            scopes,
            plan,
            state.to_owned(),
        ]
    };
    output.table(
        &["client", "tenant", "name", "scopes", "plan", "state"],
        &clients.iter().map(row).collect::<Vec<_>>(),
        &["plan", "name", "tenant"],
    )
}

/// A secret that the server generated.
#[derive(Clone, Copy)]
pub(super) struct Made<'a> {
    /// Empty for the first secret of a client.
    pub(super) id: &'a str,
    /// Empty if it is not shown, or was not generated.
    pub(super) secret: &'a str,
}

/// Prints a client, and the id and value of a secret if one was generated.
pub(super) fn show(
    output: Output,
    client: Option<Client>,
    made: Option<Made<'_>>,
) -> Result<(), Failure> {
    let client =
        client.ok_or_else(|| Failure::Other("the server returned no client".to_owned()))?;
    if output.json {
        let mut document = json!({ "client": render::client(&client) });
        if let (Some(object), Some(Made { id, secret })) = (document.as_object_mut(), made) {
            object.insert(
                "client_secret".to_owned(),
                if secret.is_empty() { Value::Null } else { secret.into() },
            );
            if !id.is_empty() {
                object.insert("secret_id".to_owned(), id.into());
            }
        }
        return output.document(&document);
    }
    let mut properties = properties(&client);
    let secret = made.map_or("", |made| made.secret);
    properties.push(("client_secret", secret.to_owned()));
    output.record(&properties)?;
    if introspects_nothing(&client) {
        output.talk(
            "note: this client introspects and serves no audience, so every token is inactive for \
             it: add --serves AUDIENCE, or the scope jeton:introspect:any",
        );
    }
    if !secret.is_empty() {
        output.talk("the secret is not shown again");
    }
    Ok(())
}

/// Returns true if no token is active for a client that may introspect.
fn introspects_nothing(client: &Client) -> bool {
    let has = |scope: &str| client.scopes.iter().any(|own| own == scope);
    has("jeton:introspect") && !has("jeton:introspect:any") && client.serves.is_empty()
}

fn properties(client: &Client) -> Vec<(&'static str, String)> {
    let lifetime = |duration: &Option<prost_types::Duration>| match duration {
        Some(duration) => format!("{} s", duration.seconds),
        None => String::new(),
    };
    let secret = |secret: &Secret| {
        let mut text = format!(
            "{} ({}, used {}",
            secret.secret_id,
            render::secret_kind(secret.kind),
            render::count(secret.use_count, "time")
        );
        for (what, time) in [("last", &secret.last_used_time), ("until", &secret.expire_time)] {
            if time.is_some() {
                text.push_str(&format!(", {what} {}", render::time(time.as_ref())));
            }
        }
        text + ")"
    };
    vec![
        ("client_id", client.client_id.clone()),
        ("display_name", client.display_name.clone()),
        ("tenant", client.tenant.clone()),
        ("state", if client.disabled { "disabled".to_owned() } else { String::new() }),
        ("scopes", client.scopes.join(" ")),
        ("default_scopes", client.default_scopes.join(" ")),
        ("roles", client.roles.join(" ")),
        ("audiences", client.audiences.join(" ")),
        ("serves", client.serves.join(" ")),
        (
            "grant_types",
            client
                .grant_types
                .iter()
                .map(|value| render::grant(*value))
                .collect::<Vec<_>>()
                .join(" "),
        ),
        ("access_lifetime", lifetime(&client.access_token_lifetime)),
        ("refresh_lifetime", lifetime(&client.refresh_token_lifetime)),
        ("refresh_idle", lifetime(&client.refresh_token_idle_lifetime)),
        ("rate_plan", client.rate_plan.clone()),
        ("secrets", client.secrets.iter().map(secret).collect::<Vec<_>>().join("; ")),
        ("etag", client.etag.clone()),
        ("created", render::time(client.create_time.as_ref())),
        ("updated", render::time(client.update_time.as_ref())),
    ]
}
