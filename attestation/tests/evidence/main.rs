//! The crate judged by evidence: real reports and quotes, every bit of them changed, and a generated world for what
//! no real evidence shows.

mod bit_flips;
mod commands;
mod forms;
mod measure;
mod ratls;
mod ratls_processes;
mod real_snp;
mod real_tdx;
mod snp_world;
mod software;
mod tdx_world;
mod tokens;
mod vectors;

#[test]
fn the_documentation_lists_every_reason_code() {
    let text = include_str!("../../../docs/attestation.md");
    let (_, table) = text.split_once("## Reason codes").expect("the section");
    let documented: Vec<(&str, &str)> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |")?.split_once("` | "))
        .collect();
    let codes = cloak_attestation::ReasonCode::ALL;
    let known: Vec<(&str, &str)> = codes.iter().map(|code| (code.as_str(), code.meaning())).collect();
    assert_eq!(documented, known);
}
