//! The buffer of `GetQuote`: the guest's report on the way to the monitor, the quote on the way back (Guest-Host
//! Communication Interface, section 3.3).
//!
//! ```text
//! 0        8        16       20       24
//! │ version │ status │ in    │ out   │ report, then quote …
//! ```
//! It lies in memory that the guest shares, and may change it at any time. It is copied once, and the copy is parsed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use super::Status;
use super::qgs::REPORT_BYTES;
use super::service::{QuoteError, QuoteSource};

/// Bytes before the data.
pub const HEADER: usize = 24;
/// The largest buffer that is taken: what the largest quote needs, with room.
pub const MOST: u64 = 128 << 10;
const PAGE: u64 = 4096;
const VERSION: u64 = 1;
/// Quotes that are fetched for a domain at a time; each has a thread.
pub const AT_ONCE: usize = 4;

/// `status` of a buffer.
pub mod status {
    /// The quote is there.
    pub const SUCCESS: u64 = 0;
    /// It is being made.
    pub const IN_FLIGHT: u64 = u64::MAX;
    /// It could not be made.
    pub const ERROR: u64 = 1 << 63;
    /// There is no quoting service.
    pub const UNAVAILABLE: u64 = 1 << 63 | 1;
}

/// Memory that guest and host read and write, by guest-physical address.
pub trait SharedMemory {
    /// Copies once.
    ///
    /// # Errors
    /// No such memory.
    fn read(&self, gpa: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes.
    ///
    /// # Errors
    /// No such memory.
    fn write(&self, gpa: u64, bytes: &[u8]) -> io::Result<()>;
}

/// What a buffer holds that a quote can be made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// TDREPORT.
    pub report: Box<[u8; REPORT_BYTES]>,
}

