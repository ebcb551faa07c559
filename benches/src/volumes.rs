//! Volumes and cloaking of memory. The peers are native and Cloak; what native means is in the rows' titles, as a plain
//! program on a plain file says little of a volume.

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use cloak_tests::launcher::workspace_root;
use cloak_tests::{Case, Launcher, Scratch};
use cloak_volumes::keys::{KeyRing, SessionId};
use cloak_volumes::{VolumeId, VolumeKey, own_registers};

use crate::measure::{Figure, Group, MeasureError, World, figures, run};
use crate::peer::Peer;

/// MiB of the file: more than the guest's cache of decrypted blocks holds.
const FILE_MIB: &str = "128";
/// The working set, and half of it.
const SET_MIB: &str = "256";
const LIMIT: &str = "128M";
const LIMIT_BYTES: u64 = 128 << 20;

/// The groups.
pub const GROUPS: [Group; 4] = [
    Group {
        name: "volumes",
        run: volumes,
    },
    Group {
        name: "measured",
        run: measured,
    },
    Group {
        name: "sealing",
        run: sealing,
    },
    Group {
        name: "paging",
        run: paging,
    },
];

fn failed(what: &'static str, output: impl Into<String>) -> MeasureError {
    MeasureError::NoFigure {
        what,
        output: output.into(),
    }
}

/// Runs a command of the host's that has to end well.
fn done(what: &'static str, command: &mut Command) -> Result<String, MeasureError> {
    let output = command
        .output()
        .map_err(|error| failed(what, error.to_string()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(failed(what, String::from_utf8_lossy(&output.stderr)))
    }
}

/// The guest-side program, in a folder that is gone with it.
fn program(scratch: &Scratch) -> Result<PathBuf, MeasureError> {
    let program = scratch.join("volume");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-static", "-o"])
        .arg(&program)
        .arg(workspace_root().join("benches/guest/volume.c"));
    done("building volume.c", &mut gcc)?;
    Ok(program)
}

fn cloak() -> Option<PathBuf> {
    match Launcher::under_test() {
        Launcher::Cloak(path) => Some(path),
        Launcher::Native => None,
    }
}

fn files(program: &Path, prefix: &str, file: &Path) -> Case {
    Case::new(program).args(["files", prefix]).arg(file).arg(FILE_MIB)
}

fn volumes(_: &World, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    let scratch = Scratch::new();
    let program = program(&scratch)?;
    match peer.name() {
        "native" => {
            let file = files(&program, "volume", &scratch.join("file"));
            let plain = figures("volumes", peer, &file)?;
            let ciphers = [("write", cipher(true)), ("read", cipher(false))];
            let slower = plain.into_iter().map(|(key, rate)| {
                let of = ciphers.iter().find(|(work, _)| key.contains(work));
                let limit = of.map_or(rate, |(_, cipher)| cipher.min(rate));
                (key, limit)
            });
            let mut all: Vec<Figure> = slower.collect();
            all.push(("cipher-seal".into(), ciphers[0].1));
            all.push(("cipher-open".into(), ciphers[1].1));
            let peers: [(&str, Beside); 2] = [("gocryptfs", gocryptfs), ("fscrypt", fscrypt)];
            for (name, beside) in peers {
                match beside(&scratch, &program, peer) {
                    Ok(more) => all.extend(more),
                    Err(error) => eprintln!("  no {name}: {error}"),
                }
            }
            Ok(all)
        }
        "cloak" => {
            // Apart from the program: a key is not to lie in what is shared.
            let kept = Scratch::new();
            let (container, key) = (kept.join("container"), kept.join("key"));
            let mut create = Command::new(cloak().ok_or_else(|| failed("volumes", "no launcher"))?);
            create.args(["volume", "create", "--new-key-file", "--key"]);
            done("cloak volume create", create.arg(&key).arg(&container))?;
            let option = format!("{}:/data:key={}", container.display(), key.display());
            let case = files(&program, "volume", Path::new("/data/file"))
                .volume(scratch.path())
                .memory("256M")
                .option("--protected")
                .option(&option);
            let own = figures("volumes", peer, &case)?;
            let named = |prefix: &'static str| {
                own.iter()
                    .map(move |(key, rate)| (key.replace("volume-", prefix), *rate))
            };
            let again = ["volume-", "gocryptfs-", "fscrypt-"].into_iter().flat_map(named);
            Ok(again.collect())
        }
        _ => Ok(Vec::new()),
    }
}

