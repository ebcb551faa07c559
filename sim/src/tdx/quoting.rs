//! The quoting enclave: checks that a report is this processor's, and signs a quote for it under a simulated root.
//!
//! It answers as Intel's quoting service does, over a stream ([`QuotingEnclave::serve`]) or called directly.

use std::io::{self, Read, Write};

use cloak_attestation::bytes::{Bytes48, Bytes64};
use cloak_attestation::evidence::TdxEvidence;
use cloak_attestation::sim::{QuoteFields, QuoteVersion, SimError, TdxSpec, TdxWorld};
use cloak_host::tdvmcall::qgs::{self, REPORT_BYTES};
use cloak_host::tdvmcall::service::{QuoteError, QuoteSource};
use zerocopy::FromBytes;

use super::report::TdReport;

/// Code by which the service refuses a report that is not this machine's.
const NOT_MINE: u32 = 0x1_2003;
/// Code of anything else.
const UNEXPECTED: u32 = 0x1_2001;

/// The enclave of one processor.
#[derive(Debug, Clone)]
pub struct QuotingEnclave {
    world: TdxWorld,
    spec: TdxSpec,
    key: [u8; 32],
    version: QuoteVersion,
}

impl QuotingEnclave {
    /// With the processor's report key, in a world in good order.
    #[must_use]
    pub fn new(world: TdxWorld, key: [u8; 32], version: QuoteVersion) -> Self {
        Self {
            spec: world.spec(),
            world,
            key,
            version,
        }
    }

    /// Signs a quote, and gives what it is verified with.
    ///
    /// # Errors
    /// [`QuoteError::Service`]: the report is not this processor's.
    pub fn evidence(&self, report: &[u8; REPORT_BYTES]) -> Result<TdxEvidence, QuoteError> {
        let refuse = |code| QuoteError::Service {
            code,
            meaning: "the simulated enclave does not take the report",
        };
        let report = TdReport::read_from_bytes(report).map_err(|_| refuse(NOT_MINE))?;
        if !report.holds(&self.key) {
            return Err(refuse(NOT_MINE));
        }
        let made: Result<_, SimError> = self.world.attest(&self.fields(&report), &self.spec);
        made.map_err(|_| refuse(UNEXPECTED))
    }

    fn fields(&self, report: &TdReport) -> QuoteFields {
        let info = &report.info;
        QuoteFields {
            version: self.version,
            attributes: u64::from_le_bytes(info.attributes),
            xfam: u64::from_le_bytes(info.xfam),
            mrtd: Bytes48::from(info.mrtd),
            mr_config_id: Bytes48::from(info.mr_config_id),
            mr_owner: Bytes48::from(info.mr_owner),
            mr_owner_config: Bytes48::from(info.mr_owner_config),
            rtmrs: info.rtmrs.map(Bytes48::from),
            report_data: Bytes64::from(report.mac.report_data),
        }
    }

    /// Serves one connection of a quoting service: requests until the other side hangs up.
    ///
    /// # Errors
    /// What the stream says.
    pub fn serve(&self, stream: &mut (impl Read + Write)) -> io::Result<()> {
        loop {
            let mut prefix = [0; qgs::PREFIX];
            match stream.read_exact(&mut prefix) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            }
            let length = qgs::length(prefix).map_err(io::Error::other)?;
            let mut message = vec![0; length];
            stream.read_exact(&mut message)?;
            stream.write_all(&self.answer(&message))?;
        }
    }

    fn answer(&self, message: &[u8]) -> Vec<u8> {
        match qgs::parse_request(message).and_then(|report| self.quote(report)) {
            Ok(quote) => qgs::response(0, &quote),
            Err(QuoteError::Service { code, .. }) => qgs::response(code, &[]),
            Err(_) => qgs::response(UNEXPECTED, &[]),
        }
    }
}

impl QuoteSource for QuotingEnclave {
    fn quote(&self, report: &[u8; REPORT_BYTES]) -> Result<Vec<u8>, QuoteError> {
        self.evidence(report).map(|evidence| evidence.quote)
    }
}
