//! When a certificate or a revocation list may be used, read without the rest of it.
//!
//! `dcap-qvl` parses and judges both as a whole; parsing them a second time for two dates each was an eighth of the time
//! of a verification.

use x509_cert::der::asn1::AnyRef;
use x509_cert::der::{Decode, Reader, Result, SliceReader, Tag, Tagged as _};
use x509_cert::time::{Time, Validity};

use crate::time::Window;

/// `Certificate.tbsCertificate.validity` (RFC 5280 §4.1).
pub(super) fn certificate_window(der: &[u8]) -> Result<Window> {
    signed_part(der, |tbs| {
        // Version is [0]; serial number, algorithm and issuer follow.
        if !tbs.peek_tag()?.is_context_specific() {
            return Err(Tag::Integer.value_error());
        }
        skip(tbs, 4)?;
        let validity = Validity::decode(tbs)?;
        Ok(Window {
            from: validity.not_before.into(),
            until: validity.not_after.into(),
        })
    })
}

/// `CertificateList.tbsCertList.thisUpdate` and `nextUpdate` (RFC 5280 §5.1), both of which there have to be.
pub(super) fn list_window(der: &[u8]) -> Result<Window> {
    signed_part(der, |tbs| {
        let version = usize::from(tbs.peek_tag()? == Tag::Integer);
        skip(tbs, version + 2)?;
        Ok(Window {
            from: Time::decode(tbs)?.into(),
            until: Time::decode(tbs)?.into(),
        })
    })
}

/// Opens `SEQUENCE { SEQUENCE { ...`, lets `read` take what it wants of the inner one, and sees that the outer one ends
/// where the bytes end.
fn signed_part(der: &[u8], read: impl FnOnce(&mut SliceReader<'_>) -> Result<Window>) -> Result<Window> {
    let outer = AnyRef::from_der(der)?;
    outer.tag().assert_eq(Tag::Sequence)?;
    let mut outer = SliceReader::new(outer.value())?;
    let tbs = AnyRef::decode(&mut outer)?;
    tbs.tag().assert_eq(Tag::Sequence)?;
    // Algorithm and signature.
    skip(&mut outer, 2)?;
    outer.finish(())?;
    read(&mut SliceReader::new(tbs.value())?)
}

fn skip(reader: &mut SliceReader<'_>, elements: usize) -> Result<()> {
    for _ in 0..elements {
        AnyRef::decode(reader)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use x509_cert::Certificate;

    use super::*;
    use crate::tdx::intel_root;

    #[test]
    fn the_dates_are_those_of_the_whole_parser() {
        let validity = Certificate::from_der(intel_root())
            .unwrap()
            .tbs_certificate
            .validity;
        let window = certificate_window(intel_root()).unwrap();
        assert_eq!(window.from, validity.not_before.into());
        assert_eq!(window.until, validity.not_after.into());
    }

    #[test]
    fn what_ends_early_or_late_or_is_something_else_is_an_error() {
        let root = intel_root();
        for length in 0..root.len() {
            assert!(certificate_window(&root[..length]).is_err(), "{length}");
        }
        assert!(certificate_window(&[root, &[0]].concat()).is_err());
        assert!(list_window(root).is_err());
    }
}