/// Bytes a second of the library's AES-256-GCM over pages of 4096 bytes in place, with as much additional data as a
/// block of a volume has.
fn cipher(sealing: bool) -> f64 {
    const PAGES: u64 = 4096;
    let mut ring = KeyRing::new(VolumeKey::from_bytes(&[2; 32]), VolumeId([1; 16]), own_registers);
    let (session, aad) = (SessionId::new(1, [1; 12]), [0; 64]);
    let plain = vec![7; 4096];
    let mut pages = vec![vec![7; 4096]; PAGES as usize];
    let mut tags = Vec::new();
    let since = Instant::now();
    for (number, page) in (0..).zip(&mut pages) {
        tags.push(black_box(
            ring.with(|ciphers| ciphers.seal(&session, number, &aad, &plain, page)),
        ));
    }
    let sealed = since.elapsed();
    let since = Instant::now();
    let mut opened = plain;
    for ((number, page), tag) in (0..).zip(&pages).zip(&tags) {
        assert!(ring.with(|ciphers| ciphers.open(&session, number, &aad, page, &mut opened, tag)));
    }
    let took = if sealing { sealed } else { since.elapsed() };
    (PAGES * 4096) as f64 / took.as_secs_f64()
}

/// Something that encrypts files, measured on the host.
type Beside = fn(&Scratch, &Path, &Peer) -> Result<Vec<Figure>, MeasureError>;

/// A mounted folder, unmounted at its drop.
struct Mounted {
    folder: PathBuf,
    unmount: &'static [&'static str],
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let [program, arguments @ ..] = self.unmount {
            // Nobody is left to tell.
            let _ = Command::new(program).args(arguments).arg(&self.folder).status();
        }
    }
}

fn io_of(what: &'static str) -> impl Fn(std::io::Error) -> MeasureError {
    move |error| failed(what, error.to_string())
}

fn gocryptfs(scratch: &Scratch, program: &Path, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    let (sealed, open, word) = (scratch.join("sealed"), scratch.join("open"), scratch.join("word"));
    for folder in [&sealed, &open] {
        fs::create_dir(folder).map_err(io_of("gocryptfs"))?;
    }
    fs::write(&word, "a password\n").map_err(io_of("gocryptfs"))?;
    let mut init = Command::new("gocryptfs");
    init.args(["-q", "-init", "-scryptn", "10", "-passfile"]);
    done("gocryptfs -init", init.arg(&word).arg(&sealed))?;
    let mut mount = Command::new("gocryptfs");
    mount
        .args(["-q", "-nosyslog", "-passfile"])
        .arg(&word)
        .arg(&sealed)
        .arg(&open);
    // It goes into the background, and would keep pipes open.
    let status = mount.status().map_err(io_of("gocryptfs"))?;
    if !status.success() {
        return Err(failed("gocryptfs", status.to_string()));
    }
    let mounted = Mounted {
        folder: open,
        unmount: &["fusermount3", "-u"],
    };
    let file = mounted.folder.join("file");
    figures("gocryptfs", peer, &files(program, "gocryptfs", &file))
}

/// An ext4 of its own in a file, as the file system that there is may not be made for it.
fn fscrypt(scratch: &Scratch, program: &Path, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    let (image, folder, key) = (scratch.join("ext4"), scratch.join("fscrypt"), scratch.join("key"));
    fs::create_dir(&folder).map_err(io_of("fscrypt"))?;
    fs::write(&key, [0x5a; 64]).map_err(io_of("fscrypt"))?;
    let made = fs::File::create(&image).and_then(|file| file.set_len(1 << 30));
    made.map_err(io_of("fscrypt"))?;
    done(
        "mkfs.ext4",
        Command::new("mkfs.ext4")
            .args(["-q", "-O", "encrypt"])
            .arg(&image),
    )?;
    done(
        "mount",
        Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&folder),
    )?;
    let mounted = Mounted {
        folder,
        unmount: &["umount"],
    };
    let mut add = Command::new("xfs_io");
    add.args(["-c", "add_enckey"]).arg(&mounted.folder);
    let key = fs::File::open(&key).map_err(io_of("fscrypt"))?;
    let told = done("xfs_io add_enckey", add.stdin(key))?;
    let identifier = told
        .split_whitespace()
        .last()
        .ok_or_else(|| failed("xfs_io", &told))?;
    let sealed = mounted.folder.join("sealed");
    fs::create_dir(&sealed).map_err(io_of("fscrypt"))?;
    let mut set = Command::new("xfs_io");
    set.arg("-c").arg(format!("set_encpolicy {identifier}"));
    done("xfs_io set_encpolicy", set.arg(&sealed))?;
    figures("fscrypt", peer, &files(program, "fscrypt", &sealed.join("file")))
}

