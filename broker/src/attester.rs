//! Where a guest's evidence comes from.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cloak_attestation::Evidence;
use cloak_attestation::bytes::{Bytes32, Bytes48, Bytes64};
use cloak_attestation::evidence::{Attestation, Companions, EvidenceError};
use cloak_attestation::software::SoftwareClaims;
use cloak_attestation::time::Timestamp;
use p256::ecdsa::SigningKey;

use crate::protocol::Tee;
use crate::random::random;

/// Linux's interface for reports (Documentation/ABI/testing/configfs-tsm).
pub const CONFIGFS_TSM: &str = "/sys/kernel/config/tsm/report";

/// Where a Cloak guest says what it runs on; elsewhere there is no such file.
const PLATFORM: &str = "/sys/kernel/cloak/platform";

/// Makes evidence.
pub trait Attester: Send + Sync {
    /// What kind of machine it speaks for.
    fn tee(&self) -> Tee;

    /// Evidence with this REPORT_DATA.
    ///
    /// # Errors
    /// [`AttesterError`].
    fn attest(&self, report_data: &Bytes64) -> Result<Evidence, AttesterError>;
}

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum AttesterError {
    /// A file of the kernel's interface, or a program, does not do what it should.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A provider of reports that is not known.
    #[error("the kernel's report provider is {0:?}, neither sev_guest nor tdx_guest")]
    Provider(String),
    /// The kernel made another report in between.
    #[error("the kernel's report interface was used by someone else at the same time; try again")]
    Interrupted,
    /// What came is no evidence.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// A program that failed.
    #[error("{path} ended with {status}")]
    Program {
        /// Which.
        path: PathBuf,
        /// How.
        status: String,
    },
    /// No random bytes to name an entry with.
    #[error(transparent)]
    Randomness(#[from] crate::random::NoRandomness),
}

fn file<T>(path: &Path, result: io::Result<T>) -> Result<T, AttesterError> {
    result.map_err(|source| AttesterError::File {
        path: path.to_owned(),
        source,
    })
}

/// The kernel's report interface, in a guest on SNP or TDX.
#[derive(Debug)]
pub struct ConfigfsTsm {
    folder: PathBuf,
    tee: Tee,
    simulated: bool,
}

/// An entry of the interface; it is removed when this goes.
struct Entry(PathBuf);

impl ConfigfsTsm {
    /// The interface in `folder`, normally [`CONFIGFS_TSM`].
    ///
    /// # Errors
    /// [`AttesterError`] if there is none, or it is of another kind of machine.
    pub fn open(folder: &Path) -> Result<Self, AttesterError> {
        let entry = Entry::make(folder)?;
        let provider = entry.read("provider")?;
        // Evidence of a simulated machine says that it is: it is worth less, and goes where a policy names it.
        let simulated = fs::read(PLATFORM).is_ok_and(|name| name.starts_with(b"simulated-"));
        let tee = match (provider.trim_ascii(), simulated) {
            (b"sev_guest", false) => Tee::Snp,
            (b"sev_guest", true) => Tee::SimulatedSnp,
            (b"tdx_guest", false) => Tee::Tdx,
            (b"tdx_guest", true) => Tee::SimulatedTdx,
            (other, _) => {
                return Err(AttesterError::Provider(
                    String::from_utf8_lossy(other).into_owned(),
                ));
            }
        };
        Ok(Self {
            folder: folder.to_owned(),
            tee,
            simulated,
        })
    }
}

impl Attester for ConfigfsTsm {
    fn tee(&self) -> Tee {
        self.tee
    }

    fn attest(&self, report_data: &Bytes64) -> Result<Evidence, AttesterError> {
        let entry = Entry::make(&self.folder)?;
        let inblob = entry.0.join("inblob");
        file(&inblob, fs::write(&inblob, report_data.0))?;
        // The kernel counts writes: one that is not ours would have given us someone else's report.
        let generation = entry.read("generation")?;
        let report = entry.read("outblob")?;
        let mut companions = Companions::default();
        match entry.read("auxblob") {
            Ok(table) if !table.is_empty() => companions.add_certificate_table(&table)?,
            _ => {}
        }
        if entry.read("generation")? != generation {
            return Err(AttesterError::Interrupted);
        }
        let evidence = Evidence::read(&report, companions)?;
        Ok(if self.simulated {
            evidence.as_simulated()
        } else {
            evidence
        })
    }
}

impl Entry {
    fn make(folder: &Path) -> Result<Self, AttesterError> {
        let path = folder.join(format!("cloak-{}", hex::encode(random::<8>()?)));
        file(&path, fs::create_dir(&path))?;
        Ok(Self(path))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, AttesterError> {
        let path = self.0.join(name);
        file(&path, fs::read(&path))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // An entry that stays costs a few bytes of the kernel's; there is nobody to tell.
        let _ = fs::remove_dir(&self.0);
    }
}

/// A host key's word, on a machine without confidential hardware.
pub struct Software {
    /// The host's key.
    pub key: SigningKey,
    /// SHA-384 of what runs.
    pub measurement: Bytes48,
    /// SHA-256 of its manifest.
    pub manifest_digest: Bytes32,
}

impl Attester for Software {
    fn tee(&self) -> Tee {
        Tee::Software
    }

    fn attest(&self, report_data: &Bytes64) -> Result<Evidence, AttesterError> {
        let claims = SoftwareClaims {
            measurement: self.measurement,
            manifest_digest: self.manifest_digest,
            report_data: *report_data,
            issued_at: Timestamp::now(),
        };
        Ok(Attestation::Software(claims.sign(&self.key)).into())
    }
}

/// A program that is given REPORT_DATA in hexadecimal as its only argument and writes evidence of any known form.
#[derive(Debug)]
pub struct Program {
    /// Which.
    pub path: PathBuf,
    /// What kind of machine it speaks for.
    pub tee: Tee,
}

impl Attester for Program {
    fn tee(&self) -> Tee {
        self.tee
    }

    fn attest(&self, report_data: &Bytes64) -> Result<Evidence, AttesterError> {
        let mut command = Command::new(&self.path);
        command
            .arg(report_data.to_string())
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        let output = file(&self.path, command.output())?;
        if !output.status.success() {
            return Err(AttesterError::Program {
                path: self.path.clone(),
                status: output.status.to_string(),
            });
        }
        Ok(Evidence::read(&output.stdout, Companions::default())?)
    }
}
