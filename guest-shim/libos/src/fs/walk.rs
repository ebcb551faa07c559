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

use alloc::sync::Arc;
use alloc::vec::Vec;

use cloak_abi::hostop::{PATH_MAX, resolve};

use super::flags::{AT_FDCWD, LINKS_MAX, MAY_EXEC, O_NOFOLLOW, O_PATH, is_dir, is_link};
use super::hostops::{self, At};
use super::mount::{self, Dir, Mount, Source};
use super::node::{self, Link, Node};
use super::{OpenFile, fd, overlay, path};
use crate::errno::{Errno, SysResult};
use crate::process::{Credentials, Process};

/// What to do about a symbolic link at the end of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// Follow it.
    Follow,
    /// It is what is meant, unless a slash follows.
    Itself,
    /// The name is meant: it is made, removed or moved.
    Name,
}

/// Where a path leads on the host.
#[derive(Debug)]
pub struct HostPlace {
    /// The directory to start from.
    pub dir: Dir,
    /// Relative path in it, `.` for itself.
    pub name: Vec<u8>,
    /// `abi::hostop::resolve` bits.
    pub how: u64,
    /// Absolute path in the guest.
    pub path: Vec<u8>,
    /// Writes give EROFS.
    pub read_only: bool,
    /// Only a directory will do. (A path that goes whole says so by its slash.)
    pub must_be_directory: bool,
}

impl HostPlace {
    /// For a request.
    #[must_use]
    pub fn at(&self) -> At<'_> {
        At {
            dir: self.dir.number(),
            path: &self.name,
            how: self.how,
        }
    }
}

/// Where a path leads in the guest.
#[derive(Clone)]
pub struct NodePlace {
    /// The directory of the last component, unless that is a mount's root.
    pub parent: Option<Arc<dyn Node>>,
    /// The last component.
    pub name: Vec<u8>,
    /// What is there, if something is.
    pub node: Option<Arc<dyn Node>>,
    /// Set when the path ended with a link to something open.
    pub open: Option<Arc<OpenFile>>,
    /// Absolute path in the guest.
    pub path: Vec<u8>,
    /// Writes give EROFS.
    pub read_only: bool,
    /// Only a directory will do.
    pub must_be_directory: bool,
}

impl NodePlace {
    /// What is there.
    ///
    /// # Errors
    /// ENOENT; ENOTDIR.
    pub fn node(&self) -> SysResult<&Arc<dyn Node>> {
        let node = self.node.as_ref().ok_or(Errno::ENOENT)?;
        if self.must_be_directory && !is_dir(node.stat()?.mode) {
            return Err(Errno::ENOTDIR);
        }
        Ok(node)
    }

    /// The directory, for changes of its entries.
    ///
    /// # Errors
    /// EBUSY for a mount's root; EROFS.
    pub fn parent(&self) -> SysResult<&Arc<dyn Node>> {
        let parent = self.parent.as_ref().ok_or(Errno::EBUSY)?;
        if self.read_only {
            Err(Errno::EROFS)
        } else {
            Ok(parent)
        }
    }
}

/// Where a path leads.
pub enum Place {
    /// On the host.
    Host(HostPlace),
    /// In the guest.
    Node(NodePlace),
}

/// What a look-up must not do (`openat2`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Leave the file system where it starts.
    one_mount: bool,
    /// Follow the links of `/proc` that lead to open files.
    no_magic: bool,
    /// Follow any link.
    no_links: bool,
    /// Leave the directory where it starts.
    beneath: bool,
    /// Have another root than the directory where it starts.
    in_root: bool,
}

impl Bounds {
    /// Of `RESOLVE_*` bits (`include/uapi/linux/openat2.h`).
    ///
    /// # Errors
    /// EINVAL.
    pub fn of(resolve: u64) -> SysResult<Self> {
        let has = |bit: u64| resolve & bit != 0;
        if has(!0x1f) || has(8) && has(0x10) {
            return Err(Errno::EINVAL);
        }
        Ok(Self {
            one_mount: has(1),
            no_magic: has(2),
            no_links: has(4),
            beneath: has(8),
            in_root: has(0x10),
        })
    }

