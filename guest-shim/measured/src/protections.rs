//! What stands between the hypervisor and the guest, by name, so that a test can take one away and see its attack work.
//!
//! Only unit tests of the crate that names them can. In every other build `without` is a constant.

/// Makes the type `Protection`, and `without`, which says whether one was taken away; for unit tests `with`, which takes one away,
/// and `only_without`, which makes an attack both ways.
#[macro_export]
macro_rules! protections {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A protection.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Protection { $($(#[$doc])* $name,)* }

        /// Whether it was taken away.
        #[cfg(not(test))]
        #[must_use]
        pub const fn without(_: Protection) -> bool {
            false
        }

        #[cfg(test)]
        pub use taken::{only_without, with, without};

        #[cfg(test)]
        mod taken {
            use std::cell::Cell;

            use super::Protection;

            std::thread_local!(static TAKEN: Cell<u32> = const { Cell::new(0) });

            /// Whether it was taken away, in this thread.
            #[must_use]
            pub fn without(protection: Protection) -> bool {
                TAKEN.get() & 1 << protection as u32 != 0
            }

            /// Runs `f` without it.
            pub fn with<R>(protection: Protection, f: impl FnOnce() -> R) -> R {
                let before = TAKEN.get();
                TAKEN.set(before | 1 << protection as u32);
                let result = f();
                TAKEN.set(before);
                result
            }

            /// The attack fails as things are, and works without the protection.
            pub fn only_without(protection: Protection, attack: impl Fn() -> bool) {
                assert!(!attack(), "the attack works in spite of {protection:?}");
                assert!(with(protection, &attack), "the attack does not show {protection:?}");
            }
        }
    };
}
