//! The description of an image: a TOML file that lists regions of typed pages in the order of launch, beside the
//! files that hold their content.
//!
//! ```toml
//! version = 1
//! name = "cloak-shim"
//! release = "0.1.0"
//!
//! [[region]]
//! gpa = 0x100000
//! kind = "normal"
//! file = "kernel.bin"
//!
//! [[region]]
//! gpa = 0x200000
//! kind = "zero"
//! pages = 16
//!
//! [snp.boot]
//! rip = 0x100000
//! ```

use std::path::{Component, Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::page::{Gpa, PAGE_BYTES, Page, PageKind};
use super::snp::LaunchDigest;
use super::tdx::Mrtd;
use super::vmsa::Vmsa;
use crate::bytes::Bytes48;

/// 64 GiB in pages; a longer region is a mistake.
const MAX_PAGES: u64 = 1 << 24;
/// KVM's own limit.
const MAX_VCPUS: u32 = 4096;

/// Why a description is not an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file that cannot be read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not the TOML of a description.
    #[error("image description: {0}")]
    Toml(#[from] toml::de::Error),
    /// A version that this program does not know.
    #[error("image description version {0}: this program reads version 1")]
    Version(u32),
    /// A region that cannot be launched.
    #[error("region {index} at {gpa}: {problem}")]
    Region {
        /// Which, from zero.
        index: usize,
        /// Where.
        gpa: Gpa,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Nothing to measure.
    #[error("say which image to measure: this program carries none")]
    NoDescription,
    /// The shim that the program carries makes no image.
    #[error("{0}")]
    Embedded(Box<dyn std::error::Error + Send + Sync>),
    /// No state for vCPUs, or more vCPUs than there can be.
    #[error("{0}")]
    Vcpus(&'static str),
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Description {
    version: u32,
    name: String,
    release: String,
    #[serde(default, rename = "region")]
    regions: Vec<RegionDescription>,
    #[serde(default)]
    snp: SnpDescription,
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RegionDescription {
    gpa: Gpa,
    kind: PageKind,
    #[serde(default)]
    file: Option<PathBuf>,
    #[serde(default)]
    pages: Option<u64>,
}

#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct SnpDescription {
    boot: Option<Vmsa>,
    application: Option<Vmsa>,
}

/// Pages of one kind in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Where it starts.
    pub gpa: Gpa,
    /// What its pages are.
    pub kind: PageKind,
    /// How many there are.
    pub pages: u64,
    /// Content of normal pages, from the start of the region; zeros past its end.
    pub contents: Vec<u8>,
}

/// An image, ready to be measured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// What it is.
    pub name: String,
    /// Which of them.
    pub release: String,
    /// In the order of launch.
    pub regions: Vec<Region>,
    /// SNP: state of the first vCPU.
    pub boot_vmsa: Option<Vmsa>,
    /// SNP: state of the others; as the first, if there is none.
    pub application_vmsa: Option<Vmsa>,
}

impl Image {
    /// Reads a description and the files it names, which lie beside or below it.
    ///
    /// # Errors
    /// [`ImageError`] for a file that is missing and a region that could not be launched.
    pub fn load(path: &Path) -> Result<Self, ImageError> {
        let text = String::from_utf8_lossy(&read(path)?).into_owned();
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::from_toml(&text, |file| read(&folder.join(file)))
    }

    /// Reads a description; `read_file` gives the content of a file that it names.
    ///
    /// # Errors
    /// As [`Image::load`].
    pub fn from_toml(
        text: &str,
        mut read_file: impl FnMut(&Path) -> Result<Vec<u8>, ImageError>,
    ) -> Result<Self, ImageError> {
        let description: Description = toml::from_str(text)?;
        if description.version != 1 {
            return Err(ImageError::Version(description.version));
        }
        let mut regions = Vec::new();
        for (index, region) in description.regions.into_iter().enumerate() {
            let gpa = region.gpa;
            let problem = |problem| ImageError::Region { index, gpa, problem };
            let contents = match (&region.file, region.kind) {
                (Some(file), PageKind::Normal) if stays_below(file) => read_file(file)?,
                (Some(_), PageKind::Normal) => return Err(problem("its file is not below the description")),
                (Some(_), _) => return Err(problem("only normal pages have content")),
                (None, PageKind::Normal) => return Err(problem("normal pages need a file")),
                (None, _) => Vec::new(),
            };
            let needed = contents.len().div_ceil(PAGE_BYTES) as u64;
            let pages = region.pages.unwrap_or(needed);
            regions.push(Region {
                gpa,
                kind: region.kind,
                pages,
                contents,
            });
        }
        let image = Self {
            name: description.name,
            release: description.release,
            regions,
            boot_vmsa: description.snp.boot,
            application_vmsa: description.snp.application,
        };
        image.check()?;
        Ok(image)
    }

    /// The pages, in the order of launch.
    pub fn pages(&self) -> impl Iterator<Item = Page<'_>> {
        self.regions.iter().flat_map(|region| {
            (0..region.pages).map(move |index| {
                let start = (index as usize)
                    .saturating_mul(PAGE_BYTES)
                    .min(region.contents.len());
                let end = start.saturating_add(PAGE_BYTES).min(region.contents.len());
                let gpa = Gpa(region.gpa.0 + index * PAGE_BYTES as u64);
                Page {
                    gpa,
                    kind: region.kind,
                    contents: &region.contents[start..end],
                }
            })
        })
    }

    /// MEASUREMENT of an SNP guest with `vcpus` vCPUs.
    ///
    /// # Errors
    /// [`ImageError::Vcpus`] without a state for them, and [`ImageError::Region`] for a region that cannot be.
    pub fn snp_measurement(&self, vcpus: u32) -> Result<Bytes48, ImageError> {
        self.check()?;
        if vcpus == 0 || vcpus > MAX_VCPUS {
            return Err(ImageError::Vcpus("a guest has 1 to 4096 vCPUs"));
        }
        let boot = self.boot_vmsa.as_ref();
        let boot = boot.ok_or(ImageError::Vcpus(
            "the image has no [snp.boot], the state vCPUs start in",
        ))?;
        let application = self.application_vmsa.as_ref().unwrap_or(boot).to_page();
        let digest = self
            .pages()
            .fold(LaunchDigest::default(), |digest, page| digest.add_page(&page));
        let digest = digest.add_vmsa(&boot.to_page());
        Ok((1..vcpus)
            .fold(digest, |digest, _| digest.add_vmsa(&application))
            .measurement())
    }

    /// MRTD of a TDX domain, whatever its number of vCPUs.
    ///
    /// # Errors
    /// [`ImageError::Region`] for a region that cannot be.
    pub fn mrtd(&self) -> Result<Bytes48, ImageError> {
        self.check()?;
        let mut mrtd = Mrtd::default();
        self.pages().for_each(|page| mrtd.add_page(&page));
        Ok(mrtd.measurement())
    }

    fn check(&self) -> Result<(), ImageError> {
        let mut ranges = Vec::new();
        for (index, region) in self.regions.iter().enumerate() {
            let problem = |problem| ImageError::Region {
                index,
                gpa: region.gpa,
                problem,
            };
            if !region.gpa.is_page_aligned() {
                return Err(problem("not at the start of a page"));
            }
            if region.pages == 0 || region.pages > MAX_PAGES {
                return Err(problem("it has no pages, or more than 64 GiB of them"));
            }
            if region.contents.len() as u64 > region.pages * PAGE_BYTES as u64 {
                return Err(problem("its content is longer than its pages"));
            }
            let end = region.gpa.0.checked_add(region.pages * PAGE_BYTES as u64);
            let end = end.ok_or_else(|| problem("past the end of the address space"))?;
            if ranges
                .iter()
                .any(|&(start, stop)| region.gpa.0 < stop && start < end)
            {
                return Err(problem("it overlaps an earlier one"));
            }
            ranges.push((region.gpa.0, end));
        }
        Ok(())
    }
}

fn stays_below(file: &Path) -> bool {
    file.components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    std::fs::read(path).map_err(|source| ImageError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> Result<Image, ImageError> {
        let head = "version = 1\nname = \"a\"\nrelease = \"1\"\n";
        Image::from_toml(&format!("{head}{text}"), |_| Ok(vec![7; PAGE_BYTES + 1]))
    }

    #[test]
    fn a_file_fills_as_many_pages_as_it_needs() {
        let image = image("[[region]]\ngpa = 0x1000\nkind = \"normal\"\nfile = \"a.bin\"").unwrap();
        let pages: Vec<_> = image
            .pages()
            .map(|page| (page.gpa.0, page.contents.len()))
            .collect();
        assert_eq!(pages, [(0x1000, PAGE_BYTES), (0x2000, 1)]);
    }

    #[test]
    fn what_cannot_be_launched_is_an_error() {
        for text in [
            "[[region]]\ngpa = 1\nkind = \"zero\"\npages = 1",
            "[[region]]\ngpa = 0\nkind = \"zero\"",
            "[[region]]\ngpa = 0\nkind = \"normal\"",
            "[[region]]\ngpa = 0\nkind = \"normal\"\nfile = \"../a\"",
            "[[region]]\ngpa = 0\nkind = \"normal\"\nfile = \"/etc/passwd\"",
            "[[region]]\ngpa = 0\nkind = \"normal\"\nfile = \"a\"\npages = 1",
            "[[region]]\ngpa = 0\nkind = \"zero\"\nfile = \"a\"",
            "[[region]]\ngpa = 0\nkind = \"zero\"\npages = 2\n[[region]]\ngpa = 0x1000\nkind = \"zero\"\npages = 1",
            "[[region]]\ngpa = 0x7ffffffffffff000\nkind = \"zero\"\npages = 99999999",
        ] {
            assert!(image(text).is_err(), "{text}");
        }
    }
}
