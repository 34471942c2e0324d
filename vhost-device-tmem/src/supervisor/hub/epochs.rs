// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! New epochs of guests that are connected: what they have stored is of a former life.

use super::Hub;
use crate::link::{GuestId, ToWorker};

impl Hub {
    /// Gives a guest another epoch: all that it has stored is dropped, and its driver told so. False
    /// if it is not connected, and has stored nothing.
    pub(in crate::supervisor) fn begin_epoch(&self, guest: GuestId, epoch: u64) -> bool {
        let mut inner = self.inner();
        let Some(entry) = inner.guests.get_mut(&guest) else {
            return false;
        };
        let Some(connection) = &mut entry.connection else {
            return false;
        };
        // Should the worker not come to drop them, the next one is not to take them over.
        entry.leaves += 1;
        entry.renewed = true;
        connection.state.set_unclean(true);
        connection.state.set_epoch(epoch);
        let orders = connection.state.bring_up();
        inner.keep(guest);
        let told = inner.tell(&ToWorker::RemoveGuest { guest }, &[]);
        if self.check(&mut inner, told) {
            self.send(&mut inner, guest, orders);
        }
        true
    }

    /// A guest of which no virtqueue runs goes on in the epoch of the pages that it was given. False if
    /// it is not connected, or runs.
    pub(in crate::supervisor) fn resume_epoch(&self, guest: GuestId, epoch: u64) -> bool {
        let mut inner = self.inner();
        let Some(connection) = inner.connection(guest) else {
            return false;
        };
        if connection.state.has_running_ring() {
            return false;
        }
        connection.state.set_epoch(epoch);
        inner.keep(guest);
        let told = inner.tell(&ToWorker::SetEpoch { guest, epoch }, &[]);
        self.check(&mut inner, told);
        true
    }
}
