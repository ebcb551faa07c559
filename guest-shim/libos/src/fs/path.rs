//! Paths as texts: joining, splitting, normalising. No look-ups here.

use alloc::vec::Vec;

use super::flags::NAME_MAX;
use crate::errno::{Errno, SysResult};

/// Components of a path, without the empty ones and `.`.
pub fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|c| !c.is_empty() && *c != b".")
}

/// Whether a component of the path is `..`.
#[must_use]
pub fn has_dot_dot(path: &[u8]) -> bool {
    components(path).any(|c| c == b"..")
}

/// Whether the path names a directory by its end: `/`, `/.` or `/..`.
#[must_use]
pub fn must_be_directory(path: &[u8]) -> bool {
    path.ends_with(b"/") || path.ends_with(b"/.") || path.ends_with(b"/..") || path == b"." || path == b".."
}

/// `base` (absolute) with `path` below it; `..` is taken textually and stops at the root.
#[must_use]
pub fn join(base: &[u8], path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(base.len() + path.len() + 1);
    for component in components(base).chain(components(path)) {
        if component == b".." {
            pop(&mut out);
        } else {
            push(&mut out, component);
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

/// Appends one component to an absolute path. The root may be written as an empty path meanwhile.
pub fn push(path: &mut Vec<u8>, component: &[u8]) {
    if path.last() != Some(&b'/') {
        path.push(b'/');
    }
    path.extend_from_slice(component);
}

/// Takes the last component off; the root becomes an empty path.
pub fn pop(path: &mut Vec<u8>) {
    let cut = path.iter().rposition(|&b| b == b'/').unwrap_or(0);
    path.truncate(cut);
}

/// What follows `prefix` in `path` (both absolute and normalised): empty for the same path.
#[must_use]
pub fn below<'p>(prefix: &[u8], path: &'p [u8]) -> Option<&'p [u8]> {
    if prefix == b"/" {
        return Some(path.strip_prefix(b"/").unwrap_or(path));
    }
    match path.strip_prefix(prefix)? {
        [] => Some(&[]),
        [b'/', rest @ ..] => Some(rest),
        _ => None,
    }
}

/// `path` with `from` at its beginning replaced by `to`, if it is there.
#[must_use]
pub fn moved(path: &[u8], from: &[u8], to: &[u8]) -> Option<Vec<u8>> {
    let below = below(from, path)?;
    let mut moved = to.to_vec();
    if !below.is_empty() {
        moved.push(b'/');
        moved.extend_from_slice(below);
    }
    Some(moved)
}

/// Parent path and last component of an absolute, normalised path; nothing for the root.
#[must_use]
pub fn split_last(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = path.iter().rposition(|&b| b == b'/')?;
    let name = &path[slash + 1..];
    if name.is_empty() {
        return None;
    }
    Some((if slash == 0 { b"/" } else { &path[..slash] }, name))
}

/// What is before the last component of a path as it was given (`.`: nothing is), and that component: `.` and `..` are
/// ones, too. Empty for the root.
#[must_use]
pub fn last_component(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|&b| b != b'/').map_or(0, |i| i + 1);
    let start = path[..end].iter().rposition(|&b| b == b'/').map_or(0, |i| i + 1);
    let before = match (start, end) {
        (0, 0) if !path.is_empty() => path,
        (0, _) => b".",
        _ => &path[..start],
    };
    (before, &path[start..end])
}

/// Checks a name's length.
///
/// # Errors
/// ENAMETOOLONG.
pub fn check_name(name: &[u8]) -> SysResult<()> {
    if name.len() > NAME_MAX {
        Err(Errno::ENAMETOOLONG)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_normalises() {
        assert_eq!(join(b"/", b""), b"/");
        assert_eq!(join(b"/", b"../.."), b"/");
        assert_eq!(join(b"/a/b", b"../c//d/."), b"/a/c/d");
        assert_eq!(join(b"/a", b"b"), b"/a/b");
    }

    #[test]
    fn below_stops_at_component_borders() {
        assert_eq!(below(b"/tmp", b"/tmp"), Some(&b""[..]));
        assert_eq!(below(b"/tmp", b"/tmp/x"), Some(&b"x"[..]));
        assert_eq!(below(b"/tmp", b"/tmpx"), None);
        assert_eq!(below(b"/", b"/x/y"), Some(&b"x/y"[..]));
        assert_eq!(below(b"/", b"/"), Some(&b""[..]));
    }

    #[test]
    fn last_components_are_those_of_the_text() {
        assert_eq!(last_component(b"a"), (&b"."[..], &b"a"[..]));
        assert_eq!(last_component(b"a/b//"), (&b"a/"[..], &b"b"[..]));
        assert_eq!(last_component(b"a/."), (&b"a/"[..], &b"."[..]));
        assert_eq!(last_component(b"/.."), (&b"/"[..], &b".."[..]));
        assert_eq!(last_component(b"//"), (&b"//"[..], &b""[..]));
    }

    #[test]
    fn splitting_off_the_last_component() {
        assert_eq!(split_last(b"/a/b"), Some((&b"/a"[..], &b"b"[..])));
        assert_eq!(split_last(b"/a"), Some((&b"/"[..], &b"a"[..])));
        assert_eq!(split_last(b"/"), None);
    }
}
