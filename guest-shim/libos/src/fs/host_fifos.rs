//! FIFOs that programs of the context make on shared volumes: the host has the name, what goes through them stays here.
//!
//! As with sockets (`net::unix::names`) one is found by the node that the host shows, and by the path that it was made
//! at, so that a host that lies about nodes can't draw a conversation of the guest to itself. A FIFO that somebody
//! else made joins the guest with whoever that is.

use alloc::sync::Arc;
use alloc::vec::Vec;

use spin::Mutex;

use super::file::{File, Stat};
use super::flags::{O_CREAT, O_EXCL, O_PATH, S_IFIFO, S_IFMT};
use super::hostops;
use super::node;
use super::open::wanted;
use super::pipe::Pipe;
use super::walk::HostPlace;
use crate::errno::{Errno, SysResult};

struct Made {
    node: (u64, u64),
    path: Vec<u8>,
    pipe: Arc<Pipe>,
}

static MADE: Mutex<Vec<Made>> = Mutex::new(Vec::new());

fn look(place: &HostPlace) -> SysResult<Stat> {
    hostops::open(place.at(), O_PATH, 0).map(|(_, stat)| stat)
}

/// The program has just made a FIFO there.
///
/// # Errors
/// Those of finding it.
pub fn made(place: &HostPlace) -> SysResult<()> {
    let stat = look(place)?;
    MADE.lock().push(Made {
        node: (stat.dev, stat.ino),
        path: place.path.clone(),
        pipe: Pipe::new(false),
    });
    Ok(())
}

/// The name is gone.
pub fn removed(path: &[u8]) {
    MADE.lock().retain(|fifo| fifo.path != path);
}

/// The name is another one now.
pub fn renamed(from: &[u8], to: &[u8]) {
    let mut all = MADE.lock();
    if let Some(fifo) = all.iter_mut().find(|fifo| fifo.path == from) {
        fifo.path = to.to_vec();
    }
}

/// Opens the FIFO there, if it is one of the context's. Waits as open(2) does.
///
/// # Errors
/// As [`Pipe::open`]; EACCES.
pub fn open(place: &HostPlace, flags: u32) -> Option<SysResult<Arc<dyn File>>> {
    if flags & O_PATH != 0 || flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL || MADE.lock().is_empty() {
        return None;
    }
    let stat = look(place).ok().filter(|stat| stat.mode & S_IFMT == S_IFIFO)?;
    let pipe = {
        let all = MADE.lock();
        let own = |fifo: &&Made| fifo.path == place.path || fifo.node == (stat.dev, stat.ino);
        all.iter().find(own)?.pipe.clone()
    };
    let allowed = node::permit(&stat, &node::credentials(), wanted(flags));
    Some(
        allowed
            .map_err(|_| Errno::EACCES)
            .and_then(|()| pipe.open(flags, None)),
    )
}
