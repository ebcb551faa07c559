//! Threads on vCPUs.
//!
//! A [`Thread`] runs, is queued, or is parked. [`park`] and [`Thread::unpark`] are the one primitive for
//! sleeping, with a token as in `std::thread`: an unpark before the park is not lost. Everything else
//! ([`WaitQueue`], futexes, timers, requests) stands on it.

pub mod clock;
#[cfg(feature = "bare")]
pub mod futex;
mod lock;
pub mod time_calls;
pub mod timer;
mod wait;

pub use lock::{Guard, Lock};
pub use wait::{Key, WaitQueue, Waker};

#[cfg(feature = "bare")]
mod queue;
#[cfg(feature = "bare")]
mod run;
#[cfg(feature = "bare")]
mod thread;
#[cfg(feature = "bare")]
mod vcpus;
#[cfg(feature = "bare")]
pub use {queue::*, run::*, thread::*, vcpus::*};

#[cfg(not(feature = "bare"))]
mod hosted;
#[cfg(not(feature = "bare"))]
pub use hosted::*;
