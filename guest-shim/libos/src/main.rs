//! The libos image: nothing but the panic handler; entry is in the library's `arch`.
#![no_std]
#![no_main]

extern crate alloc;

use core::panic::PanicInfo;

use cloak_libos::arch;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    arch::panic_exit(&alloc::format!("libos: {info}"))
}
