//! `ls` and `cat` of a volume.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::{CommandError, Done, Outcome, of};
use crate::inode::{DIRECTORY, Ino, SYMLINK, TYPE_MASK};
use crate::store::Store;
use crate::volume::Volume;

#[derive(Serialize)]
struct Entry {
    path: String,
    inode: u64,
    kind: &'static str,
    /// Twelve bits, in octal.
    mode: String,
    links: u32,
    uid: u32,
    gid: u32,
    size: u64,
    /// Bytes that its blocks take.
    allocated: u64,
    /// Seconds since 1970.
    modified: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attributes: Vec<String>,
}

const fn kind(mode: u32) -> &'static str {
    match mode & TYPE_MASK {
        DIRECTORY => "directory",
        SYMLINK => "symlink",
        crate::inode::REGULAR => "file",
        crate::inode::FIFO => "fifo",
        crate::inode::SOCKET => "socket",
        crate::inode::CHARACTER => "character device",
        crate::inode::BLOCK_DEVICE => "block device",
        _ => "unknown",
    }
}

/// Lists a directory, or one file.
pub fn list<S: Store>(
    volume: &mut Volume<S>,
    container: &Path,
    path: &str,
    recursive: bool,
    json: bool,
    out: &mut dyn Write,
) -> Done {
    let start = find(volume, container, path)?;
    let mut entries = Vec::new();
    let base = path.trim_end_matches('/');
    let mut waiting = vec![(base.to_owned(), start)];
    if volume.stat(start).map_err(of(container))?.mode & TYPE_MASK != DIRECTORY {
        entries.push(entry(volume, container, base.to_owned(), start)?);
        waiting.clear();
    }
    while let Some((base, dir)) = waiting.pop() {
        let mut after = 0;
        let mut here = Vec::new();
        loop {
            let found = volume.readdir(dir, after, 1024).map_err(of(container))?;
            let Some(last) = found.last() else { break };
            after = last.cookie;
            here.extend(found);
        }
        here.sort_by(|a, b| a.name.cmp(&b.name));
        for found in here {
            let path = format!("{base}/{}", String::from_utf8_lossy(&found.name));
            let entry = entry(volume, container, path.clone(), found.ino)?;
            if recursive && entry.kind == "directory" {
                waiting.push((path, found.ino));
            }
            entries.push(entry);
        }
    }
    if json {
        serde_json::to_writer_pretty(&mut *out, &entries)?;
        writeln!(out)?;
        return Ok(Outcome::Done);
    }
    for e in &entries {
        let target = e.target.as_ref().map_or(String::new(), |t| format!(" -> {t}"));
        let row = format!(
            "{:<9} {} {:>3} {:>5} {:>5} {:>12}",
            e.kind, e.mode, e.links, e.uid, e.gid, e.size
        );
        // Names are the program's: nothing in them may reach a terminal as a command to it.
        writeln!(out, "{row} {}{}", printable(&e.path), printable(&target))?;
    }
    Ok(Outcome::Done)
}

fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect()
            } else {
                vec![c]
            }
        })
        .collect()
}

fn entry<S: Store>(
    volume: &mut Volume<S>,
    container: &Path,
    path: String,
    ino: Ino,
) -> Result<Entry, CommandError> {
    let stat = volume.stat(ino).map_err(of(container))?;
    let kind = kind(stat.mode);
    let target = if kind == "symlink" {
        Some(volume.readlink(ino).map_err(of(container))?)
    } else {
        None
    };
    let attributes = volume.attributes(ino).map_err(of(container))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Entry {
        path,
        inode: ino.0,
        kind,
        mode: format!("{:04o}", stat.mode & 0o7777),
        links: stat.links,
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        allocated: stat.blocks * crate::block::BLOCK as u64,
        modified: stat.modified.seconds,
        target: target.map(text),
        attributes: attributes.into_iter().map(text).collect(),
    })
}

/// Writes a file's content.
pub fn cat<S: Store>(volume: &mut Volume<S>, container: &Path, path: &str, out: &mut dyn Write) -> Done {
    let ino = find(volume, container, path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let read = volume.read_at(ino, at, &mut buffer).map_err(of(container))?;
        if read == 0 {
            return Ok(Outcome::Done);
        }
        out.write_all(&buffer[..read])?;
        at += read as u64;
    }
}

/// Links are not followed: they mean something where the volume is mounted.
fn find<S: Store>(volume: &mut Volume<S>, container: &Path, path: &str) -> Result<Ino, CommandError> {
    let mut at = volume.root();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        at = match volume.lookup(at, name.as_bytes()) {
            Ok(ino) => ino,
            Err(crate::VolumeError::NotFound | crate::VolumeError::NotDirectory(_)) => {
                return Err(CommandError::Path(path.to_owned()));
            }
            Err(error) => return Err(of(container)(error)),
        };
    }
    Ok(at)
}
