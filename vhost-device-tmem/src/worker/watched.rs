// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saying whom the threads serve, for the supervisor to know when this process is dead.

use std::{
    cell::Cell,
    panic,
    sync::{Arc, OnceLock},
};

use super::tidy::Tidier;
use crate::{
    device::Observer,
    link::{BlamePage, FromWorker, GuestId, Link},
};

/// The place of the thread that listens to the supervisor. Others have theirs from 0 on.
pub(super) const LISTENER: usize = BlamePage::THREADS - 1;

thread_local! {
    /// This thread's place, if it serves somebody.
    static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The page, for a thread that is about to kill the process.
static PAGE: OnceLock<Arc<BlamePage>> = OnceLock::new();

/// Writes down whom each thread serves.
#[derive(Debug)]
pub(super) struct Watched {
    page: Arc<BlamePage>,
    link: Arc<Link>,
    tidier: Tidier,
}

impl Watched {
    /// Uses this page, from now on also for threads that panic.
    pub(super) fn new(page: Arc<BlamePage>, link: Arc<Link>, tidier: Tidier) -> Self {
        let _ = PAGE.set(Arc::clone(&page));
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            before(info);
            confess();
            // What a thread that has panicked leaves undone nobody knows; the next worker does.
            std::process::abort();
        }));
        Self { page, link, tidier }
    }
}

/// Says that this thread kills the process, if it does so while it serves somebody.
fn confess() {
    if let (Some(page), Some(thread)) = (PAGE.get(), THREAD.get()) {
        page.confess(thread);
    }
}

impl Watched {
    /// Serves a guest in the thread that listens to the supervisor.
    pub(super) fn serving<R>(&self, guest: GuestId, serve: impl FnOnce() -> R) -> R {
        self.begin(LISTENER, guest);
        let result = serve();
        self.end(LISTENER);
        result
    }

    /// Something was done that leaves something to be tidied.
    pub(super) fn tidy(&self) {
        self.tidier.poke();
    }
}

impl Observer for Watched {
    fn begin(&self, thread: usize, guest: GuestId) {
        THREAD.set(Some(thread));
        self.page.begin(thread, guest);
    }

    fn end(&self, thread: usize) {
        self.page.end(thread);
        THREAD.set(None);
        self.tidier.poke();
    }

    fn guest_failed(&self, guest: GuestId, why: &str) {
        let why = why.to_owned();
        // Where that fails there is nobody to be told.
        let _ = self.link.send(&FromWorker::GuestFailed { guest, why }, &[]);
    }
}
