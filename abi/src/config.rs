//! What to run: the configuration that the monitor puts into private RAM for the libos.
//!
//! A sequence of records: `u32 tag | u32 length | bytes`, padded to 4 bytes, in any order, lists by
//! repetition. Numbers are little-endian u64. An unknown tag is an error: both ends are of one build.

use core::net::{IpAddr, SocketAddr};

use crate::anchor::{ANCHORS, MARK_WORDS};

macro_rules! tags {
    ($($(#[$doc:meta])* $name:ident = $n:literal,)*) => {
        /// Record tags.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Tag { $($(#[$doc])* $name = $n,)* }

        impl Tag {
            const fn from_u32(n: u32) -> Option<Self> {
                match n { $($n => Some(Self::$name),)* _ => None }
            }
        }
    };
}

tags! {
    /// Path of the program, absolute, in the guest's name space.
    Program = 1,
    /// One argument (the first is `argv[0]`).
    Arg = 2,
    /// One environment string, `NAME=value`.
    Env = 3,
    /// Working directory, absolute, in the guest's name space.
    Cwd = 4,
    /// One mount: u32 host mount index, u32 [`mount_flags`], guest path.
    Mount = 5,
    /// u64 user id, u64 group id, then supplementary groups, each u64.
    Ids = 6,
    /// Host name.
    HostName = 7,
    /// u64 bits of [`run_flags`].
    Flags = 8,
    /// u64 soft limit, u64 hard limit of open files.
    MaxFiles = 9,
    /// 32 bytes of randomness for the libos's generator (plain; elsewhere the CPU's).
    Seed = 10,
    /// u64 file mode of standard streams 0, 1 and 2.
    Stdio = 11,
    /// u64 file-mode creation mask.
    Umask = 12,
    /// One protected volume: a [`Protected`].
    Protected = 13,
    /// The manifest: SHA-384 of the shim (48 bytes), then the manifest's canonical form. Both lead to
    /// [`crate::boot::ContextBlock::identity`], or the libos refuses to start.
    Manifest = 14,
    /// One measured file: fs-verity digest (SHA-256, 32 bytes), guest path.
    File = 15,
    /// One symbolic link of a measured volume: u32 length of the path, guest path, target.
    Link = 16,
    /// A segment shared with other contexts: u64 index in [`crate::boot::ContextBlock::segments`], u64 bytes, name.
    Segment = 17,
    /// One more process ([`crate::exec`]; never in the first configuration): u64 [`crate::exec::exec_flags`], u64 ticket of
    /// its streams ([`crate::hostop::HostOp::Streams`]), u64 rows, u64 columns of its terminal.
    Exec = 18,
    /// A port of a private network that the host publishes: a [`Published`].
    Published = 19,
    /// A server of names that a private network reaches: its address, 4 or 16 bytes.
    NameServer = 20,
    /// Further lines of the host's `/etc/resolv.conf`.
    Resolver = 21,
    /// At most so much plaintext: u64 bytes, u64 index of the host mount that is the file for sealed pages. Where the launch is
    /// measured: elsewhere the monitor has the pager.
    Resident = 22,
    /// What the caller's signals do: u64 set of those that it ignores, u64 set of those that it blocks (bit 0 is signal 1).
    Signals = 23,
}

/// Bits of a mount.
pub mod mount_flags {
    /// Writes give EROFS.
    pub const READ_ONLY: u32 = 1;
    /// Not a host mount: a file system in guest memory.
    pub const MEMORY: u32 = 2;
    /// What is in it is what [`super::Tag::File`] and [`super::Tag::Link`] name; the host mount has the contents.
    pub const MEASURED: u32 = 4;
    /// A host mount that is only read, with changes in guest memory.
    pub const OVERLAY: u32 = 8;
    /// The host mount is the container of a protected volume whose key is not there: its ciphertext is shown.
    pub const CIPHERTEXT: u32 = 16;
    /// Nobody outside changes what is in the host mount while the guest runs.
    pub const EXCLUSIVE: u32 = 32;
}

/// Bits of [`Tag::Flags`].
pub mod run_flags {
    /// One line per system call on standard error.
    pub const TRACE: u64 = 1;
    /// Leave system-call sites as they are.
    pub const NO_PATCH: u64 = 2;
    /// No socket of the host: the network is an empty one.
    pub const NO_NETWORK: u64 = 4;
    /// The owner may start further processes ([`crate::exec`]).
    pub const EXEC: u64 = 8;
    /// The context has a network of its own: what is said on it stays inside, but for connections that the program makes to
    /// others, and for ports that are published.
    pub const PRIVATE_NETWORK: u64 = 16;
    /// The machine is simulated, so that what it says of itself is worth less. Believed, as who lies about it gains nothing: the
    /// roots of what it says are others.
    pub const SIMULATED: u64 = 32;
}

/// A published port. Layout: u16 IP protocol (6 or 17), u16 port in the guest, u16 port of the host, then the host's address, 4 or
/// 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Whether it is one of UDP; else of TCP.
    pub datagrams: bool,
    /// In the guest.
    pub port: u16,
    /// On the host.
    pub host: SocketAddr,
}

const TCP: u16 = 6;
const UDP: u16 = 17;

impl Published {
    /// Parses the value of a [`Tag::Published`] record.
    ///
    /// # Errors
    /// [`ConfigError::Size`] for what is none.
    pub fn parse(value: &[u8]) -> Result<Self, ConfigError> {
        let bad = ConfigError::Size(Tag::Published);
        let (head, host) = value.split_first_chunk::<6>().ok_or(bad)?;
        let [protocol, port, host_port] =
            [[head[0], head[1]], [head[2], head[3]], [head[4], head[5]]].map(u16::from_le_bytes);
        let datagrams = match protocol {
            TCP => false,
            UDP => true,
            _ => return Err(bad),
        };
        if port == 0 || host_port == 0 {
            return Err(bad);
        }
        Ok(Self {
            datagrams,
            port,
            host: SocketAddr::new(ip_address(host).ok_or(bad)?, host_port),
        })
    }
}

/// An IP address of 4 or 16 bytes.
#[must_use]
pub fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// A protected volume. Layout: u32 host mount index, u32 [`mount_flags`], u32 anchor (0 none, 1 it has seen the mark, 2
/// it has seen nothing yet), u32 number of the anchor, key (32 bytes), mark (56 bytes, zeros if there is none), guest path.
///
/// The key stands in private RAM only, and the libos clears it there once it has taken it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Protected<'a> {
    /// The host mount that is the container: a file.
    pub index: u32,
    /// [`mount_flags::READ_ONLY`] or 0.
    pub flags: u32,
    /// What remembers its last root.
    pub anchor: Option<Anchored>,
    /// Its key.
    pub key: &'a [u8; 32],
    /// Absolute path in the guest.
    pub path: &'a [u8],
}

