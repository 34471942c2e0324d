// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A thread that serves virtqueues of many guests.
//!
//! A virtqueue is asleep, and its driver notifies by the kick descriptor; or it has something to
//! do, and waits for its turn; or it is empty and looked at for a while. The thread looks at all of
//! those before it waits for notifications, and while it does, nothing of it runs.

use std::{
    io,
    os::fd::AsRawFd,
    sync::{
        atomic::{fence, AtomicBool, Ordering},
        mpsc, Arc, Mutex, PoisonError,
    },
    thread,
    time::{Duration, Instant},
};

use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::EventFd,
};

use super::{
    engine::{GuestId, Observer},
    eventfd::Call,
    memory::GuestMap,
    meter::Meter,
    ring::{Buffers, Outcome, Ring, RingError, STEPS_AHEAD},
    turns::{Turn, Turns},
};

/// While there is something to do, how often it is looked for notifications and at empty
/// virtqueues: not more often than this, nor so often that it takes more than one in
/// [`GLANCES`] of the time.
const GLANCE: Duration = Duration::from_micros(6);

/// See [`GLANCE`].
const GLANCES: u32 = 8;

/// Virtqueues whose drivers are interrupted together.
const TOLD: usize = 16;

/// How often a virtqueue is looked at whose driver does not notify.
const UNNOTIFIED: i32 = 1;

/// Notifications that are taken at once.
const EVENTS: usize = 64;

/// What the events of a thread's mail are told by.
const MAIL: u64 = u64::MAX;

/// Names a virtqueue of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingId {
    pub(super) guest: GuestId,
    pub(super) ring: u16,
}

/// What a thread is told to do.
pub(super) enum Order {
    /// Serve a virtqueue.
    Start(RingId, Box<Ring>, mpsc::Sender<io::Result<()>>),
    /// Serve it no more, and tell where it goes on.
    Stop(RingId, mpsc::Sender<Option<u16>>),
    /// Interrupt its driver by something else.
    SetCall(RingId, Option<Call>),
    /// All of a guest's memory is elsewhere now; tell of virtqueues that cannot be there.
    Move(GuestId, Arc<GuestMap>, mpsc::Sender<Vec<(u16, RingError)>>),
    /// Whether a guest's virtqueues have event indices.
    SetEventIdx(GuestId, bool, mpsc::Sender<()>),
    /// There may be something to do.
    Wake(RingId),
    /// A guest is not there any more. None of its virtqueues is served.
    Forget(GuestId),
    /// End.
    Exit,
}

/// Where orders for a thread are left. Anybody may do that at any time.
pub(super) struct Mail {
    /// [`None`] where nobody will look for them any more.
    orders: Mutex<Option<Vec<Order>>>,
    /// There are some, to be seen without the lock.
    any: AtomicBool,
    wake: EventFd,
}

impl Mail {
    /// Makes an empty one.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            orders: Mutex::new(Some(Vec::new())),
            any: AtomicBool::new(false),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Leaves an order, and wakes the thread. If it has ended the order is dropped, so that nobody
    /// waits for the reply.
    pub(super) fn send(&self, order: Order) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(waiting) = &mut *orders else {
            return;
        };
        waiting.push(order);
        self.any.store(true, Ordering::Release);
        drop(orders);
        // It can only fail where the counter is full, and then the thread is awake.
        let _ = self.wake.write(1);
    }

    fn take(&self) -> Vec<Order> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        self.any.store(false, Ordering::Release);
        orders.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn close(&self) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        *orders = None;
    }
}

/// What a virtqueue is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// It waits for a notification, or for pages.
    Asleep,
    /// It has something to do.
    Busy,
    /// It is empty, and looked at.
    Watched,
    /// It is not served any more.
    Out,
}

/// A virtqueue of the thread.
struct Seat {
    id: RingId,
    /// Its guest's number among those of the thread.
    member: usize,
    ring: Box<Ring>,
    doing: Doing,
}

/// The thread.
pub(super) struct Worker {
    number: usize,
    mail: Arc<Mail>,
    observer: Arc<dyn Observer>,
    epoll: Epoll,
    /// By the number that epoll tells.
    seats: Vec<Option<Seat>>,
    /// By the number that the turns tell.
    members: Vec<Option<GuestId>>,
    turns: Turns<usize>,
    /// Those that are looked at.
    watched: Vec<usize>,
    /// Virtqueues without a kick descriptor.
    unnotified: usize,
    buffers: Buffers,
    meter: Meter,
    /// When to look for notifications and at empty virtqueues next.
    glance: Instant,
    /// Virtqueues whose drivers may wait for an interrupt.
    untold: Vec<usize>,
}

