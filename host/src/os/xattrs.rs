//! Extended attributes.
//!
//! The calls know paths and readable descriptors, not places, so they get the magic link of the place:
//! following that leads to the very object that was resolved.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::attributes::{Target, target};
use super::paths::{Last, Resolve, magic_path, take_text};
use super::request::{Call, Refusal, Reply, Scratch};
use super::table::Entry;

/// Largest value, and largest list (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MOST: usize = 65536;
/// Longest name (XATTR_NAME_MAX).
const NAME_MOST: usize = 255;

fn last(call: &Call<'_>) -> Last {
    if call.arg(4) == 1 {
        Last::Itself
    } else {
        Last::Follow
    }
}

fn object(call: &Call<'_>, dir: &Arc<Entry>, at: usize, scratch: &mut Scratch) -> Result<Target, Refusal> {
    target(call, dir, at, 3, last(call), Resolve::Rooted, scratch)
}

fn name_len(call: &Call<'_>) -> Result<usize, Errno> {
    match call.len(1)? {
        0 | 256.. => Err(Errno::RANGE),
        len @ 1..=NAME_MOST => Ok(len),
    }
}

fn room(call: &Call<'_>, n: usize, bytes: &mut Vec<u8>) -> Result<(), Errno> {
    bytes.clear();
    bytes.resize(call.len(n)?.min(MOST), 0);
    Ok(())
}

/// [`cloak_abi::hostop::HostOp::GetXattr`]
pub fn get(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let entry = call.file(0)?;
    let name_len = name_len(call)?;
    let object = object(call, &entry, name_len, scratch)?;
    let name = take_text(&call.buffer(), 0, name_len, &mut scratch.other)?;
    room(call, 2, &mut scratch.bytes)?;
    let path = magic_path(object.as_fd());
    if scratch.bytes.is_empty() {
        return Ok(rustix::fs::getxattr_query(path, name)?.into());
    }
    let len = rustix::fs::getxattr(path, name, scratch.bytes.as_mut_slice())?;
    call.buffer().write(scratch.bytes.get(..len).unwrap_or_default());
    Ok(len.into())
}

/// [`cloak_abi::hostop::HostOp::SetXattr`]
pub fn set(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let entry = call.file(0)?;
    let name_len = name_len(call)?;
    let object = object(call, &entry, name_len, scratch)?;
    entry.writable()?;
    let name = take_text(&call.buffer(), 0, name_len, &mut scratch.other)?;
    if call.len(2)? > MOST {
        return Err(Errno::TOOBIG.into());
    }
    room(call, 2, &mut scratch.bytes)?;
    let value_at = name_len + call.len(3)?;
    call.buffer()
        .part(value_at, scratch.bytes.len())?
        .read(&mut scratch.bytes);
    let flags = XattrFlags::from_bits_retain(call.word(5));
    rustix::fs::setxattr(magic_path(object.as_fd()), name, &scratch.bytes, flags)?;
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::ListXattr`]
pub fn list(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let entry = call.file(0)?;
    let object = object(call, &entry, 0, scratch)?;
    room(call, 2, &mut scratch.bytes)?;
    let path = magic_path(object.as_fd());
    if scratch.bytes.is_empty() {
        return Ok(rustix::fs::listxattr_query(path)?.into());
    }
    let len = rustix::fs::listxattr(path, scratch.bytes.as_mut_slice())?;
    call.buffer().write(scratch.bytes.get(..len).unwrap_or_default());
    Ok(len.into())
}

/// [`cloak_abi::hostop::HostOp::RemoveXattr`]
pub fn remove(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let entry = call.file(0)?;
    let name_len = name_len(call)?;
    let object = object(call, &entry, name_len, scratch)?;
    entry.writable()?;
    let name = take_text(&call.buffer(), 0, name_len, &mut scratch.other)?;
    rustix::fs::removexattr(magic_path(object.as_fd()), name)?;
    Ok(().into())
}
