// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Doing what the store leaves for when there is nothing better to do, and taking memory before it is
//! needed.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
    thread::{self, Thread},
    time::Duration,
};

use crate::store::{Progress, Store};

/// Pages that are looked at before others get the processor.
const AT_ONCE: usize = 64;

/// The time between two looks while guests do something all the time.
const PAUSE: Duration = Duration::from_millis(100);

/// Threads that tidy up after guests did something, and take memory that they will need; they sleep
/// otherwise.
#[derive(Debug)]
pub(super) struct Tidier {
    store: Arc<Store>,
    due: Arc<AtomicBool>,
    thread: Thread,
    preparer: Thread,
    /// Who looks after the tier, if there is one.
    tier: Option<Thread>,
}

impl Tidier {
    /// Starts the threads, which run until the process ends.
    ///
    /// # Errors
    ///
    /// The operating system's, where there is no thread left.
    pub(super) fn start(store: Arc<Store>, tier: Option<Thread>) -> std::io::Result<Self> {
        let due = Arc::new(AtomicBool::new(true));
        let (copy, tidied, prepared) = (Arc::clone(&due), Arc::clone(&store), Arc::clone(&store));
        let thread = thread::Builder::new()
            .name("tidy".to_owned())
            .spawn(move || loop {
                while !copy.swap(false, Ordering::Acquire) {
                    thread::park();
                }
                while tidied.tidy_step(AT_ONCE) == Progress::More {
                    thread::yield_now();
                }
                thread::sleep(PAUSE);
            })?;
        let preparer = thread::Builder::new()
            .name("prepare".to_owned())
            .spawn(move || loop {
                while prepared.wants_memory() {
                    prepared.prepare();
                }
                thread::park();
            })?;
        Ok(Self {
            store,
            due,
            thread: thread.thread().clone(),
            preparer: preparer.thread().clone(),
            tier,
        })
    }

    /// A guest did something. Costs next to nothing where that is known.
    pub(super) fn poke(&self) {
        if !self.due.load(Ordering::Relaxed) && !self.due.swap(true, Ordering::Release) {
            self.thread.unpark();
        }
        if self.store.wants_memory() {
            self.preparer.unpark();
        }
        if let Some(tier) = self.tier.as_ref().filter(|_| self.store.wants_tier()) {
            tier.unpark();
        }
    }
}
