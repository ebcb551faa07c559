//! Sessions, in memory: a challenge that can be answered once, then an attested guest.
//!
//! ```text
//!  open ──▶ Challenged ── take_challenge ──▶ gone ── attest ──▶ Attested ──▶ expired
//! ```
//! A challenge is taken out before its answer is judged, so a nonce counts once, whatever comes of it. The number of
//! sessions and the room that their evidence takes are bounded; what has expired makes room.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cloak_attestation::Evidence;
use cloak_attestation::bytes::{Bytes32, Bytes64};

use crate::jwe::Recipient;
use crate::protocol::{HashAlgorithm, Tee};
use crate::random::{NoRandomness, random};

/// Names a session to its client; whoever knows it acts as that client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 32]);

/// Not shown: a log that holds it would let its readers in.
impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionId")
    }
}

/// Names an attested session in its token and in the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenId(pub [u8; 16]);

/// What `/auth` promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// The kind of machine that asked.
    pub tee: Tee,
    /// Base64 of 32 random bytes.
    pub nonce: String,
    /// Digest that REPORT_DATA is to be.
    pub hash: HashAlgorithm,
}

/// A guest whose evidence holds.
#[derive(Debug)]
pub struct Attested {
    /// Names it in the log.
    pub token: TokenId,
    /// What it showed; a secret's policy judges the same again.
    pub evidence: Evidence,
    /// REPORT_DATA that the evidence has to have.
    pub report_data: Bytes64,
    /// Where secrets are encrypted to.
    pub recipient: Recipient,
    /// Room that the evidence takes, in bytes.
    pub size: usize,
    /// Policies that it passed, by digest. A policy that changes has another digest.
    passed: Mutex<Vec<Bytes32>>,
}

/// Policies that one session is remembered to have passed.
const REMEMBERED: usize = 32;

/// Bounds.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How long a challenge can be answered.
    pub challenge: Duration,
    /// How long an attested session lasts.
    pub attested: Duration,
    /// Sessions of either kind.
    pub sessions: usize,
    /// Bytes of evidence in all sessions together.
    pub evidence_bytes: usize,
}

/// No room for another session, until others expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// As many sessions as there may be.
    #[error("as many sessions as there is room for")]
    Full,
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

enum State {
    Challenged(Challenge),
    Attested(Arc<Attested>),
}

#[derive(Default)]
struct Inner {
    sessions: HashMap<SessionId, (Instant, State)>,
    tokens: HashMap<TokenId, SessionId>,
    expiry: BTreeSet<(Instant, SessionId)>,
    evidence_bytes: usize,
}

/// All sessions.
pub struct Sessions {
    bounds: Bounds,
    inner: Mutex<Inner>,
}

impl SessionId {
    /// The cookie's value.
    pub fn to_text(self) -> String {
        hex::encode(self.0)
    }

    /// Reads a cookie's value.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut id = [0; 32];
        hex::decode_to_slice(text, &mut id).ok()?;
        Some(Self(id))
    }
}

impl TokenId {
    /// The token's `jti`.
    pub fn to_text(self) -> String {
        hex::encode(self.0)
    }

    /// Reads a `jti`.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id).ok()?;
        Some(Self(id))
    }
}

