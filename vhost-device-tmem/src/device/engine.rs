// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The request handler: serves the virtqueues of all guests on a few threads.
//!
//! It knows nothing of connections. Whoever has them tells it of guests, their memory and their
//! virtqueues, one call for each thing that can happen; all of it is plain data and descriptors.

use std::{
    collections::BTreeMap,
    fmt, io,
    os::fd::OwnedFd,
    sync::{mpsc, Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_tmem_abi::{FIRST_DATA_QUEUE, QUEUE_CONTROL, QUEUE_EVENT};

use super::{
    eventfd::{Call, EventFdError, Kick},
    fault::handle_bus_errors,
    lenders::Lenders,
    memory::{GuestMap, MemoryError, MemoryRegion},
    place::Loads,
    polling::Polling,
    request::QueueKind,
    ring::{Ring, RingError, RingKind, RingLayout, RingParts},
    session::Session,
    slot::Slot,
    worker::{Mail, Order, RingId, Worker},
    Limits,
};
use crate::{
    store::{Dropped, Store, Walk},
    window::{Window, WindowError},
};

/// The number of a guest. It is the same for all processes that serve it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct GuestId(pub u32);

impl fmt::Display for GuestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How guests are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Threads; 0 for as many as there are processors.
    pub threads: usize,
    /// How long an empty virtqueue is looked at before its notifications are waited for, at most.
    pub poll: Duration,
    /// What drivers may ask for.
    pub limits: Limits,
    /// For tests: chunks of windows that are taken back, and asked for, at each look.
    pub taken_anyway: u32,
}

/// Whoever watches over the threads. It is called by them, and must not wait for anything.
pub trait Observer: Send + Sync {
    /// A thread begins to serve a guest. It does so for no longer than a turn.
    fn begin(&self, _thread: usize, _guest: GuestId) {}

    /// A thread does not serve that guest any more.
    fn end(&self, _thread: usize) {}

    /// A guest is not served any more, as its memory cannot be had.
    fn guest_failed(&self, _guest: GuestId, _why: &str) {}
}

/// Nobody watches.
impl Observer for () {}

/// Why something cannot be done for a guest.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no guest of that number.
    #[error("there is no guest {0:?}")]
    NoGuest(GuestId),
    /// There is one already.
    #[error("there is a guest {0:?} already")]
    GuestExists(GuestId),
    /// The device does not have that virtqueue.
    #[error(
        "there is no virtqueue {ring}: the device has {count}, so that num_vqs is to be {count}"
    )]
    NoRing {
        /// Its number.
        ring: u16,
        /// How many there are.
        count: u16,
    },
    /// The memory cannot be used.
    #[error("its memory cannot be used: {0}")]
    Memory(#[from] MemoryError),
    /// The virtqueue cannot run.
    #[error("virtqueue {ring} cannot run: {error}")]
    Ring {
        /// Its number.
        ring: u16,
        /// Why.
        #[source]
        error: RingError,
    },
    /// The descriptor is not one to notify by.
    #[error("the {what} descriptor of virtqueue {ring} cannot be used: {error}")]
    Descriptor {
        /// Kick or call.
        what: &'static str,
        /// The virtqueue.
        ring: u16,
        /// Why.
        #[source]
        error: EventFdError,
    },
    /// The files are not those of a window, or it cannot be mapped.
    #[error("its window cannot be used: {0}")]
    Window(#[from] WindowError),
    /// The operating system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The threads have ended.
    #[error("the threads have ended")]
    Stopped,
}

/// A guest that is connected.
///
/// # Locking
///
/// Its lock is held while the threads are waited for. They take none of the engine's locks.
struct Guest {
    session: Arc<Session>,
    slot: Arc<Slot>,
    features: u64,
    map: Arc<GuestMap>,
    /// The virtqueues that run, and the threads that serve them.
    rings: BTreeMap<u16, usize>,
}

struct Thread {
    mail: Arc<Mail>,
    handle: Mutex<Option<thread::JoinHandle<()>>>,
}

/// All guests, and the threads that serve them.
///
/// All methods may be called from any thread. They return when what they say is so: when
/// [`Self::stop_ring`] has returned, nothing of the virtqueue is touched any more, and when
/// [`Self::set_memory`] has, nothing of the memory that was there before.
pub struct Engine {
    config: EngineConfig,
    store: Arc<Store>,
    threads: Vec<Thread>,
    loads: Mutex<Loads>,
    guests: Mutex<BTreeMap<GuestId, Arc<Mutex<Guest>>>>,
    slots: Mutex<BTreeMap<GuestId, Arc<Slot>>>,
    lenders: Arc<Lenders>,
}

impl Engine {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn start(
        store: Arc<Store>,
        config: EngineConfig,
        observer: Arc<dyn Observer>,
    ) -> io::Result<Self> {
        handle_bus_errors()?;
        let count = match config.threads {
            0 => thread::available_parallelism()?.get(),
            count => count,
        };
        // The threads that were started end with it if another cannot be.
        let lenders = Lenders::new(Arc::clone(&store), config.taken_anyway);
        let mut this = Self {
            config,
            store,
            lenders: Arc::new(lenders),
            threads: Vec::new(),
            loads: Mutex::new(Loads::new(count)),
            guests: Mutex::default(),
            slots: Mutex::default(),
        };
        for number in 0..count {
            let mail = Arc::new(Mail::new()?);
            let (sender, started) = mpsc::channel();
            let (its_mail, observer) = (Arc::clone(&mail), Arc::clone(&observer));
            let handle = thread::Builder::new()
                .name(format!("rings {number}"))
                .spawn(move || match Worker::new(number, its_mail, observer) {
                    Ok(worker) => {
                        let _ = sender.send(Ok(()));
                        worker.run();
                    }
                    Err(error) => {
                        let _ = sender.send(Err(error));
                    }
                })?;
            this.threads.push(Thread {
                mail,
                handle: Mutex::new(Some(handle)),
            });
            started.recv().map_err(io::Error::other)??;
        }
        Ok(this)
    }

    /// Returns what drivers may ask for.
    pub fn limits(&self) -> &Limits {
        &self.config.limits
    }

    /// Returns the place of a guest, which there is from the first call on, whether it is
    /// connected or not.
    pub fn slot(&self, guest: GuestId, name: &str) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        let slot = slots.entry(guest);
        Arc::clone(slot.or_insert_with(|| Arc::new(Slot::new(name))))
    }

    /// Returns who lends guests chunks of their windows.
    pub fn lenders(&self) -> &Arc<Lenders> {
        &self.lenders
    }

    /// A guest has a window, which nobody else serves: the file of it, and the one in which book is
    /// kept. `epoch` is that of its connection, if there is one. To be called before the guest is
    /// added.
    ///
    /// # Errors
    ///
    /// [`EngineError::Window`], and it has none.
    pub fn set_window(
        &self,
        guest: GuestId,
        epoch: Option<u64>,
        file: OwnedFd,
        book: OwnedFd,
    ) -> Result<(), EngineError> {
        let window = Window::open(file, book)?;
        self.lenders.add(guest, window, epoch);
        Ok(())
    }

    /// A guest is connected. It has no memory and no virtqueues yet.
    ///
    /// # Errors
    ///
    /// [`EngineError::GuestExists`].
    pub fn add_guest(
        &self,
        guest: GuestId,
        name: &str,
        epoch: u64,
        features: u64,
    ) -> Result<(), EngineError> {
        let slot = self.slot(guest, name);
        let mut guests = lock(&self.guests);
        if guests.contains_key(&guest) {
            return Err(EngineError::GuestExists(guest));
        }
        let (store, limits) = (Arc::clone(&self.store), self.config.limits);
        let lender = self.lenders.of(guest);
        if let Some(lender) = &lender {
            lender.begin(epoch);
        }
        let session = Session::new(guest.0, name, store, limits, epoch, slot.log(), lender);
        self.lenders.connect(guest, &session);
        slot.connect(Arc::clone(&session));
        let new = Guest {
            session,
            slot,
            features,
            map: Arc::default(),
            rings: BTreeMap::new(),
        };
        guests.insert(guest, Arc::new(Mutex::new(new)));
        Ok(())
    }

    /// A guest is not connected any more. Forgets all that it put, be it by way of another engine on
    /// the same store, and returns what that was. What it was granted of its window is taken back.
    pub fn remove_guest(&self, guest: GuestId) -> Dropped {
        let Some(removed) = lock(&self.guests).remove(&guest) else {
            // Before there is no such guest to lend anything.
            if let Some(lender) = self.lenders.of(guest) {
                lender.end();
            }
            return Walk::remove_guest(&*self.store, &self.store.guest(guest.0)).1;
        };
        let mut it = lock(&removed);
        let rings: Vec<_> = it.rings.keys().copied().collect();
        for ring in rings {
            self.stop_running(guest, &mut it, ring);
        }
        for thread in &self.threads {
            thread.mail.send(Order::Forget(guest));
        }
        let dropped = it.session.end();
        it.slot.disconnect();
        dropped
    }

    /// There is no such guest any more: forgets all that there is of it, as
    /// [`Self::remove_guest`] does, and its place and its window as well.
    pub fn forget_guest(&self, guest: GuestId) -> Dropped {
        let dropped = self.remove_guest(guest);
        self.lenders.remove(guest);
        lock(&self.slots).remove(&guest);
        dropped
    }

    /// A guest's memory is here from now on, and nowhere else. Each region has a descriptor.
    /// Virtqueues that run go on in it; one that is not in it is stopped. A guest without such, and
    /// whose memory could not be had before, is served again.
    ///
    /// # Errors
    ///
    /// [`MemoryError`], and the guest keeps the memory that it had.
    pub fn set_memory(
        &self,
        guest: GuestId,
        regions: Vec<MemoryRegion>,
        fds: Vec<OwnedFd>,
    ) -> Result<(), EngineError> {
        let it = self.guest(guest)?;
        let mut it = lock(&it);
        let map = Arc::new(GuestMap::new(regions, fds)?);
        if it.rings.is_empty() {
            it.session.recover();
        }
        let replies: Vec<_> = self
            .threads
            .iter()
            .map(|thread| {
                let (sender, reply) = mpsc::channel();
                let map = Arc::clone(&map);
                thread.mail.send(Order::Move(guest, map, sender));
                reply
            })
            .collect();
        it.map = map;
        let mut lost = Vec::new();
        for reply in replies {
            lost.extend(reply.recv().map_err(|_| EngineError::Stopped)?);
        }
        match lost.into_iter().next() {
            Some((ring, error)) => Err(EngineError::Ring { ring, error }),
            None => Ok(()),
        }
    }

    /// The driver knows these features.
    ///
    /// # Errors
    ///
    /// [`EngineError::NoGuest`].
    pub fn set_features(&self, guest: GuestId, features: u64) -> Result<(), EngineError> {
        let it = self.guest(guest)?;
        let mut it = lock(&it);
        it.features = features;
        let replies: Vec<_> = self
            .threads
            .iter()
            .map(|thread| {
                let (sender, reply) = mpsc::channel();
                let event_idx = has_event_idx(features);
                thread
                    .mail
                    .send(Order::SetEventIdx(guest, event_idx, sender));
                reply
            })
            .collect();
        for reply in replies {
            reply.recv().map_err(|_| EngineError::Stopped)?;
        }
        Ok(())
    }

    /// Serves a virtqueue from now on, from available index `base` on. Without one it goes on where
    /// the used ring ends, and repeats what was being carried out then. One that runs is stopped
    /// before.
    ///
    /// Without a `kick` descriptor it is looked at now and then, without a `call` descriptor nobody
    /// is interrupted.
    ///
    /// # Errors
    ///
    /// [`EngineError`], and it is not served.
    pub fn start_ring(
        &self,
        guest: GuestId,
        ring: u16,
        layout: RingLayout,
        base: Option<u16>,
        kick: Option<OwnedFd>,
        call: Option<OwnedFd>,
    ) -> Result<(), EngineError> {
        let kind = self.kind(ring)?;
        let it = self.guest(guest)?;
        let mut it = lock(&it);
        self.stop_running(guest, &mut it, ring);
        let kick = kick.map(Kick::new).transpose();
        let kick = kick.map_err(|error| EngineError::Descriptor {
            what: "kick",
            ring,
            error,
        })?;
        let call = take_call(ring, call)?;
        let poll = match kind {
            RingKind::Requests(QueueKind::Data) => self.config.poll,
            // What is asked there is never urgent.
            _ => Duration::ZERO,
        };
        let parts = RingParts {
            session: Arc::clone(&it.session),
            kind,
            layout,
            map: Arc::clone(&it.map),
            event_idx: has_event_idx(it.features),
            kick,
            call,
            polling: Polling::new(poll),
        };
        let mut made = Ring::new(parts, base).map_err(|error| EngineError::Ring { ring, error })?;
        let thread = lock(&self.loads).place(guest.0 as usize);
        let (sender, reply) = mpsc::channel();
        let id = RingId { guest, ring };
        let mail = &self.threads[thread].mail;
        let woken = Arc::clone(mail);
        made.set_wake(Arc::new(move || woken.send(Order::Wake(id))));
        mail.send(Order::Start(id, Box::new(made), sender));
        let started = reply.recv().map_err(|_| EngineError::Stopped);
        if let Err(error) = started.and_then(|started| Ok(started?)) {
            lock(&self.loads).remove(thread);
            return Err(error);
        }
        it.rings.insert(ring, thread);
        it.session.note_started();
        if kind == RingKind::Events {
            let mail = Arc::clone(mail);
            let waker = Box::new(move || mail.send(Order::Wake(id)));
            it.session.set_waker(Some(waker));
            // An event may have become due before there was somebody to be woken.
            self.threads[thread].mail.send(Order::Wake(id));
        }
        Ok(())
    }

    /// Interrupts the driver of a virtqueue that runs by another descriptor, or no more.
    ///
    /// # Errors
    ///
    /// [`EngineError`]; the virtqueue keeps the descriptor that it had.
    pub fn set_call(
        &self,
        guest: GuestId,
        ring: u16,
        call: Option<OwnedFd>,
    ) -> Result<(), EngineError> {
        let it = self.guest(guest)?;
        let it = lock(&it);
        let call = take_call(ring, call)?;
        if let Some(thread) = it.rings.get(&ring) {
            let id = RingId { guest, ring };
            self.threads[*thread].mail.send(Order::SetCall(id, call));
        }
        Ok(())
    }

    /// Serves a virtqueue no more, and returns the available index at which it goes on; [`None`]
    /// if it did not run.
    ///
    /// # Errors
    ///
    /// [`EngineError::NoGuest`].
    pub fn stop_ring(&self, guest: GuestId, ring: u16) -> Result<Option<u16>, EngineError> {
        let it = self.guest(guest)?;
        let mut it = lock(&it);
        Ok(self.stop_running(guest, &mut it, ring))
    }

    fn stop_running(&self, guest: GuestId, it: &mut Guest, ring: u16) -> Option<u16> {
        let thread = it.rings.remove(&ring)?;
        if ring == QUEUE_EVENT {
            it.session.set_waker(None);
        }
        let (sender, reply) = mpsc::channel();
        let id = RingId { guest, ring };
        self.threads[thread].mail.send(Order::Stop(id, sender));
        let base = reply.recv().ok().flatten();
        lock(&self.loads).remove(thread);
        it.session.note_stopped();
        base
    }

    /// The guest has not used its device for so long that it seems to have forgotten it: forgets
    /// its ephemeral pages. What it does again from now on is not affected.
    ///
    /// # Errors
    ///
    /// [`EngineError::NoGuest`].
    pub fn abandon_guest(&self, guest: GuestId) -> Result<(), EngineError> {
        let it = self.guest(guest)?;
        let session = Arc::clone(&lock(&it).session);
        session.abandon();
        Ok(())
    }

    /// Tells a guest of its epoch by an event: its driver may know another one.
    ///
    /// # Errors
    ///
    /// [`EngineError::NoGuest`].
    pub fn tell_epoch(&self, guest: GuestId) -> Result<(), EngineError> {
        let it = self.guest(guest)?;
        let session = Arc::clone(&lock(&it).session);
        session.tell_epoch();
        Ok(())
    }

    /// A guest goes on in another epoch. None of its virtqueues runs.
    ///
    /// # Errors
    ///
    /// [`EngineError::NoGuest`].
    pub fn set_epoch(&self, guest: GuestId, epoch: u64) -> Result<(), EngineError> {
        let it = self.guest(guest)?;
        let session = Arc::clone(&lock(&it).session);
        session.set_epoch(epoch);
        Ok(())
    }

    /// The device was reset: stops a guest's virtqueues, and frees the pools that this releases.
    ///
    /// # Errors
    ///
    /// [`EngineError::NoGuest`].
    pub fn reset_guest(&self, guest: GuestId) -> Result<(), EngineError> {
        let it = self.guest(guest)?;
        let mut it = lock(&it);
        let rings: Vec<_> = it.rings.keys().copied().collect();
        for ring in rings {
            self.stop_running(guest, &mut it, ring);
        }
        it.session.reset();
        Ok(())
    }

    /// Ends the threads, when they have finished what they are doing. Nothing is served any more.
    pub fn stop(&self) {
        for thread in &self.threads {
            thread.mail.send(Order::Exit);
        }
        for thread in &self.threads {
            if let Some(handle) = lock(&thread.handle).take() {
                let _ = handle.join();
            }
        }
    }

    fn guest(&self, guest: GuestId) -> Result<Arc<Mutex<Guest>>, EngineError> {
        let guests = lock(&self.guests);
        let it = guests.get(&guest).ok_or(EngineError::NoGuest(guest))?;
        Ok(Arc::clone(it))
    }

    fn kind(&self, ring: u16) -> Result<RingKind, EngineError> {
        let count = super::config::queue_count(&self.config.limits);
        match ring {
            QUEUE_CONTROL => Ok(RingKind::Requests(QueueKind::Control)),
            QUEUE_EVENT => Ok(RingKind::Events),
            FIRST_DATA_QUEUE.. if ring < count => Ok(RingKind::Requests(QueueKind::Data)),
            _ => Err(EngineError::NoRing { ring, count }),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

fn take_call(ring: u16, call: Option<OwnedFd>) -> Result<Option<Call>, EngineError> {
    let call = call.map(Call::new).transpose();
    call.map_err(|error| EngineError::Descriptor {
        what: "call",
        ring,
        error,
    })
}

fn has_event_idx(features: u64) -> bool {
    features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
