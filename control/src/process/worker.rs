//! One thread that computes IKE's slow key exchanges beside the loop, at a lower priority: a finite-field
//! exchange of the largest group takes 77 ms, and neither packets nor other handshakes wait for it.
//!
//! The endpoint bounds what is under way; should the thread be lost, the loop computes by itself.

use std::{
    io,
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
    thread,
};

use braid_ike::{Computation, Computed};
use tokio::sync::mpsc;

use crate::ike::Life;

/// Far more than one endpoint has under way: those of lives before may still be there.
const QUEUE: usize = 64;
/// Of the thread; the loop has 0.
const NICENESS: i32 = 5;

/// The thread, and the way back.
pub(super) struct Worker {
    tasks: SyncSender<(Life, Computation)>,
    results: mpsc::UnboundedReceiver<(Life, Computed)>,
    /// What had to be computed here.
    own: mpsc::UnboundedSender<(Life, Computed)>,
}

impl Worker {
    /// Starts it.
    pub(super) fn start() -> io::Result<Self> {
        let (tasks, waiting) = sync_channel::<(Life, Computation)>(QUEUE);
        let (own, results) = mpsc::unbounded_channel();
        let done = own.clone();
        thread::Builder::new().name("ike-keys".to_owned()).spawn(move || {
            // Without it there is less order, and no harm.
            let _ = rustix::process::setpriority_process(None, NICENESS);
            for (life, computation) in waiting {
                if done.send((life, computation.run())).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { tasks, results, own })
    }

    /// Has it computed.
    pub(super) fn compute(&self, (life, computation): (Life, Computation)) {
        let sent = self.tasks.try_send((life, computation));
        if let Err(TrySendError::Full((life, task)) | TrySendError::Disconnected((life, task))) = sent {
            // The receiver is ours.
            let _ = self.own.send((life, task.run()));
        }
    }

    /// The next result. Safe to cancel.
    pub(super) async fn next(&mut self) -> (Life, Computed) {
        match self.results.recv().await {
            Some(result) => result,
            // One sender is ours.
            None => core::future::pending().await,
        }
    }
}