impl Attested {
    /// A guest that passed the policy with this digest.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn new(
        evidence: Evidence,
        report_data: Bytes64,
        recipient: Recipient,
        size: usize,
        policy: Bytes32,
    ) -> Result<Self, NoRandomness> {
        Ok(Self {
            token: TokenId(random()?),
            evidence,
            report_data,
            recipient,
            size,
            passed: Mutex::new(vec![policy]),
        })
    }

    /// Whether its evidence passed the policy with this digest, within this session.
    pub fn has_passed(&self, policy: &Bytes32) -> bool {
        self.passed_policies().contains(policy)
    }

    /// Remembers that it did.
    pub fn remember(&self, policy: Bytes32) {
        let mut passed = self.passed_policies();
        if passed.len() < REMEMBERED && !passed.contains(&policy) {
            passed.push(policy);
        }
    }

    fn passed_policies(&self) -> MutexGuard<'_, Vec<Bytes32>> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    /// No sessions yet.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            inner: Mutex::default(),
        }
    }

    /// How many there are, expired ones that nobody asked for included.
    pub fn len(&self) -> usize {
        self.lock().sessions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A session that waits for its answer.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn open(&self, challenge: Challenge, now: Instant) -> Result<SessionId, SessionError> {
        let id = SessionId(random()?);
        let mut inner = self.lock();
        inner.expire(now);
        if inner.sessions.len() >= self.bounds.sessions {
            return Err(SessionError::Full);
        }
        inner.insert(id, now + self.bounds.challenge, State::Challenged(challenge));
        Ok(id)
    }

    /// Takes the challenge out: it can't be answered again.
    pub fn take_challenge(&self, id: &SessionId, now: Instant) -> Option<Challenge> {
        let mut inner = self.lock();
        inner.expire(now);
        if !matches!(inner.sessions.get(id), Some((_, State::Challenged(_)))) {
            return None;
        }
        match inner.remove(id) {
            Some(State::Challenged(challenge)) => Some(challenge),
            _ => None,
        }
    }

    /// Whether there is room for so much evidence more. To be asked before it is judged; [`Sessions::attest`] asks again.
    pub fn has_room(&self, bytes: usize, now: Instant) -> bool {
        let mut inner = self.lock();
        inner.expire(now);
        inner.sessions.len() < self.bounds.sessions
            && inner.evidence_bytes.saturating_add(bytes) <= self.bounds.evidence_bytes
    }

    /// Makes an attested session under the identifier whose challenge was taken.
    ///
    /// # Errors
    /// [`SessionError::Full`].
    pub fn attest(
        &self,
        id: SessionId,
        attested: Attested,
        now: Instant,
    ) -> Result<Arc<Attested>, SessionError> {
        let mut inner = self.lock();
        inner.expire(now);
        let bytes = inner.evidence_bytes.saturating_add(attested.size);
        if inner.sessions.len() >= self.bounds.sessions || bytes > self.bounds.evidence_bytes {
            return Err(SessionError::Full);
        }
        let attested = Arc::new(attested);
        inner.evidence_bytes = bytes;
        inner.tokens.insert(attested.token, id);
        inner.insert(
            id,
            now + self.bounds.attested,
            State::Attested(Arc::clone(&attested)),
        );
        Ok(attested)
    }

    /// The attested session with this identifier.
    pub fn by_id(&self, id: &SessionId, now: Instant) -> Option<Arc<Attested>> {
        let mut inner = self.lock();
        inner.expire(now);
        inner.attested(id)
    }

    /// The attested session whose token has this identifier.
    pub fn by_token(&self, token: &TokenId, now: Instant) -> Option<Arc<Attested>> {
        let mut inner = self.lock();
        inner.expire(now);
        let id = *inner.tokens.get(token)?;
        inner.attested(&id)
    }

    /// A step is taken as a whole or not begun, so a panic elsewhere leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn insert(&mut self, id: SessionId, until: Instant, state: State) {
        self.expiry.insert((until, id));
        self.sessions.insert(id, (until, state));
    }

    fn attested(&self, id: &SessionId) -> Option<Arc<Attested>> {
        match self.sessions.get(id) {
            Some((_, State::Attested(attested))) => Some(Arc::clone(attested)),
            _ => None,
        }
    }

    fn remove(&mut self, id: &SessionId) -> Option<State> {
        let (until, state) = self.sessions.remove(id)?;
        self.expiry.remove(&(until, *id));
        if let State::Attested(attested) = &state {
            self.tokens.remove(&attested.token);
            self.evidence_bytes -= attested.size;
        }
        Some(state)
    }

    fn expire(&mut self, now: Instant) {
        while let Some(&(until, id)) = self.expiry.first() {
            if until > now {
                break;
            }
            self.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use cloak_attestation::evidence::{Attestation, SoftwareEvidence};

    use super::*;
    use crate::jwe::TeeKey;

    const BOUNDS: Bounds = Bounds {
        challenge: Duration::from_secs(10),
        attested: Duration::from_secs(100),
        sessions: 3,
        evidence_bytes: 100,
    };

    fn challenge() -> Challenge {
        Challenge {
            tee: Tee::Software,
            nonce: "nonce".to_owned(),
            hash: HashAlgorithm::Sha384,
        }
    }

    fn attested(size: usize) -> Attested {
        let evidence = Attestation::Software(SoftwareEvidence::default()).into();
        let recipient = Recipient::try_from(&TeeKey::generate().unwrap().public()).unwrap();
        Attested::new(evidence, Bytes64::ZERO, recipient, size, Bytes32::ZERO).unwrap()
    }

    #[test]
    fn a_challenge_is_answered_once_and_in_time() {
        let sessions = Sessions::new(BOUNDS);
        let start = Instant::now();
        let id = sessions.open(challenge(), start).unwrap();
        assert!(sessions.by_id(&id, start).is_none(), "it is not attested");
        assert_eq!(sessions.take_challenge(&id, start), Some(challenge()));
        assert_eq!(sessions.take_challenge(&id, start), None);
        let late = sessions.open(challenge(), start).unwrap();
        assert_eq!(sessions.take_challenge(&late, start + BOUNDS.challenge), None);
        assert!(sessions.is_empty());
    }

    #[test]
    fn an_attested_session_is_found_both_ways_until_it_expires() {
        let sessions = Sessions::new(BOUNDS);
        let start = Instant::now();
        let id = sessions.open(challenge(), start).unwrap();
        sessions.take_challenge(&id, start).unwrap();
        let token = sessions.attest(id, attested(40), start).unwrap().token;
        assert!(sessions.by_id(&id, start).is_some());
        assert!(sessions.by_token(&token, start).is_some());
        assert_eq!(sessions.take_challenge(&id, start), None);
        let end = start + BOUNDS.attested;
        assert!(sessions.by_token(&token, end).is_none());
        assert!(sessions.by_id(&id, end).is_none());
    }

    #[test]
    fn the_number_of_sessions_and_the_room_for_evidence_are_bounded() {
        let sessions = Sessions::new(BOUNDS);
        let start = Instant::now();
        for _ in 0..3 {
            sessions.open(challenge(), start).unwrap();
        }
        assert_eq!(sessions.open(challenge(), start), Err(SessionError::Full));
        let later = start + BOUNDS.challenge;
        let id = SessionId([1; 32]);
        sessions.attest(id, attested(60), later).unwrap();
        assert!(!sessions.has_room(60, later));
        assert_eq!(
            sessions.attest(SessionId([2; 32]), attested(60), later).err(),
            Some(SessionError::Full)
        );
        let end = later + BOUNDS.attested;
        assert!(sessions.attest(SessionId([2; 32]), attested(60), end).is_ok());
    }
}
