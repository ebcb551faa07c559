//! A lock whose waiters park: for what is held across requests to the host.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering};

use super::WaitQueue;

/// The lock.
#[derive(Debug, Default)]
pub struct Lock<T> {
    held: AtomicBool,
    queue: WaitQueue,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through the one guard that `held` allows.
unsafe impl<T: Send> Send for Lock<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// An open lock around `value`.
    pub const fn new(value: T) -> Self {
        Self {
            held: AtomicBool::new(false),
            queue: WaitQueue::new(),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the lock; parks while another thread has it.
    pub fn lock(&self) -> Guard<'_, T> {
        self.queue.wait_while(|| self.held.swap(true, Ordering::Acquire));
        Guard { lock: self }
    }

    /// Takes the lock if nobody has it.
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        let taken = !self.held.swap(true, Ordering::Acquire);
        // Not `then_some`: a guard that is made and not given would open the lock at its drop.
        taken.then(|| Guard { lock: self })
    }
}

/// The lock, taken.
#[derive(Debug)]
pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the guard is the only one.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard is the only one.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.lock.held.store(false, Ordering::Release);
        // One is enough: whoever takes the lock before it wakes the next one at its own release.
        self.lock.queue.wake_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_fails_leaves_the_lock_with_its_holder() {
        let lock = Lock::new(5);
        let held = lock.lock();
        assert!(lock.try_lock().is_none());
        assert!(lock.try_lock().is_none(), "the attempt before has opened it");
        drop(held);
        assert_eq!(lock.try_lock().map(|guard| *guard), Some(5));
    }
}
