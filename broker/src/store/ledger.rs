//! The one writer.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::{Job, Store, StoreError};
use crate::audit::Head;

/// Jobs that are done in one transaction at most.
const BATCH: usize = 512;
/// Jobs that may wait; callers beyond wait for room.
const QUEUE: usize = 4096;

type Waiting = (Job, oneshot::Sender<Result<Head, StoreError>>);

/// Where decisions are written down. Clones share one writer.
#[derive(Debug, Clone)]
pub struct Ledger {
    jobs: mpsc::Sender<Waiting>,
    head: watch::Receiver<Head>,
}

impl Ledger {
    /// Starts the writer. It ends when the last handle is gone and all that waited is written.
    pub fn start(store: Arc<Store>) -> (Self, JoinHandle<()>) {
        let (jobs, receiver) = mpsc::channel(QUEUE);
        let (publish, head) = watch::channel(Head::default());
        let writer = tokio::spawn(write(store, receiver, publish));
        (Self { jobs, head }, writer)
    }

    /// Writes a decision, and what it changes. When this returns well, both are on the disk.
    ///
    /// # Errors
    /// [`StoreError`]; then neither is, save that a database that went away in between may have both.
    pub async fn write(&self, job: Job) -> Result<Head, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.jobs
            .send((job, reply))
            .await
            .map_err(|_| StoreError::Stopping)?;
        answer.await.map_err(|_| StoreError::Stopping)?
    }

    /// The log's head after the last write of this process.
    pub fn head(&self) -> Head {
        *self.head.borrow()
    }
}

async fn write(store: Arc<Store>, mut receiver: mpsc::Receiver<Waiting>, publish: watch::Sender<Head>) {
    let mut waiting = Vec::with_capacity(BATCH);
    while receiver.recv_many(&mut waiting, BATCH).await > 0 {
        let (jobs, replies): (Vec<_>, Vec<_>) = waiting.drain(..).unzip();
        match store.commit(jobs).await {
            Ok((results, head)) => {
                publish.send_replace(head);
                for (reply, result) in replies.into_iter().zip(results) {
                    // Who asked may have gone away; the decision is written all the same.
                    let _ = reply.send(result);
                }
            }
            Err(error) => {
                for reply in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }
}
