//! Secrets and the audit log at rest, in SQLite or PostgreSQL.
//!
//! Everything that is written goes through [`Ledger`]: one task takes what is waiting, appends the decisions to the log
//! and carries out the changes in one transaction, and answers each caller when the database has it for good. So a
//! hundred decisions that wait together cost one write to the disk.

mod ledger;
mod postgres;
mod sql;
mod sqlite;

use std::path::PathBuf;

pub use ledger::Ledger;
use postgres::Postgres;
use sqlite::Sqlite;

use crate::audit::{Decision, Entry, Head};
use crate::config::Config;
use crate::path::{Listed, ResourcePath};
use crate::seal::Sealed;

/// Version of the tables.
const SCHEMA: &str = "1";

/// Entries of the log that are read at once.
pub const PAGE: u32 = 1000;

/// A row with a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// From 1; grows with every change of the secret or its policy.
    pub version: u64,
    /// Who may have it; nobody, while there is none.
    pub policy: Option<String>,
    /// The secret, sealed for its path, version and policy.
    pub sealed: Sealed,
}

/// A change to the secrets. `expected` is the version that the caller saw; with another one there, nothing happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Writes a row.
    Write {
        /// Which secret.
        path: ResourcePath,
        /// Version that is there now.
        expected: Option<u64>,
        /// What to write.
        row: Row,
    },
    /// Removes a row.
    Remove {
        /// Which secret.
        path: ResourcePath,
        /// Version that is there now.
        expected: u64,
    },
}

/// A decision, and the change that it allows.
#[derive(Debug, Clone)]
pub struct Job {
    /// For the log.
    pub decision: Decision,
    /// For the secrets.
    pub change: Option<Change>,
}

/// Why the store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The address of a database that is not known.
    #[error("{0:?} is no database: write sqlite:PATH or postgres://…")]
    Url(String),
    /// No roots to judge the server's certificate by.
    #[error("database_ca: {0}")]
    Roots(String),
    /// The database refused, or is away.
    #[error("database: {0}")]
    Database(String),
    /// Another change came first.
    #[error("another change of the secret came first")]
    Conflict,
    /// The database belongs to another root key.
    #[error("the database was written with another root key")]
    RootKey,
    /// The tables are of another version.
    #[error("the database's tables have version {0}, this program's are {SCHEMA}")]
    Schema(String),
    /// A row that this program did not write.
    #[error("the database holds {0}, which this program does not write")]
    Row(&'static str),
    /// The broker stops.
    #[error("the broker is stopping")]
    Stopping,
}

/// One of the two databases.
#[derive(Debug)]
pub enum Store {
    /// A file.
    Sqlite(Sqlite),
    /// A server.
    Postgres(Box<Postgres>),
}

impl Store {
    /// Opens the configured database (`sqlite:PATH`, `postgres://…`), makes the tables where there are none, and sees
    /// that they belong to the root key with this check value.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(config: &Config, root_key_check: &[u8; 32]) -> Result<Self, StoreError> {
        let url = config.database.as_str();
        let check = hex::encode(root_key_check);
        if let Some(path) = url.strip_prefix("sqlite:") {
            let path = PathBuf::from(path);
            let open = move || Sqlite::open(&path, &check);
            return blocking(open).await.map(Store::Sqlite);
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            let postgres = Postgres::open(url, config.database_ca.as_deref(), &check).await?;
            return Ok(Store::Postgres(Box::new(postgres)));
        }
        // An address may hold a password.
        Err(StoreError::Url(
            url.split(':').next().unwrap_or_default().to_owned(),
        ))
    }

    /// The secret at `path`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn read(&self, path: &ResourcePath) -> Result<Option<Row>, StoreError> {
        match self {
            Store::Sqlite(sqlite) => sqlite.read(path).await,
            Store::Postgres(postgres) => postgres.read(path).await,
        }
    }

    /// Every secret, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self) -> Result<Vec<Listed>, StoreError> {
        match self {
            Store::Sqlite(sqlite) => sqlite.list().await,
            Store::Postgres(postgres) => postgres.list().await,
        }
    }

    /// Up to [`PAGE`] entries of the log after `sequence`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn audit(&self, after: u64, limit: u32) -> Result<Vec<Entry>, StoreError> {
        let limit = limit.min(PAGE);
        match self {
            Store::Sqlite(sqlite) => sqlite.audit(after, limit).await,
            Store::Postgres(postgres) => postgres.audit(after, limit).await,
        }
    }

    /// Does all jobs in one transaction. Returns when it is on the disk.
    async fn commit(&self, jobs: Vec<Job>) -> Result<Committed, StoreError> {
        match self {
            Store::Sqlite(sqlite) => sqlite.commit(jobs).await,
            Store::Postgres(postgres) => postgres.commit(jobs).await,
        }
    }
}

/// What became of each job, and the log's head after them.
type Committed = (Vec<Result<Head, StoreError>>, Head);

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| StoreError::Database(error.to_string()))?
}

fn path(text: String) -> Result<ResourcePath, StoreError> {
    text.parse().map_err(|_| StoreError::Row("a path"))
}

fn number(number: i64) -> Result<u64, StoreError> {
    number
        .try_into()
        .map_err(|_| StoreError::Row("a negative number"))
}

/// Databases count with a sign.
fn signed(number: u64) -> Result<i64, StoreError> {
    number
        .try_into()
        .map_err(|_| StoreError::Row("a number beyond 2^63"))
}

fn digest(bytes: &[u8]) -> Result<[u8; 32], StoreError> {
    bytes
        .try_into()
        .map_err(|_| StoreError::Row("a digest of another length"))
}
