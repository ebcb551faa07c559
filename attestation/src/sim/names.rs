//! Distinguished names as AMD and Intel write them, with a mark that tells a simulated one from a real one.

use std::str::FromStr;

use x509_cert::name::Name;

use super::x509::SimError;

/// AMD's attributes. A verifier checks the common name's form, so that has to be as AMD's; the organisation says
/// what this is.
pub(super) fn amd(common_name: &str) -> Result<Name, SimError> {
    name(&format!(
        "CN={common_name},O=Simulated Micro Devices,ST=CA,L=Santa Clara,C=US,OU=Engineering"
    ))
}

/// Intel's attributes.
pub(super) fn intel(common_name: &str) -> Result<Name, SimError> {
    name(&format!(
        "C=US,ST=CA,L=Santa Clara,O=Simulated Corporation,CN={common_name}"
    ))
}

fn name(text: &str) -> Result<Name, SimError> {
    Ok(Name::from_str(text)?)
}
