//! The libos image: nothing but the panic handler; entry is in the library's `arch`.
#![no_std]
#![no_main]

extern crate alloc;

use core::panic::PanicInfo;
use core::sync::atomic::Ordering;

use cloak_libos::arch;
use cloak_libos::mem::heap;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if heap::EXHAUSTED.load(Ordering::Relaxed) {
        arch::panic_exit("no guest memory is left for the libos; try a larger --memory");
    }
    arch::panic_exit(&alloc::format!("libos: {info}"))
}