/// An anchor of a protected volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchored {
    /// Its number, below [`crate::anchor::ANCHORS`].
    pub number: u32,
    /// What it saw last; `None` when it begins with this run.
    pub seen: Option<[u64; MARK_WORDS]>,
}

/// Bytes of a [`Protected`] before its path.
const PROTECTED_HEAD: usize = 16 + 32 + 8 * MARK_WORDS;

impl core::fmt::Debug for Protected<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Protected")
            .field("index", &self.index)
            .field("anchor", &self.anchor)
            .finish_non_exhaustive()
    }
}

impl<'a> Protected<'a> {
    /// Parses the value of a [`Tag::Protected`] record.
    ///
    /// # Errors
    /// [`ConfigError::Size`] for what is none.
    pub fn parse(value: &'a [u8]) -> Result<Self, ConfigError> {
        let bad = ConfigError::Size(Tag::Protected);
        let (head, path) = value.split_at_checked(PROTECTED_HEAD).ok_or(bad)?;
        let (numbers, rest) = head.split_first_chunk::<16>().ok_or(bad)?;
        let (key, mark) = rest.split_first_chunk::<32>().ok_or(bad)?;
        let word = |i: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&numbers[4 * i..4 * i + 4]);
            u32::from_le_bytes(word)
        };
        let mut seen = [0; MARK_WORDS];
        for (to, from) in seen.iter_mut().zip(mark.as_chunks::<8>().0) {
            *to = u64::from_le_bytes(*from);
        }
        let number = word(3);
        let anchor = match word(2) {
            0 => None,
            1 => Some(Anchored {
                number,
                seen: Some(seen),
            }),
            2 => Some(Anchored { number, seen: None }),
            _ => return Err(bad),
        };
        if path.first() != Some(&b'/') || anchor.is_some_and(|a| a.number as usize >= ANCHORS) {
            return Err(bad);
        }
        Ok(Self {
            index: word(0),
            flags: word(1),
            anchor,
            key,
            path,
        })
    }
}

