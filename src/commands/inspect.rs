//! `cloak inspect`: a page as the program sees it and as the operating system does.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cloak_host::control::ControlError;
use cloak_host::control::client::{Connection, OsView, Target};
use cloak_host::control::wire::{Looked, Where};
use serde::Serialize;

/// Bytes of a page.
const PAGE: usize = 4096;
/// Bytes in a row, of each view.
const ROW: usize = 8;

/// Show a page of a running context as the program sees it and as the operating system does
///
/// Left, the application view: plaintext, shown to the owner only. Right, the OS view: what everybody gets who serves the
/// context, keeps its pages or reads them. Looking seals the page, if it is not sealed; nothing changes for the program.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The VM, as named by cloak run --name; with a pod, NAME/CONTEXT
    #[arg(value_name = "NAME[/CONTEXT]")]
    target: Target,
    /// The page of this guest-physical address (hexadecimal with 0x)
    #[arg(long, value_name = "GPA", value_parser = parse_address, conflicts_with_all = ["find", "os_view"])]
    page: Option<u64>,
    /// The first page that holds TEXT; without one, a page that is mostly text (default)
    #[arg(long, value_name = "TEXT", num_args = 0..=1, default_missing_value = "", conflicts_with = "os_view")]
    find: Option<String>,
    /// All bytes of the page, and not only those around what was found
    #[arg(long)]
    all: bool,
    /// As JSON, with all bytes in hexadecimal
    #[arg(long, conflicts_with = "all")]
    json: bool,
    /// Write the whole OS view to this file (`-`: standard output): what the operating system would have if it read all
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "all"])]
    os_view: Option<PathBuf>,
}

fn parse_address(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is not an address such as 0x40000000"))
}

/// Shows it.
pub fn run(args: &Args) -> ExitCode {
    let done = match &args.os_view {
        Some(file) => write_view(&args.target, file),
        None => show(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => super::failed(&error),
    }
}

fn show(args: &Args) -> Result<(), ControlError> {
    let text = args.find.as_deref().unwrap_or_default();
    let place = match args.page {
        Some(gpa) => Where::Page(gpa),
        None if text.is_empty() => Where::AnyText,
        None => Where::Text(text.to_owned()),
    };
    let (looked, plain, sealed) = Connection::to(&args.target)?.look(place)?;
    if args.json {
        let page = Json::new(&looked, plain.as_ref(), &sealed);
        // Plain data: it can be written.
        println!("{}", serde_json::to_string_pretty(&page).unwrap_or_default());
        return Ok(());
    }
    let found = plain.as_ref().and_then(|plain| {
        let from = text.as_bytes();
        (!from.is_empty()).then(|| plain.windows(from.len()).position(|window| window == from))?
    });
    let rows = if args.all { 0..PAGE } else { around(found) };
    print!("{}", head(&looked, plain.as_ref(), &sealed));
    print!("{}", hex(rows, plain.as_ref(), &sealed));
    Ok(())
}

/// 256 bytes, with what was found near their beginning.
fn around(found: Option<usize>) -> std::ops::Range<usize> {
    const SHOWN: usize = 256;
    let first = found.unwrap_or(0).saturating_sub(4 * ROW) / ROW * ROW;
    let first = first.min(PAGE - SHOWN);
    first..first + SHOWN
}

#[derive(Serialize)]
struct Json<'p> {
    #[serde(flatten)]
    looked: &'p Looked,
    application_entropy: Option<f64>,
    os_entropy: f64,
    application: Option<String>,
    os: String,
}

impl<'p> Json<'p> {
    fn new(looked: &'p Looked, plain: Option<&[u8; PAGE]>, sealed: &[u8; PAGE]) -> Self {
        let digits = |bytes: &[u8; PAGE]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            looked,
            application_entropy: plain.map(entropy),
            os_entropy: entropy(sealed),
            application: plain.map(digits),
            os: digits(sealed),
        }
    }
}

/// Shannon's, bits in a byte, from how often each byte occurs in the page.
fn entropy(bytes: &[u8; PAGE]) -> f64 {
    let mut counts = [0u32; 256];
    bytes.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    let share = |&count: &u32| f64::from(count) / PAGE as f64;
    let parts = counts.iter().filter(|&&count| count > 0).map(share);
    // Never below zero, not even by a sign.
    parts.map(|p| -p * p.log2()).sum::<f64>().abs()
}

