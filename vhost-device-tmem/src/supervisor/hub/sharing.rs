// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Windows that are memory regions of the device itself.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use super::{Connection, Hub, Inner};
use crate::{
    link::GuestId,
    supervisor::{guest::Slot, share::Asking},
    window::WindowFiles,
};

impl Inner {
    /// Returns the connection of this epoch, if the front-end is being asked on it.
    fn asked(&mut self, guest: GuestId, epoch: u64) -> Option<&mut Connection> {
        let connection = self.connection(guest)?;
        let state = &connection.state;
        (state.epoch() == epoch && state.is_sharing()).then_some(connection)
    }

    /// Returns what the guest's front-end is asked.
    fn asking(&self, guest: GuestId) -> Option<Asking> {
        let entry = self.guests.get(&guest)?;
        let connection = entry.connection.as_ref()?;
        let window = entry.window.as_ref()?;
        let [file, _] = window.descriptors();
        let channel = connection.files.get(&Slot::Channel)?;
        Some(Asking {
            guest,
            epoch: connection.state.epoch(),
            channel: channel.as_fd().try_clone_to_owned().ok()?.into(),
            window: file.try_clone_to_owned().ok()?,
            size: window.size()?,
        })
    }
}

impl Hub {
    /// Returns the size of a guest's window if it is to be a memory region of the device.
    pub(in crate::supervisor) fn shared_size(&self, guest: GuestId) -> Option<u64> {
        if !self.shares {
            return None;
        }
        let inner = self.inner();
        let window = inner.guests.get(&guest)?.window.as_ref()?;
        window.size()
    }

    /// Returns by what the file of a guest's window is told from others, if it has one.
    pub(in crate::supervisor) fn window_node(&self, guest: GuestId) -> Option<(u64, u64)> {
        let inner = self.inner();
        let window = inner.guests.get(&guest)?.window.as_ref();
        window.and_then(WindowFiles::node)
    }

    /// Returns what a guest's front-end has to be asked, if that is so: the caller does it.
    pub(in crate::supervisor) fn begin_sharing(&self, guest: GuestId) -> Option<Asking> {
        let mut inner = self.inner();
        if !inner.connection(guest)?.state.begin_sharing() {
            return None;
        }
        // Before anything is said: whoever comes after this process has to know of it.
        inner.keep(guest);
        let asking = inner.asking(guest);
        drop(inner);
        if asking.is_none() {
            self.give_up_sharing(guest, None, false);
        }
        asking
    }

    /// Waits until the device of the connection that is asked is known to be started. False if it is
    /// not by then.
    pub(in crate::supervisor) fn wait_started(
        &self,
        guest: GuestId,
        epoch: u64,
        patience: Duration,
    ) -> bool {
        let started = |inner: &mut Inner| {
            let connection = inner.asked(guest, epoch);
            connection.is_some_and(|connection| connection.state.is_started())
        };
        self.wait_for(started, Instant::now() + patience)
    }

    /// Waits until nobody is asked any more: the window is mapped, or the connection has ended. False
    /// if that takes longer.
    pub(in crate::supervisor) fn wait_shared(
        &self,
        guest: GuestId,
        epoch: u64,
        patience: Duration,
    ) -> bool {
        let shared = |inner: &mut Inner| inner.asked(guest, epoch).is_none();
        self.wait_for(shared, Instant::now() + patience)
    }

    /// The front-end was asked in vain, on the connection of this epoch if one is named: all goes on
    /// without. `closed`: on that socket it cannot be asked any more.
    pub(in crate::supervisor) fn give_up_sharing(
        &self,
        guest: GuestId,
        epoch: Option<u64>,
        closed: bool,
    ) {
        let mut inner = self.inner();
        let Some(connection) = inner.connection(guest) else {
            return;
        };
        if epoch.is_some_and(|epoch| connection.state.epoch() != epoch) {
            return;
        }
        if closed {
            connection.files.remove(&Slot::Channel);
        }
        let orders = connection.state.give_up_sharing(closed);
        inner.keep(guest);
        self.send(&mut inner, guest, orders);
    }
}
