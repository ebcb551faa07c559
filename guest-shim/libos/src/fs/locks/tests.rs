use super::*;

fn held(owner: i32, write: bool, start: u64, end: u64) -> Held {
    Held {
        owner: Owner::Process(owner),
        write,
        start,
        end,
    }
}

#[test]
fn unlocking_the_middle_splits_a_lock() {
    let mut all = alloc::vec![held(1, true, 0, 100)];
    replace(&mut all, &held(1, false, 40, 60), true);
    assert_eq!(all, [held(1, true, 0, 40), held(1, true, 60, 100)]);
    assert_eq!(conflict(&all, &held(2, false, 40, 60)), None);
    assert_eq!(
        conflict(&all, &held(2, false, 40, 61)),
        Some(held(1, true, 60, 100))
    );
}

/// A waiter parks: it sees the signal, and the change that lets it go on.
#[test]
fn a_wait_for_a_lock_ends_by_a_signal_or_a_change() {
    let thread = crate::sched::current();
    thread.signal.store(true, Ordering::SeqCst);
    assert_eq!(acquire(true, || Err(Errno::EAGAIN)), Err(Errno::ERESTARTSYS));
    thread.signal.store(false, Ordering::SeqCst);
    let mut attempts = 0;
    let begun = std::time::Instant::now();
    let result = acquire(true, || {
        attempts += 1;
        if begun.elapsed().as_millis() < 50 {
            Err(Errno::EAGAIN)
        } else {
            Ok(0)
        }
    });
    assert_eq!(result, Ok(0));
    assert!(attempts < 100, "{attempts} attempts: it does not rest");
}

#[test]
fn a_lock_that_the_host_refused_leaves_those_of_others() {
    let key = (u64::MAX, 1);
    RECORDS
        .lock()
        .insert(key, alloc::vec![held(71, true, 0, 10), held(72, true, 20, 30)]);
    restore(key, Owner::Process(71), alloc::vec![held(71, false, 0, 5)]);
    assert_eq!(
        RECORDS.lock().get(&key),
        Some(&alloc::vec![held(72, true, 20, 30), held(71, false, 0, 5)])
    );
    restore(key, Owner::Process(71), Vec::new());
    restore(key, Owner::Process(72), Vec::new());
    assert_eq!(RECORDS.lock().get(&key), None);
}

#[test]
fn readers_share_and_an_owner_never_meets_itself() {
    let all = alloc::vec![held(1, false, 0, 10)];
    assert_eq!(conflict(&all, &held(2, false, 0, 10)), None);
    assert_eq!(conflict(&all, &held(1, true, 0, 10)), None);
    assert!(conflict(&all, &held(2, true, 9, 10)).is_some());
}
