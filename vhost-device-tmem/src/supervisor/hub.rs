// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where front-ends' connections and the worker meet.

mod answers;
mod epochs;
mod frozen;
mod members;
mod shared;
mod sharing;

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use tracing::level_filters::LevelFilter;
use vmm_sys_util::eventfd::EventFd;

use super::{
    guest::{GuestError, GuestState, Order, Slot},
    keep::Keeper,
};
use crate::{
    device::random_epoch,
    link::{FromWorker, GuestId, Link, LinkError, ToWorker},
    window::{WindowFiles, WindowSource},
};

/// The worker that serves.
#[derive(Debug)]
struct Serving {
    link: Arc<Link>,
    /// Of no other worker.
    number: u64,
}

/// A front-end's connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) state: GuestState,
    /// What it handed over.
    pub(super) files: BTreeMap<Slot, File>,
    /// The connection itself, to be kept.
    pub(super) socket: File,
}

/// A guest, connected or not.
#[derive(Debug)]
struct Guest {
    name: String,
    window: Option<WindowFiles>,
    connection: Option<Connection>,
    /// Connections, or epochs of one, that ended and whose pages may still be there.
    leaves: u32,
    /// An epoch ended, and not the connection.
    renewed: bool,
    /// There is to be no such guest any more.
    goes: bool,
    /// Nothing more is taken of it.
    frozen: bool,
}

impl Guest {
    fn new(name: String, window: Option<WindowFiles>, connection: Option<Connection>) -> Self {
        Self {
            name,
            window,
            connection,
            leaves: 0,
            renewed: false,
            goes: false,
            frozen: false,
        }
    }
}

#[derive(Debug)]
struct Inner {
    guests: BTreeMap<GuestId, Guest>,
    /// The number of the next guest: none has the number of one before.
    next: u32,
    worker: Option<Serving>,
    /// Why the worker is to be replaced.
    broken: Option<String>,
    /// The connections, by their epochs, whose pages the worker was told to keep at its start.
    known: Vec<(GuestId, u64)>,
    /// The last question that was asked, and the last that was answered.
    asked: u64,
    answered: u64,
    /// Messages of front-ends that are being carried out.
    busy: u32,
    keeper: Keeper,
}

/// What connections' threads and the supervisor's own thread share.
///
/// # Locking
///
/// One lock, held while a message is sent to the worker, so that all workers hear everything in one
/// order, and a new one either of a change or of its result. Nothing else is waited for with it.
#[derive(Debug)]
pub(super) struct Hub {
    inner: Mutex<Inner>,
    /// A ring was stopped, a question answered, a worker came.
    changed: Condvar,
    /// Wakes the supervisor's own thread.
    wake: EventFd,
    /// Whether windows are memory regions of the devices.
    shares: bool,
}