/// The same file, shared and measured, both under Cloak.
fn measured(_: &World, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    let Some(cloak) = cloak().filter(|_| matches!(peer.name(), "native" | "cloak")) else {
        return Ok(Vec::new());
    };
    let scratch = Scratch::new();
    let (program, file) = (program(&scratch)?, scratch.join("file"));
    scratch.write("file", vec![7; 4 << 20]);
    let mut command = Command::new(&cloak);
    if peer.name() == "native" {
        let folder = scratch.path().display();
        command.args(["run", "--memory", "512M", "--volume"]);
        command
            .arg(format!("{folder}:{folder}:ro"))
            .arg("--")
            .arg(&program);
        command.args(["reads", "measured"]).arg(&file);
    } else {
        let mut init = Command::new(&cloak);
        init.args(["manifest", "init", "--add"]).arg(&file).arg(&program);
        let manifest = done("cloak manifest init", init.args(["reads", "measured"]).arg(&file))?;
        scratch.write(
            "manifest",
            manifest.replace("memory_mib = 4096", "memory_mib = 512"),
        );
        command.args(["run", "--manifest"]).arg(scratch.join("manifest"));
    }
    let text = done("measured", &mut command)?;
    let figure = text.split_whitespace().nth(1).and_then(|rate| rate.parse().ok());
    let figure = figure.ok_or_else(|| failed("measured", text))?;
    Ok(vec![("measured-read-64k".into(), figure)])
}

