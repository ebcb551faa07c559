//! A TDX quote, version 4 or 5, parsed so that every byte has a meaning (Quote, A.3 and A.4).
//!
//! ```text
//!  header (48) │ v5: body type, size │ TD report 584, 648 or 885 │ size │ signature data
//!  signature data: quote signature (64), attestation key (64), type 6, size, then
//!    QE report (384), its signature (64), QE authentication data, type 5, size, PEM chain (PCK, CA, root)
//! ```
//! What no signature covers has to be what it must be anyway: a padding of zeros, PEM in its canonical form. So a
//! changed bit anywhere in a quote is noticed.

use crate::bytes::{Bytes, Bytes48, Bytes64};

/// Quotes have about 5 KB; PCK chains add a few.
const MAX_QUOTE_BYTES: usize = 64 * 1024;
const ECDSA_P256: u16 = 2;
const TEE_TDX: u32 = 0x81;
const INTEL_QE: [u8; 16] = [
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];
const QE_REPORT_CERTIFICATION: u16 = 6;
const PCK_CHAIN: u16 = 5;
// What names a PCK certificate instead (`sgx_quote_3.h`): PPID, in plain or encrypted for Intel, CPUSVN, PCESVN, PCEID.
const PPID: u16 = 1;
const PPID_FOR_RSA_2048: u16 = 2;
const PPID_FOR_RSA_3072: u16 = 3;

/// Why bytes are not a TDX quote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// Larger than any quote.
    #[error("{0} bytes, more than {MAX_QUOTE_BYTES}")]
    Size(usize),
    /// The bytes end within a field.
    #[error("it ends within {0}")]
    Truncated(&'static str),
    /// A version, TEE type, key type, vendor or body type that is not known.
    #[error("{what} {found}")]
    Unknown {
        /// The field.
        what: &'static str,
        /// Its content.
        found: String,
    },
    /// Bytes after the end of a structure that are not a padding of zeros.
    #[error("{0} has bytes to spare")]
    Trailing(&'static str),
    /// The chain is not PEM as Intel writes it.
    #[error("the PCK chain is not canonical PEM")]
    Pem,
}

/// The domain's own part of a quote (TDX ABI, TDREPORT).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdReport {
    /// SVNs of the TDX module.
    pub tee_tcb_svn: Bytes<16>,
    /// Measurement of the TDX module.
    pub mr_seam: Bytes48,
    /// ATTRIBUTES.
    pub attributes: u64,
    /// XFAM.
    pub xfam: u64,
    /// Build-time measurement of the domain.
    pub mrtd: Bytes48,
    /// What the host said at launch that it configures.
    pub mr_config_id: Bytes48,
    /// Owner, as the host said at launch.
    pub mr_owner: Bytes48,
    /// Owner's configuration, as the host said at launch.
    pub mr_owner_config: Bytes48,
    /// Run-time registers.
    pub rtmrs: [Bytes48; 4],
    /// What the domain chose.
    pub report_data: Bytes64,
    /// TDX 1.5: measurement of the bound service domains, zero without any.
    pub mr_service_td: Option<Bytes48>,
    /// TDX 1.5 extended: hash of the service domains that are bound now.
    pub current_service_td: Option<Bytes48>,
}

/// A quote of known form. Nothing in it is verified yet.
#[derive(Debug, Clone)]
pub struct Quote {
    /// Version of the format, 4 or 5.
    pub version: u16,
    /// The domain's report.
    pub report: TdReport,
    /// DER of the PCK chain, leaf first, if the quote carries one.
    pub pck_chain: Option<Vec<Vec<u8>>>,
}

