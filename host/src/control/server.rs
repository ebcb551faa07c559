//! The monitor's half: a thread that accepts, and one for each caller, all inside the jail.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use cloak_abi::config::{Records, Tag};
use cloak_memory::{Look, Page, PageState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::Uid;

use super::folder::Bound;
use super::wire::{
    Ask, ContextInfo, End, Info, Looked, Reply, Request, VERSION, Where, WireError, receive, send,
};
use super::{ControlError, Step};
use crate::os::handed::Streams;
use crate::vm::Outcome;
use crate::vm::exec::{ExecError, Execs, Running};
use crate::vm::view::{View, ViewError};

/// Most callers at a time; further ones wait to be accepted.
const CALLERS: usize = 64;
/// How long a caller may take to say what it wants.
const FIRST_WORD: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};
/// Why a context that has a manifest shows no plaintext.
const WITHHELD: &str = "the manifest of this context does not let its owner see its memory (program.exec)";

/// One context, as callers see it.
#[derive(Debug)]
pub struct Member {
    /// What is told of it; whether it has ended is asked of `execs`.
    pub info: ContextInfo,
    /// Its further processes.
    pub execs: Arc<Execs>,
    /// Its view.
    pub view: View,
}

#[derive(Debug)]
struct Server {
    bound: Bound,
    owner: Uid,
    members: Vec<Member>,
    began: Instant,
    callers: AtomicUsize,
}

/// Serves callers until the process ends.
///
/// # Errors
/// When no thread can be had.
pub fn start(bound: Bound, members: Vec<Member>) -> Result<(), ControlError> {
    let server = Arc::new(Server {
        bound,
        owner: rustix::process::geteuid(),
        members,
        began: Instant::now(),
        callers: AtomicUsize::new(0),
    });
    thread::Builder::new()
        .name("control".to_owned())
        .stack_size(128 << 10)
        .spawn(move || server.accept_all())
        .step("starting the control thread")
        .map(drop)
}

