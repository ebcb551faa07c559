//! Calls of simulated hardware, by the monitor's port.

use core::arch::asm;

use cloak_abi::layout::SIM_PORT;
use cloak_abi::sim::SimCall;

/// Makes one; gives its result.
pub fn call(call: SimCall, first: u64, second: u64) -> u64 {
    let result;
    // SAFETY: a port of the monitor's, which changes no register but RAX, and of memory what the caller has asked it to.
    unsafe {
        asm!("out dx, eax", in("dx") SIM_PORT, inout("rax") call as u64 => result, in("rdi") first,
            in("rsi") second, options(nostack));
    }
    result
}
