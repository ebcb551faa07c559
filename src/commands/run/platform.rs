//! `--platform`: from its name to a machine. Simulated ones are bound here, and only where they are asked for.

use std::fs;
use std::path::Path;

use cloak_host::platform::Machine;
use cloak_sim::hostile::Hostile;
use cloak_sim::keys::KeyError;
use cloak_sim::live::Live;
use cloak_sim::tdx;

/// Kinds of machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Platform {
    /// The best that the machine has and Cloak can start
    Auto,
    /// Plain KVM: software cloaks
    Plain,
    /// AMD SEV-SNP
    Snp,
    /// SEV-SNP in software: it protects nothing, and shows that all else is as on hardware
    SimSnp,
    /// Intel TDX
    Tdx,
    /// TDX in software: as `sim-snp`
    SimTdx,
}

/// Why there is no such machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not this machine.
    #[error("--platform snp: {0}; see `cloak doctor`, or try --platform sim-snp")]
    NoSnp(&'static str),
    /// Not this program.
    #[error(
        "--platform snp: this machine has SEV-SNP, and cloak run can't start such guests yet (its kernel handles no #VC \
         exceptions); see docs/platforms.md, or try --platform sim-snp"
    )]
    NotYet,
    /// Not this machine.
    #[error("--platform tdx: {0}; see `cloak doctor`, or try --platform sim-tdx")]
    NoTdx(&'static str),
    /// Not this program.
    #[error(
        "--platform tdx: this machine has TDX, and cloak run does not bind the launch of a domain to its VM yet; see \
         docs/platforms.md, or try --platform sim-tdx"
    )]
    NotYetTdx,
    /// Not of these.
    #[error("--hostile {0}: there is no such case, or the machine is not a simulated one")]
    Hostile(String),
    /// What the simulated machine is made of.
    #[error(transparent)]
    Keys(#[from] KeyError),
}

/// The machine.
///
/// # Errors
/// [`Error`].
pub fn machine(platform: Platform, hostile: Option<&str>, verbose: bool) -> Result<Machine, Error> {
    let unknown = |name: &str| Error::Hostile(name.to_owned());
    let (machine, what) = match platform {
        Platform::Auto => (Machine::Plain, "plain KVM, the best that cloak run can start"),
        Platform::Plain => (Machine::Plain, "plain KVM"),
        Platform::Snp => return Err(no_snp()),
        Platform::Tdx => return Err(no_tdx()),
        Platform::SimSnp => {
            let case = hostile.map(|name| Hostile::named(name).ok_or_else(|| unknown(name)));
            let live = Live::new(case.transpose()?)?;
            (Machine::SimulatedSnp(Box::new(live)), "simulated SEV-SNP")
        }
        Platform::SimTdx => {
            let case = hostile.map(|name| tdx::hostile::Hostile::named(name).ok_or_else(|| unknown(name)));
            let live = tdx::live::Live::new(case.transpose()?)?;
            (Machine::SimulatedTdx(Box::new(live)), "simulated TDX")
        }
    };
    if let (Some(name), None) = (hostile, machine.measuring()) {
        return Err(unknown(name));
    }
    if verbose {
        eprintln!("cloak: the machine is {what}");
    }
    Ok(machine)
}

/// The first thing that is missing.
fn no_snp() -> Error {
    let on = |text: String| matches!(text.trim(), "Y" | "1");
    match fs::read_to_string("/sys/module/kvm_amd/parameters/sev_snp").map(on) {
        Err(_) => Error::NoSnp(
            "the kernel has no kvm_amd with SEV-SNP (Linux 6.11 or later on an EPYC 7003 or later)",
        ),
        Ok(false) => {
            Error::NoSnp("kvm_amd has it off: turn SNP on in the firmware and pass kvm_amd.sev_snp=1")
        }
        Ok(true) if !Path::new("/dev/sev").exists() => {
            Error::NoSnp("there is no /dev/sev: load the module ccp, or pass the device into this container")
        }
        Ok(true) => Error::NotYet,
    }
}

/// The first thing that is missing.
fn no_tdx() -> Error {
    let on = |text: String| matches!(text.trim(), "Y" | "1");
    match fs::read_to_string("/sys/module/kvm_intel/parameters/tdx").map(on) {
        Err(_) => Error::NoTdx(
            "the kernel has no kvm_intel with TDX (Linux 6.16 or later on a Xeon of the fourth generation or later)",
        ),
        Ok(false) => {
            Error::NoTdx("kvm_intel has it off: turn TDX on in the firmware and pass kvm_intel.tdx=1")
        }
        Ok(true) => Error::NotYetTdx,
    }
}
