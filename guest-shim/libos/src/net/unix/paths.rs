//! Names of Unix sockets in the file system: nodes of type socket, made and found by path resolution.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::names::{Paths, Place};
use crate::errno::{Errno, SysResult};
use crate::fs::attributes::{STATX_BASIC, stat_of};
use crate::fs::file::Stat;
use crate::fs::flags::{AT_FDCWD, AT_SYMLINK_NOFOLLOW, MAY_WRITE, S_IFMT, S_IFSOCK};
use crate::fs::mount::Dir;
use crate::fs::node::{self, New};
use crate::fs::walk::{self, Last};
use crate::fs::{calls_names, hostops};
use crate::process::Process;

/// The name space of the calling process.
#[derive(Debug)]
pub struct NameSpace;

/// What a path leads to.
struct Found {
    stat: Stat,
    path: Vec<u8>,
    host: Option<(Dir, Vec<u8>)>,
}

fn look_up(path: &[u8], last: Last) -> SysResult<Found> {
    let flags = if last == Last::Follow {
        0
    } else {
        AT_SYMLINK_NOFOLLOW
    };
    walk::with(AT_FDCWD, path, last, |place| match place {
        walk::Place::Host(place) => Ok(Found {
            stat: stat_of(&hostops::statx(place.at(), flags, STATX_BASIC)?),
            path: place.path.clone(),
            host: Some((place.dir.clone(), place.name.clone())),
        }),
        walk::Place::Node(place) => Ok(Found {
            stat: place.node()?.stat()?,
            path: place.path.clone(),
            host: None,
        }),
    })
}

impl Found {
    /// As the names of sockets know it.
    fn place(self) -> Place {
        Place {
            node: (self.stat.dev, self.stat.ino),
            path: self.path,
            host: self.host,
        }
    }
}

impl Paths for NameSpace {
    fn create(&self, path: &[u8]) -> SysResult<Place> {
        let mode = S_IFSOCK | 0o777 & !Process::current().fs.umask.load(Ordering::Relaxed);
        walk::with(AT_FDCWD, path, Last::Name, |place| match place {
            walk::Place::Host(place) => hostops::make_node(place.at(), mode, 0),
            walk::Place::Node(place) => {
                calls_names::make_in_node(place, New::Node(S_IFSOCK, 0), mode).map(|_| ())
            }
        })
        .map_err(|error| match error {
            Errno::EEXIST => Errno::EADDRINUSE,
            other => other,
        })?;
        Ok(look_up(path, Last::Itself)?.place())
    }

    fn find(&self, path: &[u8]) -> SysResult<Place> {
        let found = look_up(path, Last::Follow)?;
        node::permit(&found.stat, &node::credentials(), MAY_WRITE)?;
        if found.stat.mode & S_IFMT != S_IFSOCK {
            return Err(Errno::ECONNREFUSED);
        }
        Ok(found.place())
    }
}
