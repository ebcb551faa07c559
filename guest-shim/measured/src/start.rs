//! The host's parameters, and how the guest divides its memory by them.
//!
//! ```text
//! image │ page tables │ the libos's zeros │ pages of vCPUs │ frames of the context ...  hole  ... frames
//! ```
//! Each part begins at a multiple of 2 MiB, which is what is accepted at a time. The parameters have sizes only, and no
//! address: no two things can be told to lie in one place.

use cloak_abi::boot::{ContextBlock, LaunchBlock, PARAMETERS_MAGIC, Parameters, PartBlock};
use cloak_abi::exec::MEASURED_CONFIG_MAX;
use cloak_abi::layout::{
    CONFIG_GPA, HOLE_END, HOLE_START, LARGE, LAUNCH_WINDOW, LIBOS_BASE, LIBOS_IMAGE_MAX, MAX_RAM,
    MAX_SEGMENTS, MAX_VCPUS, PAGE,
};
use cloak_abi::stop::Stop;
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of page tables that the start makes its own in: two windows on all of the largest memory fit.
pub const TABLES: u64 = 2 * LARGE;

/// Sizes that make sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given(Parameters);

impl Given {
    /// Takes the page of parameters at `gpa`, each word once. `read` gives a word of guest-physical memory.
    ///
    /// # Errors
    /// [`Stop::Parameters`].
    pub fn take(read: impl Fn(u64) -> u64, gpa: u64) -> Result<Self, Stop> {
        let mut words = [0u64; size_of::<Parameters>() / 8];
        for (index, word) in (0u64..).zip(&mut words) {
            *word = read(gpa + 8 * index);
        }
        let given = Parameters::read_from_bytes(words.as_bytes()).map_err(|_| Stop::Parameters)?;
        Self::check(given)
    }

    /// Checks parameters.
    ///
    /// # Errors
    /// [`Stop::Parameters`].
    pub fn check(given: Parameters) -> Result<Self, Stop> {
        let holds = given.magic == PARAMETERS_MAGIC
            && given.version == u64::from(cloak_abi::VERSION)
            && given.memory.is_multiple_of(LARGE)
            && given.memory <= MAX_RAM
            && (1..=MAX_VCPUS as u64).contains(&given.vcpus)
            && (1..=1 << 32).contains(&given.tsc_khz)
            && given.config_len <= MEASURED_CONFIG_MAX;
        if holds {
            Ok(Self(given))
        } else {
            Err(Stop::Parameters)
        }
    }

    /// Number of vCPUs.
    #[must_use]
    pub const fn vcpus(&self) -> u64 {
        self.0.vcpus
    }

    /// RAM below the hole, and behind it.
    #[must_use]
    pub const fn ram(&self) -> [[u64; 2]; 2] {
        let memory = self.0.memory;
        if memory <= HOLE_START {
            [[0, memory], [0, 0]]
        } else {
            [[0, HOLE_START], [HOLE_END, memory + (HOLE_END - HOLE_START)]]
        }
    }
}

/// Where everything is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Division {
    /// RAM, as [`Given::ram`].
    pub ram: [[u64; 2]; 2],
    /// Zeros of the libos: the frames of its pages that have no content in the image.
    pub zeros: Zeros,
    /// A page for the state of each vCPU but the first.
    pub states: u64,
    /// The context. Its first tables, [`ContextBlock::root`] and [`ContextBlock::table_pool_next`] are still to come.
    pub context: ContextBlock,
}

/// Pages of the libos's last part behind its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zeros {
    /// First guest-virtual address.
    pub va: u64,
    /// Bytes.
    pub len: u64,
    /// First guest-physical address: as far from a multiple of 2 MiB as `va` is, so that large pages map it.
    pub gpa: u64,
}

