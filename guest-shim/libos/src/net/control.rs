//! Ancillary data: parsed when it comes, rebuilt when it goes; nothing unknown passes in either direction.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::errno::{Errno, SysResult};
use crate::fs::{OpenFile, fd};

/// Bytes of `struct cmsghdr`.
const HEADER: usize = 16;
const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;
const SCM_CREDENTIALS: i32 = 2;
/// Most descriptors in one message (`SCM_MAX_FD`).
const RIGHTS_MAX: usize = 253;

/// Process, user and group of a sender (`struct ucred`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// Process.
    pub pid: i32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

impl Sender {
    /// The process that runs this.
    #[must_use]
    pub fn current() -> Self {
        let process = crate::process::Process::current();
        let credentials = process.credentials.lock();
        Self {
            pid: process.pid,
            uid: credentials.uid[1],
            gid: credentials.gid[1],
        }
    }

    /// As `struct ucred`.
    #[must_use]
    pub fn bytes(&self) -> [u8; 12] {
        let mut out = [0; 12];
        out[..4].copy_from_slice(&self.pid.to_ne_bytes());
        out[4..8].copy_from_slice(&self.uid.to_ne_bytes());
        out[8..].copy_from_slice(&self.gid.to_ne_bytes());
        out
    }
}

/// What a message carries beside its payload.
#[derive(Debug, Clone, Default)]
pub struct Control {
    /// Messages for or from the host's network, as bytes.
    pub network: Vec<u8>,
    /// Open files (`SCM_RIGHTS`).
    pub rights: Vec<Arc<OpenFile>>,
    /// Who sent it (`SCM_CREDENTIALS`).
    pub sender: Option<Sender>,
}

/// (level, type, shortest, longest): what a program may send.
const OUTGOING: &[(i32, i32, usize, usize)] = &[
    (0, 1, 1, 4),           // IP_TOS
    (0, 2, 4, 4),           // IP_TTL
    (0, 8, 12, 12),         // IP_PKTINFO
    (41, 50, 20, 20),       // IPV6_PKTINFO
    (41, 52, 4, 4),         // IPV6_HOPLIMIT
    (41, 67, 4, 4),         // IPV6_TCLASS
    (17, 103, 2, 2),        // UDP_SEGMENT
    (SOL_SOCKET, 61, 8, 8), // SCM_TXTIME
];

/// What the host may deliver.
const INCOMING: &[(i32, i32, usize, usize)] = &[
    (SOL_SOCKET, 29, 16, 16), // SCM_TIMESTAMP
    (SOL_SOCKET, 35, 16, 16), // SCM_TIMESTAMPNS
    (SOL_SOCKET, 37, 48, 48), // SCM_TIMESTAMPING
    (SOL_SOCKET, 40, 4, 4),   // SO_RXQ_OVFL
    (0, 1, 1, 4),             // IP_TOS
    (0, 2, 4, 4),             // IP_TTL
    (0, 8, 12, 12),           // IP_PKTINFO
    (0, 11, 16, 48),          // IP_RECVERR
    (0, 20, 16, 16),          // IP_ORIGDSTADDR
    (41, 25, 16, 48),         // IPV6_RECVERR
    (41, 50, 20, 20),         // IPV6_PKTINFO
    (41, 52, 4, 4),           // IPV6_HOPLIMIT
    (41, 67, 4, 4),           // IPV6_TCLASS
    (41, 74, 28, 28),         // IPV6_ORIGDSTADDR
    (17, 104, 2, 4),          // UDP_GRO
    (270, 3, 4, 4),           // NETLINK_PKTINFO
];

fn allowed(list: &[(i32, i32, usize, usize)], level: i32, kind: i32, len: usize) -> bool {
    list.iter()
        .any(|&(l, k, least, most)| (l, k) == (level, kind) && (least..=most).contains(&len))
}

/// The messages in `bytes`: level, type, data. An error stands for a length that does not fit.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Result<(i32, i32, &[u8]), ()>> {
    core::iter::from_fn(move || {
        let header = bytes.first_chunk::<HEADER>()?;
        let len = usize::from_ne_bytes(*header.first_chunk()?);
        let level = i32::from_ne_bytes(*header[8..].first_chunk()?);
        let kind = i32::from_ne_bytes(*header[12..].first_chunk()?);
        let Some(data) = bytes.get(HEADER..len) else {
            bytes = &[];
            return Some(Err(()));
        };
        bytes = bytes.get(len.next_multiple_of(8)..).unwrap_or(&[]);
        Some(Ok((level, kind, data)))
    })
}

/// Appends a message, padded.
pub fn append(out: &mut Vec<u8>, level: i32, kind: i32, data: &[u8]) {
    out.extend_from_slice(&(HEADER + data.len()).to_ne_bytes());
    out.extend_from_slice(&level.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(8), 0);
}

