//! Clients, and the use counts of their secrets in a table of their own: those are written far more
//! often.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension};

use super::tenanted::Table;
use crate::{
    model::{Client, ClientId, EpochOf, Event, TenantId, Timestamp},
    store::{
        Change, ClientStore, Creation, Listed, Result, SecretUse, Write,
        embedded::{
            Embedded,
            engine::{
                batch::{Batch, EventText, Priority, from_sql, to_sql},
                error::{SqliteError, check_ascending, malformed},
            },
            integrity::checksum,
        },
    },
};

const CLIENTS: Table = Table { name: "clients", record: "client" };

#[async_trait]
impl ClientStore for Embedded {
    async fn client(&self, id: &ClientId) -> Result<Option<Client>> {
        let id = id.clone();
        self.read(move |connection| {
            find(connection, &id)?.map(|client| with_uses(connection, client)).transpose()
        })
        .await
    }

    async fn clients(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&ClientId>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        let (tenant, after) = (tenant.cloned(), after.cloned());
        self.scan(move |connection| listing(connection, tenant.as_ref(), after.as_ref(), limit))
            .await
    }

    async fn create_client(&self, client: &Client, event: Event) -> Result<Creation> {
        let (client, entry) = (StoredClient::new(client)?, EventText::new(event)?);
        self.write(Priority::Normal, move |batch| batch.create_client(&client, false, &entry)).await
    }

    async fn create_client_of_any(&self, client: &Client, event: Event) -> Result<Creation> {
        let (client, entry) = (StoredClient::new(client)?, EventText::new(event)?);
        self.write(Priority::Normal, move |batch| batch.create_client(&client, true, &entry)).await
    }

    async fn replace_client(&self, client: &Client, event: Event) -> Result<Write> {
        let priority = Priority::of(event.action);
        let (client, entry) = (StoredClient::new(client)?, [EventText::new(event)?]);
        self.write(priority, move |batch| batch.replace_client(&client, &entry)).await
    }

    async fn end_client(&self, client: &Client, events: Vec<Event>, ended: Event) -> Result<Write> {
        let (client, entries, ended) =
            (StoredClient::new(client)?, EventText::all(events)?, EventText::new(ended)?);
        self.write(Priority::Revocation, move |batch| batch.end_client(&client, &entries, &ended))
            .await
    }

    async fn delete_client(&self, client: &Client, event: Event) -> Result<Write> {
        let (client, entry) = (client.clone(), [EventText::new(event)?]);
        self.write(Priority::Normal, move |batch| batch.delete_client(&client, &entry)).await
    }

    async fn record_secret_uses(&self, uses: &[SecretUse]) -> Result<()> {
        let uses = uses.to_vec();
        self.write(Priority::Normal, move |batch| {
            uses.iter().try_for_each(|used| batch.record_secret_use(used))
        })
        .await
    }
}

/// Client as it is stored, without use counts.
pub(crate) struct StoredClient {
    client: Client,
    body: String,
}

impl StoredClient {
    pub(crate) fn new(client: &Client) -> Result<Self, SqliteError> {
        let client = client.without_secret_uses();
        let body = serde_json::to_string(&client).map_err(malformed("client"))?;
        Ok(Self { client, body })
    }
}

