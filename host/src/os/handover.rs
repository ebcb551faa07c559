//! What the monitor hands to the service: descriptors by number and a hidden command line.
//!
//! ```text
//! 0 1 2              standard streams
//! 3                  shared region
//! 4                  doorbell
//! 5                  lifeline, the read end of a pipe
//! 6                  streams, a socket on which the monitor hands over further standard streams
//! 7 ..               wake eventfds, one for each vCPU
//! 7 + vcpus ..       roots, one for each mount
//! ```
//! Command line: `NAME __os-service VCPUS ROOTS READ-ONLY-BITS SPIN-NANOSECONDS NETWORK USER WITHHELD...`: the network is 0 or 1, the user `-` or
//! `UID:GID[:GROUP...]`, and what is withheld are paths, their bytes in hexadecimal.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloak_abi::hostop::MAX_MOUNTS;
use cloak_abi::layout::MAX_VCPUS;

use super::error::OsError;
use crate::jail::privileges::Identity;

/// First argument of a process that is the service.
pub const MARK: &str = "__os-service";
/// Number of the shared region.
pub const REGION: i32 = 3;
/// Number of the doorbell.
pub const DOORBELL: i32 = 4;
/// Number of the lifeline.
pub const LIFELINE: i32 = 5;
/// Number of the socket for further standard streams.
pub const STREAMS: i32 = 6;
/// Number of the first wake eventfd.
pub const WAKES: i32 = 7;

/// In place of a user: the one who starts the service.
const NOBODY_ELSE: &str = "-";

/// The numbers on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Number of mounts.
    pub roots: usize,
    /// Bit `n` is set when mount `n` may not be changed.
    pub read_only: u64,
    /// Longest time to poll.
    pub spin: Duration,
    /// Whether sockets can be made.
    pub network: bool,
    /// As whom the service works; none: as whom it was started.
    pub user: Option<Identity>,
    /// Files of the host that are not given, wherever they lie: keys. Absolute, without symbolic links.
    pub withheld: Vec<PathBuf>,
}

impl Handover {
    /// Checks the counts.
    ///
    /// # Errors
    /// [`OsError::Count`].
    pub fn checked(self) -> Result<Self, OsError> {
        let in_range = |what, found, least, most| {
            if (least..=most).contains(&found) {
                Ok(())
            } else {
                Err(OsError::Count {
                    what,
                    found,
                    least,
                    most,
                })
            }
        };
        in_range("vCPUs", self.vcpus, 1, MAX_VCPUS)?;
        in_range("mounts", self.roots, 0, MAX_MOUNTS as usize)?;
        Ok(self)
    }

    /// The arguments after [`MARK`].
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let spin = u64::try_from(self.spin.as_nanos()).unwrap_or(u64::MAX);
        let network = u64::from(self.network);
        let numbers = [
            self.vcpus as u64,
            self.roots as u64,
            self.read_only,
            spin,
            network,
        ];
        let user = self
            .user
            .as_ref()
            .map_or_else(|| NOBODY_ELSE.to_owned(), to_numbers);
        let withheld = self.withheld.iter().map(|path| to_hex(path));
        let numbers = numbers.iter().map(u64::to_string);
        numbers.chain([user]).chain(withheld).collect()
    }

    /// Reads the arguments after [`MARK`].
    ///
    /// # Errors
    /// [`OsError::Argument`], [`OsError::Count`].
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, OsError> {
        let mut number = || {
            let text = arguments.next().unwrap_or_default();
            text.parse::<u64>().map_err(|_| OsError::Argument(text))
        };
        let (vcpus, roots, read_only, spin) = (number()?, number()?, number()?, number()?);
        let network = match number()? {
            0 => false,
            1 => true,
            other => return Err(OsError::Argument(other.to_string())),
        };
        let count = |n| usize::try_from(n).unwrap_or(usize::MAX);
        let spin = Duration::from_nanos(spin);
        let user = match arguments.next().unwrap_or_default() {
            none if none == NOBODY_ELSE => None,
            text => Some(from_numbers(&text).ok_or(OsError::Argument(text))?),
        };
        let withheld = arguments
            .map(|text| from_hex(&text).ok_or(OsError::Argument(text)))
            .collect::<Result<_, _>>()?;
        Self {
            vcpus: count(vcpus),
            roots: count(roots),
            read_only,
            spin,
            network,
            user,
            withheld,
        }
        .checked()
    }

    /// First number that is not handed over.
    #[must_use]
    pub fn end(&self) -> i32 {
        // Both counts are small, `checked` saw to it.
        WAKES + self.vcpus as i32 + self.roots as i32
    }
}

