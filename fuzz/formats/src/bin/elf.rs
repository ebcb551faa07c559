//! The libos's reader of program files: an error or a description within its limits, never a panic.
#![no_main]

use cloak_fuzz_seeds::{machine, plant};
use cloak_libos::errno::Errno;
use cloak_libos::process::elf;

libfuzzer_sys::fuzz_target!(init: plant(|| machine("/bin/true")), |file: &[u8]| {
    let parsed = elf::parse(|offset, out| {
        let from = usize::try_from(offset).map_err(|_| Errno::EIO)?;
        let end = from.checked_add(out.len()).ok_or(Errno::EIO)?;
        out.copy_from_slice(file.get(from..end).ok_or(Errno::EIO)?);
        Ok(())
    });
    if let Ok(elf) = parsed {
        assert!(elf.span.0 < elf.span.1 && elf.span.1 <= 1 << 47);
        assert!(elf.interpreter.is_none_or(|(_, len)| len <= 4096));
    }
});
