use cloak_attestation::bytes::Bytes48;
use cloak_attestation::measure::PAGE_BYTES;
use igvm::measurement::{generate_snp_measurement, generate_tdx_measurement};
use igvm::{IgvmDirectiveHeader, IgvmFile};

use super::igvm_file::{SNP, TDX};
use super::*;

fn image(platform: Platform) -> Image {
    embedded(platform, 1).expect("our own")
}

fn exported(cpus: u32) -> IgvmFile {
    let bytes = igvm_file::bytes(&image(Platform::Snp), &image(Platform::Tdx), cpus).expect("a file");
    IgvmFile::new_from_binary(&bytes, None).expect("what we wrote is an IGVM file")
}

#[test]
fn the_file_measures_as_predicted_for_every_number_of_vcpus() {
    let mut seen = Vec::new();
    for cpus in [1, 2, 8, 64] {
        let file = exported(cpus);
        let (policy, pages) = (file.initializations(), file.directives());
        let snp: Bytes48 = generate_snp_measurement(policy, pages, SNP).expect("SNP").into();
        let predicted = image(Platform::Snp).snp_measurement(cpus).expect("a digest");
        assert_eq!(predicted, snp, "{cpus} vCPUs");
        assert!(
            !seen.contains(&snp),
            "another number of vCPUs has the same digest"
        );
        seen.push(snp);
        let tdx: Bytes48 = generate_tdx_measurement(pages, TDX).expect("TDX").into();
        assert_eq!(image(Platform::Tdx).mrtd().expect("a digest"), tdx);
    }
}

#[test]
fn the_file_holds_the_same_pages_in_the_same_order() {
    let file = exported(2);
    for (platform, mask) in [(Platform::Snp, SNP), (Platform::Tdx, TDX)] {
        let pages = file.directives().iter().filter_map(|header| match header {
            IgvmDirectiveHeader::PageData {
                gpa,
                compatibility_mask,
                data,
                ..
            } if compatibility_mask & mask != 0 => {
                let mut page = data.clone();
                page.resize(PAGE_BYTES, 0);
                Some((*gpa, page))
            }
            _ => None,
        });
        let image = image(platform);
        let wanted = image.pages().map(|page| {
            let mut contents = page.contents.to_vec();
            contents.resize(PAGE_BYTES, 0);
            (page.gpa.0, contents)
        });
        assert!(pages.eq(wanted));
    }
}

#[test]
fn what_is_measured_changes_the_digest() {
    let before = image(Platform::Snp);
    let digest = |image: &Image| image.snp_measurement(2).expect("a digest");
    let first = digest(&before);
    for region in 0..before.regions.len() {
        let mut changed = before.clone();
        let region = &mut changed.regions[region];
        let Some(byte) = region.contents.last_mut() else {
            // The host's pages: that they are there is measured.
            region.gpa.0 += 0x100_0000;
            assert_ne!(digest(&changed), first);
            continue;
        };
        *byte ^= 1;
        assert_ne!(digest(&changed), first);
        if changed.regions.len() == before.regions.len() {
            let tdx = Image { ..changed };
            assert_ne!(tdx.mrtd().expect("a digest"), before.mrtd().expect("a digest"));
        }
    }
    let registers: [fn(&mut Vmsa); 6] = [
        |s| s.rip += 1,
        |s| s.cr3 += 4096,
        |s| s.rdi = 1,
        |s| s.cr4 ^= 1 << 20,
        |s| s.efer ^= 1,
        |s| s.segments[1].attributes ^= 0x60,
    ];
    for change in registers {
        let mut changed = before.clone();
        changed.boot_vmsa.iter_mut().for_each(change);
        assert_ne!(digest(&changed), first);
        let mut changed = before.clone();
        changed.application_vmsa.iter_mut().for_each(change);
        assert_ne!(digest(&changed), first);
    }
}

/// Nothing of the state is the processor's: RDX at reset would be its signature.
#[test]
fn the_state_of_a_vcpu_is_the_same_on_every_product() {
    let image = image(Platform::Snp);
    for state in [&image.boot_vmsa, &image.application_vmsa] {
        let state = state.as_ref().expect("a state");
        assert_eq!((state.rdx, state.rax, state.rbx, state.rcx), (0, 0, 0, 0));
        assert_eq!(state.cr0 & 1 << 31, 1 << 31, "paging is on");
        assert_eq!(state.segments[1].attributes & 0x200, 0x200, "64-bit code");
    }
}

