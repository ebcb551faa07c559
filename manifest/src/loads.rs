//! Which files a program needs to start: itself, its interpreter or loader, the libraries that those load.
//!
//! As glibc's loader searches (ld.so(8)): `DT_RPATH` of the file and of those that load it, unless the file has a
//! `DT_RUNPATH`; then that; then `/etc/ld.so.cache`; then the default directories. `LD_LIBRARY_PATH` and other variables
//! are left out on purpose: a manifest is about what runs, not about who wrote it. With musl's loader the search is
//! rpath of either kind, then the directories of `/etc/ld-musl-x86_64.path` or the default.
//! What a program loads later (`dlopen`, data) is not in here; name it by hand. Python, which starts with nothing of
//! its own without its library, gets that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::cache::LoaderCache;
use crate::elf::{ElfError, Requests};

const CACHE: &str = "/etc/ld.so.cache";
const GLIBC_DIRECTORIES: [&str; 4] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
];
const LAST_DIRECTORIES: [&str; 2] = ["/lib", "/usr/lib"];
const MUSL_DIRECTORIES: [&str; 3] = ["/lib", "/usr/local/lib", "/usr/lib"];

/// Scripts that start scripts: as deep as the kernel goes.
const MAX_SCRIPTS: usize = 4;

/// Why it can't be told what a program loads.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file can't be read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is no program or library.
    #[error("{path}: {source}")]
    Elf {
        /// Which.
        path: PathBuf,
        /// Why.
        source: ElfError,
    },
    /// A library is nowhere.
    #[error("{by} needs {name}, which is in none of the directories that the loader searches")]
    Missing {
        /// Who needs it.
        by: PathBuf,
        /// What.
        name: String,
    },
    /// A script starts a script starts a script.
    #[error("{0}: scripts are nested too deep")]
    Scripts(PathBuf),
    /// A path that a manifest can't hold.
    #[error("{0}: the path is not UTF-8")]
    Path(PathBuf),
}

/// A file to be loaded, and the rpaths of those that load it.
#[derive(Debug, Clone)]
struct Pending {
    path: PathBuf,
    inherited: Vec<PathBuf>,
}

/// What has to be measured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needed {
    /// Regular files, symbolic links resolved.
    pub files: BTreeSet<PathBuf>,
    /// Symbolic links on the way to them, and where they lead.
    pub links: BTreeMap<PathBuf, PathBuf>,
}

/// Most symbolic links on the way to a file, as for the kernel.
const MAX_LINKS: usize = 40;
/// Folders of Python's library that no program needs to run.
const PYTHON_WITHOUT: [&str; 7] = [
    "test",
    "tests",
    "idlelib",
    "turtledemo",
    "lib2to3",
    "ensurepip",
    "dist-packages",
];

/// All that a program needs to start.
///
/// # Errors
/// [`LoadError`] names the file.
pub fn files_of(program: &Path) -> Result<Needed, LoadError> {
    let mut needed = Needed::default();
    needed.add_program(program)?;
    let pythons: Vec<PathBuf> = needed
        .files
        .iter()
        .filter_map(|file| python_library(file))
        .collect();
    for library in pythons {
        needed.add_tree(&library, &|name| {
            PYTHON_WITHOUT.contains(&name) || name.starts_with("config-")
        })?;
    }
    Ok(needed)
}

impl Needed {
    /// Adds a file, with what it loads if it is a program or library, or all files and links below a folder.
    ///
    /// # Errors
    /// [`LoadError`] names what can't be read.
    pub fn add(&mut self, path: &Path) -> Result<(), LoadError> {
        let real = self.look_up(path)?;
        if real.is_dir() {
            self.add_tree(&real, &|_| false)
        } else if Requests::read(&real).is_ok() {
            self.add_elf(path)
        } else {
            self.files.insert(real);
            Ok(())
        }
    }