impl Request {
    /// Reads a copy of the buffer's first bytes; `size` is that of the buffer.
    ///
    /// # Errors
    /// [`Status::InvalidOperand`]: another version, or not one report.
    pub fn parse(copy: &[u8; HEADER + REPORT_BYTES], size: u64) -> Result<Self, Status> {
        let (header, report) = copy.split_at(HEADER);
        let word = |at: usize| header[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let half = |at: usize| header[at..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let fits = size >= (HEADER + REPORT_BYTES) as u64;
        if word(0) != Some(VERSION) || half(16) != Some(REPORT_BYTES as u32) || !fits {
            return Err(Status::InvalidOperand);
        }
        let report = report.first_chunk().ok_or(Status::InvalidOperand)?;
        Ok(Self {
            report: Box::new(*report),
        })
    }
}

/// Fetches a domain's quotes.
#[derive(Debug)]
pub struct Quoter<M, S> {
    memory: Arc<M>,
    source: Arc<S>,
    in_flight: Arc<AtomicUsize>,
}

/// One of the fetches that may go on at a time.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>) -> Option<Self> {
        let more = |now| (now < AT_ONCE).then_some(now + 1);
        let taken = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.is_ok().then(|| Self(Arc::clone(count)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<M, S> Quoter<M, S>
where
    M: SharedMemory + Send + Sync + 'static,
    S: QuoteSource + Send + Sync + 'static,
{
    /// For the domain whose memory this is.
    pub fn new(memory: Arc<M>, source: S) -> Self {
        Self {
            memory,
            source: Arc::new(source),
            in_flight: Arc::default(),
        }
    }

    /// Begins to fetch a quote into the buffer, and says what the guest's call is answered with. `done` is called when the
    /// buffer's status is final: it raises the interrupt that the guest asked for.
    pub fn begin(&self, gpa: u64, size: u64, done: impl FnOnce() + Send + 'static) -> Status {
        if !(gpa | size).is_multiple_of(PAGE) {
            return Status::AlignError;
        }
        if size == 0 || size > MOST {
            return Status::InvalidOperand;
        }
        let Some(place) = Place::take(&self.in_flight) else {
            return Status::Retry;
        };
        let mut copy = [0; HEADER + REPORT_BYTES];
        // The whole buffer has to be shared memory, not only what is read of it now.
        let last = gpa.checked_add(size - 1).ok_or(Status::InvalidOperand);
        let there = last.and_then(|last| {
            self.memory
                .read(last, &mut [0])
                .and_then(|()| self.memory.read(gpa, &mut copy))
                .map_err(|_| Status::InvalidOperand)
        });
        let request = match there.and_then(|()| Request::parse(&copy, size)) {
            Ok(request) => request,
            Err(status) => return status,
        };
        let in_flight = Header {
            status: status::IN_FLIGHT,
            len: 0,
        };
        if in_flight.write(&*self.memory, gpa).is_err() {
            return Status::InvalidOperand;
        }
        let (memory, source) = (Arc::clone(&self.memory), Arc::clone(&self.source));
        let work = move || {
            let quote = source.quote(&request.report);
            if let Err(error) = &quote {
                eprintln!("cloak: no quote for the guest: {error}");
            }
            finish(&*memory, gpa, size, quote);
            drop(place);
            done();
        };
        match std::thread::Builder::new().name("quote".to_owned()).spawn(work) {
            Ok(_) => Status::Success,
            // Nobody will finish it; the guest asks again.
            Err(_) => Status::Retry,
        }
    }
}

/// Status and length of the data that follows.
struct Header {
    status: u64,
    len: u32,
}

impl Header {
    /// The status comes last: who sees it sees the rest.
    fn write(&self, memory: &impl SharedMemory, gpa: u64) -> io::Result<()> {
        memory.write(gpa + 20, &self.len.to_le_bytes())?;
        fence(Ordering::SeqCst);
        memory.write(gpa + 8, &self.status.to_le_bytes())
    }
}

fn finish(memory: &impl SharedMemory, gpa: u64, size: u64, quote: Result<Vec<u8>, QuoteError>) {
    let failed = |status| Header { status, len: 0 };
    let header = match &quote {
        Ok(quote) if quote.len() as u64 <= size - HEADER as u64 => {
            let written = memory.write(gpa + HEADER as u64, quote);
            written.map_or(failed(status::ERROR), |()| Header {
                status: status::SUCCESS,
                len: quote.len() as u32,
            })
        }
        Ok(_) => failed(status::ERROR),
        Err(error) if error.is_unreachable() => failed(status::UNAVAILABLE),
        Err(_) => failed(status::ERROR),
    };
    if let Err(error) = header.write(memory, gpa) {
        eprintln!("cloak: a quote found no memory to go to: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const SIZE: u64 = 0x2000;

    struct Ram(Mutex<Vec<u8>>);

    impl SharedMemory for Ram {
        fn read(&self, gpa: u64, into: &mut [u8]) -> io::Result<()> {
            let ram = self.0.lock().expect("no panic");
            let gpa = gpa as usize;
            let from = ram.get(gpa..gpa + into.len()).ok_or(io::ErrorKind::NotFound)?;
            into.copy_from_slice(from);
            Ok(())
        }

        fn write(&self, gpa: u64, bytes: &[u8]) -> io::Result<()> {
            let mut ram = self.0.lock().expect("no panic");
            let gpa = gpa as usize;
            let to = ram
                .get_mut(gpa..gpa + bytes.len())
                .ok_or(io::ErrorKind::NotFound)?;
            to.copy_from_slice(bytes);
            Ok(())
        }
    }

    /// A service that answers when it is told to.
    struct Slow(Mutex<Receiver<Result<Vec<u8>, QuoteError>>>);

    impl QuoteSource for Slow {
        fn quote(&self, report: &[u8; REPORT_BYTES]) -> Result<Vec<u8>, QuoteError> {
            assert!(
                report.iter().all(|&byte| byte == 7),
                "the report as it was at the call"
            );
            self.0.lock().expect("no panic").recv().expect("an answer")
        }
    }

    type Answers = Sender<Result<Vec<u8>, QuoteError>>;

    fn quoter(version: u64, len: u32) -> (Quoter<Ram, Slow>, Answers) {
        let mut ram = vec![0; 0x8000];
        ram[..8].copy_from_slice(&version.to_le_bytes());
        ram[16..20].copy_from_slice(&len.to_le_bytes());
        ram[HEADER..HEADER + REPORT_BYTES].fill(7);
        let (answers, source) = channel();
        let slow = Slow(Mutex::new(source));
        (Quoter::new(Arc::new(Ram(Mutex::new(ram))), slow), answers)
    }

    fn status_of(quoter: &Quoter<Ram, Slow>) -> u64 {
        let mut word = [0; 8];
        quoter.memory.read(8, &mut word).expect("there");
        u64::from_le_bytes(word)
    }

    /// Begins, lets the guest change its buffer, answers, and waits for the end.
    fn fetched(answer: Result<Vec<u8>, QuoteError>) -> (Quoter<Ram, Slow>, u64) {
        let (quoter, answers) = quoter(1, REPORT_BYTES as u32);
        let (end, ended) = channel();
        let begun = quoter.begin(0, SIZE, move || end.send(()).expect("someone waits"));
        assert_eq!(begun, Status::Success);
        assert_eq!(status_of(&quoter), status::IN_FLIGHT);
        quoter.memory.write(0, &[0xff; 8]).expect("there");
        quoter
            .memory
            .write(HEADER as u64, &[9; REPORT_BYTES])
            .expect("there");
        answers.send(answer).expect("someone waits");
        ended.recv().expect("the end");
        let status = status_of(&quoter);
        (quoter, status)
    }

    #[test]
    fn a_quote_arrives_whole_before_its_status() {
        let (quoter, status) = fetched(Ok(vec![3; 5000]));
        let mut buffer = vec![0; SIZE as usize];
        quoter.memory.read(0, &mut buffer).expect("there");
        assert_eq!(status, status::SUCCESS);
        assert_eq!(buffer[20..24], 5000u32.to_le_bytes());
        assert!(buffer[24..5024].iter().all(|&b| b == 3) && buffer[5024] == 0);
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        let gone = QuoteError::Unreachable {
            address: "unix:/nowhere".parse().expect("an address"),
            source: io::ErrorKind::NotFound.into(),
        };
        assert_eq!(fetched(Err(gone)).1, status::UNAVAILABLE);
        assert_eq!(fetched(Err(QuoteError::Answer("short"))).1, status::ERROR);
        let (quoter, status) = fetched(Ok(vec![3; SIZE as usize - HEADER + 1]));
        assert_eq!(status, status::ERROR, "larger than the buffer");
        assert_eq!(
            quoter.memory.0.lock().expect("no panic")[SIZE as usize],
            0,
            "nothing after it"
        );
    }

    #[test]
    fn a_buffer_that_is_not_one_is_refused_and_stays_as_it_was() {
        let long = REPORT_BYTES as u32;
        let cases = [
            (1, long, 0x800, SIZE, Status::AlignError),
            (1, long, 0, 0x1800, Status::AlignError),
            (1, long, 0, 0, Status::InvalidOperand),
            (1, long, 0, MOST + PAGE, Status::InvalidOperand),
            (1, long, 0x7000, SIZE, Status::InvalidOperand),
            (1, long, u64::MAX - 0xfff, SIZE, Status::InvalidOperand),
            (2, long, 0, SIZE, Status::InvalidOperand),
            (1, long - 1, 0, SIZE, Status::InvalidOperand),
            (1, u32::MAX, 0, SIZE, Status::InvalidOperand),
        ];
        for (version, len, gpa, size, expected) in cases {
            let (quoter, _answers) = quoter(version, len);
            let found = quoter.begin(gpa, size, || ());
            assert_eq!(found, expected, "{version} {len} {gpa:#x} {size:#x}");
            assert_eq!(status_of(&quoter), 0);
        }
    }

    #[test]
    fn a_guest_that_asks_without_end_has_a_few_threads_only() {
        let (quoter, answers) = quoter(1, REPORT_BYTES as u32);
        let (end, ended) = channel();
        for round in 0..AT_ONCE + 2 {
            let end = end.clone();
            let begun = quoter.begin(0, SIZE, move || end.send(()).expect("someone waits"));
            let expected = if round < AT_ONCE {
                Status::Success
            } else {
                Status::Retry
            };
            assert_eq!(begun, expected, "{round}");
            // The buffer is written while fetches go on; the report is the same in all.
        }
        for _ in 0..AT_ONCE {
            answers.send(Ok(vec![1])).expect("someone waits");
            ended.recv().expect("the end");
        }
        assert_eq!(quoter.in_flight.load(Ordering::Acquire), 0);
    }
}
