//! What this machine has, what it lacks, and what that costs.

mod hardware;

use std::fs;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};

use self::hardware::{KVM_CAP_VM_TYPES, Machine};
use crate::kvm;

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub subject: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What it costs and how to get it; empty when all is well.
    pub advice: String,
}

/// How a thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There.
    Good,
    /// Not there, and Cloak runs without it.
    Missing,
    /// Not there, and Cloak can't run without it.
    Blocking,
}

impl Finding {
    fn good(subject: &'static str, found: impl Into<String>) -> Self {
        Self {
            subject,
            verdict: Verdict::Good,
            found: found.into(),
            advice: String::new(),
        }
    }

    fn missing(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            subject,
            verdict: Verdict::Missing,
            found: found.into(),
            advice: advice.into(),
        }
    }

    fn blocking(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            subject,
            verdict: Verdict::Blocking,
            found: found.into(),
            advice: advice.into(),
        }
    }
}

/// Looks at everything.
#[must_use]
pub fn examine() -> Vec<Finding> {
    let mut findings = vec![processor()];
    let mut vm_types = 0;
    match kvm::open(Path::new("/dev/kvm")) {
        Ok(device) => {
            findings.extend(virtualisation(&device));
            vm_types = device.check_extension_raw(KVM_CAP_VM_TYPES).max(0) as u32;
        }
        Err(error) => {
            findings.push(Finding::blocking(
                "KVM",
                error.to_string(),
                "nothing runs without it",
            ));
        }
    }
    findings.extend([large_pages(), user_faults(), open_files(), namespaces()]);
    let machine = Machine {
        root: "/".into(),
        vm_types,
    };
    findings.push(hardware::snp(&machine));
    findings.extend(hardware::tdx(&machine));
    findings
}

fn namespaces() -> Finding {
    const SUBJECT: &str = "namespaces";
    if crate::jail::namespaces::allowed() {
        return Finding::good(SUBJECT, "OS service and monitor have mounts of their own");
    }
    Finding::missing(
        SUBJECT,
        "not for this user",
        "the OS service is held by Landlock and seccomp alone (docs/jail.md); as root it has namespaces too",
    )
}

fn processor() -> Finding {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        info.lines()
            .find(|l| l.starts_with(name))
            .and_then(|l| l.split_once(':'))
            .map_or("", |(_, v)| v.trim())
    };
    let lacking: Vec<&str> = ["fsgsbase", "xsave", "constant_tsc"]
        .into_iter()
        .filter(|f| !field("flags").split(' ').any(|x| x == *f))
        .collect();
    let name = field("model name").to_owned();
    if lacking.is_empty() {
        Finding::good("processor", name)
    } else {
        Finding::blocking(
            "processor",
            format!("{name} lacks {}", lacking.join(", ")),
            "a processor since 2013 (Intel) or 2019 (AMD) is needed",
        )
    }
}

fn virtualisation(device: &Kvm) -> Vec<Finding> {
    let mut findings = vec![Finding::good(
        "KVM",
        format!("/dev/kvm answers; module: {}", module()),
    )];
    let needed = [
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    ];
    let lacking: Vec<&str> = needed
        .iter()
        .filter(|(c, _)| !device.check_extension(*c))
        .map(|(_, n)| *n)
        .collect();
    if lacking.is_empty() {
        findings.push(Finding::good("KVM features", "all that Cloak needs"));
    } else {
        findings.push(Finding::blocking(
            "KVM features",
            format!("no {}", lacking.join(", ")),
            "use a newer kernel (5.10 or later)",
        ));
    }
    findings.push(Finding::good(
        "vCPUs",
        format!("at most {}", device.get_max_vcpus()),
    ));
    findings
}

fn module() -> String {
    let loaded: Vec<&str> = ["kvm_amd", "kvm_intel", "kvm_pvm"]
        .into_iter()
        .filter(|m| Path::new("/sys/module").join(m).exists())
        .collect();
    if loaded.is_empty() {
        "built in or unknown".to_owned()
    } else {
        loaded.join(", ")
    }
}

fn large_pages() -> Finding {
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    let text = fs::read_to_string(path).unwrap_or_default();
    if text.contains("[madvise]") || text.contains("[always]") {
        Finding::good("large pages", "transparent large pages on request")
    } else {
        Finding::missing(
            "large pages",
            "transparent large pages are off",
            format!("memory-heavy programs run slower; echo madvise > {path}"),
        )
    }
}

fn user_faults() -> Finding {
    let path = Path::new("/proc/sys/vm/unprivileged_userfaultfd");
    let root = rustix::process::geteuid().is_root();
    let allowed = fs::read_to_string(path).is_ok_and(|t| t.trim() == "1");
    if root || allowed || Path::new("/dev/userfaultfd").exists() {
        Finding::good("userfaultfd", "usable")
    } else if path.exists() {
        Finding::missing(
            "userfaultfd",
            "for root only",
            "sysctl vm.unprivileged_userfaultfd=1",
        )
    } else {
        Finding::missing(
            "userfaultfd",
            "not in this kernel",
            "use a kernel with CONFIG_USERFAULTFD",
        )
    }
}

fn open_files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    if most >= 4096 {
        Finding::good("open files", format!("at most {most}"))
    } else {
        Finding::missing(
            "open files",
            format!("at most {most}"),
            "programs with many sockets need more: raise the hard limit (ulimit -Hn)",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_not_good_says_what_to_do() {
        for finding in examine() {
            assert_eq!(
                finding.verdict == Verdict::Good,
                finding.advice.is_empty(),
                "{finding:?}"
            );
        }
    }
}
