// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests of whom nothing more is taken. It stays so until the operator says otherwise, whatever
//! becomes of connections and workers.

use super::{Hub, Inner};
use crate::{
    link::{GuestId, LinkError, ToWorker},
    supervisor::keep::Name,
};

impl Hub {
    /// Takes nothing more of some guests, or takes pages again.
    pub(in crate::supervisor) fn freeze(&self, guests: &[GuestId], frozen: bool) {
        let mut inner = self.inner();
        for guest in guests {
            if let Some(entry) = inner.guests.get_mut(guest) {
                entry.frozen = frozen;
            }
            let told = inner.tell_frozen(*guest);
            self.check(&mut inner, told);
        }
        inner.keep_frozen();
    }
}

impl Inner {
    /// Tells the worker, if there is one, whether something is taken of a guest.
    pub(super) fn tell_frozen(&self, guest: GuestId) -> Result<(), LinkError> {
        let frozen = self.guests.get(&guest).is_some_and(|entry| entry.frozen);
        self.tell(&ToWorker::FreezeGuest { guest, frozen }, &[])
    }

    /// Sees to it that another process knows who is frozen.
    pub(super) fn keep_frozen(&mut self) {
        let frozen = self.guests.iter().filter(|(_, entry)| entry.frozen);
        let frozen: Vec<_> = frozen.map(|(guest, _)| *guest).collect();
        self.keeper.keep_value(Name::Frozen, &frozen);
    }
}
