//! The walk, a component at a time: over mounts, links and the nodes of file systems in the guest.

use alloc::sync::Arc;
use alloc::vec::Vec;

use cloak_abi::hostop::resolve;

use super::place::{HostPlace, Last, NodePlace, Place};
use super::start::{Start, directory_path};
use crate::errno::{Errno, SysResult};
use crate::fs::flags::{LINKS_MAX, MAY_EXEC, O_NOFOLLOW, O_PATH, is_dir, is_link};
use crate::fs::hostops::{self, At};
use crate::fs::mount::{self, Dir, Mount, Source};
use crate::fs::node::{self, Link, Node};
use crate::fs::path;
use crate::process::Credentials;

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

/// Where the mount begins that a directory is in.
fn mount_of(directory: &[u8]) -> SysResult<Vec<u8>> {
    let mount = mount::covering(directory)?;
    let border = mount::border(directory, &mount);
    Ok(border.map_or_else(|| mount.path.clone(), |border| border.path.clone()))
}

/// The place, and whether only overlays were on the way.
pub(super) fn walk_components(start: &Start, path: &[u8], last: Last) -> SysResult<(Place, bool)> {
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
        // On the host only directories are gone into.
        if let Spot::Node(node) = &self.spot
            && !is_dir(node.search_stat()?.mode)
        {
            return Err(Errno::ENOTDIR);
        }
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
        let mut name = name;
        if must_be_directory && self.last == Last::Name {
            // The host says of a name with a slash what Linux does.
            name.push(b'/');
        }
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
