//! The certificates that chains end in: AMD's, pinned, or those of a simulated signer.

use std::sync::LazyLock;

use super::product::Product;
use super::vek::VekKind;
use crate::x509::Cert;

/// AMD's root and the two authorities under it, for one product.
pub(crate) struct Anchors {
    pub(crate) ark: Cert,
    ask: Option<Cert>,
    asvk: Option<Cert>,
}

impl Anchors {
    /// A root that came along with simulated evidence, without built-in authorities under it.
    pub(crate) fn simulated(ark: Cert) -> Self {
        Self {
            ark,
            ask: None,
            asvk: None,
        }
    }

    /// The built-in authority that issues this kind of endorsement key.
    pub(crate) fn authority(&self, kind: VekKind) -> Option<&Cert> {
        match kind {
            VekKind::Vcek => self.ask.as_ref(),
            VekKind::Vlek => self.asvk.as_ref(),
        }
    }
}

/// AMD's anchors for `product`, as its key distribution service publishes them. Roots and ASKs are those of the
/// `sev` package; it has no ASVKs, so those are here.
pub(crate) fn pinned(product: Product) -> &'static Anchors {
    static MILAN: LazyLock<Anchors> = LazyLock::new(|| {
        use sev::certs::snp::builtin::milan::{ARK, ASK};
        load(ARK, ASK, include_bytes!("roots/asvk_milan.pem"))
    });
    static GENOA: LazyLock<Anchors> = LazyLock::new(|| {
        use sev::certs::snp::builtin::genoa::{ARK, ASK};
        load(ARK, ASK, include_bytes!("roots/asvk_genoa.pem"))
    });
    static TURIN: LazyLock<Anchors> = LazyLock::new(|| {
        use sev::certs::snp::builtin::turin::{ARK, ASK};
        load(ARK, ASK, include_bytes!("roots/asvk_turin.pem"))
    });
    match product {
        Product::Milan => &MILAN,
        Product::Genoa => &GENOA,
        Product::Turin => &TURIN,
    }
}

/// DER of every pinned root, for whoever must tell a real root from another one.
pub fn pinned_roots() -> impl Iterator<Item = &'static [u8]> {
    Product::ALL.into_iter().map(|product| pinned(product).ark.der())
}

fn load(ark: &[u8], ask: &[u8], asvk: &[u8]) -> Anchors {
    // These are constants of the program: a test loads all of them, so this cannot fail later.
    let cert = |pem: &[u8]| Cert::from_der_or_pem(pem).expect("a built-in certificate is well-formed");
    Anchors {
        ark: cert(ark),
        ask: Some(cert(ask)),
        asvk: Some(cert(asvk)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x509::PssKey;

    #[test]
    fn every_root_signs_itself_and_both_authorities() {
        for product in Product::ALL {
            let anchors = pinned(product);
            let key = PssKey::new(anchors.ark.public_key()).unwrap();
            assert_eq!(anchors.ark.subject_common_name(), Some(format!("ARK-{product}")));
            assert_eq!(anchors.ark.verify_signed_by(&key), Ok(()));
            for kind in [VekKind::Vcek, VekKind::Vlek] {
                let authority = anchors.authority(kind).unwrap();
                assert_eq!(
                    authority.subject_common_name(),
                    Some(kind.issuer_common_name(product))
                );
                assert_eq!(authority.verify_signed_by(&key), Ok(()), "{product} {kind:?}");
                assert!(
                    authority.uses_pss_sha384() && authority.may_issue(0),
                    "{product} {kind:?}"
                );
            }
        }
    }
}
