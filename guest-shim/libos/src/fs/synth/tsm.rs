//! `/sys/kernel/config/tsm/report`: reports about the machine that runs this, as Linux gives them (its document
//! `Documentation/ABI/testing/configfs-tsm-report`), so that attesters run as they are.
//!
//! A program makes a directory there, writes what the report is to be over into `inblob`, and reads the report from `outblob`
//! and the certificates from `auxblob`. `generation` counts what was written, so that who shares the directory with
//! others can tell whose report it got. Where nothing makes reports there is no `tsm`.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use cloak_abi::kcall::REPORT_DATA;
use spin::Mutex;

use super::{Fixed, Item, Source, made};
use crate::errno::{Errno, SysResult};
use crate::fs::providers;

/// Most directories at a time.
const MOST: usize = 64;

/// The privilege level of reports: on SNP the one that the kernel asks for (`cloak_snp::message::Level`).
fn level_floor() -> &'static str {
    match providers::get().attester() {
        Some("sev_guest") => "1\n",
        _ => "0\n",
    }
}

static REPORTS: Mutex<BTreeMap<Vec<u8>, Arc<Mutex<Report>>>> = Mutex::new(BTreeMap::new());

/// `/sys/kernel/config`.
pub fn config() -> Item {
    Item::Directory(Arc::new(Config))
}

struct Config;

impl Source for Config {
    fn names(&self) -> SysResult<Vec<Vec<u8>>> {
        let tsm = providers::get().attester().map(|_| b"tsm".to_vec());
        Ok(tsm.into_iter().collect())
    }

    fn find(&self, name: &[u8]) -> Option<Item> {
        providers::get().attester().filter(|_| name == b"tsm")?;
        let report = Item::Directory(Arc::new(Reports));
        Some(Fixed::default().with("report", report).done())
    }

    fn mode(&self) -> u32 {
        0o755
    }
}

/// One directory: a request, and the answer to it.
#[derive(Debug, Default)]
struct Report {
    inblob: Vec<u8>,
    /// Writes so far.
    generation: u64,
    /// With the generation that it is of.
    answer: Option<(u64, Vec<u8>, Vec<u8>)>,
}

impl Report {
    fn write(&mut self, bytes: &[u8]) -> SysResult<()> {
        if bytes.is_empty() || bytes.len() > REPORT_DATA {
            return Err(Errno::EINVAL);
        }
        self.generation += 1;
        self.inblob = bytes.to_vec();
        Ok(())
    }

    /// The level that the report is to name: there is one.
    fn level(&mut self, bytes: &[u8]) -> SysResult<()> {
        if bytes.trim_ascii() != level_floor().trim_ascii().as_bytes() {
            return Err(Errno::EINVAL);
        }
        self.generation += 1;
        Ok(())
    }

    /// What is to be asked for, if the answer is not there yet.
    fn request(&self) -> SysResult<Option<(u64, [u8; REPORT_DATA])>> {
        let data = self.inblob.as_slice().try_into().map_err(|_| Errno::EINVAL)?;
        let there = self
            .answer
            .as_ref()
            .is_some_and(|(of, ..)| *of == self.generation);
        Ok((!there).then_some((self.generation, data)))
    }
}

/// A report, and certificates.
type Evidence = (Vec<u8>, Vec<u8>);

/// Asks for them where they are not there yet. While they are made, which may take a host's time, nobody else has to wait for the directory.
fn answer(report: &Mutex<Report>) -> SysResult<Evidence> {
    let request = report.lock().request()?;
    if let Some((generation, data)) = request {
        let (made, certificates) = providers::get().report(&data)?;
        report.lock().answer = Some((generation, made, certificates));
    }
    let report = report.lock();
    // Somebody may have written meanwhile: Linux says so, too.
    let answer = report.answer.as_ref().filter(|(of, ..)| *of == report.generation);
    let (_, made, certificates) = answer.ok_or(Errno::EAGAIN)?;
    Ok((made.clone(), certificates.clone()))
}

