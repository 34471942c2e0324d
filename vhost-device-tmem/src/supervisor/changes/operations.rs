// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What operators do to guests by their names, beside changing which there are.

use super::Changes;
use crate::link::GuestId;

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
}
