//! What `fuzz/os` calls: the parsers of bytes that the guest chose, and what must hold of them.

use std::ffi::CString;

use super::sys::Address;
use super::{messages, paths, unix};

/// Control data comes apart into no more than there was, and what is passed on holds no descriptors.
pub fn control(bytes: &[u8]) {
    let (passed, descriptors) = messages::sort(bytes);
    assert!(passed.len() + descriptors.len() * 4 <= bytes.len());
    let (again, none) = messages::sort(&passed);
    assert!(none.is_empty(), "a descriptor was passed on");
    assert_eq!(again, passed);
}

/// An address is shown again as it is, or as a shorter name without the service's own prefix.
pub fn address(bytes: &[u8]) {
    let Ok(address) = Address::new(bytes) else { return };
    let seen = unix::as_seen(address);
    assert!(seen.bytes().len() <= bytes.len().max(1) + 1);
}

/// The parts of a path make up the path, and the last is one component.
pub fn path(bytes: &[u8]) {
    let Ok(path) = CString::new(bytes) else { return };
    let Ok((parent, name)) = paths::split(&path) else {
        return;
    };
    assert_eq!([parent, name.to_bytes()].concat(), bytes);
    assert!(parent.is_empty() || parent.ends_with(b"/"));
    let name = name.to_bytes();
    let end = name.iter().rposition(|b| *b != b'/').expect("a name");
    assert!(!name[..end].contains(&b'/'));
}
