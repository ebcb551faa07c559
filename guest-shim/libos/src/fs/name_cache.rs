//! What the host said about names on read-only mounts, for a second: attributes, access, and that there is
//! nothing of a name. Programs ask the same again and again (look-ups along a search path most of all). As with
//! [`super::read_cache`], what others change is seen at the next look, at most a second later.

use alloc::vec::Vec;

use hashbrown::HashMap;
use spin::{Lazy, Mutex};

use super::attributes::Statx;
use super::mount::Dir;
use super::read_cache::believed_until;
use super::walk::HostPlace;
use crate::arch;
use crate::errno::SysResult;

/// Most answers kept: beyond that all are forgotten.
const MOST: usize = 4096;

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Question {
    /// `statx` with these flags and this mask.
    Attributes(u32, u32),
    /// `access` with this mode and these flags.
    Access(u32, u32),
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    mount: u64,
    how: u64,
    name: Vec<u8>,
    question: Question,
}

#[derive(Debug)]
struct Known {
    until: u64,
    answer: SysResult<Statx>,
}

static ANSWERS: Lazy<Mutex<HashMap<Key, Known>>> = Lazy::new(|| Mutex::new(HashMap::new()));

/// The answer to `question` about `place`: what is known, or what `ask` gives.
///
/// # Errors
/// Those of `ask`, also known ones.
pub fn answer(
    place: &HostPlace,
    question: Question,
    ask: impl FnOnce() -> SysResult<Statx>,
) -> SysResult<Statx> {
    // A directory that was opened on the way has a number that may mean another one later.
    let Dir::Root(mount) = place.dir else {
        return ask();
    };
    if !place.read_only {
        return ask();
    }
    let key = Key {
        mount,
        how: place.how,
        name: place.name.clone(),
        question,
    };
    if let Some(known) = ANSWERS.lock().get(&key)
        && arch::ticks() < known.until
    {
        return known.answer;
    }
    let until = believed_until();
    let answer = ask();
    let mut answers = ANSWERS.lock();
    if answers.len() >= MOST {
        answers.clear();
    }
    answers.insert(key, Known { until, answer });
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::Errno;
    use crate::fs::read_cache::FRESH_NS;

    fn place(name: &[u8], dir: Dir, read_only: bool) -> HostPlace {
        HostPlace {
            dir,
            name: name.to_vec(),
            how: 0,
            path: Vec::new(),
            read_only,
            must_be_directory: false,
        }
    }

    #[test]
    fn one_question_is_asked_once_a_second() {
        let known = place(b"name-cache/known", Dir::Root(77), true);
        let question = Question::Access(4, 0);
        let mut asked = 0;
        for _ in 0..3 {
            let answer = answer(&known, question, || {
                asked += 1;
                Err(Errno::ENOENT)
            });
            assert_eq!(answer.map(|s| s.size), Err(Errno::ENOENT));
        }
        assert_eq!(asked, 1);
        assert!(answer(&known, Question::Access(2, 0), || Ok(Statx::default())).is_ok());
        std::thread::sleep(std::time::Duration::from_nanos(FRESH_NS + 20_000_000));
        assert!(answer(&known, question, || Ok(Statx::default())).is_ok());
    }

    #[test]
    fn writable_mounts_are_asked_each_time() {
        let place = place(b"name-cache/written", Dir::Root(77), false);
        let mut asked = 0;
        for _ in 0..3 {
            let _ = answer(&place, Question::Access(4, 0), || {
                asked += 1;
                Err(Errno::ENOENT)
            });
        }
        assert_eq!(asked, 3);
    }
}
