//! What is told, to whom, and what is not.

use super::*;
use crate::errno::Errno;
use crate::fs::fd::O_NONBLOCK;
use crate::user::Buf;

struct Open(Arc<OpenFile>);

impl Open {
    fn new() -> Self {
        Self(OpenFile::new(
            Inotify::new().expect("few"),
            O_NONBLOCK,
            Vec::new(),
        ))
    }

    fn inotify(&self) -> &Inotify {
        self.0.file.as_any().downcast_ref().expect("it is one")
    }

    /// Number, mask, cookie and name of each event.
    fn events(&self) -> Vec<(i32, u32, u32, String)> {
        let mut bytes = vec![0; 8192];
        let Ok(len) = self.0.file.read(&self.0, &mut Buf::own_mut(&mut bytes)) else {
            return Vec::new();
        };
        let (mut rest, mut all) = (&bytes[..len], Vec::new());
        while !rest.is_empty() {
            let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().expect("four"));
            let (name, next) = rest[16..].split_at(word(12) as usize);
            let name = name.split(|b| *b == 0).next().expect("one");
            let name = String::from_utf8(name.to_vec()).expect("text");
            all.push((word(0) as i32, word(4), word(8), name));
            rest = next;
        }
        all
    }
}

fn of(number: i32, mask: u32, name: &str) -> (i32, u32, u32, String) {
    (number, mask, 0, name.to_owned())
}

#[test]
fn a_directory_and_a_file_in_it_are_told_apart() {
    let open = Open::new();
    let directory = open.inotify().watch(b"/t1", event::ALL).expect("room");
    let file = open.inotify().watch(b"/t1/f", event::MODIFY).expect("room");
    made(b"/t1/f", false);
    happened(b"/t1/f", event::MODIFY);
    happened(b"/t1/f", event::MODIFY); // the last event says it, but for the directory another one came between
    made(b"/t1/deeper/f", false);
    happened(b"/t11", event::MODIFY);
    assert_eq!(
        open.events(),
        [
            of(directory, event::CREATE, "f"),
            of(directory, event::MODIFY, "f"),
            of(file, event::MODIFY, ""),
            of(directory, event::MODIFY, "f"),
            of(file, event::MODIFY, ""),
        ]
    );
    removed(b"/t1/f", false);
    assert_eq!(
        open.events(),
        [of(file, event::IGNORED, ""), of(directory, event::DELETE, "f")],
        "a watch ends with its file, whatever it asked for"
    );
    assert_eq!(open.inotify().unwatch(file), Err(Errno::EINVAL));
}

#[test]
fn watches_go_along_with_what_is_renamed() {
    let open = Open::new();
    let above = open.inotify().watch(b"/t2", event::ALL).expect("room");
    let inner = open.inotify().watch(b"/t2/a/b", event::CREATE).expect("room");
    renamed(b"/t2/a", b"/t2/c", true, false);
    let events = open.events();
    let kinds: Vec<u32> = events.iter().map(|e| e.1 & event::ALL).collect();
    assert_eq!(kinds, [event::MOVED_FROM, event::MOVED_TO]);
    assert_eq!((events[0].0, events[0].2), (above, events[1].2));
    made(b"/t2/c/b/x", true);
    assert_eq!(
        open.events(),
        [of(inner, event::CREATE | event::IS_DIRECTORY, "x")]
    );
}

#[test]
fn masks_are_replaced_added_to_and_used_once() {
    let open = Open::new();
    let inotify = open.inotify();
    let number = inotify.watch(b"/t3", event::CREATE).expect("room");
    assert_eq!(inotify.watch(b"/t3", event::OPEN | event::MASK_ADD), Ok(number));
    assert_eq!(
        inotify.watch(b"/t3", event::OPEN | event::MASK_CREATE),
        Err(Errno::EEXIST)
    );
    made(b"/t3/x", false);
    happened(b"/t3/x", event::OPEN);
    assert_eq!(open.events().len(), 2);
    assert_eq!(inotify.watch(b"/t3", event::CREATE | event::ONCE), Ok(number));
    made(b"/t3/y", false);
    made(b"/t3/z", false);
    assert_eq!(
        open.events(),
        [of(number, event::CREATE, "y"), of(number, event::IGNORED, "")]
    );
}

#[test]
fn too_many_events_end_with_a_note_and_too_little_space_with_an_error() {
    let open = Open::new();
    open.inotify().watch(b"/t4", event::CREATE).expect("room");
    for n in 0..20_000 {
        made(format!("/t4/{n}").as_bytes(), false);
    }
    let mut small = [0; 20];
    let result = open.0.file.read(&open.0, &mut Buf::own_mut(&mut small));
    assert_eq!(result, Err(Errno::EINVAL));
    let mut last = None;
    let mut count = 0;
    loop {
        let events = open.events();
        let Some(end) = events.last() else { break };
        count += events.len();
        last = Some(end.clone());
    }
    assert_eq!((count, last), (16_385, Some(of(-1, event::OVERFLOW, ""))));
}
