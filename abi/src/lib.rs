//! Every byte that crosses a border of Cloak, once.
//!
//! Four parties meet here: the *monitor* (VMM), the *OS service*, the shim's *kernel* (CPL 0) and its
//! *libos* (CPL 3). Each module holds one border:
//!
//! | module | between | what |
//! |---|---|---|
//! | [`layout`] | monitor, kernel, libos | guest-physical and guest-virtual address plan |
//! | [`anchor`] | libos → monitor | what a protected volume's last root is |
//! | [`exec`] | monitor ↔ libos | one more process, its signals and its end |
//! | [`boot`] | monitor → kernel, libos | boot block, libos header |
//! | [`config`] | monitor → libos | what to run: program, arguments, environment, mounts |
//! | [`kcall`] | libos → kernel | kernel calls and page-table operations |
//! | [`vcpu`] | kernel ↔ libos | one page per vCPU: upcall frame, operations, state |
//! | [`ring`] | libos ↔ OS service, monitor | shared region: queues, slots, events, signals |
//! | [`sim`] | kernel → simulated hardware | what an instruction does on real hardware |
//! | [`stop`] | kernel → monitor | why the kernel stops |
//! | [`hostop`] | libos ↔ OS service | operation numbers and their arguments |
//!
//! A layout that changes here changes [`VERSION`] and the golden file `abi/golden/layout.txt`.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;

pub mod anchor;
pub mod boot;
pub mod config;
pub mod exec;
pub mod hostop;
pub mod kcall;
pub mod layout;
pub mod ring;
pub mod sim;
pub mod stop;
pub mod vcpu;

/// Version of everything in this crate. Both sides refuse another one.
pub const VERSION: u32 = 15;

/// Asserts a size at compile time, with the reason when it no longer holds.
#[macro_export]
macro_rules! tripwire {
    ($cond:expr, $what:literal) => {
        const _: () = assert!(
            $cond,
            concat!(
                $what,
                ": change abi::VERSION and abi/golden/layout.txt together"
            )
        );
    };
}
