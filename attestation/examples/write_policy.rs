//! Predicts an image's measurement and writes the policy that accepts it with one manifest.
//!
//! `cargo run -p cloak-attestation --example write_policy -- image.toml cloak.toml`

use std::collections::BTreeSet;
use std::path::Path;

use cloak_attestation::measure::Image;
use cloak_attestation::policy::policy_for;
use cloak_manifest::Manifest;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(image), Some(manifest)) = (arguments.next(), arguments.next()) else {
        return Err("usage: write_policy IMAGE MANIFEST".into());
    };
    let image = Image::load(Path::new(&image))?;
    let snp = BTreeSet::from([image.snp_measurement(1)?]);
    let mrtd = BTreeSet::from([image.mrtd()?]);
    let manifest = Manifest::parse(&std::fs::read(manifest)?)?.canonical()?;
    let policy = policy_for(&image.name, &image.release, manifest.as_bytes(), snp, mrtd);
    print!("{}", policy.to_toml()?);
    Ok(())
}
