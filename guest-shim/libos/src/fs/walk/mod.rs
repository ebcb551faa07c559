//! Path resolution.
//!
//! Two ways. *Whole*: a path in the host's root tree goes to the service as it is, one request for the
//! look-up and what is to be done. *Walk*: component by component, here, following symbolic links in the
//! guest's name space and going over from one mount to the next; for everything else, and when the service
//! says that the path leaves its file system (EXDEV) or that there is a link in the way (ELOOP).
//!
//! ```text
//! with(dirfd, path, op) ── whole? ── op(place) ── EXDEV, ELOOP ──┐
//!                            no                                  │
//!                            └──────────── walk ── op(place) ◄───┘
//! ```
//!
//! A known limit: a symbolic link in the host's root tree that leads to a path which another mount covers
//! (`/tmp`) is followed by the host, in the host's tree. Not so where files of it are measured: then nothing goes whole.

mod place;
mod start;
mod walker;
mod whole;

use alloc::sync::Arc;
use alloc::vec::Vec;

use cloak_abi::hostop::{PATH_MAX, resolve};

pub use self::place::{HostPlace, Last, Links, NodePlace, Place};
use self::start::directory_path;
pub use self::start::{Bounds, Start};
use self::walker::walk_components;
use self::whole::whole;
use super::flags::{AT_EACCESS, MAY_EXEC, is_dir};
use super::{hostops, node, overlay, path};
use crate::errno::{Errno, SysResult};

/// Resolves `path` relative to `dirfd` and does `op` there; `op` may be tried twice.
///
/// # Errors
/// Those of the look-up and of `op`.
pub fn with<T>(dirfd: i32, path: &[u8], last: Last, op: impl FnMut(&Place) -> SysResult<T>) -> SysResult<T> {
    with_start(&Start::of(dirfd, path)?, path, last, Links::Reported, op)
}

/// [`with`] for an `op` that follows links on the host without telling.
///
/// # Errors
/// As [`with`].
pub fn with_object<T>(
    dirfd: i32,
    path: &[u8],
    last: Last,
    op: impl FnMut(&Place) -> SysResult<T>,
) -> SysResult<T> {
    with_start(&Start::of(dirfd, path)?, path, last, Links::Followed, op)
}

/// [`with`] from a start that is known.
///
/// # Errors
/// As [`with`].
pub fn with_start<T>(
    start: &Start,
    path: &[u8],
    last: Last,
    links: Links,
    mut op: impl FnMut(&Place) -> SysResult<T>,
) -> SysResult<T> {
    check(path)?;
    if start.bounds != Bounds::default() {
        return op(&walk_components(start, path, last)?.0);
    }
    let full = path::join(&start.base, path);
    if let Some(place) = overlaid(start, path, &full, last) {
        match op(&place) {
            Err(Errno::ESTALE) => {}
            result => return result,
        }
    }
    if let Some(place) = whole(start, path, &full, last, links)? {
        let walkable = if place.how == resolve::COMPONENT {
            Errno::ELOOP
        } else {
            Errno::EXDEV
        };
        match op(&Place::Host(place)) {
            Err(e) if e == Errno::EXDEV || e == walkable => {}
            result => return result,
        }
    }
    match walk(start, path, last).and_then(|place| op(&place)) {
        // A file system found the host's tree to be another one meanwhile, and has forgotten what it knew of it.
        Err(Errno::ESTALE) => op(&walk(start, path, last)?),
        result => result,
    }
}

fn check(path: &[u8]) -> SysResult<()> {
    match path.len() {
        0 => Err(Errno::ENOENT),
        1..=PATH_MAX => path::components(path).try_for_each(path::check_name),
        _ => Err(Errno::ENAMETOOLONG),
    }
}

/// Whether an overlay may know where the path leads by its text alone.
fn is_plain(start: &Start, path: &[u8], last: Last) -> bool {
    overlay::exist()
        && start.root == b"/"
        && last != Last::Name
        && !path::must_be_directory(path)
        && !path::has_dot_dot(path)
}

/// Where the path leads, when an overlay knows.
fn overlaid(start: &Start, path: &[u8], full: &[u8], last: Last) -> Option<Arc<Place>> {
    if !is_plain(start, path, last) {
        return None;
    }
    overlay::paths::known(full, last == Last::Follow)
}

fn walk(start: &Start, path: &[u8], last: Last) -> SysResult<Place> {
    let moment = overlay::paths::moment();
    let (place, overlaid) = walk_components(start, path, last)?;
    if overlaid
        && is_plain(start, path, last)
        && let Place::Node(place) = &place
    {
        let full = path::join(&start.base, path);
        overlay::paths::learn(full, last == Last::Follow, moment, place.clone());
    }
    Ok(place)
}

/// The canonical path of a directory, for `chdir` and the like.
///
/// # Errors
/// Those of the look-up; ENOTDIR.
pub fn directory(dirfd: i32, path: &[u8]) -> SysResult<Vec<u8>> {
    directory_from(&Start::of(dirfd, path)?, path)
}

/// [`directory`] from a start that is known.
///
/// # Errors
/// As [`directory`].
pub fn directory_from(start: &Start, path: &[u8]) -> SysResult<Vec<u8>> {
    check(path)?;
    match walk(start, path, Last::Follow)? {
        Place::Host(place) => {
            let statx = hostops::statx(place.at(), 0, 0x7ff)?;
            // Search permission, as chdir asks for it.
            if !is_dir(u32::from(statx.mode)) {
                return Err(Errno::ENOTDIR);
            }
            hostops::access(place.at(), MAY_EXEC, AT_EACCESS)?;
            Ok(place.path)
        }
        Place::Node(place) => {
            let stat = match &place.open {
                Some(open) => {
                    let path = directory_path(open)?;
                    return Ok(path);
                }
                None => place.node()?.stat()?,
            };
            if !is_dir(stat.mode) {
                return Err(Errno::ENOTDIR);
            }
            node::permit(&stat, &node::credentials(), MAY_EXEC)?;
            Ok(place.path)
        }
    }
}

/// The canonical form of an absolute path in the guest; as it is when it can't be resolved.
#[must_use]
pub fn canonical(path: &[u8]) -> Vec<u8> {
    without_links(path, Last::Itself)
}

/// [`canonical`], and a symbolic link at its end followed too.
#[must_use]
pub fn resolved(path: &[u8]) -> Vec<u8> {
    without_links(path, Last::Follow)
}

fn without_links(path: &[u8], last: Last) -> Vec<u8> {
    match walk(&Start::root(), path, last) {
        Ok(Place::Host(place)) => place.path,
        Ok(Place::Node(place)) => place.path,
        Err(_) => path.to_vec(),
    }
}
