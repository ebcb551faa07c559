//! Where mappings go.

use cloak_abi::layout::{LARGE, LIBOS_BASE, LIBOS_END, PAGE, USER_END, USER_MIN, is_user_range};

use super::{Inner, Place, Request};
use crate::errno::{Errno, SysResult};

/// Where automatic placement looks first: above the libos's slot.
const AUTO: (u64, u64) = (LIBOS_END, 0x7fff_e000_0000);
/// And then: below it.
const AUTO_LOW: (u64, u64) = (0x1_0000_0000, LIBOS_BASE);
/// `MAP_32BIT`.
const AUTO_32: (u64, u64) = (0x4000_0000, 0x8000_0000);

impl Inner {
    /// The address for a request.
    ///
    /// # Errors
    /// EINVAL, EPERM, ENOMEM, EEXIST, as `mmap(2)`.
    pub(super) fn place(&self, request: &Request) -> SysResult {
        if request.len == 0 || request.len > USER_END {
            return Err(if request.len == 0 {
                Errno::EINVAL
            } else {
                Errno::ENOMEM
            });
        }
        let hint = request.hint;
        let fits = is_user_range(hint, request.len);
        match request.place {
            Place::Fixed if hint & (PAGE - 1) != 0 => return Err(Errno::EINVAL),
            Place::Fixed if hint < USER_MIN => return Err(Errno::EPERM),
            Place::Fixed => return if fits { Ok(hint) } else { Err(Errno::ENOMEM) },
            Place::FixedFree if hint & (PAGE - 1) != 0 => return Err(Errno::EINVAL),
            Place::FixedFree if !fits => return Err(Errno::ENOMEM),
            Place::FixedFree if self.areas.is_free(hint, hint + request.len) => return Ok(hint),
            Place::FixedFree => return Err(Errno::EEXIST),
            Place::Anywhere | Place::Low => {}
        }
        let rounded = hint & !(PAGE - 1);
        if rounded != 0
            && is_user_range(rounded, request.len)
            && self.areas.is_free(rounded, rounded + request.len)
        {
            return Ok(rounded);
        }
        let ranges: &[(u64, u64)] = if request.place == Place::Low {
            &[AUTO_32]
        } else {
            &[AUTO, AUTO_LOW]
        };
        // What is large starts a large page, so that its chunks can be large pages.
        let align = if request.len >= LARGE { LARGE } else { PAGE };
        ranges
            .iter()
            .find_map(|&(low, high)| self.areas.free_range(low, high, request.len, align))
            .ok_or(Errno::ENOMEM)
    }
}
