//! How many vCPUs the guest should keep awake.
//!
//! Where the host has fewer free cores than a guest has vCPUs, a further vCPU takes the core of the thread that answers
//! the others: each request waits until a vCPU has used up its slice. Only the host sees that: its ring's thread could
//! run, and does not. Then one vCPU fewer is tried for a moment, and what brings more answers is kept (the same
//! question as ESX's for descheduled vCPUs, asked of the service instead of the locks' holders). Whoever computes
//! without requests is left alone.
//!
//! It is advice: the guest decides who runs, and no secret depends on it.

use std::time::{Duration, Instant};

/// Length of a window.
pub const WINDOW: Duration = Duration::from_millis(20);
/// Waiting for a core for more than one in so many parts of a window is too long, where so many answers in a second or
/// more are waited for, so many windows on end.
const STARVING: (u32, u64, u32) = (8, 10_000, 3);
/// Windows that a decision holds at least, and at most after it was confirmed again and again.
const HOLD: (u32, u32) = (20, 640);
/// Windows of a trial: the host's scheduler needs some to spread the threads anew.
const TRIAL: u32 = 16;
/// Percent of the answers before that a change must bring which lets the thread have its core, and one that takes it.
const GAIN: (u64, u64) = (95, 110);
/// Percent above which a vCPU fewer has won before its time, below which a vCPU more has lost, and below which the guest
/// does something else now.
const CLEAR: (u64, u64, u64) = (140, 80, 25);

/// What the ring's thread did for some time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Window {
    /// How long it was.
    pub time: Duration,
    /// CPU time of the thread in it.
    pub ran: Duration,
    /// How long the thread slept in it, for want of requests.
    pub slept: Duration,
    /// Requests that it answered.
    pub served: u64,
}

impl Window {
    /// Answers in a second.
    fn rate(&self) -> u64 {
        let time = self.time.as_micros().max(1) as u64;
        self.served.saturating_mul(1_000_000) / time
    }

    /// The thread had work, and no core.
    fn is_starving(&self) -> bool {
        let waited = self.time.saturating_sub(self.ran + self.slept);
        self.rate() >= STARVING.1 && waited > self.time / STARVING.0
    }
}

/// A change that is tried.
#[derive(Debug, Clone, Copy)]
struct Trial {
    /// How many vCPUs there were before it, and what they brought.
    from: u32,
    before: u64,
    /// Windows that it has still.
    left: u32,
}

/// The policy.
#[derive(Debug)]
pub struct Share {
    vcpus: u32,
    awake: u32,
    trial: Option<Trial>,
    /// What `awake` brought when it was decided for.
    rate: u64,
    hold: u32,
    next_hold: u32,
    /// Windows on end in which the thread starved.
    starved: u32,
}

impl Share {
    /// For so many vCPUs, all of them awake.
    pub fn new(vcpus: u32) -> Self {
        Self {
            vcpus,
            awake: vcpus,
            trial: None,
            rate: 0,
            hold: 0,
            next_hold: HOLD.0,
            starved: 0,
        }
    }

    /// After another window; how many vCPUs should be awake from now on.
    pub fn after(&mut self, window: Window) -> u32 {
        let rate = window.rate();
        let is_starving = window.is_starving();
        self.starved = if is_starving { self.starved + 1 } else { 0 };
        match self.trial.take() {
            Some(trial) => self.judge(trial, rate, is_starving),
            // The guest does something else now, or its threads share their cores otherwise.
            None if self.is_short() && rate < self.rate / 2 => self.try_with(self.awake + 1, rate),
            None if self.hold > 0 => self.hold -= 1,
            None if self.awake > 1 && self.starved >= STARVING.2 => self.try_with(self.awake - 1, rate),
            None if self.is_short() => self.try_with(self.awake + 1, rate),
            None => {}
        }
        self.awake
    }

    /// Whether a vCPU less is awake than there is: a guest that stops asking and begins to compute has to get it back, so the
    /// thread does not sleep for good.
    pub fn is_short(&self) -> bool {
        self.awake < self.vcpus
    }

    fn try_with(&mut self, awake: u32, rate: u64) {
        self.trial = Some(Trial {
            from: self.awake,
            before: rate,
            left: TRIAL,
        });
        self.awake = awake;
    }

