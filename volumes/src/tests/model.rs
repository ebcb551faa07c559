//! Random operations on a volume and on a model of it, which is nothing but maps and vectors.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Random, key, longer, options, reopen};
use crate::attributes::{SetAttributes, SetMode};
use crate::block::BLOCK;
use crate::error::VolumeError;
use crate::inode::{Ino, REGULAR};
use crate::names::{NewInode, Target};
use crate::store::{MemoryStore, Store};
use crate::volume::{Options, Volume};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    File(Vec<u8>),
    Link(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Ino>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    kind: Kind,
    permissions: u32,
    uid: u32,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What a volume should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    nodes: BTreeMap<Ino, Node>,
    open: Vec<Ino>,
}

/// How an operation ended, as far as the model says.
type Outcome = Result<(), &'static str>;

impl Model {
    pub fn new() -> Self {
        let root = Node {
            kind: Kind::Directory(BTreeMap::new()),
            permissions: 0o755,
            uid: 0,
            attributes: BTreeMap::new(),
        };
        Self {
            nodes: BTreeMap::from([(Ino::ROOT, root)]),
            open: Vec::new(),
        }
    }

    fn names(&self, dir: Ino) -> &BTreeMap<Vec<u8>, Ino> {
        match &self.nodes[&dir].kind {
            Kind::Directory(names) => names,
            _ => panic!("{dir} is no directory"),
        }
    }

    fn names_mut(&mut self, dir: Ino) -> &mut BTreeMap<Vec<u8>, Ino> {
        match &mut self.nodes.get_mut(&dir).unwrap().kind {
            Kind::Directory(names) => names,
            _ => panic!("{dir} is no directory"),
        }
    }

    fn is_directory(&self, ino: Ino) -> bool {
        matches!(self.nodes[&ino].kind, Kind::Directory(_))
    }

    fn links(&self, ino: Ino) -> u32 {
        let all = self.nodes.values().filter_map(|n| match &n.kind {
            Kind::Directory(names) => Some(names.values().filter(|&&to| to == ino).count() as u32),
            _ => None,
        });
        all.sum()
    }

    fn parent(&self, dir: Ino) -> Ino {
        let holds = |(at, n): (&Ino, &Node)| match &n.kind {
            Kind::Directory(names) if names.values().any(|&to| to == dir) => Some(*at),
            _ => None,
        };
        self.nodes.iter().find_map(holds).unwrap_or(Ino::ROOT)
    }

    fn is_below(&self, dir: Ino, ancestor: Ino) -> bool {
        let mut at = dir;
        loop {
            if at == ancestor {
                return true;
            }
            if at == Ino::ROOT {
                return false;
            }
            at = self.parent(at);
        }
    }

    /// Directories with a name, and files, also those without.
    fn all(&self, directories: bool) -> Vec<Ino> {
        let wanted = |n: &Node| match n.kind {
            Kind::Directory(_) => directories,
            Kind::File(_) => !directories,
            Kind::Link(_) => false,
        };
        self.nodes
            .iter()
            .filter(|(_, n)| wanted(n))
            .map(|(&i, _)| i)
            .collect()
    }

    fn drop_unnamed(&mut self, ino: Ino) {
        if self.links(ino) == 0 && !self.open.contains(&ino) {
            self.nodes.remove(&ino);
        }
    }

    /// What is left after a crash or an orderly end: nothing is open.
    pub fn at_rest(&self) -> Self {
        let mut rest = self.clone();
        for ino in std::mem::take(&mut rest.open) {
            if rest.nodes.contains_key(&ino) {
                rest.drop_unnamed(ino);
            }
        }
        rest
    }

    fn add(&mut self, dir: Ino, name: &[u8], ino: Result<Ino, &'static str>, kind: Kind) -> Outcome {
        if self.names(dir).contains_key(name) {
            return Err("Exists");
        }
        let Ok(ino) = ino else { return Ok(()) };
        let node = Node {
            kind,
            permissions: 0o640,
            uid: 7,
            attributes: BTreeMap::new(),
        };
        assert!(
            self.nodes.insert(ino, node).is_none(),
            "inode {ino} is given twice"
        );
        self.names_mut(dir).insert(name.to_vec(), ino);
        Ok(())
    }

