//! `--platform`: from its name to a machine. Simulated ones are bound here, and only where they are asked for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cloak_abi::layout::CERTIFICATES_LEN;
use cloak_attestation::snp::CertTable;
use cloak_host::platform::{Certificates, Machine};
use cloak_host::tdvmcall::courier::Courier;
use cloak_host::tdvmcall::service::Address;
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
    /// Not this machine.
    #[error("--platform tdx: {0}; see `cloak doctor`, or try --platform sim-tdx")]
    NoTdx(&'static str),
    /// Quotes are a domain's.
    #[error("--quote-service is for --platform tdx")]
    NoDomain,
    /// The quoting service that was asked for is not there.
    #[error(
        "--quote-service {address}: {source}; is qgsd running, and may this user connect to it? See docs/deploy-tdx.md"
    )]
    Quotes {
        /// Where.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// Who would fetch quotes.
    #[error("starting the process that fetches quotes: {0}")]
    Courier(io::Error),
    /// The file of certificates.
    #[error("--certificates {}: {problem}", path.display())]
    Certificates {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
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
pub fn machine(
    platform: Platform,
    hostile: Option<&str>,
    certificates: Option<&Path>,
    quotes: Option<&Address>,
    verbose: bool,
) -> Result<Machine, Error> {
    if quotes.is_some() && platform != Platform::Tdx {
        return Err(Error::NoDomain);
    }
    let unknown = |name: &str| Error::Hostile(name.to_owned());
    let (machine, what) = match platform {
        // SEV-SNP and TDX only where they are asked for, as long as nobody has seen them run on hardware.
        Platform::Auto => (Machine::Plain, "plain KVM, the best that has been seen to run"),
        Platform::Plain => (Machine::Plain, "plain KVM"),
        Platform::Snp => match missing() {
            Some(what) => return Err(Error::NoSnp(what)),
            None => (snp(certificates)?, "SEV-SNP"),
        },
        Platform::Tdx => match missing_tdx() {
            Some(what) => return Err(Error::NoTdx(what)),
            None => (tdx(quotes, verbose)?, "TDX"),
        },
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
    if let Some(name) = hostile.filter(|_| !machine.is_simulated()) {
        return Err(unknown(name));
    }
    if verbose {
        eprintln!("cloak: the machine is {what}");
    }
    Ok(machine)
}

/// SEV-SNP, with what is given out beside reports.
fn snp(certificates: Option<&Path>) -> Result<Machine, Error> {
    let bytes = certificates.map(read_certificates).transpose()?;
    Ok(Machine::Snp(Certificates(bytes.unwrap_or_default())))
}

/// TDX, and the way to the quoting service. One that was asked for has to be there now; one at the usual place may come later, as a
/// domain that nobody verifies needs none.
fn tdx(quotes: Option<&Address>, verbose: bool) -> Result<Machine, Error> {
    let address = match quotes {
        Some(given) => {
            given.connect().map_err(|source| Error::Quotes {
                address: given.clone(),
                source,
            })?;
            given.clone()
        }
        None => Address::default(),
    };
    if verbose {
        eprintln!("cloak: quotes come from {address}");
    }
    Courier::start(&address).map(Machine::Tdx).map_err(Error::Courier)
}

/// A certificate table, as the GHCB protocol has it.
fn read_certificates(path: &Path) -> Result<Vec<u8>, Error> {
    let wrong = |problem: String| Error::Certificates {
        path: path.to_owned(),
        problem,
    };
    let bytes = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    if bytes.len() as u64 > CERTIFICATES_LEN {
        return Err(wrong(format!(
            "{} bytes; at most {CERTIFICATES_LEN} are given out",
            bytes.len()
        )));
    }
    CertTable::parse(&bytes).map_err(|error| wrong(error.to_string()))?;
    Ok(bytes)
}

/// The first thing that is missing for SEV-SNP.
fn missing() -> Option<&'static str> {
    let on = |text: String| matches!(text.trim(), "Y" | "1");
    match fs::read_to_string("/sys/module/kvm_amd/parameters/sev_snp").map(on) {
        Err(_) => {
            Some("the kernel has no kvm_amd with SEV-SNP (Linux 6.11 or later on an EPYC 7003 or later)")
        }
        Ok(false) => Some("kvm_amd has it off: turn SNP on in the firmware and pass kvm_amd.sev_snp=1"),
        Ok(true) if !Path::new("/dev/sev").exists() => {
            Some("there is no /dev/sev: load the module ccp, or pass the device into this container")
        }
        Ok(true) => None,
    }
}

/// The first thing that is missing for TDX.
fn missing_tdx() -> Option<&'static str> {
    let on = |text: String| matches!(text.trim(), "Y" | "1");
    match fs::read_to_string("/sys/module/kvm_intel/parameters/tdx").map(on) {
        Err(_) => Some(
            "the kernel has no kvm_intel with TDX (Linux 6.16 or later on a Xeon of the fourth generation or later)",
        ),
        Ok(false) => Some("kvm_intel has it off: turn TDX on in the firmware and pass kvm_intel.tdx=1"),
        Ok(true) => None,
    }
}
