//! One module per subcommand.

pub mod doctor;
pub mod exec;
pub mod guest_start;
pub mod image;
pub mod inspect;
pub mod key;
pub mod measure;
pub mod pod;
pub mod ps;
pub mod run;
pub mod simulated;

/// Says what failed; gives the exit code of Cloak's own failures.
fn failed(error: &dyn std::error::Error) -> std::process::ExitCode {
    eprintln!("cloak: {error}");
    std::process::ExitCode::from(crate::FAILED)
}
