//! Sets of in-guest files.

use super::*;
use crate::fs::eventfd::EventFd;
use crate::fs::pipe::Pipe;
use std::time::Duration;

fn event(initial: u64) -> Arc<OpenFile> {
    OpenFile::new(
        Arc::new(EventFd::new(initial, false)),
        2 | crate::fs::fd::O_NONBLOCK,
        Vec::new(),
    )
}

fn post(open: &OpenFile) {
    assert_eq!(open.file.write(open, &mut Buf::own(&1u64.to_ne_bytes())), Ok(8));
}

fn take(open: &OpenFile) {
    let mut bytes = [0; 8];
    assert_eq!(open.file.read(open, &mut Buf::own_mut(&mut bytes)), Ok(8));
}

fn now(set: &Epoll) -> Vec<(u32, u64)> {
    set.wait(100, 0)
        .expect("no failure")
        .iter()
        .map(|e| (e.bits, e.data))
        .collect()
}

#[test]
fn level_triggered_tells_until_it_is_not_so() {
    let (set, file) = (Epoll::new(), event(0));
    set.add(3, &file, ready::IN, 7).expect("adds");
    assert_eq!(set.add(3, &file, ready::IN, 7), Err(Errno::EEXIST));
    assert_eq!(now(&set), []);
    post(&file);
    assert_eq!(now(&set), [(ready::IN, 7)]);
    assert_eq!(now(&set), [(ready::IN, 7)]);
    assert_eq!(set.poll(), ready::IN | ready::RDNORM);
    take(&file);
    assert_eq!((now(&set), set.poll()), (vec![], 0));
    set.modify(3, &file, ready::OUT, 8).expect("modifies");
    assert_eq!(now(&set), [(ready::OUT, 8)]);
    set.remove(3, &file).expect("removes");
    assert_eq!((now(&set), set.remove(3, &file)), (vec![], Err(Errno::ENOENT)));
}

#[test]
fn edge_triggered_tells_once_for_each_change() {
    let (set, file) = (Epoll::new(), event(0));
    set.add(3, &file, ready::IN | flag::ET, 7).expect("adds");
    post(&file);
    assert_eq!((now(&set), now(&set)), (vec![(ready::IN, 7)], vec![]));
    post(&file);
    assert_eq!((now(&set), now(&set)), (vec![(ready::IN, 7)], vec![]));
    set.modify(3, &file, ready::IN | flag::ET, 9).expect("modifies");
    assert_eq!(
        now(&set),
        [(ready::IN, 9)],
        "a change of the registration looks anew"
    );
}

#[test]
fn one_shot_is_silent_until_armed_again() {
    let (set, file) = (Epoll::new(), event(1));
    set.add(3, &file, ready::IN | flag::ONESHOT, 7).expect("adds");
    assert_eq!((now(&set), now(&set)), (vec![(ready::IN, 7)], vec![]));
    post(&file);
    assert_eq!(now(&set), []);
    set.modify(3, &file, ready::IN | flag::ONESHOT, 7)
        .expect("modifies");
    assert_eq!(now(&set), [(ready::IN, 7)]);
}

#[test]
fn closing_a_file_removes_it_and_its_number_can_be_used_again() {
    let set = Epoll::new();
    for _ in 0..500 {
        let file = event(1);
        set.add(3, &file, ready::IN, 7).expect("adds");
        assert_eq!(now(&set), [(ready::IN, 7)]);
        drop(file);
        assert_eq!(now(&set), []);
        assert!(set.items.lock().is_empty());
    }
}

/// The queue of a signalfd is that of all arriving signals: an item that stayed there would never go.
#[test]
fn nothing_stays_in_a_queue_that_outlives_the_file() {
    let queue = Arc::new(Lasting(WaitQueue::new()));
    let open = || OpenFile::new(queue.clone(), 0, Vec::new());
    let added = |set: &Epoll, number, file: &Arc<OpenFile>| {
        set.add(number, file, ready::IN, 7).expect("adds");
        assert_eq!((queue.0.len(), file.watchers.len()), (1, 1));
    };
    // The file is closed first, as it is at the end of a process that opened it first.
    let (set, file) = (Epoll::new(), open());
    added(&set, 3, &file);
    drop(file);
    assert_eq!(queue.0.len(), 0);
    // The set is.
    let file = open();
    let set = OpenFile::new(Epoll::new(), 0, Vec::new());
    added(set.file.as_any().downcast_ref().expect("a set"), 3, &file);
    drop(set);
    assert_eq!((queue.0.len(), file.watchers.len()), (0, 0));
    // It is removed, again and again.
    let set = Epoll::new();
    for _ in 0..3 {
        added(&set, 3, &file);
        set.remove(3, &file).expect("removes");
        assert_eq!((queue.0.len(), file.watchers.len()), (0, 0));
    }
}

