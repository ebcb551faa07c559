//! What the OS side can see of a cloaked program: the memory of its OS service, the shared region included.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// Processes whose parent is `parent`; those of a launcher are its OS services.
///
/// # Panics
/// Without `/proc`.
pub fn children_of(parent: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parent_of = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("PPid:"))?;
        line.split_whitespace().nth(1)?.parse::<i32>().ok()
    };
    pids.filter(|pid| parent_of(pid) == Some(parent)).collect()
}

/// Everything that a process has mapped readable.
///
/// # Panics
/// When it is not there, or the caller may not read it.
pub fn memory_of(pid: i32) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps of the service");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("memory of the service");
    let mut all = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" r")) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let bounds = range.map(|(start, end)| (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16)));
        if let Some((Ok(start), Ok(end))) = bounds {
            let mut bytes = vec![0; (end - start) as usize];
            if memory.read_exact_at(&mut bytes, start).is_ok() {
                all.extend(bytes);
            }
        }
    }
    all
}

/// How often `needle` stands in `haystack`.
pub fn count(haystack: &[u8], needle: &[u8]) -> usize {
    haystack
        .windows(needle.len())
        .filter(|window| *window == needle)
        .count()
}
