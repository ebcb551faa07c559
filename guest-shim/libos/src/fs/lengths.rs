//! Lengths of files on exclusive volumes.
//!
//! Nobody outside changes such a file while the guest runs, so its length is what this context made of it: databases ask for
//! it at each statement (`lseek` to the end), and the host need not be asked again. A length is remembered as long as the file
//! is open, by whatever name, so that no later file has the same number; every open file that changes it, on whatever
//! mount, says so. While somebody changes it nobody knows it.

use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashMap;
use spin::{Lazy, Mutex};

/// Device and number of a file.
pub type Key = (u64, u64);

static LENGTHS: Lazy<Mutex<HashMap<Key, Weak<Length>>>> = Lazy::new(Mutex::default);
/// How many there are: most contexts have none, and their writes should not look for one.
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// From so many on, those of files that were closed are looked for.
const MANY: usize = 64;

/// What is known of one file's length.
#[derive(Debug, Default)]
pub struct Length(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: Option<u64>,
    /// Calls under way that may change it.
    changing: u32,
    /// Changes that began.
    begun: u64,
}

/// That of a file which is open on an exclusive volume.
#[must_use]
pub fn of(key: Key) -> Arc<Length> {
    let mut lengths = LENGTHS.lock();
    if let Some(length) = lengths.get(&key).and_then(Weak::upgrade) {
        return length;
    }
    if lengths.len() >= MANY && lengths.len().is_power_of_two() {
        lengths.retain(|_, length| length.strong_count() > 0);
    }
    let length = Arc::new(Length::default());
    lengths.insert(key, Arc::downgrade(&length));
    COUNT.store(lengths.len(), Ordering::SeqCst);
    length
}

/// A call begins that may change the length of a file, which somebody may have open on an exclusive volume. To be held until
/// the call is over.
#[must_use]
pub fn changing(key: Key) -> Change {
    find(key).map_or_else(Change::default, Length::begin)
}

/// That of a file which somebody has open on an exclusive volume.
fn find(key: Key) -> Option<Arc<Length>> {
    if COUNT.load(Ordering::SeqCst) == 0 {
        return None;
    }
    LENGTHS.lock().get(&key).and_then(Weak::upgrade)
}

impl Length {
    /// The length, asked of the host by `ask` when it is not known.
    ///
    /// # Errors
    /// Those of `ask`.
    pub fn get_or<E>(&self, ask: impl FnOnce() -> Result<u64, E>) -> Result<u64, E> {
        match self.known() {
            Ok(length) => Ok(length),
            Err(begun) => {
                let length = ask()?;
                self.learn(length, begun);
                Ok(length)
            }
        }
    }

    /// The length; when it is not known, how many changes had begun and ended, if all of them had ended.
    fn known(&self) -> Result<u64, Option<u64>> {
        let state = self.0.lock();
        let is_quiet = state.changing == 0;
        let known = state.known.filter(|_| is_quiet);
        known.ok_or(is_quiet.then_some(state.begun))
    }

    /// The host said this when it was asked after so many changes.
    fn learn(&self, length: u64, begun: Option<u64>) {
        let mut state = self.0.lock();
        if begun == Some(state.begun) {
            state.known = Some(length);
        }
    }

    /// A call begins that may change it. It is not known any more if the call does not say at its end what it has made of it.
    #[must_use]
    pub fn begin(self: Arc<Self>) -> Change {
        let mut state = self.0.lock();
        let is_first = state.changing == 0;
        let before = state.known.take();
        state.changing += 1;
        state.begun += 1;
        let number = is_first.then_some(state.begun);
        drop(state);
        Change {
            length: Some(self),
            before,
            number,
            after: None,
        }
    }
}

/// A call under way.
#[derive(Debug, Default)]
pub struct Change {
    /// None of a file that nobody has open on an exclusive volume.
    length: Option<Arc<Length>>,
    before: Option<u64>,
    /// Its number, if no other call was under way at its begin.
    number: Option<u64>,
    after: Option<u64>,
}

impl Change {
    /// The length at its begin, when it was known.
    #[must_use]
    pub fn before(&self) -> Option<u64> {
        self.before
    }

    /// The file has this length now, unless another call has changed it meanwhile.
    pub fn is(mut self, length: u64) {
        self.after = Some(length);
    }

