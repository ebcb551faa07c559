//! The results of a suite on disk, so that a long run goes on where it was stopped and a table can be made of them later.

use crate::launcher::workspace_root;
use crate::results::Runs;
use std::fs;
use std::io;
use std::path::PathBuf;

/// Where one suite's results lie.
pub struct Records(PathBuf);

impl Records {
    /// The records of the suite of this name.
    pub fn of(suite: &str) -> Self {
        Records(workspace_root().join("target/test-suites/compat").join(suite))
    }

    /// The recorded runs of a unit, if there are any.
    pub fn read(&self, unit: &str) -> Option<Runs> {
        fs::read_to_string(self.file(unit)).ok().map(|text| parse(&text))
    }

    /// Keeps the runs of a unit.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, unit: &str, runs: &Runs) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        let file = self.file(unit);
        // Whole or not at all: a run that is stopped here must not leave half a record.
        let draft = file.with_extension("draft");
        fs::write(&draft, print(runs))?;
        fs::rename(draft, file)
    }

    /// The names of all units with records.
    pub fn units(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut units: Vec<String> = entries
            .filter_map(|entry| {
                Some(
                    entry
                        .file_name()
                        .to_str()?
                        .strip_suffix(".tsv")?
                        .replace('+', "/"),
                )
            })
            .collect();
        units.sort();
        units
    }

    /// Units that the suite has and that have no results, by the list that it left.
    pub fn missing(&self) -> Vec<String> {
        let list = fs::read_to_string(self.0.join("all")).unwrap_or_default();
        let absent = |unit: &&str| !self.file(unit).exists();
        list.split_whitespace()
            .filter(absent)
            .map(str::to_owned)
            .collect()
    }

    fn file(&self, unit: &str) -> PathBuf {
        self.0.join(format!("{}.tsv", unit.replace('/', "+")))
    }
}

const ABSENT: &str = "-";

fn print(runs: &Runs) -> String {
    let line = |(test, native): (&String, &String)| {
        let cloaked = runs.cloaked.get(test).map_or(ABSENT, String::as_str);
        format!("{test}\t{native}\t{cloaked}\n")
    };
    runs.native.iter().map(line).collect()
}

fn parse(text: &str) -> Runs {
    let mut runs = Runs::default();
    for line in text.lines() {
        let mut fields = line.split('\t');
        let (Some(test), Some(native), Some(cloaked)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        runs.native.insert(test.into(), native.into());
        if cloaked != ABSENT {
            runs.cloaked.insert(test.into(), cloaked.into());
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let runs = parse("a b\tok\tfailed\nc\tskipped\t-\n");
        assert_eq!((runs.native.len(), runs.cloaked.len()), (2, 1));
        assert_eq!(parse(&print(&runs)), runs);
    }
}
