//! What a handler finds on the program's stack (`struct rt_sigframe`, arch/x86), and the way back.
//!
//! ```text
//!   0 return address (SA_RESTORER)
//!   8 ucontext: flags, link, stack (24), 23 registers, fpstate pointer, 8 reserved, mask
//! 312 siginfo (128)
//! ...  XSAVE area, 64-byte aligned, then FP_XSTATE_MAGIC2
//! ```

use super::pending::Info;
use super::{Action, AltStack};
use crate::arch::{self, Frame, Regs, XSAVE_MAX};
use crate::errno::{Errno, SysResult};
use crate::sched::VectorArea;
use crate::user;

const SA_ONSTACK: u64 = 0x0800_0000;
const SA_RESTORER: u64 = 0x0400_0000;
const SS_AUTODISARM: u32 = 1 << 31;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// `UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS`.
const UC_FLAGS: u64 = 7;
const FRAME: usize = 440;
const UC: usize = 8;
const MCONTEXT: usize = UC + 40;
const MASK: usize = UC + 296;
const INFO: usize = UC + 304;
/// Flags that a program may change: all arithmetic ones, TF, DF, AC, ID... but not IOPL, IF, VM.
const USER_FLAGS: u64 = 0x25_4dd5;

/// What else goes into the frame.
#[derive(Debug, Clone, Copy)]
pub struct Extra {
    /// Page-fault address.
    pub cr2: u64,
    /// Error code and vector of the exception.
    pub error: u64,
    /// See `error`.
    pub trap: u64,
    /// Mask to put back at return.
    pub mask: u64,
}

fn on_alt_stack(alt: &AltStack, rsp: u64) -> bool {
    alt.flags & SS_AUTODISARM == 0 && rsp > alt.base && rsp - alt.base <= alt.size
}

/// Builds the frame on the program's stack and lets `frame` continue in the handler.
///
/// # Errors
/// EFAULT when the stack is not there: the program gets SIGSEGV.
pub fn push(
    frame: &mut Frame,
    info: &Info,
    action: &Action,
    alt: &mut AltStack,
    extra: &Extra,
) -> SysResult<()> {
    if action.flags & SA_RESTORER == 0 {
        return Err(Errno::EFAULT);
    }
    let regs = frame.regs;
    let mut sp = regs.rsp - 128;
    if action.flags & SA_ONSTACK != 0 && alt.size != 0 && alt.flags & 2 == 0 && !on_alt_stack(alt, regs.rsp) {
        sp = alt.base + alt.size;
    }
    let len = arch::vector_len();
    let vector_at = (sp - len as u64 - 4) & !63;
    let at = ((vector_at - FRAME as u64) & !15) - 8;
    if sp < alt.base + alt.size && sp >= alt.base && at < alt.base {
        return Err(Errno::EFAULT);
    }
    user::copy_out(vector_at, &vector_image(frame, len)[..len + 4])?;

    let mut bytes = [0u8; FRAME];
    let mut put = |offset: usize, value: u64| bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    put(0, action.restorer);
    put(UC, UC_FLAGS);
    put(UC + 16, alt.base);
    put(
        UC + 24,
        u64::from(alt.flags | u32::from(on_alt_stack(alt, regs.rsp))),
    );
    put(UC + 32, alt.size);
    for (i, value) in to_words(&regs, extra, vector_at).into_iter().enumerate() {
        put(MCONTEXT + 8 * i, value);
    }
    put(MASK, extra.mask);
    bytes[INFO..].copy_from_slice(&info.bytes());
    user::copy_out(at, &bytes)?;
    if alt.flags & SS_AUTODISARM != 0 {
        *alt = AltStack::default();
    }
    frame.regs.rip = action.handler;
    frame.regs.rsp = at;
    frame.regs.rdi = u64::from(info.signal);
    frame.regs.rsi = at + INFO as u64;
    frame.regs.rdx = at + UC as u64;
    frame.regs.rax = 0;
    frame.regs.orig_rax = u64::MAX;
    frame.regs.rflags &= !(0x400 | 0x100 | 0x1_0000); // DF, TF, RF
    Ok(())
}

