//! Linux error numbers, as a type.

/// An error number (`include/uapi/asm-generic/errno*.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(i32);

/// What a system call gives.
pub type SysResult<T = u64> = Result<T, Errno>;

impl Errno {
    /// From a host's answer: `Err` for -4095..=-1.
    ///
    /// # Errors
    /// The error number that the value stands for. Values below -4095 are lies and give EIO.
    pub fn check(value: i64) -> SysResult<u64> {
        match value {
            0.. => Ok(value as u64),
            -4095..=-1 => Err(Self(-value as i32)),
            #[cfg(test)]
            _ if crate::testing::weaken::without(crate::testing::weaken::Protection::ErrorNumber) => {
                Err(Self(value.wrapping_neg() as i32))
            }
            _ => Err(Self::EIO),
        }
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }

    /// What the program finds in RAX.
    #[must_use]
    pub const fn to_rax(self) -> u64 {
        (-(self.0 as i64)) as u64
    }
}

macro_rules! errnos {
    ($($name:ident = $n:literal,)*) => {
        #[allow(missing_docs)]
        impl Errno {
            $(pub const $name: Self = Self($n);)*

            /// The C name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self.0 { $($n => stringify!($name),)* _ => "E?" }
            }
        }
    };
}

errnos! {
    EPERM = 1, ENOENT = 2, ESRCH = 3, EINTR = 4, EIO = 5, ENXIO = 6, E2BIG = 7, ENOEXEC = 8, EBADF = 9, ECHILD = 10,
    EAGAIN = 11, ENOMEM = 12, EACCES = 13, EFAULT = 14, ENOTBLK = 15, EBUSY = 16, EEXIST = 17, EXDEV = 18, ENODEV = 19,
    ENOTDIR = 20, EISDIR = 21, EINVAL = 22, ENFILE = 23, EMFILE = 24, ENOTTY = 25, ETXTBSY = 26, EFBIG = 27,
    ENOSPC = 28, ESPIPE = 29, EROFS = 30, EMLINK = 31, EPIPE = 32, EDOM = 33, ERANGE = 34, EDEADLK = 35,
    ENAMETOOLONG = 36, ENOLCK = 37, ENOSYS = 38, ENOTEMPTY = 39, ELOOP = 40, ENOMSG = 42, EIDRM = 43,
    ENODATA = 61, EOVERFLOW = 75, EILSEQ = 84,
    EUSERS = 87, ENOTSOCK = 88, EDESTADDRREQ = 89, EMSGSIZE = 90, EPROTOTYPE = 91, ENOPROTOOPT = 92,
    EPROTONOSUPPORT = 93, ESOCKTNOSUPPORT = 94, EOPNOTSUPP = 95, EPFNOSUPPORT = 96, EAFNOSUPPORT = 97,
    EADDRINUSE = 98, EADDRNOTAVAIL = 99, ENETDOWN = 100, ENETUNREACH = 101, ECONNABORTED = 103, ECONNRESET = 104,
    ENOBUFS = 105, EISCONN = 106, ENOTCONN = 107, ETIMEDOUT = 110, ECONNREFUSED = 111, EHOSTUNREACH = 113,
    EALREADY = 114, EINPROGRESS = 115, ESTALE = 116, ECANCELED = 125, EOWNERDEAD = 130, ENOTRECOVERABLE = 131,
    // Inside the kernel of a Linux only: a call that a signal interrupted and that is to be restarted.
    ERESTARTSYS = 512, ERESTARTNOINTR = 513, ERESTARTNOHAND = 514, ERESTART_RESTARTBLOCK = 516,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_outside_the_error_range_are_lies() {
        assert_eq!(Errno::check(5), Ok(5));
        assert_eq!(Errno::check(-2), Err(Errno::ENOENT));
        assert_eq!(Errno::check(-4096), Err(Errno::EIO));
        assert_eq!(Errno::check(i64::MIN), Err(Errno::EIO));
    }
}