/// Splits the value of a [`Tag::File`] record: digest and guest path.
///
/// # Errors
/// [`ConfigError::Size`] for what is none.
pub fn measured_file(value: &[u8]) -> Result<(&[u8; 32], &[u8]), ConfigError> {
    value
        .split_first_chunk()
        .filter(|(_, path)| path.first() == Some(&b'/'))
        .ok_or(ConfigError::Size(Tag::File))
}

/// Splits the value of a [`Tag::Link`] record: guest path and target.
///
/// # Errors
/// [`ConfigError::Size`] for what is none.
pub fn measured_link(value: &[u8]) -> Result<(&[u8], &[u8]), ConfigError> {
    value
        .split_first_chunk()
        .and_then(|(len, rest)| rest.split_at_checked(u32::from_le_bytes(*len) as usize))
        .filter(|(path, target)| path.first() == Some(&b'/') && !target.is_empty())
        .ok_or(ConfigError::Size(Tag::Link))
}

/// Why a configuration can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigError {
    /// A record reaches beyond the end.
    Truncated,
    /// No such tag.
    UnknownTag(u32),
    /// A record of the wrong size.
    Size(Tag),
}

/// Iterates over the records of a configuration.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// Starts at the first record.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn split(&mut self) -> Result<(Tag, &'a [u8]), ConfigError> {
        let (head, body) = self.rest.split_first_chunk::<8>().ok_or(ConfigError::Truncated)?;
        let [t0, t1, t2, t3, l0, l1, l2, l3] = *head;
        let tag = u32::from_le_bytes([t0, t1, t2, t3]);
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let value = body.get(..len).ok_or(ConfigError::Truncated)?;
        self.rest = body
            .get(len.next_multiple_of(4)..)
            .ok_or(ConfigError::Truncated)?;
        Ok((Tag::from_u32(tag).ok_or(ConfigError::UnknownTag(tag))?, value))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(Tag, &'a [u8]), ConfigError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let item = self.split();
        if item.is_err() {
            self.rest = &[];
        }
        Some(item)
    }
}

/// The `index`th little-endian u64 of a record.
///
/// # Errors
/// [`ConfigError::Size`] when the record is too short.
pub fn number(tag: Tag, value: &[u8], index: usize) -> Result<u64, ConfigError> {
    let bytes = value
        .get(index * 8..index * 8 + 8)
        .ok_or(ConfigError::Size(tag))?;
    bytes
        .try_into()
        .map(u64::from_le_bytes)
        .map_err(|_| ConfigError::Size(tag))
}

/// Writes a configuration.
#[cfg(feature = "alloc")]
#[derive(Debug, Default)]
pub struct Writer(alloc::vec::Vec<u8>);

