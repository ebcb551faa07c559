//! The states of a page, and what each event makes of them.
//!
//! ```text
//!             Fill                    Seal
//!   Zero ───────────────▶ Plain ────────────────▶ Clean
//!    │ ▲ ▲                 ▲ ▲                    │ │ ▲
//!    │ │ └──── Discard ────┘ └─────── Write ──────┘ │ │
//!    │ │                                       Drop │ │ Open (verified)
//!    │ └─────────────── Discard ─────────────┐      ▼ │
//!    └───────────────── Seal ────────────────┴──▶ Sealed
//! ```
//!
//! `Zero` has no bytes anywhere. `Plain` has plaintext only. `Clean` has plaintext and a sealed copy of the very
//! same bytes, and can't be written without a [`Event::Write`] first. `Sealed` has ciphertext only, on the OS side.
//!
//! A page that a program has touched is never `Zero` again unless it is discarded, whatever it holds: the OS side
//! shall not learn which pages are full of zeros.

/// What exists of a page, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageState {
    /// Never touched, or discarded: reads as zeros, exists nowhere.
    Zero,
    /// Plaintext only.
    Plain,
    /// Plaintext, and a sealed copy that matches it.
    Clean,
    /// Sealed only.
    Sealed,
}

/// What happens to a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A program touches a page that has no bytes yet.
    Fill,
    /// A program is about to change the page.
    Write,
    /// A sealed copy is wanted.
    Seal,
    /// The plaintext shall go.
    Drop,
    /// The plaintext shall come back.
    Open,
    /// The contents are no longer needed.
    Discard,
}

/// What has to be done for a transition, before the new state may be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Nothing.
    None,
    /// Give the program a page of zeros.
    GiveZeros,
    /// Seal the plaintext under a new version and hand the ciphertext to the OS side.
    SealPlaintext,
    /// Seal a page of zeros under a new version and hand the ciphertext to the OS side.
    SealZeros,
    /// Let the OS side forget the ciphertext: it no longer matches.
    ForgetSealed,
    /// Take the plaintext away.
    DropPlaintext,
    /// Fetch the ciphertext, verify it, and only then give the program the page.
    OpenSealed,
    /// Take the plaintext away, and let the OS side forget the ciphertext.
    ForgetBoth,
}

/// Why an event is refused: it would lose the only copy of the page, or write to a page that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// [`Event::Drop`] of a page without a sealed copy.
    #[error("its plaintext is the only copy; seal it first")]
    OnlyCopy,
    /// [`Event::Write`] to a page that is sealed.
    #[error("it is sealed; bring it back first")]
    NotHere,
}

/// The whole state machine. Gives the next state and what has to be done to get there.
///
/// # Errors
/// [`Refusal`], and the page stays as it is.
pub const fn step(state: PageState, event: Event) -> Result<(PageState, Action), Refusal> {
    use PageState::{Clean, Plain, Sealed, Zero};
    Ok(match (state, event) {
        (Zero, Event::Fill | Event::Write) => (Plain, Action::GiveZeros),
        (Zero, Event::Seal) => (Sealed, Action::SealZeros),
        (Zero, Event::Drop | Event::Open | Event::Discard) => (Zero, Action::None),

        (Plain, Event::Fill | Event::Write | Event::Open) => (Plain, Action::None),
        (Plain, Event::Seal) => (Clean, Action::SealPlaintext),
        (Plain, Event::Drop) => return Err(Refusal::OnlyCopy),
        (Plain, Event::Discard) => (Zero, Action::DropPlaintext),

        (Clean, Event::Fill | Event::Seal | Event::Open) => (Clean, Action::None),
        (Clean, Event::Write) => (Plain, Action::ForgetSealed),
        (Clean, Event::Drop) => (Sealed, Action::DropPlaintext),
        (Clean, Event::Discard) => (Zero, Action::ForgetBoth),

        (Sealed, Event::Seal | Event::Drop) => (Sealed, Action::None),
        (Sealed, Event::Fill | Event::Open) => (Clean, Action::OpenSealed),
        (Sealed, Event::Write) => return Err(Refusal::NotHere),
        (Sealed, Event::Discard) => (Zero, Action::ForgetSealed),
    })
}

impl PageState {
    /// All states, in the order of their codes.
    pub const ALL: [Self; 4] = [Self::Zero, Self::Plain, Self::Clean, Self::Sealed];

    /// Whether plaintext exists.
    #[must_use]
    pub const fn has_plaintext(self) -> bool {
        matches!(self, Self::Plain | Self::Clean)
    }

    /// Whether a sealed copy exists.
    #[must_use]
    pub const fn has_sealed(self) -> bool {
        matches!(self, Self::Clean | Self::Sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 6] = [
        Event::Fill,
        Event::Write,
        Event::Seal,
        Event::Drop,
        Event::Open,
        Event::Discard,
    ];

    /// What the state stands for: which copies exist, and whether the page was ever given bytes.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Copies {
        plaintext: bool,
        sealed: bool,
    }

    const fn copies(state: PageState) -> Copies {
        Copies {
            plaintext: state.has_plaintext(),
            sealed: state.has_sealed(),
        }
    }

    /// Carries an action out on the copies, without knowing the table.
    fn perform(before: Copies, action: Action) -> Copies {
        let mut after = before;
        match action {
            Action::None => {}
            Action::GiveZeros => after.plaintext = true,
            Action::SealPlaintext => {
                assert!(before.plaintext, "nothing to seal");
                after.sealed = true;
            }
            Action::SealZeros => {
                assert!(!before.plaintext && !before.sealed, "the page has bytes");
                after.sealed = true;
            }
            Action::ForgetSealed => after.sealed = false,
            Action::DropPlaintext => after.plaintext = false,
            Action::OpenSealed => {
                assert!(before.sealed, "nothing to open");
                after.plaintext = true;
            }
            Action::ForgetBoth => {
                after = Copies {
                    plaintext: false,
                    sealed: false,
                }
            }
        }
        after
    }

    #[test]
    fn each_cell_ends_with_the_copies_that_its_state_promises() {
        for state in PageState::ALL {
            for event in EVENTS {
                match step(state, event) {
                    Ok((next, action)) => {
                        assert_eq!(
                            perform(copies(state), action),
                            copies(next),
                            "{state:?} {event:?}"
                        );
                    }
                    Err(Refusal::OnlyCopy) => assert_eq!((state, event), (PageState::Plain, Event::Drop)),
                    Err(Refusal::NotHere) => assert_eq!((state, event), (PageState::Sealed, Event::Write)),
                }
            }
        }
    }

    #[test]
    fn contents_are_lost_by_discard_only() {
        for state in PageState::ALL {
            for event in EVENTS {
                let had_bytes = copies(state).plaintext || copies(state).sealed;
                if let Ok((next, _)) = step(state, event) {
                    assert_eq!(
                        next == PageState::Zero && had_bytes,
                        event == Event::Discard && had_bytes,
                        "{state:?} {event:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_written_page_has_no_sealed_copy() {
        for state in PageState::ALL {
            if let Ok((next, _)) = step(state, Event::Write) {
                assert_eq!(next, PageState::Plain);
            }
        }
    }
}
