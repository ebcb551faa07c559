//! The terminal of a process that the owner started: a pair inside, and its master's bytes to and from the owner.
//!
//! Two threads of the libos's own ([`own`](crate::process::own)) carry them: the process that they serve may end while output is
//! still on its way.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;

use crate::errno::{Errno, SysResult};
use crate::fs::OpenFile;
use crate::fs::file::ready;
use crate::fs::pty::Terminal;
use crate::process::own;
use crate::sched;
use crate::user::Buf;

/// Bytes carried at a time.
const PART: usize = 4096;

/// Both threads' common part.
#[derive(Debug)]
pub struct Relay {
    pid: i32,
    /// Does not wait.
    master: Arc<OpenFile>,
    terminal: Terminal,
    input: Arc<OpenFile>,
    output: Arc<OpenFile>,
    over: AtomicBool,
}

/// Relays whose threads have not begun yet, by thread.
static NEW: Mutex<alloc::collections::BTreeMap<i32, Arc<Relay>>> =
    Mutex::new(alloc::collections::BTreeMap::new());

impl Relay {
    /// Starts both threads for process `pid`.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn start(
        pid: i32,
        master: Arc<OpenFile>,
        terminal: Terminal,
        input: Arc<OpenFile>,
        output: Arc<OpenFile>,
    ) -> SysResult<Arc<Self>> {
        let relay = Arc::new(Self {
            pid,
            master,
            terminal,
            input,
            output,
            over: AtomicBool::new(false),
        });
        for entry in [inward as extern "C" fn(u64) -> !, outward] {
            let thread = own::thread(entry)?;
            NEW.lock().insert(thread.tid(), relay.clone());
            thread.start();
        }
        Ok(relay)
    }

    /// Another size of the owner's terminal.
    pub fn resize(&self, size: [u16; 2]) {
        self.terminal.resize(size);
    }

    /// The process has ended.
    pub fn over(&self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(queue) = self.master.file.wait_queue() {
            queue.wake_all(ready::IN);
        }
    }

    /// From the owner to the terminal. Ends when the owner's side does.
    fn carry_in(&self) {
        let mut part = [0; PART];
        while let Ok(len @ 1..) = self.input.file.read(&self.input, &mut Buf::own_mut(&mut part)) {
            let mut from = Buf::own(&part[..len]);
            while !from.is_empty() && !self.over.load(Ordering::SeqCst) {
                match self.master.file.write(&self.master, &mut from) {
                    Ok(_) => {}
                    Err(Errno::EAGAIN) => self.wait_for(ready::OUT),
                    Err(_) => return,
                }
            }
        }
    }

    /// From the terminal to the owner, until the process has ended and all is out.
    fn carry_out(&self) {
        let mut part = [0; PART];
        loop {
            let was_over = self.over.load(Ordering::SeqCst);
            match self.master.file.read(&self.master, &mut Buf::own_mut(&mut part)) {
                Ok(len @ 1..) => {
                    if self
                        .output
                        .file
                        .write(&self.output, &mut Buf::own(&part[..len]))
                        .is_err()
                    {
                        // Nobody reads; the process is told by the owner's end.
                        continue;
                    }
                }
                _ if was_over => return,
                Err(Errno::EAGAIN) => self.wait_for(ready::IN),
                // No slave is open any more, but the process may open one again.
                Ok(_) | Err(_) => self.wait_for(0),
            }
        }
    }

    fn wait_for(&self, bits: u32) {
        if let Some(queue) = self.master.file.wait_queue() {
            queue.wait_while(|| self.master.file.poll() & bits == 0 && !self.over.load(Ordering::SeqCst));
        }
    }
}

fn mine() -> Option<Arc<Relay>> {
    NEW.lock().remove(&sched::current().tid())
}

extern "C" fn inward(_: u64) -> ! {
    sched::begin();
    if let Some(relay) = mine() {
        relay.carry_in();
    }
    sched::end_thread()
}

extern "C" fn outward(_: u64) -> ! {
    sched::begin();
    if let Some(relay) = mine() {
        relay.carry_out();
        super::report(relay.pid);
    }
    sched::end_thread()
}
