//! What a machine has of SEV-SNP and TDX: from the processor over the kernel to the device that a launch opens. The first
//! step that is missing is what is said, since the later ones follow from it.

use std::fs;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::kvm::snp::kernel::SEV_DEVICE;
use crate::kvm::tdx::abi::KVM_X86_TDX_VM;
use crate::tdvmcall::service::{Address, DEFAULT};

/// `KVM_CAP_VM_TYPES`: a bit for each type of VM.
pub const KVM_CAP_VM_TYPES: u64 = 235;
/// Without hardware, Cloak runs as it does anywhere.
const COST: &str = "without it the host kernel is trusted, and evidence is the host's own word";

/// Where to look, and what KVM says.
#[derive(Debug)]
pub struct Machine {
    /// Root of the file tree; another than / in tests.
    pub root: PathBuf,
    /// [`KVM_CAP_VM_TYPES`]; 0 without KVM.
    pub vm_types: u32,
}

impl Machine {
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn cpu(&self, field: &str) -> String {
        let info = fs::read_to_string(self.path("/proc/cpuinfo")).unwrap_or_default();
        let lines = info.lines().filter_map(|line| line.split_once(':'));
        let mut values = lines.filter(|(name, _)| name.trim() == field);
        values
            .next()
            .map_or_else(String::new, |(_, value)| value.trim().to_owned())
    }

    fn has_flag(&self, flag: &str) -> bool {
        self.cpu("flags").split(' ').any(|other| other == flag)
    }

    fn parameter(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path))
            .ok()
            .map(|text| text.trim().to_owned())
    }

    fn offers(&self, vm_type: u64) -> bool {
        u64::from(self.vm_types) >> vm_type & 1 == 1
    }
}

fn on(parameter: Option<&str>) -> bool {
    matches!(parameter, Some("Y" | "1"))
}

/// SEV-SNP.
#[must_use]
pub fn snp(machine: &Machine) -> Finding {
    let missing = |found: String, how: &str| Finding::missing("SEV-SNP", found, format!("{COST}; {how}"));
    if machine.cpu("vendor_id") != "AuthenticAMD" {
        return missing("not an AMD processor".to_owned(), "needs an EPYC 7003 or later");
    }
    if !machine.has_flag("sev_snp") {
        let how = "on an EPYC 7003 or later turn on SMEE, SNP and the RMP's coverage in the BIOS: docs/deploy-snp.md";
        return missing(
            "the processor does not offer it (no flag sev_snp)".to_owned(),
            how,
        );
    }
    let parameter = machine.parameter("/sys/module/kvm_amd/parameters/sev_snp");
    if !on(parameter.as_deref()) {
        let found = match parameter {
            Some(value) => format!("kvm_amd.sev_snp={value}"),
            None => "kvm_amd does not know it, or is not loaded".to_owned(),
        };
        return missing(
            found,
            "use Linux 6.11 or later, boot it with kvm_amd.sev_snp=1, and see its log for SEV-SNP",
        );
    }
    if !machine.offers(kvm_bindings::KVM_X86_SNP_VM.into()) {
        let found = format!("KVM offers no such VM (KVM_CAP_VM_TYPES {:#x})", machine.vm_types);
        return missing(
            found,
            "update the firmware of the security processor, and see the kernel's log for ccp",
        );
    }
    match fs::File::options()
        .read(true)
        .write(true)
        .open(machine.path(SEV_DEVICE))
    {
        Ok(_) => Finding::good("SEV-SNP", format!("KVM offers it, {SEV_DEVICE} opens")),
        Err(error) => {
            let how =
                "give this user access: chgrp kvm /dev/sev and chmod 660 /dev/sev, by a udev rule to keep it";
            missing(format!("{SEV_DEVICE}: {error}"), how)
        }
    }
}

/// TDX, and where domains can run the way to quotes.
#[must_use]
pub fn tdx(machine: &Machine) -> Vec<Finding> {
    match domains(machine) {
        Ok(finding) => vec![finding, quotes(&machine.path("/"))],
        Err(finding) => vec![finding],
    }
}

fn domains(machine: &Machine) -> Result<Finding, Finding> {
    let missing = |found: String, how: &str| Err(Finding::missing("TDX", found, format!("{COST}; {how}")));
    if machine.cpu("vendor_id") != "GenuineIntel" {
        let found = "not an Intel processor".to_owned();
        return missing(found, "needs a Xeon of the fourth generation with TDX, or later");
    }
    if !machine.has_flag("tdx_host_platform") {
        let how = "on a Xeon of the fourth generation with TDX, or later, turn on TME-MT, SGX, TDX and SEAM loader in the BIOS: docs/deploy-tdx.md";
        return missing(
            "the processor does not offer it (no flag tdx_host_platform)".to_owned(),
            how,
        );
    }
    let parameter = machine.parameter("/sys/module/kvm_intel/parameters/tdx");
    if !on(parameter.as_deref()) {
        let found = match parameter {
            Some(value) => format!("kvm_intel.tdx={value}"),
            None => "kvm_intel does not know it, or is not loaded".to_owned(),
        };
        let how = "use Linux 6.16 or later, boot it with kvm_intel.tdx=1, and see its log for virt/tdx";
        return missing(found, how);
    }
    if !machine.offers(KVM_X86_TDX_VM) {
        let found = format!("KVM offers no such VM (KVM_CAP_VM_TYPES {:#x})", machine.vm_types);
        return missing(found, "update the TDX module, and see the kernel's log for tdx");
    }
    Ok(Finding::good("TDX", "KVM offers it"))
}

