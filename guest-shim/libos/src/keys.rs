//! Keys of the context, where they follow from a root that is known inside only: as `cloak_manifest::keys` derives them on plain KVM.

use hkdf::Hkdf;
use sha2::Sha384;
use zeroize::Zeroizing;

/// Bytes of a key.
pub const KEY: usize = 32;

/// The root of a context's keys.
pub type Root = Zeroizing<[u8; KEY]>;

/// The key of the protected volume at a guest path: HKDF-SHA-384 (RFC 5869) without salt; info is `"cloak key v1"`, the
/// identity, `"volume"` and the path, both preceded by their length in eight bytes.
#[must_use]
pub fn of_volume(root: &Root, identity: &[u8; 48], path: &[u8]) -> Zeroizing<[u8; KEY]> {
    derive(root, identity, b"volume", path)
}

/// The key of sealed pages of memory.
#[must_use]
pub fn of_memory(root: &Root, identity: &[u8; 48]) -> Zeroizing<[u8; KEY]> {
    derive(root, identity, b"memory", b"")
}

fn derive(root: &Root, identity: &[u8; 48], kind: &[u8], detail: &[u8]) -> Zeroizing<[u8; KEY]> {
    let info: [&[u8]; 6] = [
        b"cloak key v1",
        identity,
        &(kind.len() as u64).to_le_bytes(),
        kind,
        &(detail.len() as u64).to_le_bytes(),
        detail,
    ];
    let mut key = Zeroizing::new([0; KEY]);
    let expanded = Hkdf::<Sha384>::new(None, root.as_slice()).expand_multi_info(&info, key.as_mut_slice());
    debug_assert!(
        expanded.is_ok(),
        "32 bytes are less than 255 hashes, HKDF's only limit"
    );
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same example as in `cloak_manifest::keys`: two crates derive alike.
    #[test]
    fn it_is_what_the_manifest_crate_derives() {
        let hex = |key: Zeroizing<[u8; KEY]>| {
            key.iter()
                .fold(String::new(), |text, b| text + &format!("{b:02x}"))
        };
        let golden = include_str!("../../../manifest/tests/keys.golden");
        let root = Root::new([7; KEY]);
        let found = [
            hex(of_volume(&root, &[0xab; 48], b"/data")),
            hex(of_memory(&root, &[0xab; 48])),
        ];
        assert_eq!(golden.lines().collect::<Vec<_>>(), found);
    }
}
