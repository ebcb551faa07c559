//! A guest's calls of the simulated TDX module by registers, in any order: a status or a fault, a measurement that stays, and
//! reports that hold.
#![no_main]

use cloak_fuzz_seeds::plant;
use cloak_sim::memory::{Gfn, Hfn, PAGE};
use cloak_sim::tdx::module::{Module, Params};
use cloak_sim::tdx::report::TdReport;
use cloak_sim::tdx::tdcall::{self, Registers};

const KEY: [u8; 32] = [7; 32];
/// Bytes of a call in the input: leaf, then what to make of two addresses and a number.
const CALL: usize = 8;

fn seeds() -> Vec<Vec<u8>> {
    let call = |leaf, rcx: [u8; 2], rdx: [u8; 2]| [leaf, 0, rcx[0], rcx[1], rdx[0], rdx[1], 0, 0].to_vec();
    vec![
        call(1, [0; 2], [0; 2]),
        [call(6, [0x10, 0x20], [0; 2]), call(2, [0x10, 0x20], [1, 0])].concat(),
        call(4, [0x00, 0x10], [0x00, 0x14]),
    ]
}

fn module() -> Module {
    let mut module = Module::new(&[1; 64], KEY);
    let params = Params {
        attributes: 1 << 28,
        xfam: 3,
        mr_config_id: [1; 48],
        mr_owner: [0; 48],
        mr_owner_config: [0; 48],
    };
    module.init(params).expect("offered");
    module.page_add(Gfn(1), Hfn(11), &[5; PAGE]).expect("free");
    module.finalize().expect("once");
    module.page_aug(Gfn(2), Hfn(12)).expect("free");
    module
}

libfuzzer_sys::fuzz_target!(init: plant(seeds), |bytes: &[u8]| {
    let mut module = module();
    let mrtd = module.info().expect("it runs").mrtd;
    for call in bytes.chunks_exact(CALL).take(64) {
        // Mostly near what is there; the second byte shifts an address far away.
        let address = |at: usize| u64::from(u16::from_le_bytes([call[at], call[at + 1]])) << (call[1] & 63);
        let mut registers = Registers {
            rax: call[0].into(),
            rcx: address(2),
            rdx: address(4),
            r8: call[6].into(),
            r9: 0,
        };
        let asked = registers;
        match tdcall::call(&mut module, 0, &mut registers) {
            Err(_) => assert_eq!(registers, asked, "the call can be made again"),
            Ok(()) if asked.rax == tdcall::MR_REPORT && registers.rax == 0 => {
                let page = module.memory.read(Gfn(asked.rcx / PAGE as u64)).expect("it was written");
                let at = (asked.rcx % PAGE as u64) as usize;
                let report: TdReport = zerocopy::FromBytes::read_from_bytes(&page[at..at + 1024]).expect("its size");
                assert!(report.holds(&KEY));
            }
            Ok(()) => {}
        }
    }
    assert_eq!(module.info().expect("it still runs").mrtd, mrtd);
});
