// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's place on the command line, and what is known of who was there last.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{loglimit::LogLimit, session::Session};

/// What is known of the guest of a socket.
#[derive(Debug, Default)]
pub struct SlotState {
    /// The guest that was connected last, if there ever was one.
    pub session: Option<Arc<Session>>,
    /// Whether it is connected now.
    pub connected: bool,
}

/// A socket and its guest.
#[derive(Debug)]
pub struct Slot {
    name: String,
    state: Mutex<SlotState>,
    log: Arc<LogLimit>,
}

impl Slot {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: Mutex::default(),
            log: Arc::default(),
        }
    }

    /// Returns the guest's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what is known of its guest.
    pub fn state(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the log may tell that something became of the guest. Who connects again and
    /// again does not fill it.
    pub fn may_tell(&self) -> bool {
        self.log.may_tell_life()
    }

    /// Returns whether the log may tell what the guest, or its front-end, does wrong.
    pub fn may_tell_fault(&self) -> bool {
        self.log.may_tell_fault()
    }

    pub(super) fn log(&self) -> Arc<LogLimit> {
        Arc::clone(&self.log)
    }

    pub(super) fn connect(&self, session: Arc<Session>) {
        *self.state() = SlotState {
            session: Some(session),
            connected: true,
        };
    }

    pub(super) fn disconnect(&self) {
        self.state().connected = false;
    }
}
