//! Where paths led, for a moment: the same path is not walked again while nothing changed that it may depend on.
//!
//! What is known was found by a walk that did not leave overlays. It holds until an entry is taken away or moved, a
//! directory's rights change or something is mounted; that there is nothing of a name, until an entry is made; and no
//! longer than what the host said of its tree.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use spin::{Lazy, Mutex};

use crate::arch;
use crate::fs::node;
use crate::fs::read_cache::believed_until;
use crate::fs::walk::{NodePlace, Place};
use crate::process::Credentials;

/// Most paths kept: beyond that all are forgotten.
const MOST: usize = 4096;

static CHANGED: AtomicU64 = AtomicU64::new(0);
static MADE: AtomicU64 = AtomicU64::new(0);
/// Paths, with what is known of them.
type Table = Mutex<HashMap<Vec<u8>, Known>>;

static PATHS: [Lazy<Table>; 2] = [const { Lazy::new(|| Mutex::new(HashMap::new())) }; 2];

/// The changes so far, as they were before a walk began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    changed: u64,
    made: u64,
    until: u64,
}

struct Known {
    moment: Moment,
    who: Credentials,
    place: Arc<Place>,
    is_there: bool,
}

/// Paths may lead elsewhere from now on.
pub fn changed() {
    CHANGED.fetch_add(1, Ordering::SeqCst);
}

/// A name is there that was not.
pub fn made() {
    MADE.fetch_add(1, Ordering::SeqCst);
}

/// Now, for [`learn`].
pub fn moment() -> Moment {
    Moment {
        changed: CHANGED.load(Ordering::SeqCst),
        made: MADE.load(Ordering::SeqCst),
        until: believed_until(),
    }
}

fn table(follow: bool) -> &'static Table {
    &PATHS[usize::from(follow)]
}

/// Where the path (absolute, normalised) leads the caller; `follow`: a link at its end is followed.
pub fn known(path: &[u8], follow: bool) -> Option<Arc<Place>> {
    let paths = table(follow).lock();
    let known = paths.get(path)?;
    let holds = known.moment.changed == CHANGED.load(Ordering::SeqCst)
        && (known.is_there || known.moment.made == MADE.load(Ordering::SeqCst))
        && arch::ticks() < known.moment.until
        && node::is_caller(&known.who);
    holds.then(|| known.place.clone())
}

/// Keeps what a walk that began at `moment` found.
pub fn learn(path: Vec<u8>, follow: bool, moment: Moment, place: NodePlace) {
    let who = node::credentials();
    let is_there = place.node.is_some();
    let known = Known {
        moment,
        who,
        place: Arc::new(Place::Node(place)),
        is_there,
    };
    let mut paths = table(follow).lock();
    let gone = if paths.len() >= MOST {
        core::mem::take(&mut *paths)
    } else {
        HashMap::new()
    };
    let old = paths.insert(path, known);
    drop(paths);
    drop((gone, old)); // the last of a node may close a descriptor: not under the lock
}