#[cfg(feature = "alloc")]
impl Writer {
    /// Appends one record. Values beyond 4 GiB do not occur (argument limits are far below).
    pub fn put(&mut self, tag: Tag, value: &[u8]) -> &mut Self {
        self.0.extend_from_slice(&(tag as u32).to_le_bytes());
        self.0
            .extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends one record of numbers.
    pub fn numbers(&mut self, tag: Tag, values: &[u64]) -> &mut Self {
        let bytes: alloc::vec::Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.put(tag, &bytes)
    }

    /// Appends one mount record.
    pub fn mount(&mut self, index: u32, flags: u32, path: &[u8]) -> &mut Self {
        let mut bytes = index.to_le_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(path);
        self.put(Tag::Mount, &bytes)
    }

    /// Appends one measured file.
    pub fn measured_file(&mut self, digest: &[u8; 32], path: &[u8]) -> &mut Self {
        let mut bytes = digest.to_vec();
        bytes.extend_from_slice(path);
        self.put(Tag::File, &bytes)
    }

    /// Appends one symbolic link of a measured volume.
    pub fn measured_link(&mut self, path: &[u8], target: &[u8]) -> &mut Self {
        let mut bytes = u32::try_from(path.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes()
            .to_vec();
        bytes.extend_from_slice(path);
        bytes.extend_from_slice(target);
        self.put(Tag::Link, &bytes)
    }

    /// Appends one protected volume.
    pub fn protected(&mut self, volume: &Protected<'_>) -> &mut Self {
        let (state, number, mark) = match volume.anchor {
            None => (0, 0, [0; MARK_WORDS]),
            Some(Anchored {
                number,
                seen: Some(seen),
            }) => (1, number, seen),
            Some(Anchored { number, seen: None }) => (2, number, [0; MARK_WORDS]),
        };
        let len = PROTECTED_HEAD + volume.path.len();
        self.0.extend_from_slice(&(Tag::Protected as u32).to_le_bytes());
        self.0
            .extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        for number in [volume.index, volume.flags, state, number] {
            self.0.extend_from_slice(&number.to_le_bytes());
        }
        self.0.extend_from_slice(volume.key);
        for word in mark {
            self.0.extend_from_slice(&word.to_le_bytes());
        }
        self.0.extend_from_slice(volume.path);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends one segment.
    pub fn segment(&mut self, index: u64, bytes: u64, name: &[u8]) -> &mut Self {
        let value = [&index.to_le_bytes(), &bytes.to_le_bytes(), name].concat();
        self.put(Tag::Segment, &value)
    }

    /// Appends one IP address.
    pub fn ip_address(&mut self, tag: Tag, address: IpAddr) -> &mut Self {
        match address {
            IpAddr::V4(address) => self.put(tag, &address.octets()),
            IpAddr::V6(address) => self.put(tag, &address.octets()),
        }
    }

    /// Appends one published port.
    pub fn published(&mut self, published: &Published) -> &mut Self {
        let protocol = if published.datagrams { UDP } else { TCP };
        let numbers = [protocol, published.port, published.host.port()];
        let mut value: alloc::vec::Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        match published.host.ip() {
            IpAddr::V4(address) => value.extend(address.octets()),
            IpAddr::V6(address) => value.extend(address.octets()),
        }
        self.put(Tag::Published, &value)
    }

    /// The finished bytes.
    #[must_use]
    pub fn finish(self) -> alloc::vec::Vec<u8> {
        self.0
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip() {
        let mut w = Writer::default();
        w.put(Tag::Program, b"/bin/true")
            .put(Tag::Arg, b"")
            .numbers(Tag::Ids, &[1, 2, 3]);
        let bytes = w.finish();
        let all: Result<alloc::vec::Vec<_>, _> = Records::new(&bytes).collect();
        let all = all.expect("well formed");
        assert_eq!(all[0], (Tag::Program, &b"/bin/true"[..]));
        assert_eq!(all[1], (Tag::Arg, &b""[..]));
        assert_eq!(number(Tag::Ids, all[2].1, 2), Ok(3));
        assert_eq!(number(Tag::Ids, all[2].1, 3), Err(ConfigError::Size(Tag::Ids)));
    }

    #[test]
    fn protected_volumes_round_trip_and_cut_ones_are_refused() {
        let anchors = [
            None,
            Some(Anchored {
                number: 63,
                seen: Some([1, 2, 3, 4, 5, 6, 7]),
            }),
            Some(Anchored {
                number: 0,
                seen: None,
            }),
        ];
        for anchor in anchors {
            let volume = Protected {
                index: 7,
                flags: mount_flags::READ_ONLY,
                anchor,
                key: &[9; 32],
                path: b"/data",
            };
            let mut w = Writer::default();
            w.protected(&volume);
            let bytes = w.finish();
            let (tag, value) = Records::new(&bytes).next().expect("one").expect("well formed");
            assert_eq!(tag, Tag::Protected);
            assert_eq!(Protected::parse(value), Ok(volume));
            for cut in 0..=PROTECTED_HEAD {
                assert!(Protected::parse(&value[..cut]).is_err(), "{cut}");
            }
        }
    }

    #[test]
    fn measured_files_and_links_round_trip_and_cut_ones_are_refused() {
        let mut w = Writer::default();
        w.measured_file(&[7; 32], b"/bin/sh")
            .measured_link(b"/lib", b"usr/lib");
        let bytes = w.finish();
        let values: alloc::vec::Vec<_> = Records::new(&bytes).map(|r| r.expect("well formed").1).collect();
        assert_eq!(measured_file(values[0]), Ok((&[7; 32], &b"/bin/sh"[..])));
        assert_eq!(measured_link(values[1]), Ok((&b"/lib"[..], &b"usr/lib"[..])));
        for cut in 0..=32 {
            assert!(measured_file(&values[0][..cut]).is_err(), "{cut}");
        }
        for cut in 0..=8 {
            assert!(measured_link(&values[1][..cut]).is_err(), "{cut}");
        }
        assert!(measured_link(&[0, 0, 0, 0, b'x']).is_err(), "no path");
    }

    #[test]
    fn published_ports_round_trip_and_cut_ones_are_refused() {
        for (datagrams, host) in [(false, "127.0.0.1:8080"), (true, "[::]:53")] {
            let published = Published {
                datagrams,
                port: 80,
                host: host.parse().expect("an address"),
            };
            let mut w = Writer::default();
            w.published(&published);
            let bytes = w.finish();
            let (tag, value) = Records::new(&bytes).next().expect("one").expect("well formed");
            assert_eq!(tag, Tag::Published);
            assert_eq!(Published::parse(value), Ok(published));
            for cut in 0..value.len() {
                assert!(
                    Published::parse(&value[..cut]).is_err() || cut == 10,
                    "an IPv6 address cut to 4 bytes is one of IPv4: {cut}"
                );
            }
            let mut other = value.to_vec();
            other[0] = 1;
            assert!(Published::parse(&other).is_err(), "another protocol");
        }
    }

    #[test]
    fn an_anchor_that_can_not_be_is_refused() {
        let mut w = Writer::default();
        w.protected(&Protected {
            index: 1,
            flags: 0,
            anchor: None,
            key: &[0; 32],
            path: b"/data",
        });
        let mut value = w.finish().split_off(8);
        value[8] = 3;
        assert!(Protected::parse(&value).is_err());
        value[8] = 2;
        value[12] = 64;
        assert!(Protected::parse(&value).is_err());
    }

    #[test]
    fn every_truncation_is_an_error_or_fewer_records() {
        let mut w = Writer::default();
        w.put(Tag::Program, b"/bin/true").put(Tag::Env, b"A=1");
        let bytes = w.finish();
        for cut in 0..bytes.len() {
            let whole = Records::new(&bytes[..cut]).filter(Result::is_ok).count();
            assert!(whole < 2);
        }
    }

    #[test]
    fn unknown_tags_are_refused() {
        let bytes = [99u8, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            Records::new(&bytes).next(),
            Some(Err(ConfigError::UnknownTag(99)))
        );
    }
}
