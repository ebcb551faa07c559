//! The command line of `cloak-bench`.

use std::path::PathBuf;

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How often everything is measured.
    pub rounds: usize,
    /// The groups to run; empty means all.
    pub only: Vec<String>,
    /// The peers to run beside native; empty means all.
    pub peers: Vec<String>,
    /// Where to write the document.
    pub write: Option<PathBuf>,
}

/// How to call it.
pub const USAGE: &str = "cloak-bench [--rounds N] [--only start,micro,shared-files,python,sha256,memory,redis,nginx,nginx-workers,make,postgresql,volumes,measured,sealing,paging] \
    [--peers cloak,bwrap,runc,...] [--write FILE]";

impl Options {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// With the argument that is not understood.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut options = Options {
            rounds: 5,
            only: Vec::new(),
            peers: Vec::new(),
            write: None,
        };
        let mut arguments = arguments.into_iter();
        while let Some(name) = arguments.next() {
            let Some(value) = arguments.next() else {
                return Err(name);
            };
            let list = || value.split(',').map(str::to_owned).collect();
            match name.as_str() {
                "--rounds" => {
                    options.rounds = value.parse().ok().filter(|rounds| *rounds > 0).ok_or(value)?
                }
                "--only" => options.only = list(),
                "--peers" => options.peers = list(),
                "--write" => options.write = Some(PathBuf::from(value)),
                _ => return Err(name),
            }
        }
        Ok(options)
    }

    /// Whether `name` is in a list that, when empty, means all.
    pub fn wants(list: &[String], name: &str) -> bool {
        list.is_empty() || list.iter().any(|wanted| wanted == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        Options::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn everything_has_a_default() {
        let options = parse("").unwrap();
        assert_eq!((options.rounds, options.write), (5, None));
        assert!(Options::wants(&options.only, "redis"));
    }

    #[test]
    fn lists_narrow() {
        let options = parse("--only micro,redis --rounds 2").unwrap();
        assert!(Options::wants(&options.only, "micro") && !Options::wants(&options.only, "nginx"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(parse("--rounds 0"), Err("0".into()));
        assert_eq!(parse("--fast yes"), Err("--fast".into()));
        assert_eq!(parse("--only"), Err("--only".into()));
    }
}