/// The quoting service, at its usual place.
fn quotes(root: &Path) -> Finding {
    let path = DEFAULT.trim_start_matches("unix:/");
    let address = Address::Unix(root.join(path));
    match address.connect() {
        Ok(_) => Finding::good("TDX quotes", format!("a quoting service answers at {address}")),
        Err(error) => Finding::missing(
            "TDX quotes",
            format!("no quoting service at {address}: {error}"),
            "domains start, but nobody outside can verify them, and no secret is released to them; install Intel's tdx-qgs and start qgsd: docs/deploy-tdx.md",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;
    use std::os::unix::net::UnixListener;

    /// A machine whose file tree goes away with it.
    struct Fake {
        machine: Machine,
        _folder: tempfile::TempDir,
    }

    fn fake(vendor: &str, flags: &str) -> Fake {
        let folder = tempfile::tempdir().expect("a folder");
        let machine = Machine {
            root: folder.path().to_owned(),
            vm_types: 1,
        };
        let fake = Fake {
            machine,
            _folder: folder,
        };
        fake.put(
            "proc/cpuinfo",
            &format!("vendor_id\t: {vendor}\nflags\t\t: fpu {flags} rep_good\n"),
        );
        fake
    }

    impl Fake {
        fn put(&self, path: &str, text: &str) {
            let path = self.machine.root.join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
            fs::write(path, text).expect("a file");
        }
    }

    /// Each step that is mended shows the next one.
    #[test]
    fn an_snp_machine_is_led_from_step_to_step() {
        let said = |fake: &Fake| {
            let finding = snp(&fake.machine);
            assert_eq!(finding.verdict == Verdict::Good, finding.advice.is_empty());
            format!("{}; {}", finding.found, finding.advice)
        };
        assert!(said(&fake("GenuineIntel", "")).starts_with("not an AMD processor"));
        assert!(said(&fake("AuthenticAMD", "sev sev_es")).contains("BIOS"));
        let mut machine = fake("AuthenticAMD", "sev sev_es sev_snp");
        assert!(said(&machine).contains("not loaded"));
        machine.put("sys/module/kvm_amd/parameters/sev_snp", "N\n");
        assert!(said(&machine).contains("kvm_amd.sev_snp=N"));
        machine.put("sys/module/kvm_amd/parameters/sev_snp", "Y\n");
        assert!(said(&machine).contains("KVM_CAP_VM_TYPES 0x1"));
        machine.machine.vm_types = 0x11;
        assert!(said(&machine).contains("/dev/sev: No such file"));
        machine.put("dev/sev", "");
        assert_eq!(snp(&machine.machine).verdict, Verdict::Good);
    }

    #[test]
    fn a_tdx_machine_is_led_from_step_to_step() {
        let said = |fake: &Fake| {
            let findings = tdx(&fake.machine);
            let last = findings.last().expect("one at least");
            format!("{}; {}", last.found, last.advice)
        };
        assert!(said(&fake("AuthenticAMD", "")).starts_with("not an Intel processor"));
        assert!(said(&fake("GenuineIntel", "vmx")).contains("SEAM"));
        let mut machine = fake("GenuineIntel", "vmx tdx_host_platform");
        assert!(said(&machine).contains("not loaded"));
        machine.put("sys/module/kvm_intel/parameters/tdx", "N\n");
        assert!(said(&machine).contains("kvm_intel.tdx=N"));
        machine.put("sys/module/kvm_intel/parameters/tdx", "Y\n");
        assert!(said(&machine).contains("KVM_CAP_VM_TYPES 0x1"));
        machine.machine.vm_types = 0x21;
        assert_eq!(tdx(&machine.machine)[0].verdict, Verdict::Good);
        assert!(said(&machine).contains("qgsd"));
        machine.put("var/run/tdx-qgs/placeholder", "");
        let socket = machine.machine.root.join("var/run/tdx-qgs/qgs.socket");
        let _listener = UnixListener::bind(socket).expect("a socket");
        assert!(
            tdx(&machine.machine)
                .iter()
                .all(|finding| finding.verdict == Verdict::Good)
        );
    }
}
