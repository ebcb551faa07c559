//! Predicted measurements against golden digests and against the `igvm` package.

use cloak_attestation::bytes::Bytes48;
use cloak_attestation::measure::{
    Gpa, Image, LaunchDigest, Mrtd, PAGE_BYTES, Page, PageKind, Region, Vmsa, rtmrs,
};
use cloak_attestation::snp::Product;
use igvm::measurement::{generate_snp_measurement, generate_tdx_measurement};
use igvm::snp_defs::SevVmsa;
use igvm::{IgvmDirectiveHeader, IgvmInitializationHeader};
use igvm_defs::{IgvmPageDataFlags, IgvmPageDataType};
use serde_json::Value;
use zerocopy::FromBytes as _;

use crate::vectors::shared;

const MASK: u32 = 1;

fn pattern() -> Vec<u8> {
    (0..PAGE_BYTES).map(|index| (index * 7 + 3) as u8).collect()
}

fn steps(name: &str) -> Option<Vec<Value>> {
    let json: Value = serde_json::from_slice(&shared(name)?).expect("JSON");
    Some(json["steps"].as_array().expect("steps").clone())
}

fn gpa(step: &Value) -> Gpa {
    let text = step["gpa"].as_str().expect("an address");
    Gpa(u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("hexadecimal"))
}

fn contents(step: &Value) -> Vec<u8> {
    if step["contents"] == "pattern" {
        pattern()
    } else {
        Vec::new()
    }
}

#[test]
fn the_snp_chain_goes_through_every_golden_step() {
    let Some(steps) = steps("measure/snp_chain.json") else {
        return;
    };
    let mut digest = LaunchDigest::default();
    for step in &steps {
        let contents = contents(step);
        let kind = match step["page_type"].as_str().expect("a type") {
            "NORMAL" => PageKind::Normal,
            "ZERO" => PageKind::Zero,
            "UNMEASURED" => PageKind::Unmeasured,
            "SECRETS" => PageKind::Secrets,
            "CPUID" => PageKind::Cpuid,
            _ => {
                digest = digest.add_vmsa(&Vmsa::reset(Product::Milan).to_page());
                assert_eq!(digest.measurement().to_string(), step["digest_after"]);
                continue;
            }
        };
        digest = digest.add_page(&Page {
            gpa: gpa(step),
            kind,
            contents: &contents,
        });
        assert_eq!(digest.measurement().to_string(), step["digest_after"], "{step}");
    }
}

#[test]
fn the_reset_state_is_the_golden_page() {
    let Some(golden) = shared("measure/vmsa_reset_milan.bin") else {
        return;
    };
    assert_eq!(Vmsa::reset(Product::Milan).to_page()[..], golden[..]);
}

#[test]
fn mrtd_goes_through_every_golden_step() {
    let Some(steps) = steps("measure/tdx_mrtd.json") else {
        return;
    };
    let mut mrtd = Mrtd::default();
    for step in &steps {
        let kind = if step["measured"] == true {
            PageKind::Normal
        } else {
            PageKind::Unmeasured
        };
        mrtd.add_page(&Page {
            gpa: gpa(step),
            kind,
            contents: &contents(step),
        });
        assert_eq!(
            mrtd.measurement().to_string(),
            step["mrtd_if_finalized_here"],
            "{step}"
        );
    }
}

fn image() -> Image {
    let region = |gpa, kind, pages, contents| Region {
        gpa: Gpa(gpa),
        kind,
        pages,
        contents,
    };
    Image {
        regions: vec![
            region(
                0x10_0000,
                PageKind::Normal,
                3,
                [pattern(), pattern(), vec![9; 100]].concat(),
            ),
            region(0x20_0000, PageKind::Unmeasured, 2, Vec::new()),
            region(0x30_0000, PageKind::Secrets, 1, Vec::new()),
            region(0x30_1000, PageKind::Cpuid, 1, Vec::new()),
        ],
        boot_vmsa: Some(Vmsa::protected_mode(0x10_0000)),
        ..Image::default()
    }
}

fn directives(image: &Image, for_tdx: bool) -> Vec<IgvmDirectiveHeader> {
    let header = |page: Page<'_>| {
        let (data_type, unmeasured) = match page.kind {
            PageKind::Secrets if for_tdx => return None,
            PageKind::Cpuid if for_tdx => return None,
            PageKind::Secrets => (IgvmPageDataType::SECRETS, false),
            PageKind::Cpuid => (IgvmPageDataType::CPUID_DATA, false),
            PageKind::Unmeasured => (IgvmPageDataType::NORMAL, true),
            PageKind::Normal | PageKind::Zero => (IgvmPageDataType::NORMAL, false),
        };
        Some(IgvmDirectiveHeader::PageData {
            gpa: page.gpa.0,
            compatibility_mask: MASK,
            flags: IgvmPageDataFlags::new().with_unmeasured(unmeasured),
            data_type,
            data: page.contents.to_vec(),
        })
    };
    image.pages().filter_map(header).collect()
}

#[test]
fn igvm_agrees_on_snp_for_every_number_of_vcpus() {
    let image = image();
    let policy = IgvmInitializationHeader::GuestPolicy {
        policy: 0x30000,
        compatibility_mask: MASK,
    };
    for vcpus in [1, 2, 7] {
        let mut directives = directives(&image, false);
        let state = image.boot_vmsa.as_ref().unwrap().to_page();
        let (vmsa, _) = SevVmsa::read_from_prefix(&state).expect("any bytes are a state save area");
        directives.extend((0..vcpus).map(|vp_index| IgvmDirectiveHeader::SnpVpContext {
            gpa: 0xffff_ffff_f000,
            compatibility_mask: MASK,
            vp_index,
            vmsa: Box::new(vmsa),
        }));
        let theirs = generate_snp_measurement(std::slice::from_ref(&policy), &directives, MASK).unwrap();
        assert_eq!(
            image.snp_measurement(vcpus.into()).unwrap(),
            Bytes48::from(theirs),
            "{vcpus} vCPUs"
        );
    }
}

#[test]
fn igvm_agrees_on_tdx() {
    let image = image();
    let theirs = generate_tdx_measurement(&directives(&image, true), MASK).unwrap();
    assert_eq!(image.mrtd().unwrap(), Bytes48::from(theirs));
}

#[test]
fn the_number_of_vcpus_and_their_state_are_measured() {
    let image = image();
    let one = image.snp_measurement(1).unwrap();
    assert_ne!(one, image.snp_measurement(2).unwrap());
    let moved = Image {
        boot_vmsa: Some(Vmsa::protected_mode(0x10_1000)),
        ..image.clone()
    };
    assert_ne!(one, moved.snp_measurement(1).unwrap());
    let distinct = Image {
        application_vmsa: Some(Vmsa::protected_mode(0)),
        ..image.clone()
    };
    assert_eq!(one, distinct.snp_measurement(1).unwrap());
    assert_ne!(
        image.snp_measurement(2).unwrap(),
        distinct.snp_measurement(2).unwrap()
    );
    assert!(image.snp_measurement(0).is_err());
    assert!(
        Image {
            boot_vmsa: None,
            ..image
        }
        .snp_measurement(1)
        .is_err()
    );
}

#[test]
fn registers_start_at_zero_and_extend() {
    use cloak_attestation::evidence::Event;
    assert_eq!(rtmrs(&[]), Some([Bytes48::ZERO; 4]));
    let extended = rtmrs(&[Event::of_data(2, b"a".to_vec())]).unwrap();
    assert!(extended[0].is_zero() && !extended[2].is_zero());
    assert_eq!(rtmrs(&[Event::of_data(4, Vec::new())]), None);
}
