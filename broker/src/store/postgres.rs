//! PostgreSQL: a server, over TLS where roots are configured, else over a Unix socket, loopback or a network that is
//! protected otherwise. Connections carry ciphertext and decisions.

use std::path::Path;

use tokio::sync::Mutex;
use tokio_postgres::config::SslMode;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Transaction};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Change, Committed, Job, Row, StoreError, signed, sql};
use crate::audit::{Entry, Head};
use crate::path::{Listed, ResourcePath};
use crate::tls;

/// The lock makes two brokers that start together on an empty database do so one after the other.
const TABLES: &str = "
SELECT pg_advisory_xact_lock(7163384699);
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS resource (
    path TEXT PRIMARY KEY, version BIGINT NOT NULL, policy TEXT, sealed BYTEA NOT NULL);
CREATE TABLE IF NOT EXISTS audit (
    sequence BIGINT PRIMARY KEY, record TEXT NOT NULL, digest BYTEA NOT NULL);
CREATE OR REPLACE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$;
CREATE OR REPLACE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();
";

/// A server, with a connection that writes and one that reads. A lost one is made again at its next use.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
    writer: Mutex<Client>,
    reader: Mutex<Client>,
}

impl Postgres {
    pub(super) async fn open(
        url: &str,
        roots: Option<&Path>,
        root_key_check: &str,
    ) -> Result<Self, StoreError> {
        let server = Server::new(url, roots)?;
        let mut writer = server.connect().await?;
        prepare(&mut writer, root_key_check).await?;
        Ok(Self {
            writer: Mutex::new(writer),
            reader: Mutex::new(server.connect().await?),
            server,
        })
    }

    pub(super) async fn read(&self, path: &ResourcePath) -> Result<Option<Row>, StoreError> {
        let mut reader = self.reader.lock().await;
        let reader = self.alive(&mut reader).await?;
        let row = reader.query_opt(sql::READ, &[&path.as_str()]).await?;
        row.map(|row| sql::row((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
            .transpose()
    }

    pub(super) async fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let mut reader = self.reader.lock().await;
        let reader = self.alive(&mut reader).await?;
        // The C collation orders as SQLite does.
        let sql = "SELECT path, version, policy IS NOT NULL FROM resource ORDER BY path COLLATE \"C\"";
        let rows = reader.query(sql, &[]).await?;
        rows.iter()
            .map(|row| sql::listed((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
            .collect()
    }

    pub(super) async fn audit(&self, after: u64, limit: u32) -> Result<Vec<Entry>, StoreError> {
        let mut reader = self.reader.lock().await;
        let reader = self.alive(&mut reader).await?;
        let after = signed(after).unwrap_or(i64::MAX);
        let rows = reader.query(sql::ENTRIES, &[&after, &i64::from(limit)]).await?;
        rows.iter()
            .map(|row| sql::entry((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
            .collect()
    }

    pub(super) async fn commit(&self, jobs: Vec<Job>) -> Result<Committed, StoreError> {
        let mut writer = self.writer.lock().await;
        let transaction = self.alive(&mut writer).await?.transaction().await?;
        // Brokers on one database append one after the other; readers are not held up.
        transaction
            .batch_execute("LOCK TABLE audit IN EXCLUSIVE MODE")
            .await?;
        let mut head = head(&transaction).await?;
        let mut results = Vec::with_capacity(jobs.len());
        for job in jobs {
            let result = apply(&transaction, job, &head).await?;
            if let Ok(next) = &result {
                head = *next;
            }
            results.push(result);
        }
        transaction.commit().await?;
        Ok((results, head))
    }

    async fn alive<'a>(&self, client: &'a mut Client) -> Result<&'a mut Client, StoreError> {
        if client.is_closed() {
            *client = self.server.connect().await?;
        }
        Ok(client)
    }
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> Self {
        // What the server said, what TLS found: the error itself names only the step.
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        StoreError::Database(format!("{error}{}", cause.unwrap_or_default()))
    }
}

/// Where the server is, and who it has to be.
#[derive(Debug)]
struct Server {
    config: tokio_postgres::Config,
    tls: Option<rustls::ClientConfig>,
}

impl Server {
    fn new(url: &str, roots: Option<&Path>) -> Result<Self, StoreError> {
        let mut config: tokio_postgres::Config = url.parse()?;
        let tls = roots
            .map(tls::client)
            .transpose()
            .map_err(|error| StoreError::Roots(error.to_string()))?;
        if tls.is_some() {
            // Not `prefer`, the default: whoever is between could say that the server has no TLS.
            config.ssl_mode(SslMode::Require);
        }
        Ok(Self { config, tls })
    }

    async fn connect(&self) -> Result<Client, StoreError> {
        // A connection ends with its client; what goes wrong in it, the client's next call says.
        let client = match &self.tls {
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                tokio::spawn(connection);
                client
            }
            Some(tls) => {
                let tls = MakeRustlsConnect::new(tls.clone());
                let (client, connection) = self.config.connect(tls).await?;
                tokio::spawn(connection);
                client
            }
        };
        // Whatever the server's default is, a commit is on the disk when it returns.
        client.batch_execute("SET synchronous_commit = on").await?;
        Ok(client)
    }
}

async fn prepare(client: &mut Client, root_key_check: &str) -> Result<(), StoreError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(TABLES).await?;
    for (name, value) in sql::meta(root_key_check) {
        transaction.execute(sql::META_INSERT, &[&name, &value]).await?;
        let row = transaction.query_one(sql::META_READ, &[&name]).await?;
        sql::check_meta(name, value, row.try_get(0)?)?;
    }
    transaction.commit().await?;
    Ok(())
}

async fn head(transaction: &Transaction<'_>) -> Result<Head, StoreError> {
    let last = transaction.query_opt(sql::HEAD, &[]).await?;
    let last = last.map(|row| Ok::<_, StoreError>((row.try_get(0)?, row.try_get(1)?)));
    sql::head(last.transpose()?)
}

async fn apply(
    transaction: &Transaction<'_>,
    job: Job,
    head: &Head,
) -> Result<Result<Head, StoreError>, StoreError> {
    if let Some(change) = &job.change {
        let changed = match change {
            Change::Write {
                path,
                expected: None,
                row,
            } => {
                let version = signed(row.version)?;
                let values: [&(dyn ToSql + Sync); 4] = [&path.as_str(), &version, &row.policy, &row.sealed.0];
                transaction.execute(sql::INSERT, &values).await?
            }
            Change::Write {
                path,
                expected: Some(expected),
                row,
            } => {
                let (version, expected) = (signed(row.version)?, signed(*expected)?);
                let values: [&(dyn ToSql + Sync); 5] =
                    [&version, &row.policy, &row.sealed.0, &path.as_str(), &expected];
                transaction.execute(sql::UPDATE, &values).await?
            }
            Change::Remove { path, expected } => {
                let values: [&(dyn ToSql + Sync); 2] = [&path.as_str(), &signed(*expected)?];
                transaction.execute(sql::REMOVE, &values).await?
            }
        };
        if changed == 0 {
            return Ok(Err(StoreError::Conflict));
        }
    }
    let (entry, next) = head.append(&job.decision);
    transaction
        .execute(
            sql::APPEND,
            &[&signed(entry.sequence)?, &entry.record, &&next.digest[..]],
        )
        .await?;
    Ok(Ok(next))
}
