//! The image as an IGVM file: one for both platforms, pages that are alike on them once.

use cloak_attestation::measure::{Image, Page, PageKind};
use igvm::snp_defs::SevVmsa;
use igvm::{
    Error, IgvmDirectiveHeader, IgvmFile, IgvmInitializationHeader, IgvmPlatformHeader, IgvmRevision,
};
use igvm_defs::{
    IGVM_SEV_SNP_PLATFORM_VERSION, IGVM_TDX_PLATFORM_VERSION, IGVM_VHS_SUPPORTED_PLATFORM, IgvmPageDataFlags,
    IgvmPageDataType, IgvmPlatformType,
};
use zerocopy::FromBytes;

/// Compatibility mask of what is for SNP.
pub const SNP: u32 = 1;
/// Compatibility mask of what is for TDX.
pub const TDX: u32 = 2;

/// Where KVM, and so the format, measures each state save area.
const VMSA_GPA: u64 = 0xffff_ffff_f000;
/// The guest policy that the file asks for: reserved bit 17, SMT allowed, no debugging, no migration.
const POLICY: u64 = 0x3_0000;

/// The file for a VM of `cpus` vCPUs.
///
/// # Errors
/// What the library finds wrong.
pub fn bytes(snp: &Image, tdx: &Image, cpus: u32) -> Result<Vec<u8>, Error> {
    let platforms = [
        (SNP, IgvmPlatformType::SEV_SNP, IGVM_SEV_SNP_PLATFORM_VERSION),
        (TDX, IgvmPlatformType::TDX, IGVM_TDX_PLATFORM_VERSION),
    ];
    let platforms = platforms.map(|(compatibility_mask, platform_type, platform_version)| {
        IgvmPlatformHeader::SupportedPlatform(IGVM_VHS_SUPPORTED_PLATFORM {
            compatibility_mask,
            highest_vtl: 0,
            platform_type,
            platform_version,
            shared_gpa_boundary: 0,
        })
    });
    let policy = IgvmInitializationHeader::GuestPolicy {
        policy: POLICY,
        compatibility_mask: SNP,
    };
    let mut directives = merged(snp, tdx);
    directives.extend(states(snp, cpus));
    let file = IgvmFile::new(IgvmRevision::V1, platforms.to_vec(), vec![policy], directives)?;
    let mut bytes = Vec::new();
    file.serialize(&mut bytes)?;
    Ok(bytes)
}

/// Both lists, each in its order, which is that of addresses.
fn merged(snp: &Image, tdx: &Image) -> Vec<IgvmDirectiveHeader> {
    let (mut snp, mut tdx) = (snp.pages().peekable(), tdx.pages().peekable());
    let mut directives = Vec::new();
    loop {
        let alike = |a: &Page<'_>, b: &Page<'_>| (a.gpa, a.kind, a.contents) == (b.gpa, b.kind, b.contents);
        let (page, mask) = match (snp.peek(), tdx.peek()) {
            (Some(a), Some(b)) if alike(a, b) => {
                tdx.next();
                (snp.next(), SNP | TDX)
            }
            (Some(a), Some(b)) if a.gpa > b.gpa => (tdx.next(), TDX),
            (None, _) => (tdx.next(), TDX),
            _ => (snp.next(), SNP),
        };
        let Some(page) = page else { return directives };
        directives.push(directive(&page, mask));
    }
}

fn directive(page: &Page<'_>, compatibility_mask: u32) -> IgvmDirectiveHeader {
    let (data_type, unmeasured) = match page.kind {
        PageKind::Secrets => (IgvmPageDataType::SECRETS, false),
        PageKind::Cpuid => (IgvmPageDataType::CPUID_DATA, false),
        PageKind::Unmeasured => (IgvmPageDataType::NORMAL, true),
        PageKind::Normal | PageKind::Zero => (IgvmPageDataType::NORMAL, false),
    };
    IgvmDirectiveHeader::PageData {
        gpa: page.gpa.0,
        compatibility_mask,
        flags: IgvmPageDataFlags::new().with_unmeasured(unmeasured),
        data_type,
        // A page of zeros needs no bytes in the file.
        data: if page.contents.iter().all(|&byte| byte == 0) {
            Vec::new()
        } else {
            page.contents.to_vec()
        },
    }
}

fn states(image: &Image, cpus: u32) -> Vec<IgvmDirectiveHeader> {
    let Some(first) = &image.boot_vmsa else {
        return Vec::new();
    };
    let others = image.application_vmsa.as_ref().unwrap_or(first);
    let states = (0..cpus as u16).filter_map(|vp_index| {
        let page = if vp_index == 0 { first } else { others }.to_page();
        let (vmsa, _) = SevVmsa::read_from_prefix(&page).ok()?;
        Some(IgvmDirectiveHeader::SnpVpContext {
            gpa: VMSA_GPA,
            compatibility_mask: SNP,
            vp_index,
            vmsa: Box::new(vmsa),
        })
    });
    states.collect()
}