impl Batch<'_> {
    pub(super) fn create_client(
        &mut self,
        stored: &StoredClient,
        of_any: bool,
        entry: &EventText,
    ) -> Result<Creation, SqliteError> {
        let Client { id, tenant, .. } = &stored.client;
        if !of_any && self.deleted_of(id)?.is_some_and(|owner| owner != *tenant) {
            return Ok(Creation::Taken);
        }
        if !self.insert_client(stored)? {
            return Ok(Creation::Taken);
        }
        self.forget_deleted(id)?;
        self.append(entry)?;
        self.change(Change::Client(stored.client.id.clone()));
        Ok(Creation::Created)
    }

    /// Returns true if the id was free.
    pub(crate) fn insert_client(
        &self,
        StoredClient { client, body }: &StoredClient,
    ) -> Result<bool, SqliteError> {
        let (id, tenant, revision) =
            (client.id.as_str(), client.tenant.as_str(), to_sql(client.revision));
        let written = self.execute(
            "INSERT OR IGNORE INTO clients (id, tenant, revision, body, sum) VALUES (?1, ?2, ?3, \
             ?4, ?5)",
            (id, tenant, revision, body, CLIENTS.sum(id, tenant, revision, body)),
        )?;
        Ok(written == 1)
    }

    /// Writes a client and raises its epoch.
    pub(super) fn end_client(
        &mut self,
        stored: &StoredClient,
        entries: &[EventText],
        ended: &EventText,
    ) -> Result<Write, SqliteError> {
        let written = self.replace_client(stored, entries)?;
        if written == Write::Done {
            self.raise_epoch(&EpochOf::Client(stored.client.id.clone()), ended)?;
        }
        Ok(written)
    }

    pub(super) fn replace_client(
        &mut self,
        StoredClient { client, body }: &StoredClient,
        entries: &[EventText],
    ) -> Result<Write, SqliteError> {
        let Some(before) = client.revision.checked_sub(1) else { return Ok(Write::Stale) };
        if !self.keeps(client, before)? {
            return Ok(Write::Stale);
        }
        let (id, tenant, revision) =
            (client.id.as_str(), client.tenant.as_str(), to_sql(client.revision));
        self.execute(
            "UPDATE clients SET tenant = ?2, revision = ?3, body = ?4, sum = ?5 WHERE id = ?1",
            (id, tenant, revision, body, CLIENTS.sum(id, tenant, revision, body)),
        )?;
        for secret in self.noted_secrets(id)? {
            if !client.secrets().any(|kept| kept.id.as_str() == secret) {
                self.execute(
                    "DELETE FROM secret_uses WHERE client = ?1 AND secret = ?2",
                    (id, secret),
                )?;
            }
        }
        self.append_all(entries)?;
        self.change(Change::Client(client.id.clone()));
        Ok(Write::Done)
    }

    pub(super) fn delete_client(
        &mut self,
        client: &Client,
        entries: &[EventText],
    ) -> Result<Write, SqliteError> {
        let (id, key) = (&client.id, client.id.as_str());
        if !self.keeps(client, client.revision)? {
            return Ok(Write::Stale);
        }
        self.execute("DELETE FROM clients WHERE id = ?1", (key,))?;
        self.execute("DELETE FROM secret_uses WHERE client = ?1", (key,))?;
        self.keep_deleted(id, &client.tenant)?;
        self.append_all(entries)?;
        self.change(Change::Client(id.clone()));
        Ok(Write::Done)
    }

    /// Returns true if the stored client is this one, at this revision. Revisions restart at 1
    /// after a client was deleted, so its tenant and the time of its creation count too: a late
    /// change of a deleted client must not reach the next one of its id.
    fn keeps(&self, client: &Client, revision: u64) -> Result<bool, SqliteError> {
        let is_kept = |kept: Client| kept.revision == revision && kept.is_registration_of(client);
        Ok(find(self.connection, &client.id)?.is_some_and(is_kept))
    }

    fn noted_secrets(&self, client: &str) -> Result<Vec<String>, SqliteError> {
        let mut statement =
            self.connection.prepare_cached("SELECT secret FROM secret_uses WHERE client = ?1")?;
        let secrets =
            statement.query_map((client,), |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        Ok(secrets)
    }

    pub(crate) fn record_secret_use(&self, used: &SecretUse) -> Result<(), SqliteError> {
        let known = find(self.connection, &used.client)?;
        if known.is_some_and(|client| client.secrets().any(|secret| secret.id == used.secret)) {
            let before = uses(self.connection, used.client.as_str(), used.secret.as_str())?;
            let (at, count) = before.map_or((used.at, used.count), |(at, count)| {
                (at.max(used.at), count.saturating_add(used.count))
            });
            let sum = sum_of_use(used.client.as_str(), used.secret.as_str(), at, count);
            self.execute(
                "INSERT OR REPLACE INTO secret_uses (client, secret, last_used_at, uses, sum) \
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                (used.client.as_str(), used.secret.as_str(), at.millis(), to_sql(count), sum),
            )?;
        }
        Ok(())
    }
}

