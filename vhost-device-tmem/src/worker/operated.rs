// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What operators ask the daemon for.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, PoisonError, RwLock},
};

use super::{
    operations::{emptied, flush, flush_shared, Operations},
    sharing::Sharing,
    transfer,
};
use crate::{
    config::parse_uuid,
    control::{answer_passed, shared, stat, Operated, Request, SharedStat, Stat},
    device::{Destruction, Engine, Session, Slot},
    link::{FromWorker, GuestId, Link, OperatorRequest},
    policy::Terms,
    size::Bytes,
    store::{Holding, PoolKind, SharedPool, Store},
};

/// The daemon, as operators see it.
pub(super) struct Daemon {
    link: Arc<Link>,
    store: Arc<Store>,
    sharing: Sharing,
    slots: RwLock<Vec<(GuestId, Arc<Slot>)>>,
    worker_starts: u64,
    operations: Operations,
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
            operations: Operations::default(),
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

    /// Guests may share these pools, and no others.
    pub(super) fn set_shared(&self, pools: Vec<SharedPool>) {
        self.store.set_shared(pools);
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

    /// Returns a guest that is connected.
    fn session(&self, name: &str) -> Result<Arc<Session>, String> {
        let slots = self.slots();
        let slot = slots.iter().find(|(_, slot)| slot.name() == name);
        let (_, slot) = slot.ok_or_else(|| format!("there is no guest {name:?}"))?;
        let state = slot.state();
        let missing = || format!("guest {name:?} is not connected, so that it has no pages");
        state.connected_session().cloned().ok_or_else(missing)
    }

    /// Drops ephemeral pages of a guest, for an operator.
    fn flush(&self, name: &str, pool: Option<u32>, operator: BorrowedFd<'_>) -> Result<(), String> {
        let (session, name) = (self.session(name)?, name.to_owned());
        let work = move || flush(&name, &session, pool);
        self.operations.answer(operator, work)
    }

    /// Drops what is in a shared pool, for an operator.
    fn flush_shared(&self, uuid: &str, operator: BorrowedFd<'_>) -> Result<(), String> {
        let uuid = parse_uuid(uuid)?;
        let mut pools = self.store.shared_pools().into_iter();
        if !pools.any(|pool| pool.terms.uuid == uuid) {
            return Err(format!("shared pool {uuid}: is shared with nobody"));
        }
        let store = Arc::clone(&self.store);
        let work = move || Ok(flush_shared(&store, uuid));
        self.operations.answer(operator, work)
    }

    /// Drops all that a guest has put, for an operator: persistent pages by a new epoch, which the
    /// supervisor gives.
    fn destroy(
        &self,
        name: &str,
        pool: Option<u32>,
        force: bool,
        operator: BorrowedFd<'_>,
    ) -> Result<(), String> {
        let (session, name) = (self.session(name)?, name.to_owned());
        let link = Arc::clone(&self.link);
        self.operations.begin(operator, move |operator| {
            let done = match session.destroy_pools(pool, force) {
                Ok(Destruction::Emptied(flushed)) => Ok(emptied(&name, flushed)),
                Ok(Destruction::TakesEpoch { .. }) => {
                    let request = OperatorRequest::Epoch { guest: name, force };
                    match ask(&link, request, operator.as_fd()) {
                        Ok(()) => return,
                        Err(error) => Err(error),
                    }
                }
                Err(error) => Err(format!("guest {name:?}: {error}")),
            };
            answer_passed(operator.as_fd(), done);
        })
    }

    /// Saves a guest to an operator.
    fn save(&self, name: &str, live: bool, operator: BorrowedFd<'_>) -> Result<(), String> {
        let (session, name) = (self.session(name)?, name.to_owned());
        let work = move |operator| transfer::save(&name, &session, live, operator);
        self.operations.begin(operator, work)
    }

    /// Gives a guest pages that an operator sends. The supervisor has it go on with them.
    fn restore(&self, name: &str, operator: BorrowedFd<'_>) -> Result<(), String> {
        let (session, name) = (self.session(name)?, name.to_owned());
        let link = Arc::clone(&self.link);
        self.operations.begin(operator, move |operator| {
            let restored = transfer::restore(&name, &session, operator);
            let Some((restored, stream)) = restored else {
                return;
            };
            let mut done = format!(
                "guest {name:?} has {} pages that were saved of guest {:?}, and goes on in their \
                 epoch; start the machine that was saved with them (QEMU: cont)",
                session.persistent_pages(),
                restored.head.name
            );
            if restored.totals.damaged > 0 {
                done += &format!(
                    "; {} pages were damaged when it was saved, and are missing",
                    restored.totals.damaged
                );
            }
            let (guest, epoch) = (name, restored.head.epoch);
            let request = OperatorRequest::Resume { guest, epoch, done };
            if let Err(error) = ask(&link, request, stream.as_fd()) {
                answer_passed(stream.as_fd(), Err(error));
            }
        })
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
        let pools = self.store.shared_pools().into_iter();
        let told = pools.map(|pool| SharedStat {
            part: parts.get(&pool.terms.number).copied(),
            ..shared(&pool, |guest| self.name(GuestId(guest)))
        });
        stat.shared = told.collect();
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
            Request::Flush { guest, pool } => return self.flush(guest, *pool, operator),
            Request::Destroy { guest, pool, force } => {
                return self.destroy(guest, *pool, *force, operator);
            }
            Request::Save { guest, live } => return self.save(guest, *live, operator),
            Request::Restore { guest } => return self.restore(guest, operator),
            Request::Epoch { guest, force } => OperatorRequest::Epoch {
                guest: guest.clone(),
                force: *force,
            },
            Request::Reload { force } => OperatorRequest::Reload { force: *force },
            Request::Guest(edit) => OperatorRequest::Guest(edit.clone()),
            Request::Shared(edit) => OperatorRequest::Shared(edit.clone()),
            Request::FlushShared { uuid } => return self.flush_shared(uuid, operator),
            Request::Freeze { guest, frozen } => OperatorRequest::Freeze {
                guest: guest.clone(),
                frozen: *frozen,
            },
            _ => return Err("the supervisor knows nothing of that".to_owned()),
        };
        ask(&self.link, request, operator)
    }
}

/// Has the supervisor carry a request out, and answer it on the operator's connection.
fn ask(link: &Link, request: OperatorRequest, operator: BorrowedFd<'_>) -> Result<(), String> {
    let sent = link.send(&FromWorker::Operator(request), &[operator]);
    sent.map_err(|error| format!("the supervisor cannot be told: {error}"))
}
