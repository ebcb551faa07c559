//! PostgreSQL: a server, reached over a Unix socket, loopback or a network that is protected otherwise; connections
//! carry ciphertext and decisions but are not encrypted here. An address that asks for TLS is refused by the driver.

use tokio::sync::Mutex;
use tokio_postgres::{Client, NoTls, Transaction};

use super::{Change, Committed, Job, Row, SCHEMA, StoreError, digest, number, path, signed};
use crate::audit::{Entry, Head};
use crate::path::{Listed, ResourcePath};
use crate::seal::Sealed;

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
    url: String,
    writer: Mutex<Client>,
    reader: Mutex<Client>,
}

impl Postgres {
    pub(super) async fn open(url: &str, root_key_check: &str) -> Result<Self, StoreError> {
        let mut writer = connect(url).await?;
        prepare(&mut writer, root_key_check).await?;
        Ok(Self {
            url: url.to_owned(),
            writer: Mutex::new(writer),
            reader: Mutex::new(connect(url).await?),
        })
    }

    pub(super) async fn read(&self, path: &ResourcePath) -> Result<Option<Row>, StoreError> {
        let mut reader = self.reader.lock().await;
        let reader = self.alive(&mut reader).await?;
        let sql = "SELECT version, policy, sealed FROM resource WHERE path = $1";
        let row = reader.query_opt(sql, &[&path.as_str()]).await?;
        row.map(|row| {
            Ok(Row {
                version: number(row.try_get(0)?)?,
                policy: row.try_get(1)?,
                sealed: Sealed(row.try_get(2)?),
            })
        })
        .transpose()
    }

    pub(super) async fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let mut reader = self.reader.lock().await;
        let reader = self.alive(&mut reader).await?;
        // The C collation orders as SQLite does.
        let sql = "SELECT path, version, policy IS NOT NULL FROM resource ORDER BY path COLLATE \"C\"";
        let rows = reader.query(sql, &[]).await?;
        rows.iter()
            .map(|row| {
                Ok(Listed {
                    path: path(row.try_get(0)?)?,
                    version: number(row.try_get(1)?)?,
                    policy: row.try_get(2)?,
                })
            })
            .collect()
    }

    pub(super) async fn audit(&self, after: u64, limit: u32) -> Result<Vec<Entry>, StoreError> {
        let mut reader = self.reader.lock().await;
        let reader = self.alive(&mut reader).await?;
        let sql = "SELECT sequence, record, digest FROM audit WHERE sequence > $1 ORDER BY sequence LIMIT $2";
        let after = signed(after).unwrap_or(i64::MAX);
        let rows = reader.query(sql, &[&after, &i64::from(limit)]).await?;
        rows.iter()
            .map(|row| {
                Ok(Entry {
                    sequence: number(row.try_get(0)?)?,
                    record: row.try_get(1)?,
                    digest: hex::encode(row.try_get::<_, &[u8]>(2)?),
                })
            })
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
            *client = connect(&self.url).await?;
        }
        Ok(client)
    }
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> Self {
        let detail = error.as_db_error().map(|error| format!(": {error}"));
        StoreError::Database(format!("{error}{}", detail.unwrap_or_default()))
    }
}

async fn connect(url: &str) -> Result<Client, StoreError> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // Ends with the client; what goes wrong in it, the client's next call says.
    tokio::spawn(connection);
    // Whatever the server's default is, a commit is on the disk when it returns.
    client.batch_execute("SET synchronous_commit = on").await?;
    Ok(client)
}

async fn prepare(client: &mut Client, root_key_check: &str) -> Result<(), StoreError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(TABLES).await?;
    for (name, value) in [("schema", SCHEMA), ("root-key", root_key_check)] {
        let insert = "INSERT INTO meta VALUES ($1, $2) ON CONFLICT DO NOTHING";
        transaction.execute(insert, &[&name, &value]).await?;
        let found: String = transaction
            .query_one("SELECT value FROM meta WHERE name = $1", &[&name])
            .await?
            .try_get(0)?;
        match name {
            _ if found == value => {}
            "schema" => return Err(StoreError::Schema(found)),
            _ => return Err(StoreError::RootKey),
        }
    }
    transaction.commit().await?;
    Ok(())
}

async fn head(transaction: &Transaction<'_>) -> Result<Head, StoreError> {
    let sql = "SELECT sequence, digest FROM audit ORDER BY sequence DESC LIMIT 1";
    match transaction.query_opt(sql, &[]).await? {
        None => Ok(Head::default()),
        Some(row) => Ok(Head {
            sequence: number(row.try_get(0)?)?,
            digest: digest(row.try_get(1)?)?,
        }),
    }
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
                let sql = "INSERT INTO resource VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
                transaction
                    .execute(
                        sql,
                        &[&path.as_str(), &signed(row.version)?, &row.policy, &row.sealed.0],
                    )
                    .await?
            }
            Change::Write {
                path,
                expected: Some(expected),
                row,
            } => {
                let sql = "UPDATE resource SET version = $2, policy = $3, sealed = $4 WHERE path = $1 AND version = $5";
                let (version, expected) = (signed(row.version)?, signed(*expected)?);
                transaction
                    .execute(
                        sql,
                        &[&path.as_str(), &version, &row.policy, &row.sealed.0, &expected],
                    )
                    .await?
            }
            Change::Remove { path, expected } => {
                let sql = "DELETE FROM resource WHERE path = $1 AND version = $2";
                transaction
                    .execute(sql, &[&path.as_str(), &signed(*expected)?])
                    .await?
            }
        };
        if changed == 0 {
            return Ok(Err(StoreError::Conflict));
        }
    }
    let (entry, next) = head.append(&job.decision);
    let sql = "INSERT INTO audit VALUES ($1, $2, $3)";
    transaction
        .execute(sql, &[&signed(entry.sequence)?, &entry.record, &&next.digest[..]])
        .await?;
    Ok(Ok(next))
}
