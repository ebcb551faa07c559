//! Policies; one that parses is written again and means the same.
#![no_main]

use cloak_attestation::Policy;
use cloak_fuzz_seeds::{own, plant};
use libfuzzer_sys::fuzz_target;

/// The default policy, and what the documentation shows.
fn policies() -> Vec<String> {
    let text = String::from_utf8(own("docs/policy.md")).expect("a document is text");
    let shown = text.split("```toml\n").skip(1);
    let mut all: Vec<_> = shown
        .filter_map(|rest| Some(rest.split_once("```")?.0.to_owned()))
        .collect();
    all.push(Policy::default().to_toml().expect("a policy has a text form"));
    all
}

fuzz_target!(init: plant(policies), |text: &str| {
    if let Ok(policy) = Policy::from_toml(text) {
        let written = policy.to_toml().expect("a policy has a text form");
        assert_eq!(Policy::from_toml(&written).expect("what was written").digest(), policy.digest());
    }
});
