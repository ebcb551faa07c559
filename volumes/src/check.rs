//! Checking a volume as a whole: every block is read, opened and accounted for, every name led to its inode.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use hashbrown::HashSet;

use crate::block::{BLOCK, BlockId, Fork, Pointer};
use crate::dirblock;
use crate::engine::Engine;
use crate::error::VolumeError;
use crate::inode::{Ino, Inode, REGULAR, SYMLINK, TYPE_MASK};
use crate::store::Store;
use crate::superblock::{self, Clear, slot_of};
use crate::tree::blocks_of;
use crate::volume::{Volume, read_slots};
use crate::walk::{Visitor, Walk};

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where: a block with its place, an inode, a name.
    pub place: String,
    /// What.
    pub what: String,
}

/// What a check saw.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// What is wrong; nothing if the volume is good.
    pub findings: Vec<Finding>,
    /// What is no fault: a superblock that a crash left torn, files that go when the volume is opened.
    pub notes: Vec<String>,
    /// Inodes in use.
    pub inodes: u64,
    /// Blocks that were read and opened.
    pub blocks: u64,
    /// Commit counter.
    pub counter: u64,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
    }

    pub(crate) fn find(&mut self, place: impl ToString, what: impl ToString) {
        self.findings.push(Finding {
            place: place.to_string(),
            what: what.to_string(),
        });
    }
}

impl<S: Store> Volume<S> {
    /// Checks everything that is durable. For a volume that was opened with [`Volume::open_read_only`], and for one
    /// where nothing waits to be synced. `progress` gets the number of blocks that were read.
    ///
    /// # Errors
    /// Only what keeps it from looking at all: [`VolumeError::Store`] of a superblock.
    pub fn check(&mut self, progress: &mut dyn FnMut(u64)) -> Result<Report, VolumeError> {
        if self.engine.is_changed() {
            return Err(VolumeError::Invalid(
                "sync before a check: it looks at what is durable",
            ));
        }
        let mut report = Report {
            counter: self.engine.root.counter,
            ..Report::default()
        };
        self.check_ends(&mut report)?;
        let Engine {
            store, ring, root, ..
        } = &mut self.engine;
        let mut blocks = Blocks {
            report,
            progress,
            places: HashSet::new(),
            seen: BTreeMap::new(),
            data: 0,
            end: 0,
        };
        Walk { store, ring, root }.all(&mut blocks)?;
        let Blocks { mut report, seen, .. } = blocks;
        self.check_names(&seen, &mut report);
        Ok(report)
    }

    fn check_ends(&mut self, report: &mut Report) -> Result<(), VolumeError> {
        let counter = self.engine.root.counter;
        for (slot, bytes) in read_slots(&mut self.engine.store)?.iter().enumerate() {
            let Some(bytes) = bytes else { continue };
            let opened = superblock::open(&mut self.engine.ring, slot as u64, bytes);
            let empty = bytes.iter().all(|&b| b == 0);
            if slot as u64 != slot_of(counter) && opened.is_none() && !empty {
                let what = if Clear::parse(bytes).is_some() {
                    "does not open"
                } else {
                    "has no mark"
                };
                report.notes.push(format!(
                    "superblock {slot} {what}: a crash tore it, or someone changed it; the other one counts"
                ));
            }
        }
        let len = self
            .engine
            .store
            .len()
            .map_err(VolumeError::store("asking for the length"))?;
        let expected = self.engine.root.blocks * BLOCK as u64;
        if len < expected {
            report.find(
                "container",
                format!("it has {len} bytes, the volume {expected}: its end is missing"),
            );
        } else if len > expected {
            report.notes.push(format!(
                "{} bytes behind the end of the volume are not used",
                len - expected
            ));
        }
        Ok(())
    }

    /// Every name leads to an inode, every inode has as many names as it says, every directory one.
    fn check_names(&mut self, seen: &BTreeMap<u64, Inode>, report: &mut Report) {
        let mut names: BTreeMap<u64, u32> = BTreeMap::new();
        let mut below: BTreeMap<u64, u32> = BTreeMap::new();
        for (&ino, inode) in seen.iter().filter(|(_, inode)| inode.is_directory()) {
            if let Err(error) = self.check_directory(Ino(ino), inode, seen, &mut names, &mut below, report) {
                report.find(format!("directory {ino}"), error);
            }
        }
        for (&ino, inode) in seen {
            let named = names.get(&ino).copied().unwrap_or(0);
            let expected = match (ino == Ino::ROOT.0, inode.is_directory()) {
                (true, _) => 2 + below.get(&ino).copied().unwrap_or(0),
                (false, true) if named == 1 => 2 + below.get(&ino).copied().unwrap_or(0),
                (false, true) => 0,
                (false, false) => named,
            };
            if inode.links == 0 && named == 0 {
                report.notes.push(format!(
                    "inode {ino} has no name; it goes when the volume is opened for writing"
                ));
            } else if inode.links != expected {
                let what = format!("it says {} links, {expected} were found", inode.links);
                report.find(format!("inode {ino}"), what);
            }
        }
        if !seen.contains_key(&Ino::ROOT.0) {
            report.find("inode 1", "there is no root directory");
        }
    }

