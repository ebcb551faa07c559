//! One module per subcommand.

pub mod doctor;
pub mod image;
pub mod key;
pub mod measure;
pub mod pod;
pub mod run;
