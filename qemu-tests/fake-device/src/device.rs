// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user device.

use std::{
    io::{self, Read, Write},
    ops::Deref,
    sync::{Mutex, PoisonError},
};

use fastrand::Rng;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringT};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use virtio_queue::{QueueOwnedT, QueueT};
use virtio_tmem_abi::{FIRST_DATA_QUEUE, QUEUE_CONTROL, QUEUE_EVENT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::{
    epoll::EventSet,
    event::{new_event_consumer_and_notifier, EventConsumer, EventFlag, EventNotifier},
};
use zerocopy::IntoBytes;

use crate::{
    answer::{distort, honest, Answer},
    lies::Lies,
    store::Store,
};

/// The device.
pub(crate) struct Device {
    lies: Lies,
    queues: usize,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    state: Mutex<State>,
}

struct State {
    store: Store,
    rng: Rng,
    data_answers: u64,
}

impl Device {
    /// Makes a device for a guest with this memory.
    pub(crate) fn new(
        lies: Lies,
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
                data_answers: 0,
            }),
        }
    }

    /// Returns whether the next request of a virtqueue is to be left unanswered.
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
        let state = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut vring = vring.get_mut();
        while !self.silent(queue, state) {
            let Some(chain) = vring.get_queue_mut().iter(mem)?.next() else {
                if vring.get_queue_mut().enable_notification(mem)? {
                    continue;
                }
                break;
            };
            let mut head = chain.head_index();
            let mut readable = Vec::new();
            let mut reader = chain.clone().reader::<()>(mem)?;
            // Reading guest memory that is there cannot fail.
            let _ = reader.read_to_end(&mut readable);
            let mut writer = chain.writer::<()>(mem)?;
            let room = writer.available_bytes();
            let mut answer = honest(&mut state.store, &readable, room).unwrap_or(Answer {
                bytes: Vec::new(),
                used: 0,
            });
            if queue >= FIRST_DATA_QUEUE {
                state.data_answers += 1;
                if state.data_answers > self.lies.honest_answers {
                    distort(&self.lies, &mut state.rng, &readable, &mut answer);
                    if state.rng.u8(0..100) < self.lies.wrong_head_percent {
                        head ^= 1;
                    }
                }
            }
            let _ = writer.write_all(&answer.bytes);
            vring.get_queue_mut().add_used(mem, head, answer.used)?;
            // An interrupt too many does no harm.
            let _ = vring.signal_used_queue();
        }
        Ok(())
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
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.lies.config();
        let config = &config.as_bytes()[..self.lies.config_bytes.min(64)];
        let byte = |at: u32| {
            usize::try_from(at)
                .ok()
                .and_then(|at| config.get(at))
                .copied()
        };
        (0..size.min(4096))
            .map(|at| byte(offset + at).unwrap_or(0))
            .collect()
    }

    fn update_memory(&self, _memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        Ok(())
    }

    fn exit_event(&self, _worker: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
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