impl Division {
    /// Divides memory.
    ///
    /// # Errors
    /// [`Stop::Memory`]: not enough of it below the hole; [`Stop::BootBlock`]: the image is none that this can start.
    pub fn new(given: &Given, image: &LaunchBlock) -> Result<Self, Stop> {
        let Parameters {
            vcpus,
            tsc_khz,
            config_len,
            identity,
            ..
        } = given.0;
        let ram = given.ram();
        let tables = up(image.end)?;
        let zeros_at = tables + TABLES;
        let last = last_part(image)?;
        let zeros_va = last.va.checked_add(last.content).ok_or(Stop::BootBlock)?;
        let zeros_va = zeros_va.next_multiple_of(PAGE);
        let end_va = last.va.checked_add(last.memory).ok_or(Stop::BootBlock)?;
        let first_va = last.va & !(LARGE - 1);
        let zeros = Zeros {
            va: zeros_va,
            len: end_va.next_multiple_of(PAGE).saturating_sub(zeros_va),
            gpa: zeros_at + (zeros_va - first_va),
        };
        let blocks = up(zeros_at + (end_va - first_va))?;
        let states = blocks + vcpus * PAGE;
        let free = up(states + vcpus * PAGE)?;
        let [[_, low_end], high] = ram;
        // Eight blocks for the program are the least; what the start itself touches is in the measured window.
        if free + 8 * LARGE > low_end || free > LAUNCH_WINDOW {
            return Err(Stop::Memory);
        }
        let context = ContextBlock {
            index: 0,
            vcpus: vcpus as u32,
            first_vcpu: 0,
            own_tables: 1,
            frames: [[tables, low_end], high],
            segments: [[0; 2]; MAX_SEGMENTS],
            table_pool: tables,
            table_pool_end: tables + TABLES,
            table_pool_next: tables,
            root: tables,
            free_frames: free,
            libos_gpa: image.libos[0].gpa,
            vcpu_blocks: blocks,
            config_gpa: CONFIG_GPA,
            config_len,
            tsc_khz,
            platform: image.platform as u32,
            private_bit: 0,
            identity,
        };
        Ok(Self {
            ram,
            zeros,
            states,
            context,
        })
    }

    /// Blocks of 2 MiB that the start needs before the context's first instruction.
    pub fn first_blocks(&self) -> impl Iterator<Item = u64> + use<> {
        let (start, end) = (self.context.table_pool, self.context.free_frames);
        (start..end).step_by(LARGE as usize)
    }
}

fn up(gpa: u64) -> Result<u64, Stop> {
    gpa.checked_next_multiple_of(LARGE)
        .filter(|gpa| *gpa <= HOLE_START)
        .ok_or(Stop::BootBlock)
}

