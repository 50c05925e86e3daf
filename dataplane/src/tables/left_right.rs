//! Two copies of the tables: readers use one, the writer changes the other, then they swap.
//!
//! A reader takes a read lock on the active copy without ever waiting: when the lock is not free,
//! the writer has published the other copy, so the reader looks again at which one is active.
//! The writer waits for readers that still hold the copy that it wants to change: at most for one
//! batch of packets. It then applies the same changes to both, so that a transaction costs what
//! its operations cost, never a copy of a table.

use std::{
    ops::Deref,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::Tables;

struct Shared {
    copies: [RwLock<Tables>; 2],
    active: AtomicUsize,
}

/// The writer's side; there is one.
pub(super) struct LeftRight {
    shared: Arc<Shared>,
}

impl LeftRight {
    /// From two equal copies.
    pub(super) fn new(left: Tables, right: Tables) -> Self {
        let copies = [RwLock::new(left), RwLock::new(right)];
        LeftRight { shared: Arc::new(Shared { copies, active: AtomicUsize::new(0) }) }
    }

    pub(super) fn reader(&self) -> Reader {
        Reader { shared: self.shared.clone() }
    }

    /// The copy that no reader enters.
    pub(super) fn passive(&self) -> RwLockWriteGuard<'_, Tables> {
        self.write(1 - self.active())
    }

    /// Makes the passive copy the active one, whose write lock must have been given back.
    /// Every reader that enters from now on sees it.
    pub(super) fn publish(&mut self) {
        self.shared.active.store(1 - self.active(), Ordering::Release);
    }

    fn active(&self) -> usize {
        // Only this side stores.
        self.shared.active.load(Ordering::Relaxed)
    }

    fn write(&self, index: usize) -> RwLockWriteGuard<'_, Tables> {
        // A reader cannot poison a lock, and a panicking writer leaves no second writer behind.
        self.shared.copies[index].write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread's access to the published tables.
#[derive(Clone)]
pub struct Reader {
    shared: Arc<Shared>,
}

impl Reader {
    /// The tables as last published, for one batch.
    ///
    /// Never waits. The guard is dropped before the thread sleeps or waits for anything: until
    /// then the writer cannot finish its transaction.
    pub fn enter(&mut self) -> Guard<'_> {
        loop {
            let active = self.shared.active.load(Ordering::Acquire);
            match self.shared.copies[active].try_read() {
                Ok(tables) => return Guard(tables),
                Err(TryLockError::Poisoned(poisoned)) => return Guard(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            }
        }
    }
}

/// The published tables for as long as it lives.
pub struct Guard<'a>(RwLockReadGuard<'a, Tables>);

impl Deref for Guard<'_> {
    type Target = Tables;

    #[inline]
    fn deref(&self) -> &Tables {
        &self.0
    }
}
