// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which guests there are: they come, go, and change while others are served.
//!
//! No number is used twice. So whatever is still under way for a guest that goes, in a thread, in the
//! worker or in what systemd keeps, is never taken for another one's.

use std::{
    collections::BTreeSet,
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixListener,
    },
};

use nix::sys::socket::{shutdown, Shutdown};

use super::{Guest, Hub};
use crate::{
    config::Edits,
    link::{GuestId, ToWorker},
    policy::Terms,
    supervisor::keep::Name,
    window::WindowFiles,
};

/// What limits numbers: the page of blame has no room for more.
const MAX_NUMBER: u32 = 1 << 23;

impl Hub {
    /// Returns a guest's name.
    pub(in crate::supervisor) fn name(&self, guest: GuestId) -> String {
        let inner = self.inner();
        let entry = inner.guests.get(&guest);
        entry.map_or_else(|| guest.to_string(), |guest| guest.name.clone())
    }

    /// Returns what a guest's window is known by, if it has one.
    pub(in crate::supervisor) fn window(&self, guest: GuestId) -> Option<[u8; 16]> {
        let inner = self.inner();
        let entry = inner.guests.get(&guest)?;
        entry.window.as_ref().map(WindowFiles::identity)
    }

    /// Returns the guests that had virtqueues and have none.
    pub(in crate::supervisor) fn quiet(&self) -> Vec<GuestId> {
        let inner = self.inner();
        let guests = inner.guests.values();
        let connected = guests.filter_map(|guest| guest.connection.as_ref());
        let quiet = connected.filter(|connection| connection.state.may_be_abandoned());
        quiet.map(|connection| connection.state.guest()).collect()
    }

    /// Returns the guests that are connected.
    pub(in crate::supervisor) fn connected(&self) -> BTreeSet<GuestId> {
        let inner = self.inner();
        let guests = inner.guests.iter();
        let connected = guests.filter(|(_, entry)| entry.connection.is_some());
        connected.map(|(guest, _)| *guest).collect()
    }

    /// Returns whether so many guests more can have numbers.
    pub(in crate::supervisor) fn has_numbers(&self, count: usize) -> bool {
        self.inner().next as usize + count <= MAX_NUMBER as usize
    }

    /// There is a guest more. Returns its number.
    pub(in crate::supervisor) fn add(
        &self,
        name: &str,
        window: Option<WindowFiles>,
        listener: &UnixListener,
    ) -> GuestId {
        let mut inner = self.inner();
        let guest = GuestId(inner.next);
        inner.next += 1;
        if let Some(window) = &window {
            let [file, book] = window.descriptors();
            inner.keeper.give(Name::Window(guest), file);
            inner.keeper.give(Name::WindowBook(guest), book);
        }
        inner.keeper.give(Name::Listener(guest), listener.as_fd());
        let entry = Guest::new(name.to_owned(), window, None);
        inner.guests.insert(guest, entry);
        let name = name.to_owned();
        let told = inner.tell(&ToWorker::NameGuest { guest, name }, &[]);
        let told = told.and_then(|()| inner.tell_window(guest, None));
        self.check(&mut inner, told);
        guest
    }

    /// A guest has another name.
    pub(in crate::supervisor) fn rename(&self, guest: GuestId, name: &str) {
        let mut inner = self.inner();
        let Some(entry) = inner.guests.get_mut(&guest) else {
            return;
        };
        name.clone_into(&mut entry.name);
        if let Some(connection) = &mut entry.connection {
            connection.state.set_name(name);
        }
        inner.keep(guest);
        let name = name.to_owned();
        let told = inner.tell(&ToWorker::NameGuest { guest, name }, &[]);
        self.check(&mut inner, told);
    }

    /// A guest is listened for on another socket.
    pub(in crate::supervisor) fn moved(&self, guest: GuestId, listener: &UnixListener) {
        let mut inner = self.inner();
        inner.keeper.take_back(Name::Listener(guest));
        inner.keeper.give(Name::Listener(guest), listener.as_fd());
    }

    /// There is to be no such guest any more. It is not listened for. If it is connected, its
    /// connection ends, and everything else then.
    pub(in crate::supervisor) fn remove(&self, guest: GuestId) {
        let mut inner = self.inner();
        let Some(entry) = inner.guests.get_mut(&guest) else {
            return;
        };
        entry.goes = true;
        let was_frozen = std::mem::take(&mut entry.frozen);
        entry.window = None;
        if let Some(connection) = &entry.connection {
            // Its thread sees that, and says so.
            let _ = shutdown(connection.socket.as_raw_fd(), Shutdown::Both);
        }
        for name in [Name::Listener, Name::Window, Name::WindowBook] {
            inner.keeper.take_back(name(guest));
        }
        if was_frozen {
            inner.keep_frozen();
        }
        if inner.is_gone(guest) {
            let told = inner.tell(&ToWorker::ForgetGuest { guest }, &[]);
            self.check(&mut inner, told);
        }
    }

    /// The worker knows nothing of a guest any more.
    pub(in crate::supervisor) fn forgotten(&self, guest: GuestId) {
        let mut inner = self.inner();
        if inner.is_gone(guest) {
            inner.guests.remove(&guest);
        }
    }

    /// Tells the worker what operators say of the guests' parts of the memory.
    pub(in crate::supervisor) fn set_terms(&self, terms: Vec<Terms>) {
        let mut inner = self.inner();
        let sent = inner.tell(&ToWorker::SetTerms { terms }, &[]);
        self.check(&mut inner, sent);
    }

    /// Sees to it that another process knows the guests, and what operators changed.
    pub(in crate::supervisor) fn keep_guests(&self, guests: &[(String, GuestId)], edits: &Edits) {
        let mut inner = self.inner();
        inner.keeper.keep_value(Name::Roster, &guests);
        inner.keeper.keep_value(Name::Edits, edits);
    }
}