/// What the kernel writes for a further vCPU is what the first one has, as the prediction writes it.
#[test]
fn the_state_of_a_further_vcpu_is_as_the_first_ones() {
    let mut page = [0; PAGE_BYTES];
    for (offset, word) in cloak_snp::vmsa::words(0xffff_ffff_8020_1234, 0x40_0000, 7) {
        page[offset as usize..offset as usize + 8].copy_from_slice(&word.to_le_bytes());
    }
    let wanted = state(Registers {
        rip: 0xffff_ffff_8020_1234,
        root: 0x40_0000,
        rdi: 7,
    });
    assert_eq!(page, wanted.to_page());
}

#[test]
fn more_vcpus_than_the_shim_has_room_for_are_refused() {
    for cpus in [0, 65, u32::MAX] {
        assert!(matches!(embedded(Platform::Snp, cpus), Err(ImageError::Vcpus(_))));
    }
}

/// A machine that measures what it is given, in software; it does not know the prediction.
#[test]
fn the_simulated_launch_measures_what_is_predicted_on_every_product() {
    use cloak_attestation::sim::SnpWorld;
    use cloak_attestation::snp::{Product, VekKind};
    use cloak_attestation::time::Timestamp;
    use cloak_host::kvm::snp::{Configured, Options, POLICY};
    use cloak_sim::machine::{Machine, Secrets};

    let milan = SnpWorld::new(Product::Milan, Timestamp::now()).expect("keys");
    for product in [Product::Milan, Product::Genoa, Product::Turin] {
        let world = milan.for_product(product).expect("a world");
        for vcpus in [1, 2, 8, 64] {
            let spec = world.vek_spec(VekKind::Vcek);
            let secrets = Secrets {
                memory: [1; 64],
                chip: [2; 32],
                messages: [[3; 32]; 4],
            };
            let mut machine = Machine::new(&secrets, world.endorse(&spec).expect("a key"), spec);
            let options = Options {
                policy: POLICY,
                vcpus,
                host_data: [0; 32],
                cpuid: Box::new([0; PAGE_BYTES]),
                parameters: Box::new([vcpus as u8; PAGE_BYTES]),
                id: None,
                certificates: false,
            };
            let image = LaunchImage::new(&Shim::embedded().expect("own"), Measuring::Snp).expect("an image");
            let memory = [[0, 32 << 20], [0xffff_f000, 1 << 32]];
            Configured::new(&mut machine, image, options)
                .and_then(Configured::start)
                .and_then(|guest| guest.back(&memory)?.add()?.vcpus()?.finish())
                .expect("a launch");
            let measured = machine.processor.measurement();
            let predicted = embedded(Platform::Snp, vcpus).and_then(|image| image.snp_measurement(vcpus));
            assert_eq!(measured, predicted.ok(), "{product}, {vcpus} vCPUs");
        }
    }
}

