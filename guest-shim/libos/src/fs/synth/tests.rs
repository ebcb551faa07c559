//! What programs parse out of the synthetic files.

use super::*;
use crate::fs::path;

fn content(root: &Arc<dyn Node>, name: &str) -> String {
    let node =
        path::components(name.as_bytes()).fold(root.clone(), |node, part| node.lookup(part).expect("there"));
    let file = node.open(0).expect("opened");
    let mut bytes = vec![0; 1 << 16];
    let len = file.read_at(0, &mut Buf::own_mut(&mut bytes)).expect("read");
    String::from_utf8(bytes[..len].to_vec()).expect("a text")
}

#[test]
fn stat_of_a_process_has_its_52_fields() {
    let text = content(&proc_root(), "1/stat");
    let (_, rest) = text.rsplit_once(") ").expect("a name");
    assert_eq!(rest.split_whitespace().count(), 50);
    assert_eq!(content(&proc_root(), "1/statm").split_whitespace().count(), 7);
    assert!(content(&proc_root(), "1/status").contains("\nThreads:\t1\n"));
}

#[test]
fn the_machine_agrees_with_itself() {
    let root = proc_root();
    assert_eq!(
        content(&root, "cpuinfo").matches("processor\t:").count(),
        providers::get().cpus()
    );
    assert!(content(&root, "meminfo").starts_with("MemTotal:"));
    assert_eq!(content(&sys_root(), "devices/system/cpu/online"), "0\n");
    assert_eq!(content(&root, "sys/kernel/random/uuid").len(), 37);
    assert!(content(&sys_root(), "kernel/mm/transparent_hugepage/enabled").contains("[madvise]"));
}

/// Every file opens, every link leads somewhere, every listing ends, and each name that is listed is found.
fn visit(node: &Arc<dyn Node>, depth: usize) -> usize {
    assert!(depth < 12, "no cycle of directories");
    let mode = node.stat().expect("attributes").mode;
    if is_link(mode) {
        return usize::from(node.read_link().is_ok());
    }
    if !is_dir(mode) {
        node.clone().open(0).expect("opens");
        return 1;
    }
    let mut names = Vec::new();
    node.entries(0, &mut |entry| {
        names.push(entry.name.to_vec());
        true
    })
    .expect("a listing");
    let real = names.iter().filter(|n| *n != b"." && *n != b"..");
    real.map(|name| visit(&node.lookup(name).expect("listed, so there"), depth + 1))
        .sum()
}

#[test]
fn everything_that_is_listed_can_be_read() {
    assert!(visit(&proc_root(), 0) > 100);
    assert!(visit(&sys_root(), 0) > 40);
}