struct Reports;

impl Source for Reports {
    fn names(&self) -> SysResult<Vec<Vec<u8>>> {
        Ok(REPORTS.lock().keys().cloned().collect())
    }

    fn find(&self, name: &[u8]) -> Option<Item> {
        REPORTS.lock().get(name).cloned().map(directory)
    }

    fn make(&self, name: &[u8]) -> SysResult<()> {
        let mut reports = REPORTS.lock();
        if reports.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        if reports.len() >= MOST {
            return Err(Errno::ENOMEM);
        }
        reports.insert(name.to_vec(), Arc::default());
        Ok(())
    }

    fn unmake(&self, name: &[u8]) -> SysResult<()> {
        REPORTS.lock().remove(name).map(drop).ok_or(Errno::ENOENT)
    }

    fn mode(&self) -> u32 {
        0o755
    }
}

fn directory(report: Arc<Mutex<Report>>) -> Item {
    let read = |of: fn(&mut Report) -> SysResult<Vec<u8>>| {
        let report = report.clone();
        Item::File(Arc::new(move || of(&mut report.lock())))
    };
    let write = |to: fn(&mut Report, &[u8]) -> SysResult<()>| {
        let report = report.clone();
        let none = Arc::new(|| Err(Errno::EACCES));
        Item::Writable(none, Arc::new(move |bytes| to(&mut report.lock(), bytes)))
    };
    let made_of = |of: fn(Evidence) -> Vec<u8>| {
        let report = report.clone();
        Item::File(Arc::new(move || answer(&report).map(of)))
    };
    let provider = made(|| format!("{}\n", providers::get().attester().unwrap_or_default()));
    Fixed::default()
        .with("provider", provider)
        .with(
            "generation",
            read(|r| Ok(format!("{}\n", r.generation).into_bytes())),
        )
        .with("inblob", write(Report::write))
        .with("outblob", made_of(|(report, _)| report))
        .with("auxblob", made_of(|(_, certificates)| certificates))
        .with("privlevel", write(Report::level))
        .with("privlevel_floor", made(level_floor))
        .done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_attester_there_is_nothing() {
        assert!(Config.find(b"tsm").is_none());
        assert!(Config.names().expect("a list").is_empty());
    }

    #[test]
    fn directories_are_made_once_and_go() {
        let name = b"of-this-test";
        Reports.make(name).expect("made");
        assert_eq!(Reports.make(name), Err(Errno::EEXIST));
        assert!(Reports.find(name).is_some());
        Reports.unmake(name).expect("gone");
        assert_eq!(Reports.unmake(name), Err(Errno::ENOENT));
        assert!(Reports.find(name).is_none());
    }

    #[test]
    fn a_report_is_over_64_bytes_that_were_written() {
        let directory = Mutex::new(Report::default());
        let answered = || answer(&directory).err();
        assert_eq!(answered(), Some(Errno::EINVAL), "nothing was written");
        assert_eq!(directory.lock().write(&[1; 65]), Err(Errno::EINVAL));
        assert_eq!(directory.lock().write(&[]), Err(Errno::EINVAL));
        assert_eq!(directory.lock().generation, 0, "what was refused does not count");
        directory.lock().write(&[1; 63]).expect("short is taken");
        assert_eq!(answered(), Some(Errno::EINVAL), "but is no request");
        directory.lock().write(&[1; 64]).expect("taken");
        assert_eq!(answered(), Some(Errno::ENXIO), "here is no attester");
        assert_eq!(directory.lock().level(b"1\n"), Err(Errno::EINVAL));
        directory.lock().level(b"0\n").expect("the one there is");
        assert_eq!(directory.lock().generation, 3);
        directory.lock().answer = Some((3, b"report".to_vec(), b"aux".to_vec()));
        assert_eq!(answer(&directory).expect("kept").0, b"report");
        directory.lock().write(&[2; 64]).expect("taken");
        assert_eq!(answered(), Some(Errno::ENXIO), "the old one is another's");
    }
}
