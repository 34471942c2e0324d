// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user device.

use std::{
    io::{self, Read},
    ops::Deref,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use fastrand::Rng;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringT};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use virtio_tmem_abi::{
    Event, EventKind, Opcode, CREDITS_UNLIMITED, FIRST_DATA_QUEUE, QUEUE_CONTROL, QUEUE_EVENT,
};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::{
    epoll::EventSet,
    event::{new_event_consumer_and_notifier, EventConsumer, EventFlag, EventNotifier},
};
use zerocopy::{FromZeros, IntoBytes};

use crate::{
    answer::{distort, honest, misbehave, opcode, Answer},
    behaviour::{Behaviour, Command},
    lies::{Lies, EPOCH},
    store::Store,
};

/// How long the thread that gives back what was kept sleeps when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// The device.
pub(crate) struct Device {
    lies: Lies,
    queues: usize,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    state: Mutex<State>,
    /// Is notified when something may be due, or the device behaves otherwise.
    changed: Condvar,
}

struct State {
    store: Store,
    rng: Rng,
    epoch: u64,
    epochs_left: Vec<u64>,
    behaviours: Vec<Behaviour>,
    /// Virtqueues that were served at least once, by number.
    vrings: Vec<Option<VringMutex>>,
    kept: Vec<Kept>,
    data_answers: u64,
    counts: Counts,
}

/// What was counted, for tests to wait for.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    taken: u64,
    answered: u64,
    misbehaved: u64,
}

/// A request that was taken from a virtqueue and carried out, and not answered yet.
struct Kept {
    queue: u16,
    head: u16,
    opcode: Option<Opcode>,
    answer: Answer,
    places: Vec<(GuestAddress, u32)>,
    /// When to answer it; [`None`] while a behaviour keeps it.
    due: Option<Instant>,
}

/// The descriptors of one direction.
fn places(chain: &DescriptorChain<&GuestMemoryMmap>, writable: bool) -> Vec<(GuestAddress, u32)> {
    let own = chain.clone().filter(|d| d.is_write_only() == writable);
    own.map(|d| (d.addr(), d.len())).collect()
}

/// Where the byte `at` of the descriptors lies.
fn address(places: &[(GuestAddress, u32)], mut at: usize) -> Option<u64> {
    for (start, len) in places {
        let len = *len as usize;
        if at < len {
            return Some(start.0.wrapping_add(at as u64));
        }
        at -= len;
    }
    None
}

fn write(mem: &GuestMemoryMmap, places: &[(GuestAddress, u32)], mut bytes: &[u8]) {
    for (start, len) in places {
        let (now, later) = bytes.split_at(bytes.len().min(*len as usize));
        // Where there is no memory, nothing can be written.
        let _ = mem.write_slice(now, *start);
        bytes = later;
    }
}

