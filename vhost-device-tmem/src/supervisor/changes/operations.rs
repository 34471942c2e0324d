// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What operators do to guests by their names, beside changing which there are.

use super::Changes;
use crate::{device::random_epoch, link::GuestId};

impl Changes {
    fn guest(&self, name: &str) -> Result<GuestId, String> {
        let member = self.guests.iter().find(|it| it.name == name);
        member
            .map(|it| it.guest)
            .ok_or_else(|| format!("there is no guest {name:?}"))
    }

    /// Takes nothing more of a guest, or of all that there are, or takes pages again. Returns what
    /// happens now.
    ///
    /// # Errors
    ///
    /// There is no such guest.
    pub(in crate::supervisor) fn freeze(
        &self,
        name: Option<&str>,
        frozen: bool,
    ) -> Result<String, String> {
        let guests = match name {
            Some(name) => vec![self.guest(name)?],
            None => self.guests.iter().map(|it| it.guest).collect(),
        };
        self.hub.freeze(&guests, frozen);
        let whose = name.map_or_else(
            || format!("all {} guests", guests.len()),
            |name| format!("guest {name:?}"),
        );
        let mut said = if frozen {
            format!(
                "{whose} frozen: puts are refused and nothing more of a window is granted; gets and \
                 flushes go on"
            )
        } else {
            format!("{whose} thawed: pages are taken again")
        };
        tracing::info!("{said}");
        let has_window = |guest: &GuestId| self.hub.window(*guest).is_some();
        if frozen && guests.iter().any(has_window) {
            said += ". What a guest was granted of its window it can go on filling: no put there \
                     passes the daemon";
        }
        Ok(said)
    }

    /// Drops all that a guest has stored, which is of a former life, and tells its driver by another
    /// epoch. Returns what happens now.
    ///
    /// # Errors
    ///
    /// There is no such guest, or it is connected and not to be forced.
    pub(in crate::supervisor) fn begin_epoch(
        &self,
        name: &str,
        force: bool,
    ) -> Result<String, String> {
        let guest = self.guest(name)?;
        let connected = self.hub.connected().contains(&guest);
        if connected && !force {
            return Err(format!(
                "guest {name:?} is connected: its driver would take all swapped pages for lost, and \
                 who needs them gets I/O errors; stop the machine before its disk is set back, or \
                 --force it"
            ));
        }
        if !connected || !self.hub.begin_epoch(guest, random_epoch()) {
            return Ok(format!(
                "guest {name:?} is not connected: it has nothing stored, and its next connection \
                 has an epoch of its own"
            ));
        }
        let said = format!("guest {name:?} begins another epoch: all that it stored is dropped");
        tracing::warn!("{said}, as an operator asked");
        Ok(said
            + ". Its driver forgets its clean pages, and takes swapped ones for lost: who needs one \
               gets an I/O error. Where the disk was set back beneath a machine that runs, reset that \
               machine")
    }

    /// Has a guest go on in the epoch of pages that it was given.
    ///
    /// # Errors
    ///
    /// It cannot.
    pub(in crate::supervisor) fn resume_epoch(&self, name: &str, epoch: u64) -> Result<(), String> {
        let guest = self.guest(name)?;
        if !self.hub.resume_epoch(guest, epoch) {
            let why = "was started, or went, before it could go on in the epoch of its pages";
            return Err(format!("guest {name:?} {why}: it is not restored"));
        }
        Ok(())
    }
}