impl Server {
    fn accept_all(self: Arc<Self>) {
        loop {
            let accepted = rustix::net::accept_with(&self.bound.listener, SocketFlags::CLOEXEC);
            let connection = match accepted {
                Ok(connection) => connection,
                // One that was gone again, or no descriptor left at the moment.
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(_) => {
                    thread::sleep(std::time::Duration::from_millis(100));
                    continue;
                }
            };
            if self.callers.fetch_add(1, Ordering::SeqCst) >= CALLERS {
                self.callers.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let server = self.clone();
            let serve = move || {
                server.serve(&connection);
                server.callers.fetch_sub(1, Ordering::SeqCst);
            };
            let spawned = thread::Builder::new()
                .name("caller".to_owned())
                .stack_size(256 << 10)
                .spawn(serve);
            if spawned.is_err() {
                self.callers.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    /// One caller, until it has what it wanted.
    fn serve(&self, connection: &OwnedFd) {
        // Others learn not even that something is here.
        if !rustix::net::sockopt::socket_peercred(connection).is_ok_and(|peer| peer.uid == self.owner) {
            return;
        }
        // Who says nothing holds a place that others could have.
        let mut fds = [PollFd::new(connection, PollFlags::IN)];
        if !matches!(poll(&mut fds, Some(&FIRST_WORD)), Ok(1)) {
            return;
        }
        let asked = match receive::<Request>(connection) {
            Ok(asked) => asked,
            Err(WireError::Shape(why)) => return refuse(connection, &why),
            Err(_) => return,
        };
        let request = asked.message;
        if request.version != VERSION {
            return refuse(
                connection,
                &format!(
                    "this VM speaks version {VERSION}, and the caller {}",
                    request.version
                ),
            );
        }
        if !same(request.token.as_bytes(), self.bound.token.as_bytes()) {
            return refuse(connection, "the token of this VM was not shown");
        }
        if request.ask == Ask::Info {
            return answer(connection, &Reply::Info(self.info()));
        }
        match self.member(request.context.as_deref()) {
            Ok(member) => {
                let done = member.serve(connection, request.ask, &asked.bytes, asked.descriptors);
                if let Err(why) = done {
                    refuse(connection, &why);
                }
            }
            Err(why) => refuse(connection, &why),
        }
    }

    fn info(&self) -> Info {
        let contexts = self.members.iter().map(|member| ContextInfo {
            ended: member.execs.is_closed(),
            ..member.info.clone()
        });
        Info {
            name: self.bound.name.as_str().to_owned(),
            pid: std::process::id(),
            seconds: self.began.elapsed().as_secs(),
            contexts: contexts.collect(),
        }
    }

    fn member(&self, name: Option<&str>) -> Result<&Member, String> {
        let names = || {
            let names: Vec<&str> = self.members.iter().map(|m| m.info.name.as_str()).collect();
            names.join(", ")
        };
        match (name, self.members.as_slice()) {
            (None, [only]) => Ok(only),
            (None, _) => Err(format!("say which context: {}", names())),
            (Some(name), all) => all
                .iter()
                .find(|member| member.info.name == name)
                .ok_or_else(|| format!("there is no context {name} in this VM; there are: {}", names())),
        }
    }
}

impl Member {
    fn serve(
        &self,
        connection: &OwnedFd,
        ask: Ask,
        bytes: &[u8],
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<(), String> {
        if self.execs.is_closed() {
            return Err(ExecError::Ended.to_string());
        }
        match ask {
            Ask::Exec { terminal, window } => {
                let streams =
                    Streams::try_from(descriptors).map_err(|_| "three streams are needed".to_owned())?;
                check_records(bytes)?;
                let terminal = terminal.then_some(window);
                let running = self.execs.start(bytes, terminal, &streams);
                let running = running.map_err(|error| error.to_string())?;
                // The OS service has its own now; ours would keep pipes open.
                drop(streams);
                attend(connection, &running);
                Ok(())
            }
            Ask::Look(place) => {
                let (looked, bytes) = self.look(&place)?;
                // A caller that is gone needs no answer.
                let _gone = send(connection, &Reply::Looked(looked), &bytes, &[]);
                Ok(())
            }
            Ask::View => {
                let (file, pages, at_touch) = self.view.file().map_err(|error| error.to_string())?;
                let reply = Reply::View { pages, at_touch };
                let _gone = send(connection, &reply, &[], &[file.as_fd()]);
                Ok(())
            }
            Ask::Attach { base } => {
                let uffd = descriptors.pop().ok_or("a userfaultfd is needed")?;
                let mapped = self.view.attach(uffd, base).map_err(|error| error.to_string())?;
                answer(connection, &Reply::Attached);
                // Served until the caller goes.
                while receive::<Request>(connection).is_ok() {}
                drop(mapped);
                Ok(())
            }
            Ask::Info | Ask::Signal(_) | Ask::Window(_) => {
                Err("there is nothing that this could be for".to_owned())
            }
        }
    }

    fn look(&self, place: &Where) -> Result<(Looked, zeroize::Zeroizing<Vec<u8>>), String> {
        let told = |error: ViewError| error.to_string();
        let shown = self.info.exec;
        let gpa = match place {
            Where::Page(gpa) => *gpa,
            // Where something is tells what it is.
            _ if !shown => return Err(WITHHELD.to_owned()),
            Where::Text(text) if text.is_empty() => return Err("an empty text is everywhere".to_owned()),
            Where::Text(text) => {
                let holds = |bytes: &cloak_memory::PageBytes| holds(bytes, text.as_bytes());
                let found = self.view.find(holds).map_err(told)?;
                found.ok_or_else(|| "no page of this context holds that text now".to_owned())?
            }
            Where::AnyText => {
                let found = self.view.find(|bytes| is_text(bytes)).map_err(told)?;
                found.ok_or_else(|| {
                    "no page of this context is mostly text; name one with --page".to_owned()
                })?
            }
        };
        let (page, look) = self.view.look(gpa).map_err(told)?;
        let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(2 * look.ciphertext.len()));
        if shown {
            bytes.extend_from_slice(look.plaintext.as_flattened());
        }
        bytes.extend_from_slice(&*look.ciphertext);
        Ok((self.looked(page, &look, shown), bytes))
    }

    fn looked(&self, page: Page, look: &Look, shown: bool) -> Looked {
        let state = match look.before {
            PageState::Zero => "zero",
            PageState::Plain => "plain",
            PageState::Clean => "clean",
            PageState::Sealed => "sealed",
        };
        Looked {
            gpa: page.gpa(),
            context: self.view.context().0,
            state: state.to_owned(),
            version: look.version.number(),
            tag: look.tag.iter().map(|byte| format!("{byte:02x}")).collect(),
            withheld: (!shown).then(|| WITHHELD.to_owned()),
        }
    }
}

/// Only what a caller may say of a process.
fn check_records(bytes: &[u8]) -> Result<(), String> {
    for record in Records::new(bytes) {
        match record {
            Ok((Tag::Program | Tag::Arg | Tag::Env | Tag::Cwd | Tag::Signals, _)) => {}
            Ok((other, _)) => return Err(format!("{other:?} can't be said of a further process")),
            Err(error) => return Err(format!("the request can't be read: {error:?}")),
        }
    }
    Ok(())
}

/// From its start to its end: what the caller says goes to the process, how it ended goes to the caller. A caller that
/// goes away is a terminal that hangs up.
fn attend(connection: &OwnedFd, running: &Running<'_>) {
    answer(connection, &Reply::Started);
    let mut is_there = true;
    loop {
        let mut fds = vec![PollFd::from_borrowed_fd(running.bell(), PollFlags::IN)];
        if is_there {
            fds.push(PollFd::new(connection, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
            match receive::<Request>(connection).map(|got| got.message.ask) {
                Ok(Ask::Signal(signal @ 1..=64)) => running.signal(signal),
                Ok(Ask::Window(size)) => running.resize(size),
                Ok(_) => {}
                Err(_) => {
                    is_there = false;
                    running.signal(libc::SIGHUP as u32);
                }
            }
        }
        if let Some(outcome) = running.outcome() {
            let reply = match outcome {
                Ok(Outcome::Exited(code)) => Reply::Ended(End::Exited(code)),
                Ok(Outcome::Signalled(signal)) => Reply::Ended(End::Signalled(signal)),
                Ok(Outcome::Refused(code, why)) => Reply::Ended(End::Refused(code, why)),
                Err(error) => Reply::Refused(error.to_string()),
            };
            return answer(connection, &reply);
        }
    }
}

fn answer(connection: &OwnedFd, reply: &Reply) {
    // A caller that is gone needs no answer.
    let _gone = send(connection, reply, &[], &[]);
}

fn refuse(connection: &OwnedFd, why: &str) {
    answer(connection, &Reply::Refused(why.to_owned()));
}

/// Takes as long whatever is shown.
fn same(shown: &[u8], token: &[u8]) -> bool {
    let differ = shown.iter().zip(token).fold(0, |all, (a, b)| all | (a ^ b));
    shown.len() == token.len() && std::hint::black_box(differ) == 0
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    let Some((&first, rest)) = text.split_first() else {
        return false;
    };
    let mut from = bytes;
    while let Some(at) = from.iter().position(|&byte| byte == first) {
        from = &from[at + 1..];
        if from.starts_with(rest) {
            return true;
        }
    }
    false
}

/// Whether a page is one that a person can read: most of it printable, and not all the same.
fn is_text(bytes: &[u8]) -> bool {
    let printable = bytes
        .iter()
        .filter(|&&byte| matches!(byte, b' '..=b'~' | b'\n' | b'\t'))
        .count();
    let mut seen = [false; 256];
    bytes.iter().for_each(|&byte| seen[usize::from(byte)] = true);
    printable * 10 >= bytes.len() * 9 && seen.iter().filter(|&&there| there).count() >= 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_where_they_are() {
        assert!(holds(b"xxSECRET", b"SECRET") && holds(b"SSSECRET", b"SSECRET"));
        assert!(!holds(b"SECRE", b"SECRET") && !holds(b"", b"S") && !holds(b"abc", b""));
    }

    #[test]
    fn a_token_is_the_same_or_not() {
        assert!(same(b"abcd", b"abcd"));
        assert!(!same(b"abce", b"abcd") && !same(b"abc", b"abcd") && !same(b"", b"abcd"));
    }
}