/// As when one thread removes what another has not finished to add.
#[test]
fn what_was_removed_before_it_is_registered_stays_out() {
    let queue = Arc::new(Lasting(WaitQueue::new()));
    let (set, file) = (Epoll::new(), OpenFile::new(queue.clone(), 0, Vec::new()));
    let item = Item::new(Arc::downgrade(&set), 3, &file, ready::IN, 7);
    set.insert(&item).expect("inserts");
    set.remove(3, &file).expect("removes");
    item.register(&file, &queue.0);
    assert_eq!((queue.0.len(), file.watchers.len()), (0, 0));
}

struct Lasting(WaitQueue);

impl File for Lasting {
    fn stat(&self) -> SysResult<Stat> {
        Ok(anon::stat(0o600, 1))
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.0)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[test]
fn hang_ups_are_told_unasked() {
    let set = Epoll::new();
    let pipe = Pipe::new(false);
    let reader = OpenFile::new(pipe.reader(), 0, Vec::new());
    let writer = pipe.writer();
    set.add(3, &reader, 0, 7).expect("adds");
    assert_eq!(now(&set), []);
    drop(writer);
    assert_eq!(now(&set), [(ready::HUP, 7)]);
}

#[test]
fn sets_nest_but_not_in_circles_nor_too_deep() {
    let (outer, inner, file) = (Epoll::new(), Epoll::new(), event(0));
    let inner_open = OpenFile::new(inner.clone(), 2, Vec::new());
    outer.add(4, &inner_open, ready::IN, 1).expect("adds");
    inner.add(5, &file, ready::IN, 2).expect("adds");
    post(&file);
    assert_eq!(now(&outer), [(ready::IN, 1)]);
    take(&file);
    assert_eq!(now(&outer), []);
    let outer_open = OpenFile::new(outer.clone(), 2, Vec::new());
    assert_eq!(inner.add(6, &outer_open, ready::IN, 3), Err(Errno::ELOOP));
    assert_eq!(inner.add(6, &inner_open, ready::IN, 3), Err(Errno::EINVAL));
    let mut top = outer_open;
    let mut kept = vec![];
    let deep = (0..10).find_map(|_| {
        let next = Epoll::new();
        let result = next.add(7, &top, ready::IN, 0);
        kept.push(std::mem::replace(&mut top, OpenFile::new(next, 2, Vec::new())));
        result.err()
    });
    assert_eq!(deep, Some(Errno::ELOOP));
    outer.remove(4, &inner_open).expect("removes");
    inner
        .add(6, &OpenFile::new(Epoll::new(), 2, Vec::new()), ready::IN, 3)
        .expect("adds");
}

#[test]
fn ten_thousand_files_are_told_in_turns() {
    let set = Epoll::new();
    let files: Vec<_> = (0..10_000).map(|_| event(0)).collect();
    for (i, file) in files.iter().enumerate() {
        set.add(i as i32, file, ready::IN, i as u64).expect("adds");
    }
    files.iter().for_each(|file| post(file));
    let mut seen = vec![false; files.len()];
    for _ in 0..100 {
        for event in set.wait(100, 0).expect("no failure") {
            assert!(
                !std::mem::replace(&mut seen[event.data as usize], true),
                "all before any comes again"
            );
        }
    }
    assert!(seen.iter().all(|&s| s));
}

#[test]
fn several_threads_share_the_work_of_one_set() {
    let (set, file) = (Epoll::new(), event(0));
    set.add(3, &file, ready::IN | flag::ET, 7).expect("adds");
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let set = set.clone();
            std::thread::spawn(move || set.wait(1, crate::sched::clock::deadline_in(30_000_000_000)))
        })
        .collect();
    for done in 1..=3 {
        std::thread::sleep(Duration::from_millis(3));
        post(&file);
        let finished = || waiters.iter().filter(|w| w.is_finished()).count();
        for _ in 0..1000 {
            if finished() >= done {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(finished() >= 1 && finished() <= done, "one for each edge");
    }
    for waiter in waiters {
        let events = waiter.join().expect("waiter").expect("no failure");
        assert_eq!(events.len(), 1);
    }
}