impl Control {
    /// What the program sends.
    ///
    /// # Errors
    /// EINVAL for what is malformed or unknown, EBADF, EPERM for another's credentials.
    pub fn from_program(bytes: &[u8]) -> SysResult<Self> {
        let mut control = Self::default();
        for message in messages(bytes) {
            let (level, kind, data) = message.map_err(|()| Errno::EINVAL)?;
            match (level, kind) {
                (SOL_SOCKET, SCM_RIGHTS) => control.take_rights(data)?,
                (SOL_SOCKET, SCM_CREDENTIALS) => control.sender = Some(own_credentials(data)?),
                _ if allowed(OUTGOING, level, kind, data.len()) => {
                    append(&mut control.network, level, kind, data);
                }
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(control)
    }

    fn take_rights(&mut self, data: &[u8]) -> SysResult<()> {
        for number in data.chunks(4) {
            let number = i32::from_ne_bytes(number.try_into().map_err(|_| Errno::EINVAL)?);
            if self.rights.len() == RIGHTS_MAX {
                return Err(Errno::EINVAL);
            }
            self.rights.push(fd::get(number)?);
        }
        Ok(())
    }

    /// What the host delivers: known messages of plausible lengths; others are left out.
    ///
    /// # Errors
    /// EIO for what is malformed.
    pub fn from_host(bytes: &[u8]) -> SysResult<Self> {
        let mut control = Self::default();
        for message in messages(bytes) {
            let (level, kind, data) = message.map_err(|()| Errno::EIO)?;
            if allowed(INCOMING, level, kind, data.len()) {
                append(&mut control.network, level, kind, data);
            }
        }
        Ok(control)
    }

    /// Only what the host's network knows, for a socket there.
    ///
    /// # Errors
    /// EINVAL when open files are in it: descriptors of the guest mean nothing outside.
    pub fn network_only(&self) -> SysResult<&[u8]> {
        if self.rights.is_empty() {
            Ok(&self.network)
        } else {
            Err(Errno::EINVAL)
        }
    }

    /// The messages for the program, in at most `space` bytes, and whether that was too little. Open files
    /// get descriptors here.
    #[must_use]
    pub fn into_program(self, space: usize, close_on_exec: bool) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        let mut cut = false;
        if let Some(sender) = self.sender {
            cut |= !append_within(&mut out, space, SCM_CREDENTIALS, &sender.bytes());
        }
        if !self.rights.is_empty() {
            let room = space.saturating_sub(out.len() + HEADER) / 4;
            let files = &crate::process::Process::current().files;
            let wanted = self.rights.len();
            let given = self.rights.into_iter().take(room);
            let numbers: Vec<i32> = given
                .map_while(|o| files.insert(o, close_on_exec, 0).ok())
                .collect();
            cut |= numbers.len() < wanted;
            let data: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
            if !data.is_empty() {
                cut |= !append_within(&mut out, space, SCM_RIGHTS, &data);
            }
        }
        // Whole messages only, as many as fit.
        for (level, kind, data) in messages(&self.network).flatten() {
            if out.len() + HEADER + data.len() > space {
                cut = true;
                break;
            }
            append(&mut out, level, kind, data);
        }
        out.truncate(space);
        (out, cut)
    }
}

fn append_within(out: &mut Vec<u8>, space: usize, kind: i32, data: &[u8]) -> bool {
    let fits = out.len() + HEADER + data.len() <= space;
    if fits {
        append(out, SOL_SOCKET, kind, data);
    }
    fits
}

/// Credentials that a program states must be its own.
fn own_credentials(data: &[u8]) -> SysResult<Sender> {
    let own = Sender::current();
    if data.len() != 12 {
        return Err(Errno::EINVAL);
    }
    if data != own.bytes() && own.uid != 0 {
        return Err(Errno::EPERM);
    }
    let word = |at: usize| {
        data.get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u32::from_ne_bytes)
    };
    Ok(Sender {
        pid: word(0).cast_signed(),
        uid: word(4),
        gid: word(8),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_messages_pass_and_unknown_ones_do_not() {
        let mut bytes = Vec::new();
        append(&mut bytes, 0, 8, &[1; 12]);
        append(&mut bytes, 0, 2, &[2; 4]);
        assert_eq!(Control::from_program(&bytes).expect("known").network, bytes);
        let delivered = bytes.clone();
        append(&mut bytes, 99, 99, &[3; 4]);
        assert_eq!(Control::from_program(&bytes).err(), Some(Errno::EINVAL));
        assert_eq!(
            Control::from_host(&bytes).expect("well formed").network,
            delivered
        );
    }

    #[test]
    fn any_bytes_are_parsed_or_refused() {
        let mut seed = 3u64;
        for round in 0..20_000u64 {
            let bytes: Vec<u8> = (0..round % 90)
                .map(|_| {
                    seed = seed
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    if seed >> 62 == 0 {
                        (seed >> 33) as u8
                    } else {
                        (seed >> 60) as u8 * 8
                    }
                })
                .collect();
            let _ = Control::from_program(&bytes);
            if let Ok(control) = Control::from_host(&bytes) {
                assert!(control.network.len() <= bytes.len().next_multiple_of(8));
            }
        }
    }

    #[test]
    fn descriptors_that_do_not_fit_are_not_given_out() {
        let file = || {
            OpenFile::new(
                Arc::new(crate::fs::eventfd::EventFd::new(0, false)),
                2,
                Vec::new(),
            )
        };
        let control = Control {
            rights: vec![file(), file(), file()],
            ..Control::default()
        };
        let (bytes, cut) = control.into_program(HEADER + 8, true);
        assert_eq!((bytes.len(), cut), (HEADER + 8, true));
        let control = Control {
            rights: vec![file()],
            ..Control::default()
        };
        let (bytes, cut) = control.into_program(HEADER - 1, true);
        assert_eq!((bytes.len(), cut), (0, true));
    }
}
