//! What the figures were measured on.

use std::fs;
use std::process::Command;

/// A paragraph: processor, memory, kernel, the kind of KVM, and what else ran.
pub fn description() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processors = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": "))
            .map_or("unknown", |(_, value)| value)
            .to_owned()
    };
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .unwrap_or(0);
    format!(
        "{processors} processors ({}, family {}, model {}), {} GiB of memory, Linux {}, KVM by {}, {}. \
         Load average at the start: {}.",
        field("model name"),
        field("cpu family"),
        field("model\t"),
        kib >> 20,
        line_of("/proc/sys/kernel/osrelease"),
        kvm_module(),
        distribution(),
        line_of("/proc/loadavg").split(' ').next().unwrap_or("unknown")
    )
}

/// The day of the measurement, and the commit.
pub fn when() -> String {
    let output = |program: &str, arguments: &[&str]| {
        let done = Command::new(program).args(arguments).output().ok()?;
        Some(String::from_utf8_lossy(&done.stdout).trim().to_owned()).filter(|text| !text.is_empty())
    };
    let day = output("date", &["-u", "+%Y-%m-%d"]).unwrap_or_else(|| "an unknown day".into());
    let commit =
        output("git", &["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "an unknown commit".into());
    format!("{day}, commit {commit}")
}

fn kvm_module() -> String {
    // Loaded and built-in modules alike, as far as they have parameters, which all kinds of KVM have.
    let modules = fs::read_dir("/sys/module").into_iter().flatten().flatten();
    let names = modules.map(|module| module.file_name().to_string_lossy().into_owned());
    let kinds: Vec<_> = names.filter(|name| name.starts_with("kvm_")).collect();
    match (kinds.is_empty(), fs::exists("/dev/kvm").unwrap_or(false)) {
        (false, _) => kinds.join(" and "),
        (true, true) => "a module built into the kernel".into(),
        (true, false) => "nothing (no /dev/kvm)".into(),
    }
}

fn distribution() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or("an unknown distribution".into(), |name| {
        name.trim_matches('"').to_owned()
    })
}

fn line_of(path: &str) -> String {
    fs::read_to_string(path).map_or("unknown".into(), |text| text.trim().to_owned())
}