    fn judge(&mut self, trial: Trial, rate: u64, is_starving: bool) {
        let reaches = |percent: u64| rate.saturating_mul(100) >= trial.before.saturating_mul(percent);
        let is_clear = match self.awake < trial.from {
            // The host's scheduler may still be at it.
            true => reaches(CLEAR.0) || !reaches(CLEAR.2),
            false => !reaches(CLEAR.1),
        };
        let left = trial.left - 1;
        if left > 0 && !is_clear {
            self.trial = Some(Trial { left, ..trial });
            return;
        }
        if reaches(if is_starving { GAIN.1 } else { GAIN.0 }) {
            self.rate = rate;
            self.next_hold = HOLD.0;
        } else {
            self.awake = trial.from;
            self.rate = trial.before;
            self.next_hold = (self.next_hold * 2).min(HOLD.1);
        }
        self.hold = self.next_hold;
    }
}

/// Measures the windows of the thread that calls it.
#[derive(Debug)]
pub struct Meter {
    begun: Instant,
    cpu: Duration,
    window: Window,
}

impl Meter {
    /// The first window begins.
    pub fn new() -> Self {
        Self::from(Instant::now(), cpu_time())
    }

    fn from(begun: Instant, cpu: Duration) -> Self {
        Self {
            begun,
            cpu,
            window: Window::default(),
        }
    }

    /// So many requests were answered.
    pub fn served(&mut self, requests: u64) {
        self.window.served += requests;
    }

    /// The thread slept.
    pub fn slept(&mut self, time: Duration) {
        self.window.slept += time;
    }

    /// The window, if it is over at `now`; the next one begins.
    pub fn end(&mut self, now: Instant) -> Option<Window> {
        let time = now.saturating_duration_since(self.begun);
        if time < WINDOW {
            return None;
        }
        let cpu = cpu_time();
        let window = Window {
            time,
            ran: cpu.saturating_sub(self.cpu),
            ..self.window
        };
        *self = Self::from(now, cpu);
        Some(window)
    }
}

fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A window in which the thread waited for its core for so many percent of the time.
    fn window(served: u64, waited: u32) -> Window {
        Window {
            time: WINDOW,
            ran: WINDOW * (100 - waited) / 100,
            slept: Duration::ZERO,
            served,
        }
    }

    /// How many of `windows` had each number of vCPUs awake, on a host that answers so many requests with so many.
    fn counts(share: &mut Share, windows: usize, mut host: impl FnMut(u32) -> Window) -> [usize; 5] {
        let mut counts = [0; 5];
        let mut awake = share.awake;
        for _ in 0..windows {
            awake = share.after(host(awake));
            assert!((1..=share.vcpus).contains(&awake));
            counts[awake as usize] += 1;
        }
        counts
    }

    #[test]
    fn a_vcpu_that_takes_the_services_core_is_left_halted() {
        let host = |awake| match awake {
            1 => window(2200, 0),
            _ => window(800, 75),
        };
        let counts = counts(&mut Share::new(2), 5000, host);
        assert!(counts[1] > 4800, "{counts:?}");
    }

    #[test]
    fn the_best_number_is_found_among_four() {
        let host = |awake| match awake {
            1 => window(900, 0),
            2 => window(2000, 5),
            3 => window(1200, 40),
            _ => window(700, 75),
        };
        let counts = counts(&mut Share::new(4), 5000, host);
        assert!(counts[2] > 4500, "{counts:?}");
    }

    #[test]
    fn one_that_brings_more_than_the_service_loses_stays() {
        let host = |awake| window(u64::from(awake) * 700, 30 * (awake - 1));
        let counts = counts(&mut Share::new(2), 5000, host);
        assert!(counts[2] > 4800, "{counts:?}");
    }

    #[test]
    fn who_computes_is_left_alone() {
        let counts = counts(&mut Share::new(4), 1000, |_| window(0, 99));
        assert_eq!(counts[4], 1000);
    }

    #[test]
    fn other_work_brings_them_back() {
        let mut share = Share::new(2);
        counts(&mut share, 500, |awake| {
            if awake == 1 {
                window(2200, 0)
            } else {
                window(800, 75)
            }
        });
        assert_eq!(share.awake, 1);
        let counts = counts(&mut share, 100, |_| window(3, 0));
        assert_eq!(counts[2], 100, "one window shows it");
    }

    #[test]
    fn a_meter_counts_what_its_thread_did() {
        let mut meter = Meter::new();
        let begun = meter.begun;
        meter.served(7);
        meter.slept(Duration::from_millis(3));
        assert!(meter.end(begun + WINDOW / 2).is_none());
        let window = meter.end(begun + WINDOW).expect("it is over");
        assert_eq!((window.time, window.served), (WINDOW, 7));
        assert_eq!(window.slept, Duration::from_millis(3));
        let next = meter.end(begun + WINDOW * 2).expect("the next one, too");
        assert_eq!((next.served, next.slept), (0, Duration::ZERO));
    }
}