    fn remove(&mut self, dir: Ino, name: &[u8], directory: bool) -> Outcome {
        let ino = *self.names(dir).get(name).ok_or("NotFound")?;
        match (&self.nodes[&ino].kind, directory) {
            (Kind::Directory(_), false) => return Err("IsDirectory"),
            (Kind::Directory(names), true) if !names.is_empty() => return Err("NotEmpty"),
            (Kind::Directory(_), true) | (_, false) => {}
            (_, true) => return Err("NotDirectory"),
        }
        self.names_mut(dir).remove(name);
        self.drop_unnamed(ino);
        Ok(())
    }

    fn rename(&mut self, from_dir: Ino, from: &[u8], to_dir: Ino, to: &[u8], target: Target) -> Outcome {
        let ino = *self.names(from_dir).get(from).ok_or("NotFound")?;
        let other = self.names(to_dir).get(to).copied();
        match (other, target) {
            (Some(_), Target::Keep) => return Err("Exists"),
            (None, Target::Exchange) => return Err("NotFound"),
            (Some(other), _) if other == ino => return Ok(()),
            (Some(other), Target::Replace) => match (self.is_directory(ino), self.is_directory(other)) {
                (true, false) => return Err("NotDirectory"),
                (false, true) => return Err("IsDirectory"),
                (true, true) if !self.names(other).is_empty() => return Err("NotEmpty"),
                _ => {}
            },
            (Some(other), Target::Exchange) if self.is_directory(other) && self.is_below(from_dir, other) => {
                return Err("Loop");
            }
            _ => {}
        }
        if self.is_directory(ino) && self.is_below(to_dir, ino) {
            return Err("Loop");
        }
        self.names_mut(from_dir).remove(from);
        self.names_mut(to_dir).insert(to.to_vec(), ino);
        match other {
            Some(other) if target == Target::Exchange => {
                self.names_mut(from_dir).insert(from.to_vec(), other);
            }
            Some(other) => self.drop_unnamed(other),
            None => {}
        }
        Ok(())
    }

    fn content(&mut self, ino: Ino) -> &mut Vec<u8> {
        match &mut self.nodes.get_mut(&ino).unwrap().kind {
            Kind::File(bytes) => bytes,
            _ => panic!("{ino} is no file"),
        }
    }
}

fn outcome<T>(result: Result<T, VolumeError>) -> Result<T, &'static str> {
    result.map_err(|error| match error {
        VolumeError::Exists => "Exists",
        VolumeError::NotFound => "NotFound",
        VolumeError::NotDirectory(_) => "NotDirectory",
        VolumeError::IsDirectory(_) => "IsDirectory",
        VolumeError::NotEmpty(_) => "NotEmpty",
        VolumeError::Loop => "Loop",
        VolumeError::NoAttribute => "NoAttribute",
        other => panic!("{other}"),
    })
}

fn name(random: &mut Random) -> Vec<u8> {
    let n = random.below(24);
    let mut name = format!("name {n}").into_bytes();
    if n.is_multiple_of(3) {
        name.resize(200 + n as usize, b'x');
    }
    name
}

const NEW: NewInode = NewInode {
    mode: REGULAR | 0o640,
    uid: 7,
    gid: 8,
    device: 0,
};

/// Bytes up to which files grow.
pub const FILE: u64 = 600_000;

