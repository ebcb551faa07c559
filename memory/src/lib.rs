//! Guest memory with two views: page states, the seal engine, the OS view and the resident limiter.
//!
//! A page is plaintext for its context and ciphertext for everyone else. [`Memory`] keeps the books for one context
//! and moves pages between [`Plaintext`] memory and a [`Store`] on the OS side:
//!
//! ```text
//!   program ──touches──▶ PrivateRam ◀──┐                ┌──▶ FileStore ◀──reads, keeps── OS side
//!                          │ faults    │ plaintext      │ ciphertext      │ touches
//!                          ▼           │                │                 ▼
//!                        Pager ──▶ Memory: PageTable, PageKeys, step ◀── ViewServer
//! ```
//!
//! | module | what it knows |
//! |---|---|
//! | [`state`] | the four states and every transition |
//! | [`cipher`], [`version`] | keys, nonces, additional data; why no nonce comes twice |
//! | [`table`] | state, version and tag of each page |
//! | [`engine`] | *seal*, *drop*, *bring back*, *what changed since* |
//! | [`sides`] | what the engine asks of plaintext memory and of the OS side |
//! | [`file`](mod@file), [`ram`], [`uffd`] | the two sides as Linux gives them |
//! | [`open`] | memory that is plaintext as a whole, sealed page by page where the OS side looks |
//! | [`view`] | the OS view: sealed at the OS side's touch |
//! | [`pager`] | at most so much plaintext: second chance, swap |

pub mod cipher;
pub mod engine;
pub mod error;
pub mod file;
pub mod open;
pub mod page;
pub mod pager;
pub mod ram;
pub mod sides;
pub mod state;
pub mod table;
pub mod uffd;
pub mod version;
pub mod view;

pub use cipher::{PageKeys, Secret};
pub use engine::{Look, Mark, Memory};
pub use error::{MemoryError, Tampering};
pub use file::FileStore;
pub use page::{ContextId, PAGE_SIZE, Page, PageBytes, Version};
pub use sides::{Access, Plaintext, Run, Store, StoreError};
pub use state::PageState;
