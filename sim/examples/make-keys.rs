//! Makes `sim/keys` anew: a root, an authority and an endorsement key that everybody may have.

use std::error::Error;
use std::path::Path;

use cloak_attestation::sim::SnpWorld;
use cloak_attestation::snp::{Product, VekKind};
use cloak_attestation::time::Timestamp;

fn main() -> Result<(), Box<dyn Error>> {
    let world = SnpWorld::new(Product::Milan, Timestamp::now())?;
    let endorsement = world.endorse(&world.vek_spec(VekKind::Vcek))?;
    let certificates = endorsement.certificates();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("keys");
    std::fs::create_dir_all(&folder)?;
    let parts = [
        ("ark.der", &certificates.ark),
        ("ask.der", &certificates.authority),
        ("vcek.der", &certificates.vek),
    ];
    for (name, bytes) in parts {
        std::fs::write(folder.join(name), bytes.as_deref().unwrap_or_default())?;
    }
    std::fs::write(folder.join("vcek.secret"), endorsement.secret())?;
    Ok(())
}
