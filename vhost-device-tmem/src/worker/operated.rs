// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What operators ask the daemon for.

use std::{
    os::fd::BorrowedFd,
    sync::{Arc, PoisonError, RwLock},
};

use super::sharing::Sharing;
use crate::{
    control::{stat, Operated, Request, Stat},
    device::{Engine, Slot},
    link::{FromWorker, GuestId, Link, OperatorRequest},
    policy::Terms,
    size::Bytes,
    store::{Holding, PoolKind, Store},
};

/// The daemon, as operators see it.
pub(super) struct Daemon {
    link: Arc<Link>,
    store: Arc<Store>,
    sharing: Sharing,
    slots: RwLock<Vec<(GuestId, Arc<Slot>)>>,
    worker_starts: u64,
}

impl Daemon {
    /// Answers for guests with these numbers and names, in the order of the command line, as the
    /// last of so many workers.
    pub(super) fn new(
        link: Arc<Link>,
        store: Arc<Store>,
        sharing: Sharing,
        engine: &Engine,
        guests: &[(GuestId, String)],
        worker_starts: u64,
    ) -> Self {
        let slots = guests
            .iter()
            .map(|(guest, name)| (*guest, engine.slot(*guest, name)));
        let this = Self {
            link,
            store,
            sharing,
            slots: RwLock::new(slots.collect()),
            worker_starts,
        };
        this.share();
        this
    }

    fn slots(&self) -> Vec<(GuestId, Arc<Slot>)> {
        let slots = self.slots.read();
        slots.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives the guests that there are their parts of the memory.
    pub(super) fn share(&self) {
        self.sharing.step(&self.slots());
    }

    /// Returns the bytes that guests hold, and those that they could.
    pub(super) fn held(&self) -> (u64, u64) {
        let holdings = self.store.holdings();
        let held = holdings.values().map(Holding::total);
        let all = self.store.shareable();
        (held.fold(0, u64::saturating_add), all)
    }

    /// So many bytes are withheld from guests, from the next sharing on.
    pub(super) fn set_withheld(&self, bytes: u64) {
        self.sharing.set_withheld(bytes);
    }

    /// Operators say something else of guests' parts of the memory.
    pub(super) fn set_terms(&self, terms: Vec<Terms>) {
        self.sharing.set_terms(terms);
        self.share();
    }

    /// There is a guest of this number, or it has this name from now on.
    pub(super) fn name_guest(&self, engine: &Engine, guest: GuestId, name: &str) {
        let slot = engine.slot(guest, name);
        slot.set_name(name);
        let slots = self.slots.write();
        let mut slots = slots.unwrap_or_else(PoisonError::into_inner);
        if !slots.iter().any(|(of, _)| *of == guest) {
            slots.push((guest, slot));
        }
        drop(slots);
        self.share();
    }

    /// Nothing more is taken of a guest, or pages are taken again.
    pub(super) fn freeze(&self, guest: GuestId, frozen: bool) {
        self.store.set_frozen(guest.0, frozen);
    }

    /// There is no such guest any more.
    pub(super) fn forget(&self, guest: GuestId) {
        self.freeze(guest, false);
        let slots = self.slots.write();
        let mut slots = slots.unwrap_or_else(PoisonError::into_inner);
        slots.retain(|(of, _)| *of != guest);
        drop(slots);
        self.share();
    }

    /// Returns a guest's name.
    pub(super) fn name(&self, guest: GuestId) -> String {
        let slots = self.slots();
        let slot = slots.iter().find(|(of, _)| *of == guest);
        slot.map_or_else(|| guest.to_string(), |(_, slot)| slot.name())
    }

    /// Returns how many persistent pages guests have that are connected.
    pub(super) fn persistent(&self) -> u64 {
        let slots = self.slots();
        let pages = slots.iter().map(|(_, slot)| {
            let state = slot.state();
            let session = state.connected_session();
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
        let slots = self.slots();
        let places = slots.iter().map(|(_, slot)| &**slot);
        let mut stat = stat(&self.store, self.worker_starts, places);
        let parts = self.sharing.parts();
        for (told, (guest, _)) in stat.guests.iter_mut().zip(&slots) {
            told.part = parts.get(&guest.0).copied();
            told.frozen = self.store.is_frozen(guest.0);
        }
        stat
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

    fn pass_on(&self, request: &Request, operator: BorrowedFd<'_>) -> Result<(), String> {
        let request = match request {
            Request::Reload { force } => OperatorRequest::Reload { force: *force },
            Request::Guest(edit) => OperatorRequest::Guest(edit.clone()),
            Request::Freeze { guest, frozen } => OperatorRequest::Freeze {
                guest: guest.clone(),
                frozen: *frozen,
            },
            _ => return Err("the supervisor knows nothing of that".to_owned()),
        };
        let sent = self.link.send(&FromWorker::Operator(request), &[operator]);
        sent.map_err(|error| format!("the supervisor cannot be told: {error}"))
    }
}