    /// Whether a link to an open file may be followed.
    fn permit_magic(self) -> SysResult<()> {
        if self.no_magic || self.no_links {
            Err(Errno::ELOOP)
        } else if self.beneath || self.in_root {
            Err(Errno::EXDEV)
        } else {
            Ok(())
        }
    }
}

/// Where a look-up starts.
#[derive(Debug, Clone)]
pub struct Start {
    base: Vec<u8>,
    root: Vec<u8>,
    bounds: Bounds,
}

impl Start {
    /// For `path` relative to `dirfd`.
    ///
    /// # Errors
    /// EBADF, ENOTDIR for a relative path and a descriptor that won't do.
    pub fn of(dirfd: i32, path: &[u8]) -> SysResult<Self> {
        let process = Process::current();
        let root = process.fs.root.lock().clone();
        let base = if path.first() == Some(&b'/') {
            root.clone()
        } else if dirfd == AT_FDCWD {
            process.fs.cwd.lock().clone()
        } else {
            directory_path(&*fd::get(dirfd)?)?
        };
        Ok(Self {
            base,
            root,
            bounds: Bounds::default(),
        })
    }

    /// The same, for a look-up in bounds.
    ///
    /// # Errors
    /// As [`Start::of`]; EXDEV for an absolute path that must stay beneath a directory.
    pub fn within(dirfd: i32, path: &[u8], bounds: Bounds) -> SysResult<Self> {
        let is_absolute = path.first() == Some(&b'/');
        if is_absolute && bounds.beneath {
            return Err(Errno::EXDEV);
        }
        let mut start = Self::of(dirfd, if bounds.in_root { b"." } else { path })?;
        if bounds.in_root {
            start.root.clone_from(&start.base);
        }
        start.bounds = bounds;
        Ok(start)
    }

    /// The root of the name space.
    #[must_use]
    pub fn root() -> Self {
        Self {
            base: b"/".to_vec(),
            root: b"/".to_vec(),
            bounds: Bounds::default(),
        }
    }
}

fn directory_path(open: &OpenFile) -> SysResult<Vec<u8>> {
    let known = open.file.as_any().is::<super::hostdir::HostDir>();
    if !known && !is_dir(open.file.stat()?.mode) {
        return Err(Errno::ENOTDIR);
    }
    Ok(open.path.lock().clone())
}

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

/// What an operation on the host does about a link that it meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// It obeys the resolve bits.
    Reported,
    /// It follows it.
    Followed,
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

/// The place of a path that can go to the service as it is.
fn whole(start: &Start, path: &[u8], full: &[u8], last: Last, links: Links) -> SysResult<Option<HostPlace>> {
    if start.root != b"/" {
        return Ok(None);
    }
    let mount = mount::covering(full)?;
    let Source::Host(dir) = &mount.source else {
        return Ok(None);
    };
    let slash = path::must_be_directory(path);
    let border = mount::border(full, &mount);
    if border.is_none() && mount.is_host_root() && !mount::names_are_walked() {
        let name = if path::has_dot_dot(path) {
            if !stays(start, path, &mount) {
                return Ok(None);
            }
            textual(&start.base, path)
        } else {
            whole_name(full, slash)
        };
        let place = HostPlace {
            dir: dir.clone(),
            name,
            how: resolve::ROOTED,
            path: full.to_vec(),
            read_only: mount.read_only,
            must_be_directory: false,
        };
        return Ok(Some(place));
    }
    let mount = border.as_ref().unwrap_or(&mount);
    let Source::Host(dir) = &mount.source else {
        return Ok(None);
    };
    let name = path::below(&mount.path, full).unwrap_or_default();
    let follows = links == Links::Followed && last == Last::Follow;
    if slash || follows || path::has_dot_dot(path) || name.contains(&b'/') || name.is_empty() {
        return Ok(None);
    }
    let (dir, name, read_only) = (dir.clone(), name.to_vec(), mount.read_only);
    Ok(Some(HostPlace {
        dir,
        name,
        how: resolve::COMPONENT,
        path: full.to_vec(),
        read_only,
        must_be_directory: false,
    }))
}

