//! userfaultfd: the faults of a range of memory are answered by a thread instead of the kernel.
//!
//! Linux's own words are in ioctl_userfaultfd(2); structures and numbers are those of `linux/userfaultfd.h`. One of
//! the crate's unsafe islands: ranges given here must be mappings that the caller owns.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, Updater, opcode};
use rustix::mm::UserfaultfdFlags;

use crate::error::{MemoryError, Step};

const API: u64 = 0xaa;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_MOVE: u64 = 1 << 16;
const MODE_MISSING: u64 = 1;
const MODE_WP: u64 = 2;
const COPY_WP: u64 = 2;
const WRITEPROTECT: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const FAULT_WRITE: u64 = 1;
const FAULT_WP: u64 = 2;

/// What a descriptor is used for; decides which features must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Private memory: missing pages, write protection, moving pages.
    Private,
    /// Private memory: write protection, of pages that are not there yet as well.
    Writes,
    /// A shared file: missing pages.
    Shared,
}

/// Which faults of a range are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Of missing pages.
    Missing,
    /// Writes to protected pages.
    Writes,
    /// Of missing pages, and writes to protected ones.
    MissingAndWrites,
}

/// A fault that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Address that was touched, in the process that made the descriptor.
    pub address: u64,
    /// Whether it is about to be written.
    pub write: bool,
    /// Whether the page is there, but protected.
    pub protected: bool,
}

/// An open userfaultfd.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: OwnedFd,
}

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// For both `UFFDIO_COPY` and `UFFDIO_MOVE`.
#[repr(C)]
struct Transfer {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    done: i64,
}

#[repr(C)]
struct Protect {
    range: Range,
    mode: u64,
}

/// `struct uffd_msg` of a page fault.
#[repr(C)]
#[derive(Clone, Copy)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

const UFFDIO_API: Opcode = opcode::read_write::<Api>(0xaa, 0x3f);
const UFFDIO_REGISTER: Opcode = opcode::read_write::<Register>(0xaa, 0x00);
const UFFDIO_WAKE: Opcode = opcode::read::<Range>(0xaa, 0x02);
const UFFDIO_COPY: Opcode = opcode::read_write::<Transfer>(0xaa, 0x03);
const UFFDIO_MOVE: Opcode = opcode::read_write::<Transfer>(0xaa, 0x05);
const UFFDIO_WRITEPROTECT: Opcode = opcode::read_write::<Protect>(0xaa, 0x06);

impl Userfaultfd {
    /// Opens one that also reports faults of the kernel on the process's behalf (system calls, KVM), by
    /// `/dev/userfaultfd` or else the system call. Reads don't block.
    ///
    /// # Errors
    /// [`MemoryError::Os`], with what to try.
    pub fn open(purpose: Use) -> Result<Self, MemoryError> {
        let fd = from_device().or_else(|_| from_system_call()).map_err(|source| MemoryError::Os {
            step: "opening userfaultfd (run as root, get access to /dev/userfaultfd, or set vm.unprivileged_userfaultfd=1)",
            source,
        })?;
        let own = Self { fd };
        let features = match purpose {
            Use::Private => FEATURE_PAGEFAULT_FLAG_WP | FEATURE_MOVE,
            Use::Writes => FEATURE_PAGEFAULT_FLAG_WP | FEATURE_WP_UNPOPULATED,
            Use::Shared => FEATURE_MISSING_SHMEM,
        };
        let mut api = Api {
            api: API,
            features,
            ioctls: 0,
        };
        // SAFETY: UFFDIO_API reads and writes a `struct uffdio_api`, which `Api` is.
        unsafe { own.update::<UFFDIO_API, _>(&mut api) }
            .step("asking userfaultfd for its features (Linux 6.8 or newer has them)")?;
        Ok(own)
    }