impl Worker {
    /// Makes a thread's state, to be run by [`Self::run`].
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn new(
        number: usize,
        mail: Arc<Mail>,
        observer: Arc<dyn Observer>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, MAIL);
        epoll.ctl(ControlOperation::Add, mail.wake.as_raw_fd(), event)?;
        let now = Instant::now();
        Ok(Self {
            number,
            mail,
            observer,
            epoll,
            seats: Vec::new(),
            members: Vec::new(),
            turns: Turns::default(),
            watched: Vec::new(),
            unnotified: 0,
            buffers: Buffers::default(),
            meter: Meter::new(now),
            glance: now,
            untold: Vec::with_capacity(TOLD),
        })
    }

    /// Serves until it is told to end.
    pub(super) fn run(mut self) {
        let mut rested = false;
        loop {
            if self.mail.any.load(Ordering::Acquire) && !self.read_mail() {
                return;
            }
            if self.turns.is_empty() {
                self.tell();
                let now = Instant::now();
                self.look(now);
                if self.turns.is_empty() {
                    self.rest();
                    rested = true;
                    continue;
                }
                rested = false;
                self.meter.pause(now);
            } else if std::mem::take(&mut rested) {
                // Whoever comes first did not take the time in which nobody came.
                self.meter.pause(Instant::now());
            } else if self.meter.last() >= self.glance {
                self.tell();
                let start = Instant::now();
                self.look(start);
                self.notified(0);
                let end = Instant::now();
                self.glance = end + ((end - start) * GLANCES).max(GLANCE);
            }
            self.turn();
        }
    }

    /// Interrupts the drivers that wait for what was done.
    fn tell(&mut self) {
        if self.untold.is_empty() {
            return;
        }
        // What was used comes before it is read who waits for it.
        fence(Ordering::SeqCst);
        for at in self.untold.drain(..) {
            if let Some(seat) = self.seats.get_mut(at).and_then(Option::as_mut) {
                seat.ring.tell();
            }
        }
    }

    /// Has the next virtqueue served.
    fn turn(&mut self) {
        let Some(turn) = self.turns.next(self.watched.is_empty()) else {
            return;
        };
        for n in 1..=STEPS_AHEAD {
            let upcoming = self.turns.upcoming(n).and_then(|at| self.seats.get(at));
            let Some(seat) = upcoming.and_then(Option::as_ref) else {
                break;
            };
            seat.ring.foresee(n);
        }
        let Some(seat) = self.seats.get_mut(turn.ring).and_then(Option::as_mut) else {
            self.turns.done(turn, false);
            return;
        };
        self.observer.begin(self.number, seat.id.guest);
        self.meter.begin(turn.left);
        let outcome = seat.ring.turn(&mut self.buffers, &mut self.meter);
        self.observer.end(self.number);
        let (left, now) = self.meter.end();
        let turn = Turn { left, ..turn };
        if seat.ring.is_untold() && outcome != Outcome::Failed {
            self.untold.push(turn.ring);
        }
        let more = outcome == Outcome::More && seat.ring.has_more();
        self.turns.done(turn, more);
        match outcome {
            Outcome::Failed => self.fail(turn.ring),
            // It has nothing to say any more but to whoever notifies; or whoever has its pages does.
            Outcome::Broken | Outcome::Waiting => seat.doing = Doing::Asleep,
            _ if more => {}
            _ if seat.ring.polling.begin(now) => {
                seat.doing = Doing::Watched;
                seat.ring.session.counters.polls.add(1);
                self.watched.push(turn.ring);
            }
            _ => self.sleep(turn.ring),
        }
        if self.untold.len() >= TOLD {
            self.tell();
        }
    }

    /// Has a virtqueue wait for notifications, unless there is something to do.
    fn sleep(&mut self, at: usize) {
        let Some(seat) = self.seats.get_mut(at).and_then(Option::as_mut) else {
            return;
        };
        if seat.ring.sleep() {
            seat.doing = Doing::Busy;
            self.turns.wake(seat.member, at);
        } else {
            seat.doing = Doing::Asleep;
            if seat.ring.has_failed() {
                self.fail(at);
            }
        }
    }

    /// Looks at the virtqueues that are empty.
    fn look(&mut self, now: Instant) {
        for at in &self.watched {
            if let Some(seat) = self.seats.get(*at).and_then(Option::as_ref) {
                seat.ring.foresee_more();
            }
        }
        let mut n = 0;
        while let Some(&at) = self.watched.get(n) {
            let Some(seat) = self.seats.get_mut(at).and_then(Option::as_mut) else {
                self.watched.swap_remove(n);
                continue;
            };
            if seat.ring.has_more() {
                seat.ring.polling.found(now);
                seat.ring.session.counters.polls_found.add(1);
                seat.doing = Doing::Busy;
                self.turns.wake(seat.member, at);
                self.watched.swap_remove(n);
            } else if seat.ring.polling.is_over(now) {
                self.watched.swap_remove(n);
                self.sleep(at);
            } else {
                n += 1;
            }
        }
    }

    /// There is nothing to do: lets others have the processor for a moment, or until something is
    /// notified.
    fn rest(&mut self) {
        if self.watched.is_empty() {
            let wait = if self.unnotified > 0 { UNNOTIFIED } else { -1 };
            self.notified(wait);
            if self.unnotified > 0 {
                for at in 0..self.seats.len() {
                    let seat = self.seats[at].as_ref();
                    if seat.is_some_and(|seat| seat.ring.kick.is_none()) {
                        self.wake(at);
                    }
                }
            }
        } else {
            // Whoever else has something to do goes first: the guests' own processors.
            thread::yield_now();
            self.notified(0);
        }
    }

    /// Takes notifications, and waits for them for so many milliseconds, without end if that is
    /// -1.
    fn notified(&mut self, wait: i32) {
        let mut events = [EpollEvent::default(); EVENTS];
        let count = match self.epoll.wait(wait, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            // It cannot happen. If it does, no guest of this thread is ever served again: the panic
            // ends the process, and another one takes over.
            Err(error) => panic!("cannot wait for notifications: {error}"),
        };
        for event in &events[..count] {
            if event.data() == MAIL {
                // The orders are looked for in any case.
                let _ = self.mail.wake.read();
                continue;
            }
            // One that is not there any more is no virtqueue, or another that looks in vain.
            let at = event.data() as usize;
            if let Some(seat) = self.seats.get(at).and_then(Option::as_ref) {
                seat.ring.session.counters.kicks.add(1);
                self.wake(at);
            }
        }
    }

    /// A virtqueue may have something to do.
    fn wake(&mut self, at: usize) {
        let Some(seat) = self.seats.get_mut(at).and_then(Option::as_mut) else {
            return;
        };
        if seat.doing == Doing::Asleep {
            seat.ring.polling.woken(Instant::now());
            seat.doing = Doing::Busy;
            self.turns.wake(seat.member, at);
        }
    }

    /// The memory of a virtqueue's guest cannot be had: none of its virtqueues is served any more.
    fn fail(&mut self, at: usize) {
        let Some(seat) = self.seats.get(at).and_then(Option::as_ref) else {
            return;
        };
        let (guest, session) = (seat.id.guest, Arc::clone(&seat.ring.session));
        let why = seat.ring.failure().unwrap_or_default();
        self.retire(guest);
        if session.fail(&why) {
            self.observer.guest_failed(guest, &why);
        }
    }

    /// Serves a guest's virtqueues no more.
    fn retire(&mut self, guest: GuestId) {
        for at in 0..self.seats.len() {
            if let Some(seat) = self.seats[at]
                .as_mut()
                .filter(|seat| seat.id.guest == guest)
            {
                seat.doing = Doing::Out;
                self.turns.remove(seat.member, at);
                self.watched.retain(|watched| *watched != at);
                deafen(&self.epoll, &seat.ring);
            }
        }
    }

    fn find(&self, id: RingId) -> Option<usize> {
        let is = |seat: &Option<Seat>| seat.as_ref().is_some_and(|seat| seat.id == id);
        self.seats.iter().position(is)
    }

    fn of(&mut self, guest: GuestId) -> impl Iterator<Item = &mut Seat> {
        let seats = self.seats.iter_mut().flatten();
        seats.filter(move |seat| seat.id.guest == guest)
    }

    /// Does what was ordered; false if it is to end.
    fn read_mail(&mut self) -> bool {
        for order in self.mail.take() {
            // Whoever ordered it may not wait any more.
            match order {
                Order::Start(id, ring, reply) => {
                    let _ = reply.send(self.start(id, ring));
                }
                Order::Stop(id, reply) => {
                    let _ = reply.send(self.stop(id));
                }
                Order::SetCall(id, call) => {
                    if let Some(Some(seat)) = self.find(id).map(|at| &mut self.seats[at]) {
                        seat.ring.set_call(call);
                    }
                }
                Order::Move(guest, map, reply) => {
                    let _ = reply.send(self.move_to(guest, &map));
                }
                Order::SetEventIdx(guest, event_idx, reply) => {
                    for seat in self.of(guest) {
                        seat.ring.set_event_idx(event_idx);
                    }
                    self.wake_all(guest);
                    let _ = reply.send(());
                }
                Order::Wake(id) => {
                    if let Some(at) = self.find(id) {
                        self.wake(at);
                    }
                }
                Order::Forget(guest) => {
                    let is = |member: &Option<GuestId>| *member == Some(guest);
                    if let Some(member) = self.members.iter().position(is) {
                        self.members[member] = None;
                        self.turns.forget(member);
                    }
                }
                Order::Exit => return false,
            }
        }
        true
    }

    fn start(&mut self, id: RingId, ring: Box<Ring>) -> io::Result<()> {
        let at = self.seats.iter().position(Option::is_none);
        let at = at.unwrap_or(self.seats.len());
        if let Some(kick) = &ring.kick {
            // By edges, so that nothing has to be read from it.
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            let event = EpollEvent::new(events, at as u64);
            let add = ControlOperation::Add;
            self.epoll.ctl(add, kick.as_raw_fd(), event)?;
        } else {
            self.unnotified += 1;
        }
        let member = self.member(id.guest);
        let out = ring.session.has_failed();
        let seat = Seat {
            id,
            member,
            ring,
            doing: if out { Doing::Out } else { Doing::Asleep },
        };
        if at == self.seats.len() {
            self.seats.push(None);
        }
        self.seats[at] = Some(seat);
        // What was available before it was started was not notified of, or is there again.
        self.wake(at);
        Ok(())
    }

    fn member(&mut self, guest: GuestId) -> usize {
        let known = self.members.iter().position(|m| *m == Some(guest));
        known.unwrap_or_else(|| {
            let free = self.members.iter().position(Option::is_none);
            let free = free.unwrap_or_else(|| {
                self.members.push(None);
                self.members.len() - 1
            });
            self.members[free] = Some(guest);
            free
        })
    }

    fn stop(&mut self, id: RingId) -> Option<u16> {
        let at = self.find(id)?;
        let seat = self.seats[at].take()?;
        self.turns.remove(seat.member, at);
        self.watched.retain(|watched| *watched != at);
        self.unnotified -= usize::from(seat.ring.kick.is_none());
        deafen(&self.epoll, &seat.ring);
        Some(seat.ring.stop())
    }

    fn move_to(&mut self, guest: GuestId, map: &Arc<GuestMap>) -> Vec<(u16, RingError)> {
        let mut lost = Vec::new();
        for at in 0..self.seats.len() {
            let Some(seat) = self.seats[at]
                .as_mut()
                .filter(|seat| seat.id.guest == guest)
            else {
                continue;
            };
            if seat.ring.session.has_failed() {
                seat.doing = Doing::Out;
                self.turns.remove(seat.member, at);
                self.watched.retain(|watched| *watched != at);
                continue;
            }
            if let Err(error) = seat.ring.move_to(Arc::clone(map)) {
                lost.push((seat.id.ring, error));
                seat.doing = Doing::Out;
                self.turns.remove(seat.member, at);
                self.watched.retain(|watched| *watched != at);
            }
        }
        self.wake_all(guest);
        lost
    }

    /// Looks at all virtqueues of a guest again.
    fn wake_all(&mut self, guest: GuestId) {
        for at in 0..self.seats.len() {
            if self.seats[at]
                .as_ref()
                .is_some_and(|seat| seat.id.guest == guest)
            {
                self.wake(at);
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Also where it panicked.
        self.mail.close();
    }
}

/// Does not listen to a virtqueue's notifications any more.
fn deafen(epoll: &Epoll, ring: &Ring) {
    if let Some(kick) = &ring.kick {
        let none = EpollEvent::default();
        // It may have been done before.
        let _ = epoll.ctl(ControlOperation::Delete, kick.as_raw_fd(), none);
    }
}