impl Quote {
    /// Reads a quote.
    ///
    /// # Errors
    /// [`QuoteError`] for what is not a TDX quote by Intel's quoting enclave, or has bytes without meaning.
    pub fn parse(bytes: &[u8]) -> Result<Self, QuoteError> {
        if bytes.len() > MAX_QUOTE_BYTES {
            return Err(QuoteError::Size(bytes.len()));
        }
        let mut reader = Reader(bytes);
        let version = parse_header(&mut reader)?;
        let report = match version {
            4 => parse_report(&mut reader, BodyType::Td10)?,
            _ => parse_body(&mut reader)?,
        };
        let signature_data = reader.sized_u32("the signature data")?;
        // Quoting services hand out buffers of a fixed size.
        if reader.0.iter().any(|&byte| byte != 0) {
            return Err(QuoteError::Trailing("the quote"));
        }
        let pck_chain = parse_signature_data(signature_data)?;
        Ok(Self {
            version,
            report,
            pck_chain,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum BodyType {
    Td10,
    Td15,
    Td15Extended,
}

fn parse_header(reader: &mut Reader<'_>) -> Result<u16, QuoteError> {
    let version = reader.u16("the version")?;
    let key_type = reader.u16("the key type")?;
    let tee = reader.u32("the TEE type")?;
    reader.take(4, "the header")?;
    let vendor = reader.take(16, "the vendor")?;
    reader.take(20, "the header")?;
    let unknown = |what, found: String| Err(QuoteError::Unknown { what, found });
    match (version, key_type, tee) {
        (4 | 5, ECDSA_P256, TEE_TDX) if vendor == INTEL_QE => Ok(version),
        (4 | 5, ECDSA_P256, TEE_TDX) => unknown("vendor", hex::encode(vendor)),
        (4 | 5, ECDSA_P256, _) => unknown("TEE type", format!("{tee:#x}")),
        (4 | 5, ..) => unknown("key type", key_type.to_string()),
        _ => unknown("version", version.to_string()),
    }
}

fn parse_body(reader: &mut Reader<'_>) -> Result<TdReport, QuoteError> {
    let kind = reader.u16("the body type")?;
    let body = reader.sized_u32("the body")?;
    let body_type = match kind {
        2 => BodyType::Td10,
        3 => BodyType::Td15,
        4 => BodyType::Td15Extended,
        _ => {
            return Err(QuoteError::Unknown {
                what: "body type",
                found: kind.to_string(),
            });
        }
    };
    let mut body = Reader(body);
    let report = parse_report(&mut body, body_type)?;
    body.end("the body")?;
    Ok(report)
}

fn parse_report(reader: &mut Reader<'_>, body_type: BodyType) -> Result<TdReport, QuoteError> {
    const AT: &str = "the TD report";
    let tee_tcb_svn = reader.bytes(AT)?;
    let mr_seam = reader.bytes(AT)?;
    reader.take(48 + 8, AT)?;
    let attributes = reader.u64(AT)?;
    let xfam = reader.u64(AT)?;
    let mut report = TdReport {
        tee_tcb_svn,
        mr_seam,
        attributes,
        xfam,
        mrtd: reader.bytes(AT)?,
        mr_config_id: reader.bytes(AT)?,
        mr_owner: reader.bytes(AT)?,
        mr_owner_config: reader.bytes(AT)?,
        rtmrs: [
            reader.bytes(AT)?,
            reader.bytes(AT)?,
            reader.bytes(AT)?,
            reader.bytes(AT)?,
        ],
        report_data: reader.bytes(AT)?,
        mr_service_td: None,
        current_service_td: None,
    };
    if body_type != BodyType::Td10 {
        reader.take(16, AT)?;
        report.mr_service_td = Some(reader.bytes(AT)?);
    }
    if body_type == BodyType::Td15Extended {
        reader.take(1 + 32 + 48 + 48 + 8 + 16 + 16 + 12, AT)?;
        report.current_service_td = Some(reader.bytes(AT)?);
        reader.take(8, AT)?;
    }
    Ok(report)
}

fn parse_signature_data(bytes: &[u8]) -> Result<Option<Vec<Vec<u8>>>, QuoteError> {
    let mut reader = Reader(bytes);
    reader.take(64 + 64, "the quote signature")?;
    let kind = reader.u16("the certification type")?;
    if kind != QE_REPORT_CERTIFICATION {
        return Err(QuoteError::Unknown {
            what: "certification type",
            found: kind.to_string(),
        });
    }
    let mut inner = Reader(reader.sized_u32("the certification data")?);
    reader.end("the signature data")?;
    inner.take(384 + 64, "the QE report")?;
    let auth_length = inner.u16("the QE authentication data")?;
    inner.take(auth_length.into(), "the QE authentication data")?;
    let kind = inner.u16("the PCK certification type")?;
    let certificates = inner.sized_u32("the PCK chain")?;
    inner.end("the certification data")?;
    let ppid_bytes = match kind {
        PCK_CHAIN => return Ok(Some(canonical_pem_chain(certificates)?)),
        PPID => 16,
        PPID_FOR_RSA_2048 => 256,
        PPID_FOR_RSA_3072 => 384,
        _ => {
            return Err(QuoteError::Unknown {
                what: "PCK certification type",
                found: kind.to_string(),
            });
        }
    };
    // These types name the certificate, and the collateral has to bring it. No signature covers type and size, so they
    // have to fit each other: else one type could be changed into another.
    let mut name = Reader(certificates);
    name.take(ppid_bytes, "the PPID")?;
    name.take(16 + 2 + 2, "CPUSVN, PCESVN and PCEID")?;
    name.end("the PCK certification data")?;
    Ok(None)
}

/// Reads a chain and checks that writing it again gives the same text.
fn canonical_pem_chain(text: &[u8]) -> Result<Vec<Vec<u8>>, QuoteError> {
    // Intel's text is a C string.
    let text = text.strip_suffix(&[0]).unwrap_or(text);
    let chain = super::collateral::pem_chain(text).map_err(|_| QuoteError::Pem)?;
    let written: String = chain.iter().map(|der| super::collateral::to_pem(der)).collect();
    let fits = text == written.as_bytes() || Some(text) == written.as_bytes().strip_suffix(b"\n");
    if fits { Ok(chain) } else { Err(QuoteError::Pem) }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize, at: &'static str) -> Result<&'a [u8], QuoteError> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(QuoteError::Truncated(at))?;
        self.0 = tail;
        Ok(head)
    }

    fn bytes<const N: usize>(&mut self, at: &'static str) -> Result<Bytes<N>, QuoteError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N, at)?);
        Ok(Bytes(bytes))
    }

    fn u16(&mut self, at: &'static str) -> Result<u16, QuoteError> {
        Ok(u16::from_le_bytes(self.bytes(at)?.0))
    }

    fn u32(&mut self, at: &'static str) -> Result<u32, QuoteError> {
        Ok(u32::from_le_bytes(self.bytes(at)?.0))
    }

    fn u64(&mut self, at: &'static str) -> Result<u64, QuoteError> {
        Ok(u64::from_le_bytes(self.bytes(at)?.0))
    }

    fn sized_u32(&mut self, at: &'static str) -> Result<&'a [u8], QuoteError> {
        let length = self.u32(at)?;
        let length = usize::try_from(length).map_err(|_| QuoteError::Truncated(at))?;
        self.take(length, at)
    }

    fn end(&self, at: &'static str) -> Result<(), QuoteError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(QuoteError::Trailing(at))
        }
    }
}