impl Hub {
    /// Makes a hub for guests with these numbers and names, of which some may have windows and be
    /// connected.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no descriptor left.
    pub(super) fn new(
        guests: Vec<(GuestId, String, Option<WindowFiles>, Option<Connection>)>,
        source: WindowSource,
        keeper: Keeper,
    ) -> std::io::Result<Self> {
        let guests = guests.into_iter().map(|(guest, name, window, connection)| {
            let entry = Guest::new(name, window, connection);
            (guest, entry)
        });
        let guests: BTreeMap<_, _> = guests.collect();
        let last = guests.keys().next_back();
        Ok(Self {
            inner: Mutex::new(Inner {
                next: last.map_or(0, |last| last.0 + 1),
                guests,
                worker: None,
                broken: None,
                known: Vec::new(),
                asked: 0,
                answered: 0,
                busy: 0,
                keeper,
            }),
            changed: Condvar::new(),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            shares: source == WindowSource::Virtio,
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what is readable when the supervisor's own thread has something to do.
    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    fn rouse(&self) {
        // It can only fail where the counter is full, and then the thread is awake.
        let _ = self.wake.write(1);
    }

    /// A connection's thread takes a message, or has carried it out.
    pub(super) fn busy(&self, busy: bool) {
        let mut inner = self.inner();
        if busy {
            inner.busy += 1;
        } else {
            inner.busy -= 1;
            drop(inner);
            self.changed.notify_all();
        }
    }

    /// Waits until no message is being carried out; false if that takes longer.
    pub(super) fn wait_quiet(&self, until: Instant) -> bool {
        self.wait_for(|inner| inner.busy == 0, until)
    }

    /// Waits until something is so; false if it is not by then.
    fn wait_for(&self, done: impl Fn(&mut Inner) -> bool, until: Instant) -> bool {
        let mut inner = self.inner();
        while !done(&mut inner) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let changed = self.changed.wait_timeout(inner, left);
            inner = changed.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// A front-end connected. False if the guest has one already.
    pub(super) fn connect(&self, mut connection: Connection) -> bool {
        let mut inner = self.inner();
        let guest = connection.state.guest();
        let Some(entry) = inner.guests.get_mut(&guest) else {
            return false;
        };
        if entry.connection.is_some() || entry.goes {
            return false;
        }
        connection.state.set_unclean(entry.leaves > 0);
        let orders = connection.state.bring_up();
        entry.connection = Some(connection);
        inner.keep(guest);
        self.send(&mut inner, guest, orders);
        true
    }

    /// Waits until no front-end of the guest is connected, if the one that is has gone already. False
    /// if it is still there, or takes longer to be let go.
    pub(super) fn wait_free(&self, guest: GuestId, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut inner = self.inner();
        loop {
            let Some(connection) = inner.connection(guest) else {
                return true;
            };
            let mut gone = [PollFd::new(connection.socket.as_fd(), PollFlags::empty())];
            let left = until.saturating_duration_since(Instant::now());
            if !matches!(poll(&mut gone, PollTimeout::ZERO), Ok(1..)) || left.is_zero() {
                return false;
            }
            let changed = self.changed.wait_timeout(inner, left);
            inner = changed.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The front-end's connection ended.
    pub(super) fn disconnect(&self, guest: GuestId) {
        let mut inner = self.inner();
        let Some(entry) = inner.guests.get_mut(&guest) else {
            return;
        };
        entry.connection = None;
        entry.leaves += 1;
        let goes = entry.goes;
        inner.keep(guest);
        let order = if goes {
            ToWorker::ForgetGuest { guest }
        } else {
            ToWorker::RemoveGuest { guest }
        };
        let told = inner.tell(&order, &[]);
        self.check(&mut inner, told);
        self.rouse();
        drop(inner);
        self.changed.notify_all();
    }

    /// Carries out what a front-end asks for, and tells the worker. [`None`] if the guest is not
    /// connected.
    pub(super) fn change<R>(
        &self,
        guest: GuestId,
        change: impl FnOnce(&mut Connection) -> Result<(Vec<Order>, R), GuestError>,
    ) -> Option<Result<R, GuestError>> {
        let mut inner = self.inner();
        let entry = inner.guests.get_mut(&guest)?;
        let connection = entry.connection.as_mut()?;
        let ran = connection.state.has_running_ring();
        let changed = change(connection);
        let runs = connection.state.has_running_ring();
        if ran != runs {
            self.rouse();
        }
        let (orders, result) = match changed {
            Ok(changed) => changed,
            Err(error) => return Some(Err(error)),
        };
        inner.keep(guest);
        self.send(&mut inner, guest, orders);
        drop(inner);
        self.changed.notify_all();
        Some(Ok(result))
    }

    /// Sends orders about a guest, if there is a worker: one that comes later hears of it anyway.
    fn send(&self, inner: &mut Inner, guest: GuestId, orders: Vec<Order>) {
        for order in orders {
            let sent = inner.order(guest, &order);
            if !self.check(inner, sent) {
                return;
            }
        }
    }

    /// Gives the worker up if something could not be sent.
    fn check(&self, inner: &mut Inner, sent: Result<(), LinkError>) -> bool {
        match sent {
            Ok(()) => true,
            Err(LinkError::Closed) => {
                // That it is dead is seen elsewhere.
                inner.worker = None;
                false
            }
            Err(error) => {
                self.give_up(inner, &format!("cannot be told anything: {error}"));
                false
            }
        }
    }

    fn give_up(&self, inner: &mut Inner, why: &str) {
        if inner.worker.take().is_some() {
            inner.broken = Some(why.to_owned());
            self.rouse();
        }
    }

    /// The pages of a connection that ended, or of an epoch of one, are gone. Returns whether it was
    /// an epoch.
    pub(super) fn removed(&self, guest: GuestId) -> bool {
        let mut inner = self.inner();
        let Some(entry) = inner.guests.get_mut(&guest) else {
            return false;
        };
        entry.leaves = entry.leaves.saturating_sub(1);
        let (left, renewed) = (entry.leaves, std::mem::take(&mut entry.renewed));
        if left == 0 {
            inner.removed(guest);
        }
        renewed
    }

    /// Returns the guests whose pages are still wanted, for a worker that begins.
    pub(super) fn known(&self) -> Vec<GuestId> {
        let mut inner = self.inner();
        let stay = inner.guests.values().filter(|guest| !guest.goes);
        let connected = stay.filter_map(|guest| guest.connection.as_ref());
        let wanted = connected.map(|connection| &connection.state);
        let wanted = wanted.filter(|state| !state.is_unclean());
        inner.known = wanted.map(|state| (state.guest(), state.epoch())).collect();
        inner.known.iter().map(|(guest, _)| *guest).collect()
    }

    /// Gives all guests a new epoch, since what they have stored cannot be vouched for. To be
    /// called before the worker is [attached](Self::attach), which then lets go of it.
    pub(super) fn new_epochs(&self) {
        let mut inner = self.inner();
        let guests: Vec<_> = inner.guests.keys().copied().collect();
        for guest in guests {
            if let Some(connection) = inner.connection(guest) {
                connection.state.set_epoch(random_epoch());
                inner.keep(guest);
            }
        }
    }

    /// A worker has begun that was told of [`Self::known`]: it hears of all that happened meanwhile,
    /// and serves from now on.
    ///
    /// # Errors
    ///
    /// [`LinkError`], of what could not be said to it.
    pub(super) fn attach(&self, number: u64, link: Arc<Link>) -> Result<(), LinkError> {
        let mut inner = self.inner();
        inner.broken = None;
        inner.worker = Some(Serving { link, number });
        let attached = inner.bring_up();
        if attached.is_err() {
            inner.worker = None;
        }
        drop(inner);
        self.changed.notify_all();
        attached
    }

    /// The worker is gone, or is to stop.
    pub(super) fn detach(&self) {
        self.inner().worker = None;
    }

    /// Returns why the worker is to be replaced, if it is. It is told nothing any more.
    pub(super) fn take_broken(&self) -> Option<String> {
        self.inner().broken.take()
    }

    /// Asks the worker whether it is there, by a question of the number that is returned.
    pub(super) fn ask(&self) -> u64 {
        let mut inner = self.inner();
        inner.asked += 1;
        let token = inner.asked;
        let sent = inner.tell(&ToWorker::Ping { token }, &[]);
        self.check(&mut inner, sent);
        token
    }

    /// Has the worker say in the log what there is.
    pub(super) fn summarise(&self) {
        let mut inner = self.inner();
        let sent = inner.tell(&ToWorker::Summarise, &[]);
        self.check(&mut inner, sent);
    }

    /// Has the worker log what is of `level` or worse.
    pub(super) fn set_log_level(&self, level: LevelFilter) {
        let mut inner = self.inner();
        let level = level.to_string();
        let sent = inner.tell(&ToWorker::SetLogLevel { level }, &[]);
        self.check(&mut inner, sent);
    }

    /// Takes note of what the worker of this number said.
    pub(super) fn heard(&self, number: u64, message: &FromWorker) {
        let mut inner = self.inner();
        if inner
            .worker
            .as_ref()
            .is_none_or(|worker| worker.number != number)
        {
            return;
        }
        match message {
            FromWorker::RingStopped { guest, ring, base } => {
                if let Some(connection) = inner.connection(*guest) {
                    connection.state.stopped(*ring, *base);
                }
            }
            FromWorker::Pong { token, .. } => inner.answered = inner.answered.max(*token),
            FromWorker::GuestFailed { guest, why } => {
                if let Some(connection) = inner.connection(*guest) {
                    connection.state.failed(why.clone());
                    inner.keep(*guest);
                }
            }
            _ => return,
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// A guest is not to be served any more.
    pub(super) fn blame(&self, guest: GuestId) {
        let mut inner = self.inner();
        if let Some(connection) = inner.connection(guest) {
            let name = connection.state.name();
            tracing::error!(
                "guest {name:?} has brought the worker down again and again: it is not served any \
                 more until it connects anew"
            );
            connection.state.blamed();
            inner.keep(guest);
        }
    }

    /// The ephemeral pages of a guest go, if there is a worker.
    pub(super) fn abandon(&self, guest: GuestId) {
        let mut inner = self.inner();
        if inner.worker.is_none() {
            return;
        }
        if let Some(connection) = inner.connection(guest) {
            let order = connection.state.abandon();
            inner.keep(guest);
            self.send(&mut inner, guest, vec![order]);
        }
    }
}

/// Returns the descriptor of an event.
pub(super) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: The event is open as long as it is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

impl Inner {
    fn connection(&mut self, guest: GuestId) -> Option<&mut Connection> {
        self.guests.get_mut(&guest)?.connection.as_mut()
    }

    /// Returns whether there is nothing more of a guest than what the worker may know.
    fn is_gone(&self, guest: GuestId) -> bool {
        let entry = self.guests.get(&guest);
        entry.is_some_and(|entry| entry.goes && entry.connection.is_none())
    }

    fn state(&self, guest: GuestId) -> Option<&GuestState> {
        let connection = self.guests.get(&guest)?.connection.as_ref()?;
        Some(&connection.state)
    }

    /// Says something to the worker, if there is one.
    fn tell(&self, message: &ToWorker, files: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        match &self.worker {
            Some(worker) => worker.link.send(message, files),
            None => Ok(()),
        }
    }

    fn order(&mut self, guest: GuestId, order: &Order) -> Result<(), LinkError> {
        let Some(Serving { link, .. }) = &self.worker else {
            return Ok(());
        };
        let link = Arc::clone(link);
        let Some(connection) = self.connection(guest) else {
            return Ok(());
        };
        let files = order
            .slots
            .iter()
            .filter_map(|slot| connection.files.get(slot));
        let files: Vec<_> = files.map(AsFd::as_fd).collect();
        // INVARIANT: The state names a slot only after its file was put there.
        debug_assert_eq!(files.len(), order.slots.len());
        link.send(&order.message, &files)?;
        connection.state.sent(&order.message);
        Ok(())
    }

    fn removed(&mut self, guest: GuestId) {
        let Some(entry) = self.guests.get_mut(&guest) else {
            return;
        };
        entry.leaves = 0;
        if let Some(connection) = &mut entry.connection {
            connection.state.set_unclean(false);
            self.keep(guest);
        }
    }

    /// Brings a worker that has just begun to where the one before was.
    fn bring_up(&mut self) -> Result<(), LinkError> {
        let known = std::mem::take(&mut self.known);
        let guests: Vec<_> = self.guests.keys().copied().collect();
        for guest in guests {
            if self.is_gone(guest) {
                // The last worker may not have said so.
                self.tell(&ToWorker::ForgetGuest { guest }, &[])?;
                continue;
            }
            let before = known.iter().find(|(of, _)| *of == guest);
            let now = self.state(guest).map(GuestState::epoch);
            self.tell_window(guest, now)?;
            self.tell_frozen(guest)?;
            match before {
                // It has let go of everybody else's pages.
                None => self.removed(guest),
                Some((_, epoch)) if Some(*epoch) != now => {
                    self.tell(&ToWorker::RemoveGuest { guest }, &[])?;
                }
                Some(_) => {}
            }
            let orders = self.state(guest).map(GuestState::bring_up);
            for order in orders.unwrap_or_default() {
                self.order(guest, &order)?;
            }
        }
        Ok(())
    }

    /// Tells a worker that has just begun of a guest's window, if it has one.
    fn tell_window(&self, guest: GuestId, epoch: Option<u64>) -> Result<(), LinkError> {
        let entry = self.guests.get(&guest);
        match entry.and_then(|entry| entry.window.as_ref()) {
            Some(window) => self.tell(&ToWorker::SetWindow { guest, epoch }, &window.descriptors()),
            None => Ok(()),
        }
    }

    /// Sees to it that another process could go on with the connection.
    fn keep(&mut self, guest: GuestId) {
        let Self { guests, keeper, .. } = self;
        if let Some(entry) = guests.get(&guest) {
            keeper.keep(guest, entry.connection.as_ref());
        }
    }
}