    /// Follows a path, noting the links on the way; gives where it leads.
    fn look_up(&mut self, path: &Path) -> Result<PathBuf, LoadError> {
        let failed = |source| LoadError::File {
            path: path.to_owned(),
            source,
        };
        let path_ = std::path::absolute(path).map_err(failed)?;
        let parts = |path: &Path| -> Vec<OsString> {
            let named = path
                .components()
                .filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
            named.map(|c| c.as_os_str().to_owned()).rev().collect()
        };
        let (mut todo, mut at, mut followed) = (parts(&path_), PathBuf::from("/"), 0);
        while let Some(name) = todo.pop() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(name);
            if let Ok(target) = fs::read_link(&next) {
                followed += 1;
                if followed > MAX_LINKS {
                    return Err(failed(io::Error::other("too many symbolic links")));
                }
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                todo.extend(parts(&target));
                self.links.insert(next, target);
            } else {
                at = next;
            }
        }
        fs::metadata(&at).map_err(failed)?;
        Ok(at)
    }

    fn add_program(&mut self, program: &Path) -> Result<(), LoadError> {
        let program = self.past_scripts(program)?;
        self.add_elf(&program)
    }

    /// A program or library, and all that its loader loads for it.
    fn add_elf(&mut self, program: &Path) -> Result<(), LoadError> {
        let cache = LoaderCache::parse(&fs::read(CACHE).unwrap_or_default());
        let first = Requests::read(program)?;
        let musl = first
            .interpreter
            .as_deref()
            .is_some_and(|i| i.contains("/ld-musl-"));
        let mut pending = VecDeque::from([Pending {
            path: program.to_owned(),
            inherited: Vec::new(),
        }]);
        if let Some(interpreter) = first.interpreter {
            pending.push_back(Pending {
                path: interpreter.into(),
                inherited: Vec::new(),
            });
        }
        let (mut loaded, mut seen) = (BTreeSet::new(), BTreeSet::new());
        while let Some(next) = pending.pop_front() {
            let real = self.look_up(&next.path)?;
            if !seen.insert(real.clone()) {
                continue;
            }
            self.files.insert(real);
            let requests = Requests::read(&next.path)?;
            let search = Search::new(&next, &requests, &cache, musl);
            for name in &requests.needed {
                // A name that is loaded already is not searched for again, wherever the first one was found.
                if loaded.contains(name) {
                    continue;
                }
                let path = search.find(name).ok_or_else(|| LoadError::Missing {
                    by: next.path.clone(),
                    name: name.clone(),
                })?;
                if search.only_in_cache(&path) {
                    self.add(Path::new(CACHE))?;
                }
                loaded.insert(name.clone());
                pending.push_back(Pending {
                    path,
                    inherited: search.inherited.clone(),
                });
            }
        }
        Ok(())
    }

    /// All regular files and links below a real folder, but for folders of certain names; and what libraries among
    /// them load, where that is installed.
    fn add_tree(&mut self, folder: &Path, without: &dyn Fn(&str) -> bool) -> Result<(), LoadError> {
        let failed = |source| LoadError::File {
            path: folder.to_owned(),
            source,
        };
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
            if kind.is_symlink() {
                // One that leads nowhere is as good as none.
                let mut beyond = Self::default();
                if let Ok(real) = beyond.look_up(&path) {
                    self.links.extend(beyond.links);
                    if real.is_file() {
                        self.files.insert(real);
                    }
                }
            } else if kind.is_dir() {
                if !without(&entry.file_name().to_string_lossy()) {
                    self.add_tree(&path, without)?;
                }
            } else if kind.is_file() {
                if path.extension().is_some_and(|e| e == "so") {
                    let mut library = Self::default();
                    // A module whose library is not installed can't be loaded, which is no reason to stop here.
                    if library.add_elf(&path).is_ok() {
                        self.files.extend(library.files);
                        self.links.extend(library.links);
                    }
                }
                self.files.insert(path);
            }
        }
        Ok(())
    }

    /// Follows `#!` lines to a program that is none, noting the scripts.
    fn past_scripts(&mut self, program: &Path) -> Result<PathBuf, LoadError> {
        let mut path = program.to_owned();
        for _ in 0..=MAX_SCRIPTS {
            let real = self.look_up(&path)?;
            let bytes = read(&path)?;
            let Some(line) = bytes.strip_prefix(b"#!") else {
                return Ok(path);
            };
            self.files.insert(real);
            let line =
                String::from_utf8_lossy(line.split(|&b| b == b'\n').next().unwrap_or_default()).into_owned();
            let mut words = line.split_whitespace().map(str::to_owned);
            let interpreter = words.next().unwrap_or_default();
            // `#!/usr/bin/env NAME` runs env and then what it finds; both are needed.
            if interpreter.ends_with("/env")
                && let Some(name) = words.find(|w| !w.starts_with('-') && !w.contains('='))
            {
                self.add_program(Path::new(&interpreter))?;
                path = in_path(&name).ok_or(LoadError::Missing { by: path, name })?;
            } else {
                path = interpreter.into();
            }
        }
        Err(LoadError::Scripts(program.to_owned()))
    }
}

/// The library of a Python, if the file is one: `bin/python3.N` has it in `lib/python3.N`.
fn python_library(file: &Path) -> Option<PathBuf> {
    let name = file.file_name()?.to_str()?;
    name.strip_prefix("python3.")
        .filter(|minor| minor.bytes().all(|b| b.is_ascii_digit()))?;
    let library = file.parent()?.parent()?.join("lib").join(name);
    library.join("os.py").is_file().then_some(library)
}