/// Returns a client without use counts.
pub(crate) fn find(connection: &Connection, id: &ClientId) -> Result<Option<Client>, SqliteError> {
    CLIENTS.find(connection, id.as_str())?.map(|row| CLIENTS.decode(row)).transpose()
}

fn listing(
    connection: &Connection,
    tenant: Option<&TenantId>,
    after: Option<&ClientId>,
    limit: usize,
) -> Result<Vec<Listed>, SqliteError> {
    let (mut listed, mut last) = (Vec::new(), after.map_or_else(String::new, ToString::to_string));
    while listed.len() < limit {
        let rows = CLIENTS.rows(connection, tenant, &last, limit.saturating_sub(listed.len()))?;
        let Some((id, ..)) = rows.last() else { break };
        last.clone_from(id);
        for row in rows {
            // A row whose key is not a valid client id is not even named.
            let Ok(id) = row.0.parse::<ClientId>() else { continue };
            listed.push(
                match CLIENTS.decode(row).and_then(|client| with_uses(connection, client)) {
                    Ok(client)
                        if client.id == id
                            && tenant.is_none_or(|tenant| client.tenant == *tenant) =>
                    {
                        Listed::Client(Box::new(client))
                    }
                    Ok(_) | Err(SqliteError::Malformed(_)) => Listed::NotAuthentic(id),
                    Err(fault) => return Err(fault),
                },
            );
        }
    }
    check_ascending(after, listed.iter().map(Listed::id))?;
    Ok(listed)
}

/// Returns clients in the order of their ids.
pub(crate) fn page(
    connection: &Connection,
    after: Option<&ClientId>,
    limit: usize,
) -> Result<Vec<Client>, SqliteError> {
    without_use_counts(connection, after, limit)?
        .into_iter()
        .map(|client| with_uses(connection, client))
        .collect()
}

/// Returns clients in the order of their ids, without use counts.
pub(crate) fn without_use_counts(
    connection: &Connection,
    after: Option<&ClientId>,
    limit: usize,
) -> Result<Vec<Client>, SqliteError> {
    let rows = CLIENTS.rows(connection, None, after.map_or("", ClientId::as_str), limit)?;
    let clients = rows
        .into_iter()
        .map(|row| CLIENTS.decode(row))
        .collect::<Result<Vec<Client>, SqliteError>>()?;
    check_ascending(after, clients.iter().map(|client| &client.id))?;
    Ok(clients)
}

fn with_uses(connection: &Connection, mut client: Client) -> Result<Client, SqliteError> {
    let id = client.id.clone();
    for secret in client.secrets_mut() {
        if let Some((at, count)) = uses(connection, id.as_str(), secret.id.as_str())? {
            secret.last_used_at = Some(at);
            secret.use_count = count;
        }
    }
    Ok(client)
}

fn uses(
    connection: &Connection,
    client: &str,
    secret: &str,
) -> Result<Option<(Timestamp, u64)>, SqliteError> {
    let mut statement = connection.prepare_cached(
        "SELECT last_used_at, uses, sum FROM secret_uses WHERE client = ?1 AND secret = ?2",
    )?;
    let row = statement.query_row((client, secret), |row| row.try_into()).optional()?;
    row.map(|row| decode_use(client, secret, row)).transpose()
}

/// Decodes the last use and the use count of a secret, if the row matches its checksum.
pub(crate) fn decode_use(
    client: &str,
    secret: &str,
    (at, count, kept): (i64, i64, Vec<u8>),
) -> Result<(Timestamp, u64), SqliteError> {
    let (at, count) = (Timestamp::from_millis(at), from_sql(count));
    if sum_of_use(client, secret, at, count) != kept.as_slice() {
        return Err(SqliteError::Malformed(
            "secret use: the row does not match its checksum".into(),
        ));
    }
    Ok((at, count))
}

fn sum_of_use(client: &str, secret: &str, at: Timestamp, count: u64) -> [u8; 16] {
    let (at, count) = (at.millis().to_be_bytes(), count.to_be_bytes());
    checksum::row("secret_uses", &[client.as_bytes(), secret.as_bytes(), &at, &count])
}