fn head(looked: &Looked, plain: Option<&[u8; PAGE]>, sealed: &[u8; PAGE]) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "page {:#x} of context {}: was {}, sealed as version {}\ntag {}",
        looked.gpa, looked.context, looked.state, looked.version, looked.tag
    );
    let of_plain = plain.map_or_else(|| "-".to_owned(), |plain| format!("{:.2}", entropy(plain)));
    let _ = writeln!(
        text,
        "entropy, bits in a byte: application {of_plain}, OS {:.2} (4096 random bytes: about 7.95)",
        entropy(sealed)
    );
    if let Some(why) = &looked.withheld {
        let _ = writeln!(text, "application view withheld: {why}");
    }
    let width = 4 * ROW + 1;
    let _ = writeln!(text, "\n       {:<width$} │ OS VIEW", "APPLICATION VIEW");
    text
}

fn hex(range: std::ops::Range<usize>, plain: Option<&[u8; PAGE]>, sealed: &[u8; PAGE]) -> String {
    let side = |bytes: &[u8]| {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x} ")).collect();
        let letters: String = bytes
            .iter()
            .map(|&byte| {
                if matches!(byte, b' '..=b'~') {
                    char::from(byte)
                } else {
                    '.'
                }
            })
            .collect();
        format!("{digits} {letters}")
    };
    let width = 4 * ROW + 1;
    let mut text = String::new();
    for at in range.step_by(ROW) {
        let left = plain.map_or_else(|| "-".to_owned(), |plain| side(&plain[at..at + ROW]));
        // Writing to a string can't fail.
        let _ = writeln!(
            text,
            "  {at:03x}  {left:<width$} │ {}",
            side(&sealed[at..at + ROW])
        );
    }
    text
}

fn write_view(target: &Target, path: &Path) -> Result<(), ControlError> {
    let failed = |source: io::Error| ControlError::System {
        step: "writing the OS view",
        source,
    };
    let view = OsView::map(target)?;
    let mut out: Box<dyn Write> = if path == Path::new("-") {
        Box::new(io::stdout().lock())
    } else {
        Box::new(File::create(path).map_err(failed)?)
    };
    for number in 0..view.pages() {
        let Some(page) = view.read(number) else { break };
        out.write_all(&page).map_err(failed)?;
    }
    out.flush().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked() -> Looked {
        Looked {
            gpa: 0x4000_0000,
            context: 1,
            state: "plain".to_owned(),
            version: 7,
            tag: "00ff".to_owned(),
            withheld: None,
        }
    }

    #[test]
    fn entropy_tells_noise_from_text() {
        assert!(entropy(&[7; PAGE]).abs() < 1e-9);
        let all = std::array::from_fn(|at| at as u8);
        assert!((entropy(&all) - 8.0).abs() < 1e-9);
    }

    #[test]
    fn both_views_stand_side_by_side() {
        let mut plain = [b'.'; PAGE];
        plain[16..22].copy_from_slice(b"SECRET");
        let sealed = std::array::from_fn(|at| at as u8);
        let text = hex(16..24, Some(&plain), &sealed);
        assert_eq!(
            text,
            "  010  53 45 43 52 45 54 2e 2e  SECRET.. │ 10 11 12 13 14 15 16 17  ........\n"
        );
        let rows = hex(0..PAGE, None, &sealed);
        assert_eq!(rows.lines().count(), PAGE / ROW);
        assert!(
            rows.lines()
                .all(|line| line.contains(" - ") && line.chars().count() <= 80)
        );
        assert!(head(&looked(), Some(&plain), &sealed).contains("page 0x40000000 of context 1: was plain"));
    }

    #[test]
    fn what_was_found_is_among_the_rows_shown() {
        for found in [0, 5, 300, 2048, 4090] {
            let rows = around(Some(found));
            assert!(
                rows.contains(&found) && rows.end <= PAGE && rows.len() == 256,
                "{found}"
            );
        }
    }
}