fn to_numbers(user: &Identity) -> String {
    let Identity { uid, gid, groups } = user;
    let groups = groups.iter().map(|group| format!(":{group}"));
    format!("{uid}:{gid}{}", groups.collect::<String>())
}

fn from_numbers(text: &str) -> Option<Identity> {
    let numbers: Result<Vec<u32>, _> = text.split(':').map(str::parse).collect();
    match numbers.ok()?.as_slice() {
        [uid, gid, groups @ ..] => Some(Identity {
            uid: *uid,
            gid: *gid,
            groups: groups.to_vec(),
        }),
        _ => None,
    }
}

fn to_hex(path: &Path) -> String {
    path.as_os_str()
        .as_bytes()
        .iter()
        .fold(String::new(), |mut text, byte| {
            // Writing to a string can't fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn from_hex(text: &str) -> Option<PathBuf> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = pairs.map(byte).collect();
    let path = PathBuf::from(OsString::from_vec(bytes?));
    path.is_absolute().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_round_trip() {
        let user = Identity {
            uid: 7,
            gid: 8,
            groups: vec![8, 9],
        };
        for user in [None, Some(user)] {
            let user_is_none = user.is_none();
            let handover = Handover {
                vcpus: 64,
                roots: 3,
                read_only: 5,
                spin: Duration::from_micros(100),
                network: user_is_none,
                user,
                withheld: vec!["/home/key".into(), OsString::from_vec(b"/\xff/k".to_vec()).into()],
            };
            let parsed = Handover::parse(handover.arguments().into_iter()).expect("well formed");
            assert_eq!(parsed, handover);
            assert_eq!(parsed.end(), 7 + 64 + 3);
        }
    }

    #[test]
    fn other_counts_and_words_are_refused() {
        let parse = |words: &[&str]| Handover::parse(words.iter().map(ToString::to_string));
        assert!(matches!(
            parse(&["0", "1", "0", "0", "1", "-"]),
            Err(OsError::Count { what: "vCPUs", .. })
        ));
        assert!(matches!(
            parse(&["65", "1", "0", "0", "1", "-"]),
            Err(OsError::Count { .. })
        ));
        assert!(matches!(
            parse(&["1", "65", "0", "0", "1", "-"]),
            Err(OsError::Count { what: "mounts", .. })
        ));
        assert!(matches!(parse(&["1", "x"]), Err(OsError::Argument(_))));
        assert!(matches!(parse(&[]), Err(OsError::Argument(_))));
        assert!(matches!(
            parse(&["1", "1", "0", "0", "2", "-"]),
            Err(OsError::Argument(_))
        ));
        for user in ["", "x", "7", "7:", "7:-8", "7:8:"] {
            assert!(
                matches!(parse(&["1", "1", "0", "0", "0", user]), Err(OsError::Argument(_))),
                "{user}"
            );
        }
        for path in ["2", "zz", "6b6579", "+f", "é"] {
            assert!(
                matches!(
                    parse(&["1", "1", "0", "0", "1", "-", path]),
                    Err(OsError::Argument(_))
                ),
                "{path}"
            );
        }
    }
}
