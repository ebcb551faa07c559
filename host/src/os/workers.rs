//! A few threads for requests that may take long: disk reads that miss the cache, fsync, remote files.
//!
//! Threads start when a request finds none idle, up to [`MOST`], and end after [`REST`] without work. The
//! queue can't grow beyond the number of slots: a slot in progress is not accepted twice.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::request::{Place, Request, Scratch};
use super::server::Shared;

/// Most threads. Enough that a few hung network files leave some for the rest.
const MOST: usize = 16;
/// How long an idle thread stays.
const REST: Duration = Duration::from_secs(5);
/// Stack of a thread: system calls and a few small buffers.
const STACK: usize = 128 << 10;

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Request>,
    threads: usize,
    idle: usize,
}

/// The pool.
#[derive(Debug, Default)]
pub struct Workers {
    state: Mutex<State>,
    work: Condvar,
}

impl Workers {
    /// Queues a request; false when no thread could be started and there is none to take it.
    pub fn submit(&self, shared: &Arc<Shared>, request: Request) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.queue.len() >= state.idle && state.threads < MOST {
            let owner = Arc::clone(shared);
            let started = std::thread::Builder::new()
                .stack_size(STACK)
                .spawn(move || work(&owner));
            if started.is_ok() {
                state.threads += 1;
            } else if state.threads == 0 {
                return false;
            }
        }
        state.queue.push_back(request);
        drop(state);
        self.work.notify_one();
        true
    }

    /// The next request; none when the thread has rested long enough and is to end.
    fn next(&self) -> Option<Request> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.idle += 1;
        while state.queue.is_empty() {
            let (woken, rest) = self
                .work
                .wait_timeout(state, REST)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if rest.timed_out() && state.queue.is_empty() {
                state.idle -= 1;
                state.threads -= 1;
                return None;
            }
        }
        state.idle -= 1;
        state.queue.pop_front()
    }
}

fn work(shared: &Arc<Shared>) {
    let mut scratch = Scratch::new();
    while let Some(request) = shared.workers.next() {
        if let Ok(answer) = shared.execute(&request, Place::Worker, &mut scratch) {
            shared.finish(&request);
            shared.complete(&request, answer);
            shared.wake_if_halted(request.vcpu);
        }
    }
}
