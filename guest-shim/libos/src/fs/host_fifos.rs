//! FIFOs that programs of the context make on shared volumes: the host has the name, what goes through them stays here.
//!
//! One is found by the path that it was made at or renamed to (not by other hard links), so that a host that lies about
//! nodes can't draw a conversation of the guest to itself, and other files cost nothing more. A FIFO that somebody else
//! made joins the guest with whoever that is.

use alloc::sync::Arc;
use alloc::vec::Vec;

use spin::Mutex;

use super::file::File;
use super::flags::{O_CREAT, O_EXCL, O_PATH, S_IFIFO, S_IFMT};
use super::hostops;
use super::node;
use super::open::wanted;
use super::path;
use super::pipe::Pipe;
use super::walk::HostPlace;
use crate::errno::{Errno, SysResult};

struct Made {
    path: Vec<u8>,
    pipe: Arc<Pipe>,
}

static MADE: Mutex<Vec<Made>> = Mutex::new(Vec::new());

/// The program has just made a FIFO there.
pub fn made(place: &HostPlace) {
    removed(&place.path);
    MADE.lock().push(Made {
        path: place.path.clone(),
        pipe: Pipe::new(false),
    });
}

/// The name is gone.
pub fn removed(path: &[u8]) {
    MADE.lock().retain(|fifo| fifo.path != path);
}

/// The name is another one now, and so are those below it. What was at `to` is gone, or has been exchanged for it.
pub fn renamed(from: &[u8], to: &[u8], exchanged: bool) {
    if from == to {
        return;
    }
    let mut all = MADE.lock();
    if !exchanged {
        all.retain(|fifo| fifo.path != to);
    }
    for fifo in &mut *all {
        let there = path::moved(&fifo.path, from, to);
        let back = || path::moved(&fifo.path, to, from).filter(|_| exchanged);
        if let Some(path) = there.or_else(back) {
            fifo.path = path;
        }
    }
}

/// Opens the FIFO there, if it is one of the context's. Waits as open(2) does.
///
/// # Errors
/// As [`Pipe::open`]; EACCES.
pub fn open(place: &HostPlace, flags: u32) -> Option<SysResult<Arc<dyn File>>> {
    if flags & O_PATH != 0 || flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL {
        return None;
    }
    let pipe = {
        let all = MADE.lock();
        all.iter().find(|fifo| fifo.path == place.path)?.pipe.clone()
    };
    // Somebody on the host may have put something else in its place.
    let (_, stat) = hostops::open(place.at(), O_PATH, 0).ok()?;
    if stat.mode & S_IFMT != S_IFIFO {
        return None;
    }
    let allowed = node::permit(&stat, &node::credentials(), wanted(flags));
    Some(
        allowed
            .map_err(|_| Errno::EACCES)
            .and_then(|()| pipe.open(flags, None)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_at(path: &[u8]) -> Arc<Pipe> {
        let pipe = Pipe::new(false);
        MADE.lock().push(Made {
            path: path.to_vec(),
            pipe: pipe.clone(),
        });
        pipe
    }

    fn is_at(path: &[u8], pipe: &Arc<Pipe>) -> bool {
        let all = MADE.lock();
        let found: Vec<_> = all.iter().filter(|fifo| fifo.path == path).collect();
        matches!(found[..], [one] if Arc::ptr_eq(&one.pipe, pipe))
    }

    #[test]
    fn a_name_that_moves_takes_its_fifo_along_and_leaves_none_behind() {
        let (one, other) = (made_at(b"/fifos/a"), made_at(b"/fifos/b"));
        renamed(b"/fifos/a", b"/fifos/a", false);
        assert!(is_at(b"/fifos/a", &one));
        renamed(b"/fifos/a", b"/fifos/b", true);
        assert!(is_at(b"/fifos/b", &one) && is_at(b"/fifos/a", &other));
        renamed(b"/fifos/b", b"/fifos/a", false);
        assert!(is_at(b"/fifos/a", &one));
        assert!(MADE.lock().iter().all(|fifo| fifo.path != b"/fifos/b"));
        renamed(b"/fifos", b"/elsewhere", false);
        assert!(is_at(b"/elsewhere/a", &one));
        renamed(b"/else", b"/other", false);
        assert!(is_at(b"/elsewhere/a", &one), "another name that begins alike");
        removed(b"/elsewhere/a");
    }
}
