// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What operators ask the daemon for.

use std::sync::Arc;

use crate::{
    control::{stat, Operated, Stat},
    device::{Engine, Slot},
    link::{FromWorker, GuestId, Link, OperatorRequest},
    store::Store,
};

/// The daemon, as operators see it.
pub(super) struct Daemon {
    link: Arc<Link>,
    store: Arc<Store>,
    slots: Vec<(GuestId, Arc<Slot>)>,
}

impl Daemon {
    /// Answers for guests with these numbers and names, in the order of the command line.
    pub(super) fn new(
        link: Arc<Link>,
        store: Arc<Store>,
        engine: &Engine,
        guests: &[(GuestId, String)],
    ) -> Self {
        let slots = guests
            .iter()
            .map(|(guest, name)| (*guest, engine.slot(*guest, name)));
        Self {
            link,
            store,
            slots: slots.collect(),
        }
    }

    /// Returns a guest's name.
    pub(super) fn name(&self, guest: GuestId) -> String {
        let slot = self.slots.iter().find(|(of, _)| *of == guest);
        slot.map_or_else(|| guest.to_string(), |(_, slot)| slot.name().to_owned())
    }

    /// Returns how many persistent pages there are.
    pub(super) fn persistent(&self) -> u64 {
        let report = self.store.report();
        report.used_pages.saturating_sub(report.ephemeral_pages)
    }

    fn request(&self, request: OperatorRequest) -> Result<(), String> {
        let sent = self.link.send(&FromWorker::Operator(request), &[]);
        sent.map_err(|error| format!("the supervisor cannot be told: {error}"))
    }
}

impl Operated for Daemon {
    fn stat(&self) -> Stat {
        stat(&self.store, self.slots.iter().map(|(_, slot)| &**slot))
    }

    fn stop(&self, force: bool) -> Result<String, String> {
        let persistent = self.persistent();
        if persistent > 0 && !force {
            return Err(format!(
                "guests would lose {persistent} persistent pages that only this daemon has; \
                 stop --force loses them"
            ));
        }
        tracing::info!("stopping as an operator asked; {persistent} persistent pages are lost");
        self.request(OperatorRequest::Stop)?;
        Ok("stopping".to_owned())
    }

    fn upgrade(&self) -> Result<String, String> {
        self.request(OperatorRequest::Upgrade)?;
        Ok("upgrading; the log says what comes of it".to_owned())
    }
}
