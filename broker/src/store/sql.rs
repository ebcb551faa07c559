//! Statements that both databases understand, and what their rows become.
//!
//! A parameter's number is also its place among the first uses, because SQLite counts by that.

use super::{Row, SCHEMA, StoreError, digest, number, path};
use crate::audit::{Entry, Head};
use crate::path::Listed;
use crate::seal::Sealed;

pub(super) const META_INSERT: &str = "INSERT INTO meta VALUES ($1, $2) ON CONFLICT DO NOTHING";
pub(super) const META_READ: &str = "SELECT value FROM meta WHERE name = $1";
pub(super) const READ: &str = "SELECT version, policy, sealed FROM resource WHERE path = $1";
pub(super) const INSERT: &str = "INSERT INTO resource VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
pub(super) const UPDATE: &str =
    "UPDATE resource SET version = $1, policy = $2, sealed = $3 WHERE path = $4 AND version = $5";
pub(super) const REMOVE: &str = "DELETE FROM resource WHERE path = $1 AND version = $2";
pub(super) const HEAD: &str = "SELECT sequence, digest FROM audit ORDER BY sequence DESC LIMIT 1";
pub(super) const APPEND: &str = "INSERT INTO audit VALUES ($1, $2, $3)";
pub(super) const ENTRIES: &str =
    "SELECT sequence, record, digest FROM audit WHERE sequence > $1 ORDER BY sequence LIMIT $2";

/// What a database says of itself, name and value.
pub(super) fn meta(root_key_check: &str) -> [(&str, &str); 2] {
    [("schema", SCHEMA), ("root-key", root_key_check)]
}

/// Whether the database says it too.
pub(super) fn check_meta(name: &str, value: &str, found: String) -> Result<(), StoreError> {
    match name {
        _ if found == value => Ok(()),
        "schema" => Err(StoreError::Schema(found)),
        _ => Err(StoreError::RootKey),
    }
}

/// Of a row of [`HEAD`], if there is one.
pub(super) fn head(last: Option<(i64, Vec<u8>)>) -> Result<Head, StoreError> {
    let Some((sequence, bytes)) = last else {
        return Ok(Head::default());
    };
    Ok(Head {
        sequence: number(sequence)?,
        digest: digest(&bytes)?,
    })
}

/// Of a row of [`ENTRIES`].
pub(super) fn entry((sequence, record, digest): (i64, String, Vec<u8>)) -> Result<Entry, StoreError> {
    Ok(Entry {
        sequence: number(sequence)?,
        record,
        digest: hex::encode(digest),
    })
}

/// Of a row of [`READ`].
pub(super) fn row((version, policy, sealed): (i64, Option<String>, Vec<u8>)) -> Result<Row, StoreError> {
    Ok(Row {
        version: number(version)?,
        policy,
        sealed: Sealed(sealed),
    })
}

/// Of a row with a path, a version and whether there is a policy.
pub(super) fn listed((name, version, policy): (String, i64, bool)) -> Result<Listed, StoreError> {
    Ok(Listed {
        path: path(name)?,
        version: number(version)?,
        policy,
    })
}