/// `cargo bench -p cloak-memory`, whose contenders take turns themselves.
fn sealing(_: &World, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    if !matches!(peer.name(), "native" | "cloak") {
        return Ok(Vec::new());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut bench = Command::new(cargo);
    bench
        .args(["bench", "--quiet", "--locked", "--package", "cloak-memory"])
        .current_dir(workspace_root());
    let text = done("cargo bench -p cloak-memory", &mut bench)?;
    let rows = sealing_rows(&text).ok_or_else(|| failed("cloak-memory's benchmark", text))?;
    let own = peer.name() == "cloak";
    let compared = |key: &str, (raw, ours): (f64, f64)| (key.to_owned(), if own { ours } else { raw });
    let mut all = vec![compared("seal", rows.seal), compared("open", rows.open)];
    if own {
        all.push(("bookkeeping".into(), rows.bytes / (1 << 20) as f64));
        all.push(("marking".into(), rows.marking));
    }
    Ok(all)
}

struct SealingRows {
    seal: (f64, f64),
    open: (f64, f64),
    bytes: f64,
    marking: f64,
}

/// What that benchmark prints.
fn sealing_rows(text: &str) -> Option<SealingRows> {
    let line = |start: &str| text.lines().find(|line| line.starts_with(start));
    let numbers = |start: &str, skip: usize| -> Option<Vec<f64>> {
        let rest = line(start)?.get(skip..)?;
        Some(
            rest.split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect(),
        )
    };
    let pair = |start| {
        let found = numbers(start, 44)?;
        Some((*found.first()?, *found.get(1)?))
    };
    Some(SealingRows {
        seal: pair("seal in place")?,
        open: pair("open, raw")?,
        bytes: *numbers("bookkeeping for 16 GiB, all in use", 40)?.first()?,
        marking: *numbers("marking all pages of 16 GiB", 40)?.first()?,
    })
}

fn paging(_: &World, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    let (scratch, tools) = (Scratch::new(), Scratch::new());
    let program = program(&tools)?;
    let swap = scratch.join("swap").display().to_string();
    let named = |name: &str| {
        let set = Case::new(&program).args(["pages", name, SET_MIB]);
        set.volume(tools.path())
    };
    let (set, inside) = (named("paging"), named("inside"));
    let resident = |case: Case, limit: &str| {
        case.memory("1G")
            .option("--resident")
            .option(limit)
            .option("--swap")
            .option(&swap)
    };
    match peer.name() {
        "native" => {
            let mut all = fits(peer, |case| case.memory("1G"))?;
            match limited(&scratch, peer, &set) {
                Ok(more) => all.extend(more),
                Err(error) => eprintln!("  no paging by the kernel: {error}"),
            }
            // What the guest's own pager is compared with is the monitor's.
            if let Some(under) = Peer::cloak() {
                all.extend(figures("inside", &under, &resident(inside, LIMIT))?);
            }
            Ok(all)
        }
        "cloak" => {
            let mut all = fits(peer, |case| resident(case, "512M"))?;
            all.extend(figures("paging", peer, &resident(set, LIMIT))?);
            let inside = resident(inside, LIMIT).option("--platform").option("sim-snp");
            all.extend(figures("inside", peer, &inside)?);
            Ok(all)
        }
        _ => Ok(Vec::new()),
    }
}

/// A loop over 64 MiB, under Cloak either way.
fn fits(peer: &Peer, with: impl FnOnce(Case) -> Case) -> Result<Vec<Figure>, MeasureError> {
    let Some(under) = Peer::cloak() else {
        return Ok(Vec::new());
    };
    // The least of many passes: what is looked for is smaller than what others on the machine do to one.
    let script = "import time\nb = bytearray(64 << 20)\ndef work():\n    t = time.process_time()\n\
        \u{20}   for i in range(0, len(b), 64): b[i] = (b[i] + 1) & 255\n    return time.process_time() - t\n\
        work()\nprint(min(work() for _ in range(15)) * 1000)";
    let case = with(Case::new("/usr/bin/python3").arg("-c").arg(script));
    let (outcome, _) = run("resident-fits", &under, &case)?;
    let figure = outcome.text().trim().parse();
    let figure =
        figure.map_err(|_| failed("resident-fits", format!("{}: {}", peer.name(), outcome.text())))?;
    Ok(vec![("resident-fits".into(), figure)])
}

/// A cgroup (version 1) with a limit, and a swap file beside Cloak's; both gone at its drop.
struct Limited {
    group: PathBuf,
    swap: PathBuf,
}

impl Drop for Limited {
    fn drop(&mut self) {
        // What is left behind is seen by the next one who tries.
        let _ = Command::new("swapoff").arg(&self.swap).status();
        let _ = fs::remove_dir(&self.group);
    }
}

fn limited(scratch: &Scratch, peer: &Peer, set: &Case) -> Result<Vec<Figure>, MeasureError> {
    let io = io_of("paging by the kernel");
    let group = Path::new("/sys/fs/cgroup/memory").join(format!("cloak-bench-{}", std::process::id()));
    let swap = scratch.join("kernel-swap");
    fs::create_dir(&group).map_err(&io)?;
    let limited = Limited { group, swap };
    fs::write(
        limited.group.join("memory.limit_in_bytes"),
        LIMIT_BYTES.to_string(),
    )
    .map_err(&io)?;
    // With its blocks in place, as swapping asks for.
    fs::write(&limited.swap, vec![0; 512 << 20]).map_err(io)?;
    done("chmod", Command::new("chmod").arg("600").arg(&limited.swap))?;
    done("mkswap", Command::new("mkswap").arg(&limited.swap))?;
    done("swapon", Command::new("swapon").arg(&limited.swap))?;
    let script = format!(
        "echo $$ > {}/tasks && exec \"$0\" \"$@\"",
        limited.group.display()
    );
    let case = Case::new("/bin/sh")
        .args(["-c", &script])
        .arg(set.program())
        .args(set.arguments());
    figures("paging by the kernel", peer, &case)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_benchmark_of_sealing_prints_is_read() {
        let text = "seal in place, raw / with label and key choice     700 ns     720 ns   5.69 GB/s  ratio 0.97\n\
            open, raw / with label and key choice              650 ns     660 ns   6.20 GB/s  ratio 0.98\n\
            \nbookkeeping for 16 GiB, untouched              524304 bytes\n\
            bookkeeping for 16 GiB, all in use          102760464 bytes = 0.598 % (to reach: 0.8)\n\
            marking all pages of 16 GiB                      1.20 ms (to reach: 50)\n";
        let rows = sealing_rows(text).expect("all are there");
        assert_eq!((rows.seal, rows.open), ((700.0, 720.0), (650.0, 660.0)));
        assert_eq!((rows.bytes, rows.marking), (102_760_464.0, 1.2));
    }
}