fn whole_name(full: &[u8], slash: bool) -> Vec<u8> {
    match full {
        [b'/'] => b".".to_vec(),
        [_, rest @ ..] => {
            let mut name = Vec::with_capacity(rest.len() + 1);
            name.extend_from_slice(rest);
            if slash {
                name.push(b'/');
            }
            name
        }
        [] => Vec::new(),
    }
}

/// Whether every step of the path, taken textually, stays in the mount.
fn stays(start: &Start, path: &[u8], mount: &Mount) -> bool {
    let mut at = Vec::new();
    for component in path::components(&start.base).chain(path::components(path)) {
        if component == b".." {
            path::pop(&mut at);
        } else {
            path::push(&mut at, component);
        }
        let text: &[u8] = if at.is_empty() { b"/" } else { &at };
        let same = mount::covering(text).is_ok_and(|m| m.path == mount.path);
        if !same || mount::border(text, mount).is_some() {
            return false;
        }
    }
    true
}

/// Base and path as one relative text, with its `..`.
fn textual(base: &[u8], path: &[u8]) -> Vec<u8> {
    let mut out = base.strip_prefix(b"/").unwrap_or(base).to_vec();
    if !out.is_empty() {
        out.push(b'/');
    }
    out.extend_from_slice(path);
    let slashes = out.iter().take_while(|&&b| b == b'/').count();
    out.drain(..slashes);
    out
}

#[derive(Clone)]
enum Spot {
    Host { dir: Dir, device: u64 },
    Node(Arc<dyn Node>),
}

struct Walker<'s> {
    start: &'s Start,
    /// The directory reached, canonical.
    at: Vec<u8>,
    spot: Spot,
    read_only: bool,
    /// Spots of the directories above, up to the mount where the walk entered.
    above: Vec<(Spot, bool)>,
    /// Components to go, the next one last.
    todo: Vec<Vec<u8>>,
    links: u32,
    last: Last,
    must_be_directory: bool,
    /// Who walks; known from the first node on.
    who: Option<Credentials>,
    /// It has been in overlays only.
    overlaid: bool,
    /// Path of the mount that it must not leave.
    mount: Option<Vec<u8>>,
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

/// Where the mount begins that a directory is in.
fn mount_of(directory: &[u8]) -> SysResult<Vec<u8>> {
    let mount = mount::covering(directory)?;
    let border = mount::border(directory, &mount);
    Ok(border.map_or_else(|| mount.path.clone(), |border| border.path.clone()))
}

/// The place, and whether only overlays were on the way.
fn walk_components(start: &Start, path: &[u8], last: Last) -> SysResult<(Place, bool)> {
    let must_be_directory = path::must_be_directory(path);
    let last = if must_be_directory && last == Last::Itself {
        Last::Follow
    } else {
        last
    };
    let mut walker = Walker {
        start,
        at: Vec::new(),
        spot: Spot::Host {
            dir: Dir::Root(0),
            device: 0,
        },
        read_only: true,
        above: Vec::new(),
        todo: path::components(path).rev().map(<[u8]>::to_vec).collect(),
        links: 0,
        last,
        must_be_directory,
        who: None,
        overlaid: true,
        mount: None,
    };
    if start.bounds.one_mount {
        walker.mount = Some(mount_of(&start.base)?);
    }
    walker.restart(&start.base)?;
    walker.check_mount()?;
    walker.run()
}

