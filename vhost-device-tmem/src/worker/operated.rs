// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What operators ask the daemon for.

use std::sync::Arc;

use crate::{
    control::{stat, Operated, Stat},
    device::{Engine, Slot},
    link::{FromWorker, GuestId, Link, OperatorRequest},
    size::Bytes,
    store::{PoolKind, Store},
};

/// The daemon, as operators see it.
pub(super) struct Daemon {
    link: Arc<Link>,
    store: Arc<Store>,
    slots: Vec<(GuestId, Arc<Slot>)>,
    worker_starts: u64,
}

impl Daemon {
    /// Answers for guests with these numbers and names, in the order of the command line, as the
    /// last of so many workers.
    pub(super) fn new(
        link: Arc<Link>,
        store: Arc<Store>,
        engine: &Engine,
        guests: &[(GuestId, String)],
        worker_starts: u64,
    ) -> Self {
        let slots = guests
            .iter()
            .map(|(guest, name)| (*guest, engine.slot(*guest, name)));
        Self {
            link,
            store,
            slots: slots.collect(),
            worker_starts,
        }
    }

    /// Returns a guest's name.
    pub(super) fn name(&self, guest: GuestId) -> String {
        let slot = self.slots.iter().find(|(of, _)| *of == guest);
        slot.map_or_else(|| guest.to_string(), |(_, slot)| slot.name().to_owned())
    }

    /// Returns how many persistent pages guests have that are connected.
    pub(super) fn persistent(&self) -> u64 {
        let pages = self.slots.iter().map(|(_, slot)| {
            let state = slot.state();
            let session = state.session.as_ref().filter(|_| state.connected);
            let pools = session.map(|session| session.pools()).unwrap_or_default();
            let persistent = pools
                .iter()
                .filter(|pool| pool.kind == PoolKind::Persistent);
            persistent.map(|pool| pool.pages).sum::<u64>()
        });
        pages.sum()
    }

    /// Says in the log what there is.
    pub(super) fn summarise(&self) {
        let stat = Operated::stat(self);
        let connected = stat.guests.iter().filter(|guest| guest.connected).count();
        let requests: u64 = stat.guests.iter().map(|guest| guest.requests).sum();
        tracing::info!(
            "{connected} of {} guests connected, {requests} requests; {} of {} used, {} resident; \
             {} pages, {} of them ephemeral; {} evictions",
            stat.guests.len(),
            Bytes(stat.used_bytes),
            Bytes(stat.capacity_bytes),
            Bytes(stat.resident_bytes),
            stat.used_pages,
            stat.ephemeral_pages,
            stat.evictions
        );
    }

    fn request(&self, request: OperatorRequest) -> Result<(), String> {
        let sent = self.link.send(&FromWorker::Operator(request), &[]);
        sent.map_err(|error| format!("the supervisor cannot be told: {error}"))
    }
}

impl Operated for Daemon {
    fn stat(&self) -> Stat {
        Stat {
            worker_starts: self.worker_starts,
            ..stat(&self.store, self.slots.iter().map(|(_, slot)| &**slot))
        }
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
