// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's place among the others, and what is known of who was there last.

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

impl SlotState {
    /// Returns the guest that is connected now.
    pub fn connected_session(&self) -> Option<&Arc<Session>> {
        self.session.as_ref().filter(|_| self.connected)
    }
}

/// A socket and its guest.
#[derive(Debug)]
pub struct Slot {
    name: Mutex<String>,
    state: Mutex<SlotState>,
    log: Arc<LogLimit>,
}

impl Slot {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: Mutex::new(name.to_owned()),
            state: Mutex::default(),
            log: Arc::default(),
        }
    }

    /// Returns the guest's name.
    pub fn name(&self) -> String {
        let name = self.name.lock();
        name.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The guest has another name. What the log says of its present connection has the old one.
    pub fn set_name(&self, name: &str) {
        let now = self.name.lock();
        name.clone_into(&mut now.unwrap_or_else(PoisonError::into_inner));
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