/// One random operation on both. Says whether it was a sync.
pub fn step<S: Store>(volume: &mut Volume<S>, model: &mut Model, random: &mut Random, file: u64) -> bool {
    let dirs = model.all(true);
    let (dir, dir2) = (dirs[random.index(dirs.len())], dirs[random.index(dirs.len())]);
    let (name, name2) = (name(random), name(random));
    let files = model.all(false);
    let chosen = (!files.is_empty()).then(|| files[random.index(files.len())]);
    let (offset, most) = match random.below(file) {
        // Of files that a small cache can't hold, some of it goes past the cache.
        at if file > FILE => (at - at % BLOCK as u64, file / 8),
        at => (at, 40_000),
    };
    let len = match random.below(4) {
        0 => random.below(most),
        1 => 4096,
        _ => random.below(5000),
    };
    match (random.below(24), chosen) {
        (0..=2, _) => {
            let made = outcome(volume.create_file(dir, &name, &NEW));
            assert_eq!(made.map(|_| ()), model.add(dir, &name, made, Kind::File(vec![])));
        }
        (3, _) => {
            let made = outcome(volume.mkdir(dir, &name, &NEW));
            let kind = Kind::Directory(BTreeMap::new());
            assert_eq!(made.map(|_| ()), model.add(dir, &name, made, kind));
        }
        (4, _) => {
            let made = outcome(volume.symlink(dir, &name, &name2, &NEW));
            let expected = model.add(dir, &name, made, Kind::Link(name2));
            if let Ok(ino) = made {
                model.nodes.get_mut(&ino).unwrap().permissions = 0o777;
            }
            assert_eq!(made.map(|_| ()), expected);
        }
        (5, Some(ino)) if model.links(ino) > 0 => {
            let done = outcome(volume.link(ino, dir, &name));
            let exists = model.names(dir).contains_key(&name);
            assert_eq!(done, if exists { Err("Exists") } else { Ok(()) });
            model.names_mut(dir).entry(name).or_insert(ino);
        }
        (6..=7, _) => assert_eq!(
            outcome(volume.unlink(dir, &name)),
            model.remove(dir, &name, false)
        ),
        (8, _) => assert_eq!(outcome(volume.rmdir(dir, &name)), model.remove(dir, &name, true)),
        (9..=11, _) => {
            let target = [Target::Replace, Target::Keep, Target::Exchange][random.index(3)];
            let done = outcome(volume.rename(dir, &name, dir2, &name2, target));
            assert_eq!(done, model.rename(dir, &name, dir2, &name2, target), "{target:?}");
        }
        (12..=15, Some(ino)) => {
            let bytes = random.bytes(len as usize);
            volume.write_at(ino, offset, &bytes).unwrap();
            let content = model.content(ino);
            let end = (offset + len) as usize;
            if len > 0 {
                content.resize(content.len().max(end), 0);
                content[offset as usize..end].copy_from_slice(&bytes);
            }
        }
        (16, Some(ino)) => {
            volume.truncate(ino, offset).unwrap();
            model.content(ino).resize(offset as usize, 0);
        }
        (17, Some(ino)) => {
            volume.punch_hole(ino, offset, 4 * len).unwrap();
            let content = model.content(ino);
            let end = ((offset + 4 * len) as usize).min(content.len());
            if (offset as usize) < end {
                content[offset as usize..end].fill(0);
            }
        }
        (18, Some(ino)) => {
            let permissions = Some((len & 0o7777) as u32);
            let set = SetAttributes {
                permissions,
                uid: Some(offset as u32),
                ..SetAttributes::default()
            };
            volume.set_attributes(ino, &set).unwrap();
            let node = model.nodes.get_mut(&ino).unwrap();
            (node.permissions, node.uid) = ((len & 0o7777) as u32, offset as u32);
        }
        (19, Some(ino)) => {
            let attributes = &mut model.nodes.get_mut(&ino).unwrap().attributes;
            if random.below(3) == 0 {
                let done = outcome(volume.remove_attribute(ino, &name));
                assert_eq!(done, attributes.remove(&name).map(|_| ()).ok_or("NoAttribute"));
            } else {
                let value = random.bytes((len % 5000) as usize);
                if attributes.values().map(Vec::len).sum::<usize>() < 50_000 {
                    volume.set_attribute(ino, &name, &value, SetMode::Any).unwrap();
                    attributes.insert(name, value);
                }
            }
        }
        (20, Some(ino)) => {
            volume.open_inode(ino).unwrap();
            model.open.push(ino);
        }
        (21, _) if !model.open.is_empty() => {
            let ino = model.open.swap_remove(random.index(model.open.len()));
            volume.close_inode(ino).unwrap();
            model.drop_unnamed(ino);
        }
        (22, _) if random.below(3) == 0 => {
            volume.sync_all().unwrap();
            return true;
        }
        _ => {}
    }
    false
}