/// A host that sets other registers at the start launches another guest: the measurement is the one that those registers have, and
/// a policy for this build refuses its report.
#[test]
fn other_initial_registers_are_another_measurement_as_predicted_and_refused() {
    use cloak_attestation::bytes::Bytes64;
    use cloak_attestation::evidence::Attestation;
    use cloak_attestation::sim::SnpWorld;
    use cloak_attestation::snp::{Product, VekKind};
    use cloak_attestation::time::Timestamp;
    use cloak_attestation::{Evidence, Policy, Request, Verifier};
    use cloak_host::kvm::snp::{Configured, Options, POLICY};
    use cloak_sim::machine::{Machine, Secrets};
    use cloak_sim::message::{Header, MessageType, Sealed, seal};
    use cloak_sim::requests::ReportRequest;
    use zerocopy::IntoBytes as _;

    const KEY: [u8; 32] = [3; 32];
    let now = Timestamp::now();
    let world = SnpWorld::new(Product::Genoa, now).expect("keys");
    let own = || LaunchImage::new(&Shim::embedded().expect("own"), Measuring::Snp).expect("an image");
    // What the launch measures, and evidence that its guest asks for.
    let launched = |image: LaunchImage| {
        let spec = world.vek_spec(VekKind::Vcek);
        let secrets = Secrets {
            memory: [1; 64],
            chip: [2; 32],
            messages: [KEY; 4],
        };
        let mut machine = Machine::new(&secrets, world.endorse(&spec).expect("a key"), spec);
        let options = Options {
            policy: POLICY,
            vcpus: 2,
            host_data: [0; 32],
            cpuid: Box::new([0; PAGE_BYTES]),
            parameters: Box::new([0; PAGE_BYTES]),
            id: None,
            certificates: false,
        };
        Configured::new(&mut machine, image, options)
            .and_then(Configured::start)
            .and_then(|guest| {
                guest
                    .back(&[[0, 32 << 20], [0xffff_f000, 1 << 32]])?
                    .add()?
                    .vcpus()?
                    .finish()
            })
            .expect("a launch");
        let request = ReportRequest {
            report_data: [9; 64],
            vmpl: 0,
            reserved: [0; 28],
        };
        let header = Header {
            sequence: 1,
            kind: MessageType::ReportRequest,
            key: 0,
        };
        let message = seal(header, &KEY, request.as_bytes()).expect("it fits");
        let answer = machine.processor.request(&message).expect("an answer");
        let payload = Sealed::parse(&answer)
            .and_then(|sealed| sealed.open(&KEY))
            .expect("authentic");
        let evidence = machine.processor.evidence(payload[32..].to_vec());
        let measured = machine.processor.measurement().expect("launched");
        (measured, Evidence::from(Attestation::SimulatedSnp(evidence)))
    };
    let predicted = |image: LaunchImage| measured(image).snp_measurement(2).expect("a digest");
    let expected = embedded(Platform::Snp, 2).and_then(|image| image.snp_measurement(2));
    let expected = expected.expect("a digest");
    let policy = format!(
        "platforms = [\"simulated-snp\"]\n[simulated]\nroot_digests = [\"{}\"]\n[[reference]]\nname = \"this build\"\n\
         version = \"1\"\nsnp_measurement = [\"{expected}\"]\n",
        world.root_digest()
    );
    let verifier = Verifier::new(Policy::from_toml(&policy).expect("a policy"));
    let request = Request::at(now).with_report_data(Bytes64::from([9; 64]));
    let (digest, evidence) = launched(own());
    assert_eq!(digest, expected);
    verifier.verify(&evidence, &request).expect("this build");

    let changes: [fn(&mut LaunchImage); 6] = [
        |image| image.first.rip += 1,
        |image| image.first.root += 4096,
        |image| image.first.rdi = 1,
        |image| image.others.rip += 1,
        |image| image.others.root += 4096,
        |image| image.others.rdi = 1,
    ];
    let mut seen = vec![expected];
    for change in changes {
        let mut image = own();
        change(&mut image);
        let (digest, evidence) = launched(image.clone());
        assert_eq!(digest, predicted(image));
        assert!(!seen.contains(&digest), "each register is measured");
        seen.push(digest);
        let refused = verifier.verify(&evidence, &request).expect_err("another guest");
        let codes: Vec<_> = refused.codes().iter().map(|code| code.as_str()).collect();
        assert_eq!(codes, ["reference.measurement.unknown"]);
    }
}

/// The same for a domain: neither vCPUs nor the page of parameters are in the MRTD.
#[test]
fn the_simulated_domain_measures_what_is_predicted() {
    use cloak_host::kvm::tdx::config::SEPT_VE_DISABLE;
    use cloak_host::kvm::tdx::{Configured, Options};
    use cloak_sim::tdx::machine::Machine;

    for vcpus in [1, 2, 8, 64] {
        let mut machine = Machine::new(&[1; 64], [2; 32]);
        let options = Options {
            attributes: SEPT_VE_DISABLE,
            vcpus,
            mr_config_id: [4; 48],
            parameters: Box::new([vcpus as u8; PAGE_BYTES]),
        };
        let image = LaunchImage::new(&Shim::embedded().expect("own"), Measuring::Tdx).expect("an image");
        let memory = [[0, 32 << 20], [0xffff_f000, 1 << 32]];
        Configured::new(&mut machine, image, options)
            .and_then(Configured::init)
            .and_then(|domain| domain.vcpus()?.back(&memory)?.add()?.finalize())
            .expect("a launch");
        assert_eq!(machine.module.vcpus(), vcpus);
        let measured = machine.module.info().map(|info| Bytes48::from(info.mrtd));
        let predicted = embedded(Platform::Tdx, vcpus).and_then(|image| image.mrtd());
        assert_eq!(measured, predicted.ok(), "{vcpus} vCPUs");
    }
}