impl Device {
    /// Makes a device for a guest with this memory.
    pub(crate) fn new(
        lies: Lies,
        behaviours: Vec<Behaviour>,
        queues: usize,
        memory: GuestMemoryAtomic<GuestMemoryMmap>,
    ) -> Self {
        let rng = Rng::with_seed(lies.seed);
        Self {
            lies,
            queues,
            memory,
            state: Mutex::new(State {
                store: Store::default(),
                rng,
                epoch: EPOCH,
                epochs_left: Vec::new(),
                behaviours,
                vrings: vec![None; queues],
                kept: Vec::new(),
                data_answers: 0,
                counts: Counts::default(),
            }),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out what was said on the control socket, and returns the reply.
    pub(crate) fn command(&self, command: Command) -> String {
        let state = &mut *self.state();
        match command {
            Command::Behave(behaviours) => {
                state.behaviours = behaviours;
                let now = Instant::now();
                for kept in &mut state.kept {
                    let control = kept.queue == QUEUE_CONTROL;
                    // One that was lost stays so while anything loses its like.
                    let keeps = |b: &Behaviour| b.keeps(kept.opcode, control);
                    if !state.behaviours.iter().any(keeps) {
                        kept.due = Some(kept.due.unwrap_or(now).min(now));
                    }
                }
                self.changed.notify_all();
            }
            Command::EpochChange => {
                state.epochs_left.push(state.epoch);
                state.epoch = state.rng.u64(1..u64::MAX);
                state.store.clear();
                self.send_epoch(state);
            }
            Command::EpochBack => {
                let Some(epoch) = state.epochs_left.pop() else {
                    return "error: the epoch was not changed".into();
                };
                state.epoch = epoch;
                self.send_epoch(state);
            }
            Command::Stat => {
                let counts = state.counts;
                return format!(
                    "taken {} answered {} kept {} misbehaved {} pages {} epoch {}",
                    counts.taken,
                    counts.answered,
                    state.kept.len(),
                    counts.misbehaved,
                    state.store.len(),
                    state.epoch
                );
            }
        }
        "ok".into()
    }

    /// Answers what was kept when it is due. Never returns.
    pub(crate) fn give_back(&self) {
        let mut state = self.state();
        loop {
            let now = Instant::now();
            let due = |kept: &Kept| kept.due.is_some_and(|due| due <= now);
            // Those of one virtqueue in the order in which they came.
            while let Some(at) = state.kept.iter().position(due) {
                let kept = state.kept.remove(at);
                if let Err(error) = self.answer(&mut state, &kept) {
                    eprintln!("virtqueue {}: {error}", kept.queue);
                }
            }
            let next = state.kept.iter().filter_map(|kept| kept.due).min();
            let wait = next.map_or(IDLE, |next| next.saturating_duration_since(now));
            let waited = self.changed.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn answer(&self, state: &mut State, kept: &Kept) -> Result<(), virtio_queue::Error> {
        let memory = self.memory.memory();
        let mem: &GuestMemoryMmap = memory.deref();
        let vring = state.vrings.get(usize::from(kept.queue)).cloned().flatten();
        let Some(vring) = vring else {
            return Ok(());
        };
        let mut vring = vring.get_mut();
        if vring.get_queue().ready() {
            write(mem, &kept.places, &kept.answer.bytes);
            vring
                .get_queue_mut()
                .add_used(mem, kept.head, kept.answer.used)?;
            state.counts.answered += 1;
            // An interrupt too many does no harm.
            let _ = vring.signal_used_queue();
        }
        Ok(())
    }

    /// Tells the driver of the epoch, if it has left a buffer for that.
    fn send_epoch(&self, state: &mut State) {
        let memory = self.memory.memory();
        let mem: &GuestMemoryMmap = memory.deref();
        let vring = state
            .vrings
            .get(usize::from(QUEUE_EVENT))
            .cloned()
            .flatten();
        let Some(vring) = vring else { return };
        let mut event = Event::new_zeroed();
        event.kind = EventKind::Epoch.to_wire().into();
        event.persistent_credits = CREDITS_UNLIMITED.into();
        event.ephemeral_credits = CREDITS_UNLIMITED.into();
        event.epoch = state.epoch.into();
        let mut vring = vring.get_mut();
        if !vring.get_queue().ready() {
            return;
        }
        let queue = vring.get_queue_mut();
        let chain = queue.iter(mem).ok().and_then(|mut chains| chains.next());
        let Some(chain) = chain else { return };
        let head = chain.head_index();
        write(mem, &places(&chain, true), event.as_bytes());
        if queue
            .add_used(mem, head, event.as_bytes().len() as u32)
            .is_ok()
        {
            let _ = vring.signal_used_queue();
        }
    }

    /// Returns whether the next request of a virtqueue is to be left where it is.
    fn silent(&self, queue: u16, state: &State) -> bool {
        match queue {
            QUEUE_CONTROL => self.lies.silent_control,
            QUEUE_EVENT => true,
            _ => self
                .lies
                .silent_after
                .is_some_and(|answers| state.data_answers >= answers),
        }
    }

    fn serve(&self, queue: u16, vring: &VringMutex) -> Result<(), virtio_queue::Error> {
        let memory = self.memory.memory();
        let mem: &GuestMemoryMmap = memory.deref();
        let state = &mut *self.state();
        if let Some(known) = state.vrings.get_mut(usize::from(queue)) {
            *known = Some(vring.clone());
        }
        let mut guard = vring.get_mut();
        while !self.silent(queue, state) {
            let Some(chain) = guard.get_queue_mut().iter(mem)?.next() else {
                if guard.get_queue_mut().enable_notification(mem)? {
                    continue;
                }
                break;
            };
            state.counts.taken += 1;
            let mut readable = Vec::new();
            let mut reader = chain.clone().reader::<()>(mem)?;
            // Reading guest memory that is there cannot fail.
            let _ = reader.read_to_end(&mut readable);
            let mut kept = self.carry_out(state, queue, &chain, &readable);
            if queue >= FIRST_DATA_QUEUE {
                state.data_answers += 1;
                if state.data_answers > self.lies.honest_answers {
                    distort(&self.lies, &mut state.rng, &readable, &mut kept.answer);
                    if state.rng.u8(0..100) < self.lies.wrong_head_percent {
                        kept.head ^= 1;
                    }
                }
            }
            if self.keep(state, &mut kept) {
                state.kept.push(kept);
                self.changed.notify_all();
                continue;
            }
            write(mem, &kept.places, &kept.answer.bytes);
            guard
                .get_queue_mut()
                .add_used(mem, kept.head, kept.answer.used)?;
            state.counts.answered += 1;
            // An interrupt too many does no harm.
            let _ = guard.signal_used_queue();
        }
        Ok(())
    }

    /// Carries out a request, as honestly as the behaviours let it.
    fn carry_out(
        &self,
        state: &mut State,
        queue: u16,
        chain: &DescriptorChain<&GuestMemoryMmap>,
        readable: &[u8],
    ) -> Kept {
        let places_in = places(chain, true);
        let places_out = places(chain, false);
        let opcode = opcode(readable);
        let room = places_in.iter().map(|(_, len)| *len as usize).sum();
        let count = readable.get(8..12).and_then(|count| count.try_into().ok());
        let count = count.map_or(0, u32::from_le_bytes) as usize;
        let behaviours = if self.behaves(state) {
            state.behaviours.clone()
        } else {
            Vec::new()
        };
        let reaches = |n: usize| {
            let (places, start) = match opcode {
                Some(Opcode::Get) => (&places_in, 32 + count),
                _ => (&places_out, 32 + 40 * count),
            };
            let at = address(places, start + n * 4096);
            !behaviours.iter().any(|behaviour| match behaviour {
                Behaviour::Unreachable(range) => at.is_some_and(|at| range.contains(&at)),
                _ => false,
            })
        };
        let nothing = Answer {
            bytes: Vec::new(),
            used: 0,
        };
        let answer = if behaviours.iter().any(|b| b.uses_with_zero(opcode)) {
            nothing
        } else {
            let answer = honest(&mut state.store, state.epoch, readable, room, reaches);
            let mut answer = answer.unwrap_or(nothing);
            // Pools are created as ever.
            if queue >= FIRST_DATA_QUEUE {
                let turn = state.data_answers;
                for behaviour in &behaviours {
                    misbehave(behaviour, turn, readable, room, &mut answer);
                }
            }
            answer
        };
        state.counts.misbehaved += u64::from(!behaviours.is_empty());
        Kept {
            queue,
            head: chain.head_index(),
            opcode,
            answer,
            places: places_in,
            due: None,
        }
    }

    fn behaves(&self, state: &State) -> bool {
        state.data_answers >= self.lies.honest_answers
    }

    /// Returns whether a request is not to be answered now, and says until when.
    fn keep(&self, state: &mut State, kept: &mut Kept) -> bool {
        if !self.behaves(state) {
            return false;
        }
        let control = kept.queue == QUEUE_CONTROL;
        let lost = |b: &Behaviour| b.keeps(kept.opcode, control);
        if let Some(at) = state.behaviours.iter().position(lost) {
            // The next one is answered. An empty list keeps what was lost until it is told to go on.
            if let Behaviour::LoseOne(_) = state.behaviours[at] {
                state.behaviours.remove(at);
            }
            return true;
        }
        let hold = state
            .behaviours
            .iter()
            .find_map(|behaviour| match behaviour {
                Behaviour::Hold(duration) if !control => Some(*duration),
                _ => None,
            });
        kept.due = hold.map(|duration| Instant::now() + duration);
        kept.due.is_some()
    }
}

impl VhostUserBackend for Device {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        self.queues
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.lies.config(self.state().epoch);
        let config = &config.as_bytes()[..self.lies.config_bytes.min(64)];
        let byte = |at: u32| {
            usize::try_from(at)
                .ok()
                .and_then(|at| config.get(at))
                .copied()
        };
        (0..size.min(4096))
            .map(|at| byte(offset + at).unwrap_or(self.lies.config_fill))
            .collect()
    }

    fn update_memory(&self, _memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        Ok(())
    }

    fn exit_event(&self, _worker: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        // The driver takes the memory of what was not answered back after this.
        self.state()
            .kept
            .retain(|kept| u32::from(kept.queue) != queue);
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        vrings: &[VringMutex],
        _worker: usize,
    ) -> io::Result<()> {
        let Some(vring) = vrings.get(usize::from(event)) else {
            return Ok(());
        };
        if let Err(error) = self.serve(event, vring) {
            eprintln!("virtqueue {event}: {error}");
        }
        Ok(())
    }
}

/// Starts the thread that answers what was kept.
pub(crate) fn start_giving_back(device: &Arc<Device>) -> io::Result<()> {
    let device = Arc::clone(device);
    let thread = std::thread::Builder::new().name("give back".into());
    thread.spawn(move || device.give_back()).map(|_| ())
}