impl Requests {
    fn read(path: &Path) -> Result<Self, LoadError> {
        Self::parse(&read(path)?).map_err(|source| LoadError::Elf {
            path: path.to_owned(),
            source,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    fs::read(path).map_err(|source| LoadError::File {
        path: path.to_owned(),
        source,
    })
}

fn real(path: &Path) -> Result<PathBuf, LoadError> {
    fs::canonicalize(path).map_err(|source| LoadError::File {
        path: path.to_owned(),
        source,
    })
}

/// Where the default search path has a program.
fn in_path(name: &str) -> Option<PathBuf> {
    [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ]
    .into_iter()
    .map(|d| Path::new(d).join(name))
    .find(|p| p.is_file())
}

/// Where one file's libraries are looked for.
struct Search<'a> {
    /// Rpaths, the file's own first; handed on to what it loads.
    inherited: Vec<PathBuf>,
    /// Directories before the cache.
    first: Vec<PathBuf>,
    cache: &'a LoaderCache,
    musl: bool,
}

impl<'a> Search<'a> {
    fn new(file: &Pending, requests: &Requests, cache: &'a LoaderCache, musl: bool) -> Self {
        let origin = real(&file.path)
            .ok()
            .and_then(|p| p.parent().map(Path::to_owned))
            .unwrap_or_default();
        let expand = |list: &[String]| list.iter().map(|d| expand(d, &origin)).collect::<Vec<_>>();
        let (rpath, runpath) = (expand(&requests.rpath), expand(&requests.runpath));
        // A runpath voids the file's own rpath, and for its own libraries those of its loaders too.
        let mut inherited = if runpath.is_empty() || musl {
            rpath
        } else {
            Vec::new()
        };
        let mut first = if runpath.is_empty() || musl {
            [inherited.as_slice(), &file.inherited].concat()
        } else {
            Vec::new()
        };
        if musl {
            inherited.extend(runpath.iter().cloned());
        }
        first.extend(runpath);
        inherited.extend(file.inherited.iter().cloned());
        Self {
            inherited,
            first,
            cache,
            musl,
        }
    }

    /// Whether the loader finds a library by its cache alone, which is then needed, too.
    fn only_in_cache(&self, path: &Path) -> bool {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let known = GLIBC_DIRECTORIES.iter().chain(&LAST_DIRECTORIES);
        !self.musl
            && !path.as_os_str().is_empty()
            && !self.first.iter().any(|d| d == folder)
            && !known.into_iter().any(|d| Path::new(d) == folder)
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        if name.contains('/') {
            return Some(PathBuf::from(name)).filter(|p| p.is_file());
        }
        let within =
            |directories: &[PathBuf]| directories.iter().map(|d| d.join(name)).find(|p| is_library(p));
        let fixed = |list: &[&str]| within(&list.iter().map(PathBuf::from).collect::<Vec<_>>());
        within(&self.first).or_else(|| {
            if self.musl {
                return musl_directories(name).or_else(|| within(&musl_path()));
            }
            self.cache
                .find(name)
                .map(PathBuf::from)
                .filter(|p| p.is_file())
                .or_else(|| fixed(&GLIBC_DIRECTORIES))
                .or_else(|| fixed(&LAST_DIRECTORIES))
        })
    }
}

/// A file of another architecture is passed over, as the loader does.
fn is_library(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| Requests::parse(&bytes).is_ok())
}

fn musl_path() -> Vec<PathBuf> {
    let list = fs::read_to_string("/etc/ld-musl-x86_64.path").unwrap_or_default();
    let own: Vec<PathBuf> = list
        .split([':', '\n'])
        .filter(|d| !d.is_empty())
        .map(PathBuf::from)
        .collect();
    if own.is_empty() {
        MUSL_DIRECTORIES.map(PathBuf::from).to_vec()
    } else {
        own
    }
}

/// The C library's names all mean the loader itself.
fn musl_directories(name: &str) -> Option<PathBuf> {
    let own = ["libc.so", "libc.musl-x86_64.so.1"];
    own.contains(&name)
        .then(|| PathBuf::from("/lib/ld-musl-x86_64.so.1"))
        .filter(|p| p.is_file())
}

fn expand(directory: &str, origin: &Path) -> PathBuf {
    let origin = origin.to_string_lossy();
    let expanded = directory
        .replace("${ORIGIN}", &origin)
        .replace("$ORIGIN", &origin)
        .replace("${LIB}", "lib/x86_64-linux-gnu")
        .replace("$LIB", "lib/x86_64-linux-gnu")
        .replace("${PLATFORM}", "x86_64")
        .replace("$PLATFORM", "x86_64");
    PathBuf::from(expanded)
}
