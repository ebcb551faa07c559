//! The kernel image: nothing but the panic handler; entry is in the library's `arch::entry`.
#![no_std]
#![no_main]

use core::panic::PanicInfo;

use cloak_kernel as _;

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    cloak_kernel::arch::panic_stop(3)
}