    /// Something was written up to `end`: the file is at least as long.
    pub fn reaches(mut self, end: u64) {
        self.after = self.before.map(|before| before.max(end));
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let Some(length) = &self.length else { return };
        let mut state = length.0.lock();
        state.changing -= 1;
        let was_alone = self.number == Some(state.begun);
        state.known = self.after.filter(|_| was_alone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls that run at the same time, each in three steps: it begins, the host does it, it ends.
    #[derive(Debug, Clone, Copy)]
    enum Call {
        WriteTo(u64),
        Append(u64),
        Truncate(u64),
        /// What it makes of the length the guest can't tell.
        Allocate(u64),
        Fail,
        Ask,
    }

    const CALLS: [Call; 6] = [
        Call::WriteTo(7),
        Call::Append(3),
        Call::Truncate(2),
        Call::Allocate(9),
        Call::Fail,
        Call::Ask,
    ];

    #[derive(Default)]
    struct Running {
        change: Option<Change>,
        begun: Option<Option<u64>>,
        said: u64,
    }

    fn step(call: Call, step: usize, running: &mut Running, length: &Arc<Length>, truth: &mut u64) {
        match (call, step) {
            (Call::Ask, 0) => running.begun = length.known().err(),
            (Call::Ask, 1) => running.said = *truth,
            (Call::Ask, _) => running
                .begun
                .into_iter()
                .for_each(|begun| length.learn(running.said, begun)),
            (_, 0) => running.change = Some(length.clone().begin()),
            (Call::WriteTo(end), 1) => *truth = (*truth).max(end),
            (Call::Append(more), 1) => *truth += more,
            (Call::Truncate(to), 1) => *truth = to,
            (Call::Allocate(end), 1) => *truth = (*truth).max(end),
            (Call::Fail, 1) => {}
            (call, _) => {
                let change = running.change.take().expect("it has begun");
                match call {
                    Call::WriteTo(end) => change.reaches(end),
                    Call::Append(more) => {
                        if let Some(before) = change.before() {
                            change.is(before + more);
                        }
                    }
                    Call::Truncate(to) => change.is(to),
                    _ => drop(change),
                }
            }
        }
    }

    /// All orders of the nine steps of three calls.
    fn orders(left: [usize; 3], order: &mut Vec<usize>, each: &mut impl FnMut(&[usize])) {
        if left == [0; 3] {
            return each(order);
        }
        for call in 0..3 {
            if left[call] > 0 {
                let mut left = left;
                left[call] -= 1;
                order.push(call);
                orders(left, order, each);
                order.pop();
            }
        }
    }

    #[test]
    fn what_is_known_is_so_in_every_order_of_three_calls() {
        let (mut known, mut looks) = (0u32, 0u32);
        for calls in 0..CALLS.len().pow(3) {
            let calls = [calls % 6, calls / 6 % 6, calls / 36].map(|index| CALLS[index]);
            orders([3; 3], &mut Vec::new(), &mut |order| {
                let length = Arc::new(Length::default());
                let mut truth = 5;
                length.learn(truth, Some(0));
                let mut running: [Running; 3] = Default::default();
                let mut done = [0; 3];
                for &call in order {
                    step(calls[call], done[call], &mut running[call], &length, &mut truth);
                    done[call] += 1;
                    looks += 1;
                    if let Ok(length) = length.known() {
                        known += 1;
                        assert_eq!(length, truth, "{calls:?} in the order {order:?}");
                    }
                }
            });
        }
        // Most steps lie between a begin and an end.
        assert!(known > looks / 25, "known {known} times of {looks}");
    }

    #[test]
    fn one_call_after_another_leaves_it_known() {
        let length = of((1, 1));
        assert_eq!(length.get_or(|| Ok::<_, ()>(100)), Ok(100));
        length.clone().begin().reaches(50);
        length.clone().begin().reaches(120);
        assert_eq!(length.known(), Ok(120));
        length.clone().begin().is(10);
        assert_eq!(length.get_or(|| Err("asked")), Ok(10));
        drop(length.clone().begin());
        assert_eq!(length.get_or(|| Err("asked")), Err("asked"));
    }

    #[test]
    fn a_file_that_was_closed_is_forgotten() {
        let first = of((2, 1));
        first.learn(8, Some(0));
        assert!(find((2, 1)).is_some_and(|length| Arc::ptr_eq(&length, &first)));
        drop(first);
        assert!(find((2, 1)).is_none());
        assert!(of((2, 1)).known().is_err());
        for number in 0..1000 {
            drop(of((3, number)));
        }
        assert!(LENGTHS.lock().len() < 200, "those of closed files go");
    }
}
