//! The OS view, mapped by another process: this test program started again as the OS side.

use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

use cloak_memory::uffd::Userfaultfd;
use cloak_memory::view::{ViewMapping, ViewServer};
use cloak_memory::{FileStore, PAGE_SIZE, PageState};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::{Program, able, page};

const PAGES: u64 = 64;
const PEER: &str = "CLOAK_TEST_VIEW_PEER";
const MARKER: u64 = u64::from_le_bytes(*b"MARKER!!");

/// Where the other process begins: nothing when this is an ordinary run.
#[test]
fn os_side() {
    if std::env::var_os(PEER).is_none() {
        return;
    }
    // SAFETY: the parent gave us both for this.
    let (view, socket) = unsafe { (OwnedFd::from_raw_fd(10), UnixStream::from_raw_fd(11)) };
    let (mapping, uffd) = ViewMapping::attach(&view, PAGES).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [uffd.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    let base = mapping.base().to_le_bytes();
    sendmsg(
        &socket,
        &[IoSlice::new(&base)],
        &mut ancillary,
        SendFlags::empty(),
    )
    .unwrap();
    // One line for each question: a page number; the answer is what is seen there.
    let mut answers = socket.try_clone().unwrap();
    for line in BufReader::new(socket).lines() {
        let number = line.unwrap().parse().unwrap();
        let bytes = mapping.read(page(number)).unwrap();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        writeln!(answers, "{hex}").unwrap();
    }
}

struct Peer {
    questions: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Peer {
    fn sees(&mut self, number: u64) -> Vec<u8> {
        writeln!(self.questions, "{number}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let hex = line.trim_end().as_bytes();
        let bytes: Vec<u8> = hex
            .chunks(2)
            .map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap())
            .collect();
        assert_eq!(bytes.len(), PAGE_SIZE, "the OS side has ended");
        bytes
    }
}

fn start_peer(view: &FileStore) -> (Peer, Userfaultfd, u64, std::process::Child) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // Above the numbers that the child gives them: neither may take the other's place.
    let high = |fd: OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 32).unwrap();
    let (view, theirs) = (high(view.share().unwrap()), high(OwnedFd::from(theirs)));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "view::os_side", "--nocapture"])
        .env(PEER, "1")
        .stdout(Stdio::null());
    // SAFETY: duplicates two descriptors, which is allowed after a fork.
    unsafe {
        command.pre_exec(move || {
            for (from, to) in [(&view, 10), (&theirs, 11)] {
                let mut target = std::mem::ManuallyDrop::new(OwnedFd::from_raw_fd(to));
                rustix::io::dup2(from, &mut target)?;
            }
            Ok(())
        });
    }
    let child = command.spawn().unwrap();
    drop(command);
    let mut base = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        &ours,
        &mut [IoSliceMut::new(&mut base)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    let fd = ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .expect("the OS side hands over its userfaultfd");
    let peer = Peer {
        answers: BufReader::new(ours.try_clone().unwrap()),
        questions: ours,
    };
    (
        peer,
        Userfaultfd::from_peer(fd).unwrap(),
        u64::from_le_bytes(base),
        child,
    )
}

/// Bytes that look random: no byte value is far more frequent than 4096 / 256.
fn looks_random(bytes: &[u8]) -> bool {
    let mut counts = [0u32; 256];
    bytes.iter().for_each(|&b| counts[usize::from(b)] += 1);
    let chi: f64 = counts.iter().map(|&c| (f64::from(c) - 16.0).powi(2) / 16.0).sum();
    // 255 degrees of freedom: mean 255, deviation 22.6. Five deviations up.
    chi < 370.0
}

#[test]
fn another_process_sees_ciphertext_that_follows_the_program() {
    if !able("memory::view") {
        return;
    }
    let view = FileStore::view(PAGES).unwrap();
    let (mut peer, uffd, base, mut child) = start_peer(&view);
    let program = Program::start(PAGES, None, view);
    let (sender, failures) = channel();
    let server = ViewServer::start(program.memory.clone(), uffd, base, move |e| {
        sender.send(e).unwrap()
    })
    .unwrap();
    for number in 0..32 {
        (0..512).for_each(|word| program.save(number, word, MARKER));
    }
    // Program pages, and pages that it never touched: all ciphertext, all different.
    let first: Vec<_> = (0..PAGES).map(|n| peer.sees(n)).collect();
    for (index, bytes) in first.iter().enumerate() {
        assert!(looks_random(bytes), "page {index}");
        assert!(
            !bytes.windows(8).any(|w| w == MARKER.to_le_bytes()),
            "page {index} shows its plaintext"
        );
        assert!(
            first
                .iter()
                .enumerate()
                .all(|(other, b)| other == index || b != bytes)
        );
    }
    assert!(
        !looks_random(&[MARKER.to_le_bytes(); 512].concat()),
        "the check can tell"
    );
    // Looking again changes nothing; writing does, and only that page.
    assert_eq!(peer.sees(3), first[3]);
    program.save(3, 0, 5);
    assert_eq!(program.memory.state(page(3)).unwrap(), PageState::Plain);
    assert_ne!(peer.sees(3), first[3]);
    assert_eq!(peer.sees(4), first[4]);
    // Reclaimed and brought back through verification.
    let all: Vec<_> = (0..PAGES).map(page).collect();
    program.memory.seal(&all).unwrap();
    program.memory.drop_plaintext(&all).unwrap();
    assert_eq!(program.memory.plaintext().resident(), 0);
    assert_eq!(
        (program.load(3, 0), program.load(3, 1), program.load(31, 511)),
        (5, MARKER, MARKER)
    );
    assert_eq!(program.load(40, 0), 0, "what was never touched reads as zeros");
    assert!(failures.try_recv().is_err());
    drop(peer);
    child.wait().unwrap();
    drop(server);
}

/// What the OS side writes into its view is found out, whatever it is.
#[test]
fn a_view_that_was_written_to_is_found_out() {
    if !able("memory::view") {
        return;
    }
    use std::os::unix::fs::FileExt;
    let view = FileStore::view(PAGES).unwrap();
    let file = std::fs::File::from(view.share().unwrap());
    let program = Program::start(PAGES, None, view);
    program.save(9, 0, MARKER);
    program.memory.seal(&[page(9)]).unwrap();
    program.memory.drop_plaintext(&[page(9)]).unwrap();
    let mut bytes = [0; PAGE_SIZE];
    file.read_exact_at(&mut bytes, page(9).gpa()).unwrap();
    assert!(looks_random(&bytes));
    assert!(
        file.set_len(0).is_err() && file.set_len(1 << 30).is_err(),
        "its size is fixed"
    );
    file.write_all_at(&[bytes[100] ^ 0x80], page(9).gpa() + 100)
        .unwrap();
    let error = program.memory.bring_back(&[page(9)]).unwrap_err();
    assert!(error.to_string().contains("page 0x9000"), "{error}");
    file.write_all_at(&bytes, 0x9000).unwrap();
    program.memory.bring_back(&[page(9)]).unwrap();
    assert_eq!(program.load(9, 0), MARKER);
}

#[test]
fn only_a_userfaultfd_is_taken_from_a_peer() {
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(Userfaultfd::from_peer(file.into()).is_err());
}
