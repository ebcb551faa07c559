//! Which collateral is for which quote: both name the processor family (FMSPC) that they are about.

use dcap_qvl::configs::RustCryptoConfig;
use serde::Deserialize;

use super::Collateral;

/// The processor family of the machine that made `quote`, from its PCK certificate, which nothing has verified here.
pub fn fmspc_of_quote(quote: &[u8]) -> Option<[u8; 6]> {
    let quote = dcap_qvl::quote::Quote::parse(quote).ok()?;
    dcap_qvl::intel::quote_fmspc_with::<RustCryptoConfig>(&quote).ok()
}

/// The processor family that `collateral` is about.
pub fn fmspc_of_collateral(collateral: &Collateral) -> Option<[u8; 6]> {
    #[derive(Deserialize)]
    struct TcbInfo {
        fmspc: String,
    }
    let info: TcbInfo = serde_json::from_str(&collateral.tcb_info).ok()?;
    let mut fmspc = [0; 6];
    hex::decode_to_slice(info.fmspc, &mut fmspc).ok()?;
    Some(fmspc)
}
