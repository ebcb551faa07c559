//! Paths that go to the service whole: one request, however many components.

use alloc::vec::Vec;

use cloak_abi::hostop::resolve;

use super::place::{HostPlace, Last, Links};
use super::start::Start;
use crate::errno::SysResult;
use crate::fs::mount::{self, Mount, Source};
use crate::fs::path;

/// The place of a path that can go to the service as it is.
pub(super) fn whole(
    start: &Start,
    path: &[u8],
    full: &[u8],
    last: Last,
    links: Links,
) -> SysResult<Option<HostPlace>> {
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