impl Walker<'_> {
    /// Goes to a canonical directory: to its mount, with the rest of its path to walk.
    fn restart(&mut self, directory: &[u8]) -> SysResult<()> {
        self.todo
            .extend(path::components(directory).rev().map(<[u8]>::to_vec));
        // As far as the text goes without `..`, it may name a mount.
        let mut text = Vec::new();
        for component in self.todo.iter().rev().take_while(|c| *c != b"..") {
            path::push(&mut text, component);
        }
        let text: &[u8] = if text.is_empty() { b"/" } else { &text };
        let mount = mount::covering(text)?;
        let border = mount::border(text, &mount);
        let mount = border.as_ref().unwrap_or(&mount);
        let depth = path::components(&mount.path).count();
        self.todo.truncate(self.todo.len() - depth);
        self.above.clear();
        self.enter(mount)
    }

    fn enter(&mut self, mount: &Mount) -> SysResult<()> {
        self.at.clone_from(&mount.path);
        self.read_only = mount.read_only;
        self.overlaid &= mount.is_overlay();
        self.spot = match &mount.source {
            Source::Node(node) => Spot::Node(node.clone()),
            Source::Host(dir) => {
                let device = match dir {
                    Dir::Root(root) => mount::root_device(*root)?,
                    Dir::Open(fd) => hostops::fstat(fd)?.dev,
                };
                Spot::Host {
                    dir: dir.clone(),
                    device,
                }
            }
        };
        Ok(())
    }

    fn run(mut self) -> SysResult<(Place, bool)> {
        while let Some(name) = self.todo.pop() {
            if name == b".." {
                self.up()?;
            } else {
                path::check_name(&name)?;
                if let Some(place) = self.step(name)? {
                    return Ok((place, self.overlaid));
                }
            }
            self.check_mount()?;
        }
        let overlaid = self.overlaid;
        Ok((self.here(), overlaid))
    }

    /// The place is the directory reached.
    fn here(self) -> Place {
        let (path, read_only) = (self.at, self.read_only);
        match self.spot {
            Spot::Host { dir, .. } => {
                let name = b".".to_vec();
                Place::Host(HostPlace {
                    dir,
                    name,
                    how: resolve::COMPONENT,
                    path,
                    read_only,
                    must_be_directory: false,
                })
            }
            Spot::Node(node) => Place::Node(NodePlace {
                parent: None,
                name: Vec::new(),
                node: Some(node),
                open: None,
                path,
                read_only,
                // A file may be mounted, too.
                must_be_directory: self.must_be_directory,
            }),
        }
    }

    fn check_mount(&self) -> SysResult<()> {
        match &self.mount {
            Some(mount) if mount_of(&self.at)? != *mount => Err(Errno::EXDEV),
            _ => Ok(()),
        }
    }

    fn up(&mut self) -> SysResult<()> {
        if self.start.bounds.beneath && self.at == self.start.base {
            return Err(Errno::EXDEV);
        }
        if self.at == self.start.root || self.at == b"/" {
            return Ok(());
        }
        if let Some((spot, read_only)) = self.above.pop() {
            path::pop(&mut self.at);
            if self.at.is_empty() {
                self.at.push(b'/');
            }
            (self.spot, self.read_only) = (spot, read_only);
            return Ok(());
        }
        let parent = path::split_last(&self.at)
            .map_or(&b"/"[..], |(parent, _)| parent)
            .to_vec();
        self.restart(&parent)
    }

    /// Takes one component; gives the place when that was the last.
    fn step(&mut self, name: Vec<u8>) -> SysResult<Option<Place>> {
        let mut path = self.at.clone();
        path::push(&mut path, &name);
        if let Some(mount) = mount::at(&path) {
            let above = (self.spot.clone(), self.read_only);
            self.above.push(above);
            self.enter(&mount)?;
            return Ok(None);
        }
        match self.spot.clone() {
            Spot::Host { dir, device } => self.step_host(dir, device, name, path),
            Spot::Node(node) => self.step_node(&node, name, path),
        }
    }

    /// Whether a link that was found is to be followed.
    fn follows(&self) -> bool {
        !self.todo.is_empty() || self.last == Last::Follow
    }

    fn step_host(&mut self, dir: Dir, device: u64, name: Vec<u8>, path: Vec<u8>) -> SysResult<Option<Place>> {
        let is_last = self.todo.is_empty();
        let at = At {
            dir: dir.number(),
            path: &name,
            how: resolve::COMPONENT,
        };
        let opened = match hostops::open(at, O_PATH | O_NOFOLLOW, 0) {
            Ok(opened) => Some(opened),
            Err(Errno::ENOENT) if is_last => None,
            Err(e) => return Err(e),
        };
        let mode = opened.as_ref().map(|(_, stat)| stat.mode);
        if mode.is_some_and(is_link) && self.follows() {
            let target = hostops::read_link(at)?;
            self.follow(&target)?;
            return Ok(None);
        }
        match opened {
            Some((fd, stat)) if is_dir(stat.mode) => {
                let fd = Arc::new(fd);
                if stat.dev != device {
                    mount::learn_border(&path, &fd, self.read_only);
                }
                if !is_last || self.last != Last::Name {
                    self.above.push((Spot::Host { dir, device }, self.read_only));
                    self.spot = Spot::Host {
                        dir: Dir::Open(fd),
                        device: stat.dev,
                    };
                    self.at = path;
                    return Ok(None);
                }
            }
            Some(_) if !is_last || self.must_be_directory && self.last != Last::Name => {
                return Err(Errno::ENOTDIR);
            }
            _ => {}
        }
        let (read_only, must_be_directory) = (self.read_only, self.must_be_directory);
        let place = HostPlace {
            dir,
            name,
            how: resolve::COMPONENT,
            path,
            read_only,
            must_be_directory,
        };
        Ok(Some(Place::Host(place)))
    }

    fn step_node(&mut self, dir: &Arc<dyn Node>, name: Vec<u8>, path: Vec<u8>) -> SysResult<Option<Place>> {
        let is_last = self.todo.is_empty();
        let stat = dir.search_stat()?;
        if !is_dir(stat.mode) {
            return Err(Errno::ENOTDIR);
        }
        node::permit(&stat, self.who.get_or_insert_with(node::credentials), MAY_EXEC)?;
        let found = match dir.lookup(&name) {
            Ok(node) => Some(node),
            Err(Errno::ENOENT) if is_last => None,
            Err(e) => return Err(e),
        };
        let mut open = None;
        if let Some(node) = &found {
            let mode = node.search_stat()?.mode;
            if is_link(mode) && self.follows() {
                match node.read_link()? {
                    Link::Path(target) => {
                        self.follow(&target)?;
                        return Ok(None);
                    }
                    Link::Open(file) => {
                        self.start.bounds.permit_magic()?;
                        self.overlaid = false;
                        open = Some(file);
                    }
                }
                if !is_last {
                    // A directory that is open: go on from its path.
                    let file = open.take().ok_or(Errno::ENOTDIR)?;
                    let directory = directory_path(&file)?;
                    self.restart(&directory)?;
                    return Ok(None);
                }
            } else if !is_last {
                self.above.push((self.spot.clone(), self.read_only));
                self.spot = Spot::Node(node.clone());
                self.at = path;
                return Ok(None);
            }
        }
        Ok(Some(Place::Node(NodePlace {
            parent: Some(dir.clone()),
            name,
            node: found,
            open,
            path,
            read_only: self.read_only,
            must_be_directory: self.must_be_directory,
        })))
    }

    fn follow(&mut self, target: &[u8]) -> SysResult<()> {
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(Errno::ELOOP);
        }
        if self.start.bounds.no_links {
            return Err(Errno::ELOOP);
        }
        if target.is_empty() {
            return Err(Errno::ENOENT);
        }
        if target[0] == b'/' && self.start.bounds.beneath {
            return Err(Errno::EXDEV);
        }
        if self.todo.is_empty() && path::must_be_directory(target) {
            self.must_be_directory = true;
        }
        self.todo
            .extend(path::components(target).rev().map(<[u8]>::to_vec));
        if target[0] == b'/' {
            let root = self.start.root.clone();
            self.restart(&root)?;
        }
        Ok(())
    }
}

/// The canonical path of a directory, for `chdir` and the like.
///
/// # Errors
/// Those of the look-up; ENOTDIR.
pub fn directory(dirfd: i32, path: &[u8]) -> SysResult<Vec<u8>> {
    check(path)?;
    match walk(&Start::of(dirfd, path)?, path, Last::Follow)? {
        Place::Host(place) => {
            let statx = hostops::statx(place.at(), 0, 0x7ff)?;
            // Search permission, as chdir asks for it.
            if !is_dir(u32::from(statx.mode)) {
                return Err(Errno::ENOTDIR);
            }
            hostops::access(place.at(), MAY_EXEC, super::flags::AT_EACCESS)?;
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
