// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The windows of all guests, and what is done with them beside what guests ask for.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::{
    engine::GuestId,
    lender::Lender,
    lending::{plan, Holding},
    session::Session,
};
use crate::{
    store::Store,
    window::{Window, CHUNK},
};

/// A guest's window, and the guest if it is connected.
#[derive(Clone, Debug)]
struct Entry {
    lender: Arc<Lender>,
    session: Weak<Session>,
}

/// Who lends guests chunks of their windows.
#[derive(Debug)]
pub struct Lenders {
    store: Arc<Store>,
    entries: Mutex<BTreeMap<GuestId, Entry>>,
    /// For tests: chunks to take back, and to ask for, whether they are wanted or not.
    taken_anyway: u32,
}

impl Lenders {
    pub(super) fn new(store: Arc<Store>, taken_anyway: u32) -> Self {
        Self {
            store,
            entries: Mutex::default(),
            taken_anyway,
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<GuestId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest has a window. `epoch` is that of its connection, if there is one.
    pub(super) fn add(&self, guest: GuestId, window: Window, epoch: Option<u64>) {
        let lender = Lender::new(Arc::clone(&self.store), guest.0, window, epoch);
        let entry = Entry {
            lender: Arc::new(lender),
            session: Weak::new(),
        };
        self.entries().insert(guest, entry);
    }

    /// There is no such guest any more, and nothing is lent to it.
    pub(super) fn remove(&self, guest: GuestId) {
        self.entries().remove(&guest);
    }

    /// Returns who lends to a guest, if it has a window.
    pub(super) fn of(&self, guest: GuestId) -> Option<Arc<Lender>> {
        let entries = self.entries();
        entries.get(&guest).map(|entry| Arc::clone(&entry.lender))
    }

    /// A guest with a window is connected.
    pub(super) fn connect(&self, guest: GuestId, session: &Arc<Session>) {
        if let Some(entry) = self.entries().get_mut(&guest) {
            entry.session = Arc::downgrade(session);
        }
    }

    /// Returns whether a guest uses its window.
    pub fn are_open(&self) -> bool {
        let entries = self.entries();
        let mut states = entries.values().map(|entry| entry.lender.is_open());
        states.any(|open| open)
    }

    /// Takes from guests what they took without a grant, makes chunks ready for those that will ask,
    /// and takes chunks back where memory is short, or asks for them. Returns whether there was
    /// something to do, so that there may be more soon.
    pub fn look(&self) -> bool {
        let entries: Vec<_> = self.entries().values().cloned().collect();
        for Entry { lender, session } in &entries {
            let trimmed = lender.trim();
            if let Some(session) = session.upgrade().filter(|_| trimmed > 0) {
                session.note_trimmed(trimmed);
            }
        }
        let wanted = self.store.wanted_back().div_ceil(CHUNK);
        let holdings = entries.iter().map(|entry| entry.lender.holding());
        let holdings: Vec<Holding> = holdings.collect();
        let plan = plan(&holdings, u32::try_from(wanted).unwrap_or(u32::MAX));
        for (at, count) in &plan.take {
            entries[*at].lender.shrink(*count);
        }
        if let Some((at, count)) = plan.recall {
            if let Some(session) = entries[at].session.upgrade() {
                session.recall(count);
            }
        }
        let short = !plan.take.is_empty();
        if !short {
            for Entry { lender, .. } in &entries {
                while lender.prepare() {}
            }
        }
        if self.taken_anyway > 0 {
            self.take_anyway(&entries);
        }
        short || self.taken_anyway > 0
    }

    fn take_anyway(&self, entries: &[Entry]) {
        for Entry { lender, session } in entries {
            lender.shrink(self.taken_anyway);
            let persistent = lender.holding().persistent;
            if let Some(session) = session.upgrade().filter(|_| persistent > 0) {
                session.recall(persistent.min(self.taken_anyway));
            }
        }
    }
}