/// Compares everything.
pub fn compare<S: Store>(volume: &mut Volume<S>, model: &Model) -> Result<(), String> {
    let told = |e: VolumeError| e.to_string();
    for (&ino, node) in &model.nodes {
        let stat = volume.stat(ino).map_err(told)?;
        let links = match &node.kind {
            Kind::Directory(names) => 2 + names.values().filter(|&&to| model.is_directory(to)).count() as u32,
            _ => model.links(ino),
        };
        let (have, want) = (
            (stat.mode & 0o7777, stat.uid, stat.links),
            (node.permissions, node.uid, links),
        );
        if have != want {
            return Err(format!("inode {ino}: mode, uid, links {have:?}, not {want:?}"));
        }
        for (name, value) in &node.attributes {
            if volume.attribute(ino, name).map_err(told)? != *value {
                return Err(format!("inode {ino}: another value of an attribute"));
            }
        }
        if volume.attributes(ino).map_err(told)?.len() != node.attributes.len() {
            return Err(format!("inode {ino}: more attributes"));
        }
        match &node.kind {
            Kind::Directory(names) => {
                let (mut after, mut found) = (0, BTreeMap::new());
                loop {
                    let entries = volume.readdir(ino, after, 3).map_err(told)?;
                    let Some(last) = entries.last() else { break };
                    after = last.cookie;
                    found.extend(entries.into_iter().map(|e| (e.name, e.ino)));
                }
                if found != *names {
                    return Err(format!("directory {ino}: other names"));
                }
                for (name, to) in names {
                    if volume.lookup(ino, name).map_err(told)? != *to {
                        return Err(format!("directory {ino}: lookup"));
                    }
                }
            }
            Kind::File(bytes) => {
                if read_all(volume, ino).map_err(told)? != *bytes {
                    return Err(format!("inode {ino}: other content"));
                }
            }
            Kind::Link(target) => {
                if volume.readlink(ino).map_err(told)? != *target {
                    return Err(format!("inode {ino}: other target"));
                }
            }
        }
    }
    Ok(())
}

/// The whole content of a file, as far as it is plausible.
pub fn read_all<S: Store>(volume: &mut Volume<S>, ino: Ino) -> Result<Vec<u8>, VolumeError> {
    let size = volume.stat(ino)?.size.min(1 << 22) as usize;
    let mut out = vec![0xAA; size + 10];
    let read = volume.read_at(ino, 0, &mut out)?;
    out.truncate(read);
    Ok(out)
}

/// The names of files at rest, for tests that look at one of them.
pub fn files(model: &Model) -> Vec<(Ino, Vec<u8>)> {
    let file = |(&ino, node): (&Ino, &Node)| match &node.kind {
        Kind::File(bytes) => Some((ino, bytes.clone())),
        _ => None,
    };
    model.nodes.iter().filter_map(file).collect()
}

fn run(seed: u64, steps: usize, cache_bytes: usize, file: u64) {
    let mut random = Random(seed);
    let cached = || Options {
        cache_bytes,
        ..options()
    };
    let mut volume = Volume::create(MemoryStore::default(), key(), &super::NEW, cached()).unwrap();
    let mut model = Model::new();
    for _ in 0..steps {
        step(&mut volume, &mut model, &mut random, file);
        if random.below(150) == 0 {
            compare(&mut volume, &model).unwrap();
            volume = Volume::open(volume.close().unwrap(), key(), cached()).unwrap();
            model = model.at_rest();
            compare(&mut volume, &model).unwrap();
        }
    }
    compare(&mut volume, &model).unwrap();
    let mut volume = reopen(volume);
    model = model.at_rest();
    compare(&mut volume, &model).unwrap();
    if volume.engine.is_changed() {
        volume.sync_all().unwrap();
    }
    let report = volume.check(&mut |_| ()).unwrap();
    assert!(report.is_good(), "{:#?}", report.findings);
    // Nothing is lost and nothing is kept: what a check meets is what is in use.
    let in_use = volume.engine.space.blocks() - volume.engine.space.free() - 2;
    assert_eq!(in_use, report.blocks);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60 * longer() as u32))]
    #[test]
    fn a_volume_does_what_its_model_does(seed in any::<u64>(), steps in 1..600_usize, large in any::<bool>()) {
        run(seed, steps, if large { 8 << 20 } else { 0 }, FILE);
    }

    #[test]
    fn so_does_one_with_files_that_its_cache_can_not_hold(seed in any::<u64>(), steps in 1..300_usize) {
        run(seed, steps, 0, 2 * FILE);
    }
}

/// A change of an inode that a commit came before: the inode it began from had pointers of before the commit.
#[test]
fn a_commit_before_a_change_is_not_undone_by_it() {
    run(14_064_545_417_302_219_494, 65, 0, FILE);
}