    /// Takes one that another process made and registered. It says nothing that is believed: faults come as numbers,
    /// and what is done with it happens in that process.
    ///
    /// # Errors
    /// When it is no userfaultfd: ioctls and reads on something else could do anything.
    pub fn from_peer(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        let own = Self { fd };
        // Only a userfaultfd knows the request, and finds fault with the range; by procfs it could be seen as well, but not
        // from inside a jail.
        match own.wake(0, 0) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(own),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the descriptor handed over is no userfaultfd",
            )),
        }
    }

    /// Starts reporting.
    ///
    /// # Errors
    /// What the kernel says.
    ///
    /// # Safety
    /// `[start, start + len)` is page-aligned and mapped, by the caller, who lets no reference into it exist while
    /// pages of it are moved or dropped.
    pub unsafe fn register(&self, start: u64, len: u64, watch: Watch) -> io::Result<()> {
        let mode = match watch {
            Watch::Missing => MODE_MISSING,
            Watch::Writes => MODE_WP,
            Watch::MissingAndWrites => MODE_MISSING | MODE_WP,
        };
        let mut register = Register {
            range: Range { start, len },
            mode,
            ioctls: 0,
        };
        // SAFETY: the structure is `struct uffdio_register`; the range is the caller's.
        unsafe { self.update::<UFFDIO_REGISTER, _>(&mut register) }
    }

    /// Maps copies of `bytes` at `to`, where nothing is, write-protected or not, and wakes who waits for them.
    ///
    /// # Errors
    /// What the kernel says; `EEXIST` where a page is. A prefix may have been mapped.
    ///
    /// # Safety
    /// `to` is in a registered range with room for `bytes`.
    pub unsafe fn copy(&self, to: u64, bytes: &[u8], protected: bool) -> io::Result<()> {
        let from = bytes.as_ptr() as u64;
        let mode = if protected { COPY_WP } else { 0 };
        // SAFETY: as promised; the kernel only reads `bytes`.
        unsafe { self.transfer::<UFFDIO_COPY>(to, from, bytes.len() as u64, mode) }.1
    }

    /// Moves private pages from `from` to `to`, where nothing is, without copying, and wakes who waits at `to`.
    /// Write protection is not carried along. Gives the bytes that were moved, all of them unless there is an error.
    ///
    /// # Errors
    /// What the kernel says; `EBUSY` for a page that something holds.
    ///
    /// # Safety
    /// Both ranges are registered and the caller's; no reference into them exists.
    pub unsafe fn relocate(&self, to: u64, from: u64, len: u64) -> (u64, io::Result<()>) {
        // SAFETY: as promised.
        unsafe { self.transfer::<UFFDIO_MOVE>(to, from, len, 0) }
    }

    /// Protects pages against writing, or ends that and wakes who waits.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn protect(&self, start: u64, len: u64, protected: bool) -> io::Result<()> {
        let mode = if protected { WRITEPROTECT } else { 0 };
        loop {
            let mut protect = Protect {
                range: Range { start, len },
                mode,
            };
            // SAFETY: the structure is `struct uffdio_writeprotect`; protecting changes no byte.
            match unsafe { self.update::<UFFDIO_WRITEPROTECT, _>(&mut protect) } {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    /// Wakes who waits for these pages; they try again.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wake(&self, start: u64, len: u64) -> io::Result<()> {
        let mut range = Range { start, len };
        // SAFETY: the structure is `struct uffdio_range`; waking changes no memory.
        unsafe { self.update::<UFFDIO_WAKE, _>(&mut range) }
    }

    /// Takes faults that wait, as many as there are and fit. None when there are none.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn faults(&self, out: &mut Vec<Fault>) -> io::Result<()> {
        const AT_ONCE: usize = 16;
        let mut messages = [MaybeUninit::<u8>::uninit(); AT_ONCE * size_of::<Message>()];
        let bytes = match rustix::io::read(&self.fd, &mut messages) {
            Ok((bytes, _)) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for bytes in bytes.chunks_exact(size_of::<Message>()) {
            let number = |at: usize| {
                u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes of a message"))
            };
            if bytes[0] == EVENT_PAGEFAULT {
                let flags = number(std::mem::offset_of!(Message, flags));
                out.push(Fault {
                    address: number(std::mem::offset_of!(Message, address)),
                    write: flags & (FAULT_WRITE | FAULT_WP) != 0,
                    protected: flags & FAULT_WP != 0,
                });
            }
        }
        Ok(())
    }

    /// Tries until all is done; the kernel may stop early and asks to go on. Gives how much was done.
    unsafe fn transfer<const CODE: Opcode>(
        &self,
        to: u64,
        from: u64,
        len: u64,
        mode: u64,
    ) -> (u64, io::Result<()>) {
        let mut done = 0;
        while done < len {
            let mut transfer = Transfer {
                to: to + done,
                from: from + done,
                len: len - done,
                mode,
                done: 0,
            };
            // SAFETY: the structure is `struct uffdio_copy` or `uffdio_move`, which have one layout; the caller
            // answers for the ranges.
            let result = unsafe { self.update::<CODE, _>(&mut transfer) };
            // The count is negative for an error, which the result says too.
            done += u64::try_from(transfer.done).unwrap_or(0);
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return (done, Err(error)),
                Ok(()) => {}
            }
        }
        (done, Ok(()))
    }

    /// # Safety
    /// `T` is the structure that the ioctl takes, and what the ioctl does with ranges in it is sound.
    unsafe fn update<const CODE: Opcode, T>(&self, value: &mut T) -> io::Result<()> {
        // SAFETY: as the caller promises.
        unsafe { Ok(ioctl::ioctl(&self.fd, Updater::<CODE, T>::new(value))?) }
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Userfaultfd> for OwnedFd {
    fn from(own: Userfaultfd) -> Self {
        own.fd
    }
}

fn from_system_call() -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor; nothing is registered with it yet.
    Ok(unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) }?)
}

fn from_device() -> io::Result<OwnedFd> {
    let device = rustix::fs::open("/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: takes flags and gives a new descriptor.
    Ok(unsafe { ioctl::ioctl(&device, NewDescriptor) }?)
}

/// `USERFAULTFD_IOC_NEW`: the flags are the argument itself, the descriptor is the result.
struct NewDescriptor;

// SAFETY: the argument is a number, not an address; the result is a descriptor that nobody else owns.
unsafe impl Ioctl for NewDescriptor {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::none(0xaa, 0x00)
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        let flags = OFlags::CLOEXEC | OFlags::NONBLOCK;
        std::ptr::without_provenance_mut(flags.bits() as usize)
    }

    unsafe fn output_from_ptr(result: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: on success the result is a fresh descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(result) })
    }
}