/// Registers in `struct sigcontext` order.
fn to_words(r: &Regs, extra: &Extra, vector_at: u64) -> [u64; 24] {
    let selectors = 0x33 | 0x2b << 48;
    [
        r.r8,
        r.r9,
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15,
        r.rdi,
        r.rsi,
        r.rbp,
        r.rbx,
        r.rdx,
        r.rax,
        r.rcx,
        r.rsp,
        r.rip,
        r.rflags,
        selectors,
        extra.error,
        extra.trap,
        extra.mask,
        extra.cr2,
        vector_at,
    ]
}

/// The thread's vector state with the XMM registers that the entry saved.
fn vector_image(frame: &Frame, len: usize) -> alloc::vec::Vec<u8> {
    let mut area = VectorArea::new();
    arch::save_vector(&mut area.0);
    let image = &mut area.0;
    for (i, xmm) in frame.xmm.iter().enumerate() {
        image[160 + 16 * i..176 + 16 * i].copy_from_slice(&xmm.to_le_bytes());
    }
    image[512] |= 3;
    let xfeatures = arch::xcr0();
    image[464..468].copy_from_slice(&MAGIC1.to_le_bytes());
    image[468..472].copy_from_slice(&(len as u32 + 4).to_le_bytes());
    image[472..480].copy_from_slice(&xfeatures.to_le_bytes());
    image[480..484].copy_from_slice(&(len as u32).to_le_bytes());
    let mut out = image[..len].to_vec();
    out.extend_from_slice(&MAGIC2.to_le_bytes());
    out
}

/// `rt_sigreturn`: takes the frame back; gives the mask to restore.
///
/// # Errors
/// EFAULT when it can't be read: the program gets SIGSEGV.
pub fn pop(frame: &mut Frame, alt: &mut AltStack) -> SysResult<u64> {
    let at = frame.regs.rsp - 8;
    let mut bytes = [0u8; FRAME];
    user::copy_in(&mut bytes, at)?;
    let word = |offset: usize| {
        let mut w = [0; 8];
        w.copy_from_slice(&bytes[offset..offset + 8]);
        u64::from_le_bytes(w)
    };
    let m = |i: usize| word(MCONTEXT + 8 * i);
    let vector_at = m(23);
    if vector_at != 0 {
        restore_vector(frame, vector_at)?;
    }
    let keep = frame.regs;
    frame.regs = Regs {
        r8: m(0),
        r9: m(1),
        r10: m(2),
        r11: m(3),
        r12: m(4),
        r13: m(5),
        r14: m(6),
        r15: m(7),
        rdi: m(8),
        rsi: m(9),
        rbp: m(10),
        rbx: m(11),
        rdx: m(12),
        rax: m(13),
        rcx: m(14),
        rsp: m(15),
        rip: m(16),
        rflags: keep.rflags & !USER_FLAGS | m(17) & USER_FLAGS | 0x202,
        cs: 0x33,
        ss: 0x2b,
        orig_rax: u64::MAX,
    };
    let flags = word(UC + 24) as u32;
    *alt = AltStack {
        base: word(UC + 16),
        size: word(UC + 32),
        flags: flags & !1,
    };
    Ok(word(MASK))
}

fn restore_vector(frame: &mut Frame, at: u64) -> SysResult<()> {
    let mut area = VectorArea::new();
    let len = arch::vector_len();
    user::copy_in(&mut area.0[..512], at)?;
    let magic = u32::from_le_bytes([area.0[464], area.0[465], area.0[466], area.0[467]]);
    if magic == MAGIC1 {
        user::copy_in(&mut area.0[..len], at)?;
    } else {
        area.0[512] = 3;
    }
    for (i, xmm) in frame.xmm.iter_mut().enumerate() {
        let mut value = [0; 16];
        value.copy_from_slice(&area.0[160 + 16 * i..176 + 16 * i]);
        *xmm = u128::from_le_bytes(value);
    }
    arch::restore_vector(&mut area.0);
    Ok(())
}

const _: () = assert!(XSAVE_MAX >= 576);