    fn check_directory(
        &mut self,
        dir: Ino,
        inode: &Inode,
        seen: &BTreeMap<u64, Inode>,
        names: &mut BTreeMap<u64, u32>,
        below: &mut BTreeMap<u64, u32>,
        report: &mut Report,
    ) -> Result<(), VolumeError> {
        let (mut after, mut count) = (0, 0);
        loop {
            let entries = self.engine.dir_list(dir, after, 1024)?;
            let Some(last) = entries.last() else { break };
            after = last.cookie;
            count += entries.len() as u64;
            for entry in entries {
                let place = || {
                    format!(
                        "name {:?} in directory {dir}",
                        String::from_utf8_lossy(&entry.name)
                    )
                };
                match seen.get(&entry.ino.0) {
                    None => report.find(
                        place(),
                        format!("it leads to inode {}, which is not in use", entry.ino),
                    ),
                    Some(child) => {
                        *names.entry(entry.ino.0).or_default() += 1;
                        if child.is_directory() {
                            *below.entry(dir.0).or_default() += 1;
                            if child.parent != dir.0 {
                                report.find(
                                    place(),
                                    format!("the directory says that {} holds it", child.parent),
                                );
                            }
                        }
                        if u32::from(entry.kind) != (child.mode & TYPE_MASK) >> 12 {
                            report.find(place(), "its type is not the inode's");
                        }
                    }
                }
                let hash = dirblock::hash(&self.engine.root.name_key, &entry.name);
                if hash >> dirblock::LEVEL_BITS != entry.cookie >> dirblock::LEVEL_BITS
                    || self.engine.dir_find(dir, &entry.name)?.map(|found| found.ino) != Some(entry.ino)
                {
                    report.find(place(), "looking it up does not find it");
                }
            }
        }
        if count != inode.entries {
            report.find(
                format!("directory {dir}"),
                format!("it says {} names, {count} were found", inode.entries),
            );
        }
        Ok(())
    }
}

struct Blocks<'a> {
    report: Report,
    progress: &'a mut dyn FnMut(u64),
    places: HashSet<u64>,
    seen: BTreeMap<u64, Inode>,
    /// Blocks of data of the inode that is walked over.
    data: u64,
    /// Blocks that its content may have.
    end: u64,
}

impl Visitor for Blocks<'_> {
    fn block(&mut self, id: &BlockId, pointer: &Pointer) -> Result<bool, VolumeError> {
        self.report.blocks += 1;
        if self.report.blocks.is_multiple_of(4096) {
            (self.progress)(self.report.blocks);
        }
        if id.level == 0 && !id.table {
            self.data += 1;
            if id.fork == Fork::Data && id.index >= self.end {
                self.report.find(id, "it lies behind the end of its file");
            }
        }
        let first = self.places.insert(pointer.address);
        if !first {
            self.report
                .find(id, format!("another block lies at byte {} too", pointer.offset()));
        }
        Ok(first)
    }

    fn failed(&mut self, id: &BlockId, error: VolumeError) -> Result<(), VolumeError> {
        self.report.find(id, error);
        Ok(())
    }

    fn reads_data(&self) -> bool {
        true
    }

    fn inode(&mut self, ino: Ino, inode: &Inode) -> Result<(), VolumeError> {
        self.data = 0;
        let sized = inode.is_directory() || matches!(inode.kind(), REGULAR | SYMLINK);
        self.end = if sized { blocks_of(inode.size) } else { 0 };
        self.report.inodes += 1;
        self.seen.insert(ino.0, *inode);
        Ok(())
    }

    fn inode_done(&mut self, ino: Ino, inode: &Inode) -> Result<(), VolumeError> {
        if self.data != inode.blocks {
            let what = format!("it says {} blocks, {} were found", inode.blocks, self.data);
            self.report.find(format!("inode {ino}"), what);
        }
        Ok(())
    }

    fn free_inode(&mut self, _: Ino) {}
}
