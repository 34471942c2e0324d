// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user device: what the framework calls.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringMutex};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use virtio_tmem_abi::{FIRST_DATA_QUEUE, QUEUE_CONTROL, QUEUE_EVENT};
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::{
    epoll::EventSet,
    event::{new_event_consumer_and_notifier, EventConsumer, EventFlag, EventNotifier},
};
use zerocopy::IntoBytes;

use super::{
    execute::Scratch,
    polling::Polling,
    queue::{send_events, serve_queue, Memory},
    request::QueueKind,
    session::Session,
};

/// The most descriptors that a virtqueue may have.
const QUEUE_SIZE: usize = 1024;

/// The worker of the control and the event virtqueue; data virtqueue n has worker n + 1.
const CONTROL_WORKER: usize = 0;

/// What a worker thread has for itself.
struct Worker {
    scratch: Scratch,
    polling: Polling,
}

impl Worker {
    fn new(poll: Duration) -> Mutex<Self> {
        Mutex::new(Self {
            scratch: Scratch::default(),
            polling: Polling::new(poll),
        })
    }
}

/// The device of one session.
///
/// # Locking
///
/// `workers` has a lock for each worker thread, held while it handles an event: whoever has it
/// knows that no request of the worker's virtqueues is being carried out. The virtqueue's own
/// lock is taken inside it, and never while the store is at work.
pub(super) struct Backend {
    session: Arc<Session>,
    memory: Memory,
    workers: Vec<Mutex<Worker>>,
    /// What makes each worker exit, until the framework fetches it.
    exits: Mutex<Vec<Option<(EventConsumer, EventNotifier)>>>,
    /// The ends of those that the framework never closes.
    leaked: Mutex<Vec<OwnedFd>>,
}

impl Backend {
    /// Makes the device of a session whose guest's memory is `memory`. A worker looks at its data
    /// virtqueue for up to `poll` before it sleeps. What is asked of the control virtqueue is never
    /// urgent, and its worker would have two to look at.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no file descriptor left.
    pub(super) fn new(session: Arc<Session>, memory: Memory, poll: Duration) -> io::Result<Self> {
        let workers = 1 + usize::from(session.limits.data_queues);
        let flags = EventFlag::NONBLOCK | EventFlag::CLOEXEC;
        let exits: io::Result<_> = (0..workers)
            .map(|_| new_event_consumer_and_notifier(flags).map(Some))
            .collect();
        Ok(Self {
            session,
            memory,
            workers: std::iter::once(Duration::ZERO)
                .chain(std::iter::repeat(poll))
                .map(Worker::new)
                .take(workers)
                .collect(),
            exits: Mutex::new(exits?),
            leaked: Mutex::default(),
        })
    }

    /// Returns the number of the event by which the session wakes the worker of its events.
    pub(super) fn wake_event(&self) -> u64 {
        self.num_queues() as u64 + 1
    }

    fn serve(&self, worker: usize, event: u16, vrings: &[VringMutex]) {
        let Some(own) = self.workers.get(worker) else {
            return;
        };
        let own = &mut *own.lock().unwrap_or_else(PoisonError::into_inner);
        own.polling.woken();
        let session = &self.session;
        if u64::from(event) == self.wake_event() {
            // An error says that it was not woken, which does no harm.
            let _ = session.wake.read();
        } else {
            session.counters.kicks.add(1);
        }
        let mut serve_first = |kind| {
            let (scratch, polling) = (&mut own.scratch, &mut own.polling);
            vrings
                .first()
                .map(|vring| serve_queue(session, kind, vring, &self.memory, scratch, polling))
        };
        let (queue, served) = match (worker, event) {
            (CONTROL_WORKER, QUEUE_CONTROL) => ("control", serve_first(QueueKind::Control)),
            (CONTROL_WORKER, _) => (
                "event",
                vrings
                    .get(usize::from(QUEUE_EVENT))
                    .map(|vring| send_events(session, vring, &self.memory)),
            ),
            _ => ("data", serve_first(QueueKind::Data)),
        };
        if let Some(Err(error)) = served {
            session.note_ring_error(queue, &error);
        }
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        usize::from(FIRST_DATA_QUEUE + self.session.limits.data_queues)
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        // Not `CONFIGURE_MEM_SLOTS`: QEMU then tells memory piece by piece, and of a machine whose
        // memory is not shared it tells nothing and starts the virtqueues all the same. The
        // framework ends the connection at the first of them, and QEMU aborts. Without it QEMU
        // refuses to start the device, and says what is missing. The price is that it shares no
        // more than eight pieces of memory.
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn reset_device(&self) {
        tracing::debug!("guest {:?} was reset", self.session.name);
        self.session.reset();
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The virtqueues know.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.session.config();
        let config = config.as_bytes();
        // What lies past the end reads as zero, like the reserved bytes at the end.
        let byte = |at: u64| {
            usize::try_from(at)
                .ok()
                .and_then(|at| config.get(at))
                .copied()
        };
        (0..size.min(4096))
            .map(|at| byte(u64::from(offset) + u64::from(at)).unwrap_or(0))
            .collect()
    }

    fn set_config(&self, _offset: u32, _buf: &[u8]) -> io::Result<()> {
        // The driver may not write to it; what it writes has no effect.
        Ok(())
    }

    fn update_memory(
        &self,
        _memory: GuestMemoryAtomic<vm_memory::GuestMemoryMmap>,
    ) -> io::Result<()> {
        // `memory` is the same object.
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        let control = (1 << QUEUE_CONTROL) | (1 << QUEUE_EVENT);
        let data = (0..self.session.limits.data_queues).map(|n| 1 << (FIRST_DATA_QUEUE + n));
        std::iter::once(control).chain(data).collect()
    }

    fn exit_event(&self, worker: usize) -> Option<(EventConsumer, EventNotifier)> {
        let mut exits = self.exits.lock().unwrap_or_else(PoisonError::into_inner);
        let (consumer, notifier) = exits.get_mut(worker)?.take()?;
        // SAFETY: The framework takes the descriptor out of the consumer and never closes it; it
        // is ours to close when the device goes, which is after the workers.
        let end = unsafe { OwnedFd::from_raw_fd(consumer.as_raw_fd()) };
        let mut leaked = self.leaked.lock().unwrap_or_else(PoisonError::into_inner);
        leaked.push(end);
        Some((consumer, notifier))
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        // The virtqueue is not ready any more. Wait for the request that is being carried out: the
        // driver takes its memory back after this.
        let data = queue.checked_sub(u32::from(FIRST_DATA_QUEUE));
        let worker = data.map_or(CONTROL_WORKER, |data| data as usize + 1);
        if let Some(worker) = self.workers.get(worker) {
            drop(worker.lock().unwrap_or_else(PoisonError::into_inner));
        }
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        vrings: &[VringMutex],
        worker: usize,
    ) -> io::Result<()> {
        // An error would end the worker, so there is none.
        self.serve(worker, event, vrings);
        Ok(())
    }
}