/// The libos's last part, which is the one with zeros. All of the libos is where it is linked.
fn last_part(image: &LaunchBlock) -> Result<PartBlock, Stop> {
    let mut parts = image.libos.iter().filter(|part| part.memory > 0);
    let mut last = *parts.next().ok_or(Stop::BootBlock)?;
    for part in parts {
        // Only the last one has more than its content.
        if last.memory.next_multiple_of(PAGE) != last.content.next_multiple_of(PAGE) || part.va < last.va {
            return Err(Stop::BootBlock);
        }
        last = *part;
    }
    let inside = last
        .va
        .checked_sub(LIBOS_BASE)
        .is_some_and(|at| at < LIBOS_IMAGE_MAX);
    if inside && last.memory <= LIBOS_IMAGE_MAX {
        Ok(last)
    } else {
        Err(Stop::BootBlock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloak_abi::boot::{LAUNCH_MAGIC, MAX_PARTS, platform};
    use cloak_abi::exec::{LEN, head_at};
    use cloak_abi::layout::{CONFIG_LEN, LAUNCH_TABLES_GPA, PARAMETERS_GPA, PLATFORM_GPA, SHARED_GPA};
    use proptest::prelude::*;
    use zerocopy::FromZeros;

    fn given() -> Parameters {
        Parameters {
            magic: PARAMETERS_MAGIC,
            version: u64::from(cloak_abi::VERSION),
            memory: 256 << 20,
            vcpus: 2,
            tsc_khz: 2_000_000,
            config_len: 5000,
            identity: [3; 48],
        }
    }

    /// Frames of programs would be in memory that the hypervisor reads.
    #[test]
    fn without_the_check_too_much_memory_reaches_into_what_is_shared() {
        let parameters = Parameters {
            memory: 1 << 40,
            ..given()
        };
        assert!(parameters.memory > MAX_RAM);
        assert_eq!(Given::check(parameters), Err(Stop::Parameters));
        assert!(Given(parameters).ram()[1][1] > PLATFORM_GPA);
    }

    /// The host could change what the guest has read of its configuration, in memory that stays the host's to write.
    #[test]
    fn without_the_check_the_configuration_reaches_into_what_is_shared() {
        let parameters = Parameters {
            config_len: 64 << 20,
            ..given()
        };
        assert_eq!(Given::check(parameters), Err(Stop::Parameters));
        let division = Division::new(&Given(parameters), &image()).expect("a division");
        assert!(division.context.config_gpa + division.context.config_len > SHARED_GPA);
    }

    /// The kernel would make one whose number it has no stack for.
    #[test]
    fn without_the_check_there_are_vcpus_beyond_the_kernels_stacks() {
        let parameters = Parameters {
            vcpus: MAX_VCPUS as u64 + 1,
            ..given()
        };
        assert_eq!(Given::check(parameters), Err(Stop::Parameters));
        let division = Division::new(&Given(parameters), &image()).expect("a division");
        assert!(division.context.vcpus as usize > MAX_VCPUS);
    }

    fn image() -> LaunchBlock {
        let mut libos = [PartBlock::new_zeroed(); MAX_PARTS];
        libos[0] = PartBlock {
            va: LIBOS_BASE,
            memory: 0x19_2c7c,
            content: 0x19_2c7c,
            gpa: 0x40_0000,
            flags: 0,
        };
        libos[1] = PartBlock {
            va: LIBOS_BASE + LARGE,
            memory: 0xc1_6000,
            content: 0x1_0c08,
            gpa: 0x59_3000,
            flags: 0,
        };
        LaunchBlock {
            magic: LAUNCH_MAGIC,
            version: u64::from(cloak_abi::VERSION),
            platform: platform::SNP,
            private: 1 << 51,
            shared: 0,
            parameters: PARAMETERS_GPA,
            secrets: 0x1_2000,
            cpuid: 0x1_3000,
            root: LAUNCH_TABLES_GPA,
            end: 0x5a_4000,
            libos,
        }
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        assert!(Given::check(given()).is_ok());
        let wrong: [fn(&mut Parameters); 11] = [
            |p| p.magic ^= 1,
            |p| p.version += 1,
            |p| p.memory += 4096,
            |p| p.memory = MAX_RAM + LARGE,
            |p| p.memory = !(LARGE - 1),
            |p| p.vcpus = 0,
            |p| p.vcpus = 65,
            |p| p.vcpus = u64::MAX,
            |p| p.tsc_khz = 0,
            |p| p.config_len = MEASURED_CONFIG_MAX + 1,
            |p| p.config_len = u64::MAX,
        ];
        for change in wrong {
            let mut changed = given();
            change(&mut changed);
            assert_eq!(Given::check(changed), Err(Stop::Parameters), "{changed:?}");
        }
    }

    #[test]
    fn too_little_memory_is_said_to_be() {
        let small = Parameters {
            memory: 32 << 20,
            ..given()
        };
        let small = Given::check(small).expect("sizes");
        assert_eq!(Division::new(&small, &image()), Err(Stop::Memory));
    }

    proptest! {
        /// Whatever the host says: no two parts overlap, all lie in RAM, and none in what is shared.
        #[test]
        fn no_two_parts_overlap(blocks in 0u64..130_000, vcpus in 1u64..=64, config_len in 0u64..CONFIG_LEN) {
            let given = Parameters { memory: blocks * LARGE, vcpus, config_len, ..given() };
            let Ok(given) = Given::check(given) else { return Ok(()) };
            let Ok(division) = Division::new(&given, &image()) else { return Ok(()) };
            let c = division.context;
            let zeros = division.zeros;
            let parts = [
                (0, image().end),
                (c.table_pool, c.table_pool_end),
                (zeros.gpa, zeros.gpa + zeros.len),
                (c.vcpu_blocks, c.vcpu_blocks + vcpus * PAGE),
                (division.states, division.states + vcpus * PAGE),
                (c.free_frames, c.frames[0][1]),
            ];
            prop_assert!(parts.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{:x?}", parts);
            prop_assert!(parts.iter().all(|(start, end)| start <= end && *end <= HOLE_START));
            prop_assert!(c.frames[1] == [0, 0] || c.frames[1][0] == HOLE_END && c.frames[0][1] == HOLE_START);
            prop_assert!(c.frames[1][1] <= PLATFORM_GPA);
            prop_assert!(head_at(c.config_gpa, c.config_len) + LEN <= SHARED_GPA);
            prop_assert!(division.first_blocks().all(|gpa| gpa >= image().end));
            prop_assert_eq!(zeros.va % LARGE, zeros.gpa % LARGE);
            let ram = division.ram.iter().map(|[start, end]| end - start).sum::<u64>();
            prop_assert_eq!(ram, blocks * LARGE);
        }
    }
}
