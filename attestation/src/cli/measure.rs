//! `cloak measure [IMAGE]`: says what the launch measurement will be.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::outcome::{CommandError, Outcome, conclude};
use crate::bytes::Bytes48;
use crate::measure::{Image, ImageError};

/// Predict the launch measurement of an image.
#[derive(Debug, Args)]
pub struct MeasureArgs {
    /// Image description, TOML. Without one: the shim that this program carries.
    image: Option<PathBuf>,
    /// Platform.
    #[arg(long)]
    platform: Platform,
    /// Number of vCPUs. On SNP each is measured; on TDX none is.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

/// Platforms that measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Platform {
    /// AMD SEV-SNP: the launch digest.
    Snp,
    /// Intel TDX: MRTD.
    Tdx,
}

impl MeasureArgs {
    /// Measures and prints.
    pub fn run(&self, out: &mut dyn Write, err: &mut dyn Write) -> Outcome {
        self.run_with(|_, _| Err(ImageError::NoDescription), out, err)
    }

    /// As [`MeasureArgs::run`], with the image of the shim that the program carries, for a platform and a number of
    /// vCPUs, where no description is given.
    pub fn run_with(
        &self,
        embedded: impl FnOnce(Platform, u32) -> Result<Image, ImageError>,
        out: &mut dyn Write,
        err: &mut dyn Write,
    ) -> Outcome {
        let image = match &self.image {
            Some(path) => Image::load(path),
            None => embedded(self.platform, self.cpus),
        };
        conclude(self.measure(image, out), err)
    }

    fn measure(
        &self,
        image: Result<Image, ImageError>,
        out: &mut dyn Write,
    ) -> Result<Outcome, CommandError> {
        let image = image?;
        let (register, value) = match self.platform {
            Platform::Snp => ("MEASUREMENT", image.snp_measurement(self.cpus)?),
            Platform::Tdx => ("MRTD", image.mrtd()?),
        };
        if self.json {
            self.print_json(out, &image, register, value)?;
        } else {
            writeln!(out, "{value}")?;
        }
        Ok(Outcome::Verified)
    }

    fn print_json(
        &self,
        out: &mut dyn Write,
        image: &Image,
        register: &str,
        value: Bytes48,
    ) -> Result<(), CommandError> {
        let (platform, cpus) = match self.platform {
            Platform::Snp => ("snp", Some(self.cpus)),
            Platform::Tdx => ("tdx", None),
        };
        let pages: u64 = image.regions.iter().map(|region| region.pages).sum();
        let value = json!({
            "name": image.name,
            "release": image.release,
            "platform": platform,
            "cpus": cpus,
            "pages": pages,
            "register": register,
            "measurement": value,
        });
        serde_json::to_writer_pretty(&mut *out, &value)?;
        writeln!(out)?;
        Ok(())
    }
}
