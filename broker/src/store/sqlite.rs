//! SQLite: a file, written through a log that is forced to the disk with every transaction.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use super::{Change, Committed, Job, Row, StoreError, blocking, signed, sql};
use crate::audit::{Entry, Head};
use crate::path::{Listed, ResourcePath};

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS resource (
    path TEXT PRIMARY KEY, version INTEGER NOT NULL, policy TEXT, sealed BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS audit (
    sequence INTEGER PRIMARY KEY, record TEXT NOT NULL, digest BLOB NOT NULL) STRICT;
CREATE TRIGGER IF NOT EXISTS audit_is_not_changed BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER IF NOT EXISTS audit_is_not_deleted BEFORE DELETE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
";

/// How long a connection waits for another process that writes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A file with a connection that writes and one that reads; readers don't wait for the writer.
#[derive(Debug)]
pub struct Sqlite {
    writer: Arc<Mutex<Connection>>,
    reader: Arc<Mutex<Connection>>,
}

impl Sqlite {
    pub(super) fn open(file: &Path, root_key_check: &str) -> Result<Self, StoreError> {
        let mut writer = connect(file)?;
        prepare(&mut writer, root_key_check)?;
        let reader = connect(file)?;
        Ok(Self {
            writer: Arc::new(Mutex::new(writer)),
            reader: Arc::new(Mutex::new(reader)),
        })
    }

    pub(super) async fn read(&self, path: &ResourcePath) -> Result<Option<Row>, StoreError> {
        let path = path.clone();
        self.with_reader(move |reader| {
            reader
                .prepare_cached(sql::READ)?
                .query_row([path.as_str()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()
        })
        .await?
        .map(sql::row)
        .transpose()
    }

    pub(super) async fn list(&self) -> Result<Vec<Listed>, StoreError> {
        self.with_reader(|reader| {
            reader
                .prepare_cached("SELECT path, version, policy IS NOT NULL FROM resource ORDER BY path")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .collect::<Result<Vec<_>, _>>()
        })
        .await?
        .into_iter()
        .map(sql::listed)
        .collect()
    }

    pub(super) async fn audit(&self, after: u64, limit: u32) -> Result<Vec<Entry>, StoreError> {
        let after = signed(after).unwrap_or(i64::MAX);
        self.with_reader(move |reader| {
            reader
                .prepare_cached(sql::ENTRIES)?
                .query_map(params![after, limit], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })?
                .collect::<Result<Vec<_>, _>>()
        })
        .await?
        .into_iter()
        .map(sql::entry)
        .collect()
    }

    pub(super) async fn commit(&self, jobs: Vec<Job>) -> Result<Committed, StoreError> {
        let writer = Arc::clone(&self.writer);
        blocking(move || {
            let mut writer = lock(&writer);
            // Takes the write lock at once: two brokers on one file append one after the other.
            let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut head = head(&transaction)?;
            let mut results = Vec::with_capacity(jobs.len());
            for job in jobs {
                let result = apply(&transaction, job, &head)?;
                if let Ok(next) = &result {
                    head = *next;
                }
                results.push(result);
            }
            transaction.commit()?;
            Ok((results, head))
        })
        .await
    }

    async fn with_reader<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let reader = Arc::clone(&self.reader);
        blocking(move || Ok(work(&lock(&reader))?)).await
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        StoreError::Database(error.to_string())
    }
}

/// A connection has no state of ours that a panic could leave half done: its transaction is rolled back.
fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect(file: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open(file)?;
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // In WAL mode only FULL forces the log to the disk with every transaction.
    connection.pragma_update(None, "synchronous", "FULL")?;
    // What a removed secret leaves is ciphertext; there is no need to keep it, though.
    connection.pragma_update(None, "secure_delete", true)?;
    Ok(connection)
}

fn prepare(connection: &mut Connection, root_key_check: &str) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES)?;
    for (name, value) in sql::meta(root_key_check) {
        transaction.execute(sql::META_INSERT, [name, value])?;
        let found = transaction.query_row(sql::META_READ, [name], |row| row.get(0))?;
        sql::check_meta(name, value, found)?;
    }
    transaction.commit()?;
    Ok(())
}

fn head(transaction: &Transaction<'_>) -> Result<Head, StoreError> {
    let last = transaction
        .prepare_cached(sql::HEAD)?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    sql::head(last)
}

/// The outer error ends the transaction, the inner one only this job.
fn apply(
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
            } => transaction.prepare_cached(sql::INSERT)?.execute(params![
                path.as_str(),
                signed(row.version)?,
                row.policy,
                row.sealed.0
            ])?,
            Change::Write {
                path,
                expected: Some(expected),
                row,
            } => transaction.prepare_cached(sql::UPDATE)?.execute(params![
                signed(row.version)?,
                row.policy,
                row.sealed.0,
                path.as_str(),
                signed(*expected)?
            ])?,
            Change::Remove { path, expected } => transaction
                .prepare_cached(sql::REMOVE)?
                .execute(params![path.as_str(), signed(*expected)?])?,
        };
        if changed == 0 {
            return Ok(Err(StoreError::Conflict));
        }
    }
    let (entry, next) = head.append(&job.decision);
    transaction.prepare_cached(sql::APPEND)?.execute(params![
        signed(entry.sequence)?,
        entry.record,
        &next.digest[..]
    ])?;
    Ok(Ok(next))
}
