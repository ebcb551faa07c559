//! Resource limits: kept, shown, and held where it matters here: processor time (by a timer), the size of files, open
//! files (which live in the descriptor table), processes, address space.

use spin::Mutex;

/// Number of resources (`RLIM_NLIMITS`).
pub const COUNT: usize = 16;
/// `RLIM_INFINITY`.
pub const INFINITY: u64 = u64::MAX;
/// `RLIMIT_CPU`, seconds.
pub const CPU: usize = 0;
/// `RLIMIT_FSIZE`.
pub const FSIZE: usize = 1;
/// `RLIMIT_STACK`.
pub const STACK: usize = 3;
/// `RLIMIT_NPROC`.
pub const NPROC: usize = 6;
/// `RLIMIT_NOFILE`.
pub const NOFILE: usize = 7;
/// `RLIMIT_AS`.
pub const ADDRESS_SPACE: usize = 9;

/// Soft and hard limit of each resource.
#[derive(Debug)]
pub struct Limits(pub Mutex<[[u64; 2]; COUNT]>);

impl Default for Limits {
    fn default() -> Self {
        let mut all = [[INFINITY; 2]; COUNT];
        all[STACK] = [8 << 20, INFINITY];
        all[4] = [0, INFINITY]; // core
        all[NPROC] = [31_000, 31_000];
        all[8] = [8 << 20, 8 << 20]; // locked memory
        all[11] = [31_000, 31_000]; // pending signals
        all[12] = [819_200, 819_200]; // message queues
        all[13] = [0, 0];
        all[14] = [0, 0];
        Self(Mutex::new(all))
    }
}

impl Limits {
    /// The soft limit of a resource.
    pub fn soft(&self, resource: usize) -> u64 {
        self.0.lock()[resource][0]
    }
}
