//! A hypervisor that answers with the input: whatever it says, the guest's start ends with a reason, or with memory divided
//! so that nothing overlaps; no page is accepted twice, and no message number is used for two messages.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use cloak_abi::boot::{LAUNCH_MAGIC, LaunchBlock, MAX_PARTS, PartBlock, platform};
use cloak_abi::layout::{GHCBS_GPA, LIBOS_BASE, MESSAGES_GPA, PLATFORM_GPA};
use cloak_fuzz_seeds::plant;
use cloak_measured::accepted::Accepted;
use cloak_measured::start::{Division, Given};
use cloak_snp::cpuid::Table;
use cloak_snp::ghcb::{self, Ghcb, fields};
use cloak_snp::message::{Channel, Level};
use cloak_snp::pages;
use cloak_snp::report::{self, ByGhcb};
use cloak_snp::{Machine, Size, Stop, Validation, secrets};

/// Pages that the host fills.
const PARAMETERS: u64 = 0x1_4000;
const CPUID: u64 = 0x1_3000;
const SECRETS: u64 = 0x1_2000;

struct Hypervisor<'a> {
    input: std::cell::Cell<&'a [u8]>,
    memory: BTreeMap<u64, u64>,
    accepted: BTreeSet<u64>,
    /// Message by number.
    sent: BTreeMap<u64, Vec<u64>>,
}

impl<'a> Hypervisor<'a> {
    fn word(&self) -> u64 {
        let (head, rest) = self.input.get().split_at(self.input.get().len().min(8));
        self.input.set(rest);
        let mut word = [0; 8];
        word[..head.len()].copy_from_slice(head);
        u64::from_le_bytes(word)
    }

    fn is_its_own(gpa: u64) -> bool {
        gpa >= PLATFORM_GPA || (SECRETS..PARAMETERS + 0x1000).contains(&gpa)
    }
}

impl Machine for Hypervisor<'_> {
    fn pvalidate(&mut self, gpa: u64, size: Size, accept: bool) -> Validation {
        assert!(accept);
        match self.word() % 8 {
            0 => Validation::Unchanged,
            1 => Validation::Failed(self.word() as u32),
            2 if size == Size::Large => Validation::Failed(cloak_snp::SIZE_MISMATCH),
            _ => {
                let pages = if size == Size::Large { 512 } else { 1 };
                for page in 0..pages {
                    assert!(self.accepted.insert(gpa + page * 4096), "a page was accepted twice");
                }
                Validation::Changed
            }
        }
    }

    fn rmp_adjust(&mut self, _: u64, _: u64) -> u32 {
        self.word() as u32
    }

    fn vmgexit(&mut self, register: u64) -> u64 {
        let message: Vec<u64> = (0..12).map(|i| self.memory.get(&(MESSAGES_GPA + 8 * i)).copied().unwrap_or(0)).collect();
        if register & 0xfff == 0 && self.memory.get(&(register + fields::CODE)) == Some(&ghcb::exits::GUEST_REQUEST) {
            let before = self.sent.insert(message[4], message.clone());
            assert!(before.is_none_or(|before| before == message), "a number was used for two messages");
        }
        // Honest in half of the cases, so that a run gets further than the first answer.
        let choice = self.word();
        if choice & 1 == 0 {
            return self.word();
        }
        self.memory.insert(register + fields::INFO1, 0);
        self.memory.insert(register + fields::INFO2, 0);
        self.memory.insert(register + fields::BUFFER, 1);
        match register & 0xfff {
            0x002 => 2 << 48 | 1 << 32 | 51 << 24 | 1,
            0x012 => register + 1,
            _ => register,
        }
    }

    fn read(&self, gpa: u64) -> u64 {
        match self.memory.get(&gpa) {
            Some(word) if self.input.get().first().is_none_or(|byte| byte & 3 != 0) => *word,
            _ if Self::is_its_own(gpa) => self.word(),
            Some(word) => *word,
            None => 0,
        }
    }

    fn write(&mut self, gpa: u64, value: u64) {
        self.memory.insert(gpa, value);
    }
}

fn image() -> LaunchBlock {
    let part = |va, memory, content, gpa| PartBlock {
        va,
        memory,
        content,
        gpa,
        flags: 0,
    };
    let mut libos = [PartBlock::default(); MAX_PARTS];
    libos[0] = part(LIBOS_BASE, 0x19_2c7c, 0x19_2c7c, 0x40_0000);
    libos[1] = part(LIBOS_BASE + 0x20_0000, 0xc1_6000, 0x1_0c08, 0x59_3000);
    LaunchBlock {
        magic: LAUNCH_MAGIC,
        version: cloak_abi::VERSION.into(),
        platform: platform::SNP,
        private: 1 << 51,
        shared: 0,
        parameters: PARAMETERS,
        secrets: SECRETS,
        cpuid: CPUID,
        root: 0x1_5000,
        end: 0x5a_4000,
        libos,
    }
}

fn start(machine: &mut Hypervisor<'_>) -> Result<(), Stop> {
    let image = image();
    ghcb::agree(machine, image.private)?;
    let ghcb = Ghcb::register(machine, GHCBS_GPA)?;
    let given = Given::take(|gpa| machine.read(gpa), PARAMETERS)?;
    let table = Table::take(machine, CPUID)?;
    table.agree(image.private)?;
    let state = table.vector_state()?;
    assert!(state & 3 == 3 && state & !cloak_measured::vector_state::OFFERED == 0);
    let [_, key] = secrets::take(machine, SECRETS)?;
    let division = Division::new(&given, &image)?;
    let context = division.context;
    assert!(context.free_frames <= context.frames[0][1] && context.table_pool >= image.end);
    assert!(context.frames[1][1] <= PLATFORM_GPA);
    let mut accepted = Accepted::new();
    for gpa in division.first_blocks() {
        assert!(accepted.mark(gpa));
        pages::accept(machine, ghcb, gpa)?;
    }
    let mut channel = Channel::open(Level::Reports, key);
    for data in 0..3 {
        let mut carrier = ByGhcb {
            machine,
            ghcb,
            certificates: false,
        };
        assert!(
            report::ask(&mut channel, &[data; 64], &mut carrier).is_err(),
            "an answer was made up without the key"
        );
    }
    Ok(())
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seed = Vec::new();
    let given = cloak_abi::boot::Parameters {
        magic: cloak_abi::boot::PARAMETERS_MAGIC,
        version: cloak_abi::VERSION.into(),
        memory: 256 << 20,
        vcpus: 2,
        tsc_khz: 2_000_000,
        config_len: 5000,
        identity: [3; 48],
    };
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    seed.extend(words(&[1, 1]));
    seed.extend(zerocopy::IntoBytes::as_bytes(&given));
    seed.extend(words(&[2, 0]));
    seed.extend(words(&[0x8000_001f, 0, 0, 51 << 32, 0, 0]));
    seed.extend(words(&[0xd, 1, 0, 7 | 0x240 << 32, 0x240, 0]));
    seed.extend(words(&[4, 1, 2, 3, 4]));
    seed.extend(words(&[1; 200]));
    vec![seed]
}

libfuzzer_sys::fuzz_target!(init: plant(seeds), |bytes: &[u8]| {
    let mut machine = Hypervisor {
        input: std::cell::Cell::new(bytes),
        memory: BTreeMap::new(),
        accepted: BTreeSet::new(),
        sent: BTreeMap::new(),
    };
    // A reason, or a start: both are answers.
    let _ = start(&mut machine);
});
