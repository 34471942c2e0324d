// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The window as a memory region of the device itself: when the front-end is asked to map it.
//!
//! A front-end forgets the mapping when the device is reset, and says in its table of memory whether
//! there is one. It is asked at most once for each start of the device, when the virtqueues are set
//! up. The control virtqueue, on which the driver asks for its window, waits for that.

use serde::{Deserialize, Serialize};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_tmem_abi::QUEUE_CONTROL;

use super::{GuestState, Order};

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// Nobody has asked since the device started.
    #[default]
    Idle,
    /// Somebody has to ask.
    Wanted,
    /// It is asked.
    Asked,
    /// It was asked in vain.
    GivenUp,
}

/// What is known of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sharing {
    /// There is a socket on which front-ends are asked.
    channel: bool,
    /// The front-end has the window mapped, as it said last.
    mapped: bool,
    phase: Phase,
}

impl Sharing {
    /// The front-end told of its memory, when a virtqueue ran or none did.
    pub(super) fn told(&mut self, mapped: bool, runs: bool) {
        self.mapped = mapped;
        if mapped || (!runs && self.phase == Phase::GivenUp) {
            self.phase = Phase::Idle;
        }
    }

    /// Looks whether a virtqueue for which all else is ready has to wait.
    pub(super) fn holds(&mut self, ring: u16, protocol: u64) -> bool {
        let offered = protocol & VhostUserProtocolFeatures::SHMEM.bits() != 0;
        if ring != QUEUE_CONTROL || self.mapped || !offered {
            return false;
        }
        if self.phase == Phase::Idle && self.channel {
            self.phase = Phase::Wanted;
        }
        matches!(self.phase, Phase::Wanted | Phase::Asked)
    }
}

impl GuestState {
    /// `SET_BACKEND_REQ_FD`. The socket is in its slot.
    pub(in crate::supervisor) fn set_channel(&mut self) {
        self.sharing.channel = true;
    }

    /// Returns whether the front-end is to be asked to map the window, now and by the caller.
    pub(in crate::supervisor) fn begin_sharing(&mut self) -> bool {
        let wanted = self.sharing.phase == Phase::Wanted;
        if wanted {
            self.sharing.phase = Phase::Asked;
        }
        wanted
    }

    /// Returns whether the front-end is being asked.
    pub(in crate::supervisor) fn is_sharing(&self) -> bool {
        self.sharing.phase == Phase::Asked
    }

    /// Returns whether the device is started, as far as the front-end said.
    pub(in crate::supervisor) fn is_started(&self) -> bool {
        let control = self.rings.get(usize::from(QUEUE_CONTROL));
        control.is_some_and(super::Ring::is_ready)
    }

    /// Whoever asked the front-end has done so in vain: it goes on without. `closed`: on that socket
    /// nothing can be asked any more.
    pub(in crate::supervisor) fn give_up_sharing(&mut self, closed: bool) -> Vec<Order> {
        if closed {
            self.sharing.channel = false;
        }
        if matches!(self.sharing.phase, Phase::Wanted | Phase::Asked) {
            self.sharing.phase = Phase::GivenUp;
        }
        self.start(QUEUE_CONTROL).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::RingAddress;
    use super::*;
    use crate::link::{GuestId, ToWorker};

    const CONTROL: u16 = QUEUE_CONTROL;

    fn state() -> GuestState {
        let mut state = GuestState::new(GuestId(0), "a", 1, 4);
        state.set_protocol(VhostUserProtocolFeatures::SHMEM.bits());
        state.set_channel();
        state
    }

    /// All that a front-end says when a device starts. Returns the virtqueues that do.
    fn start(state: &mut GuestState, mapped: bool) -> Vec<u16> {
        let address = RingAddress {
            desc: 0x1000,
            avail: 0x2000,
            used: 0x3000,
        };
        let mut orders = state.set_memory(Vec::new(), mapped);
        for ring in 0..2 {
            state.set_size(ring, 256).unwrap();
            state.set_base(ring, 0).unwrap();
            orders.extend(state.set_address(ring, address).unwrap());
            orders.extend(state.set_kick(ring, true).unwrap());
            orders.extend(state.enable(ring).unwrap());
        }
        started(&orders)
    }

    fn stop(state: &mut GuestState) {
        for ring in state.running() {
            state.stopped(ring, 0);
        }
        for ring in 0..2 {
            state.end_ring(ring).unwrap();
        }
    }

    fn started(orders: &[Order]) -> Vec<u16> {
        let started = orders.iter().filter_map(|order| match order.message {
            ToWorker::StartRing { ring, .. } => Some(ring),
            _ => None,
        });
        started.collect()
    }

    #[test]
    fn the_control_virtqueue_waits_for_the_window() {
        let mut state = state();
        assert!(!state.begin_sharing() && !state.is_started());
        assert_eq!(start(&mut state, false), [1]);
        assert!(state.is_started() && !state.runs(CONTROL));
        assert!(state.begin_sharing());
        assert!(!state.begin_sharing(), "one asks");
        // Memory is plugged in meanwhile.
        assert_eq!(
            started(&state.set_memory(Vec::new(), false)),
            Vec::<u16>::new()
        );
        assert_eq!(started(&state.set_memory(Vec::new(), true)), [CONTROL]);
        assert!(!state.is_sharing() && !state.begin_sharing());

        // It is still mapped after a pause, and not after a reset.
        stop(&mut state);
        assert_eq!(start(&mut state, true), [CONTROL, 1]);
        assert!(!state.begin_sharing());
        stop(&mut state);
        assert_eq!(start(&mut state, false), [1]);
        assert!(state.begin_sharing());
    }

    #[test]
    fn what_is_asked_in_vain_is_asked_again_when_the_device_starts_anew() {
        let mut state = state();
        start(&mut state, false);
        assert!(state.begin_sharing());
        assert_eq!(started(&state.give_up_sharing(false)), [CONTROL]);
        assert!(!state.begin_sharing());
        state.set_memory(Vec::new(), false);
        assert!(!state.begin_sharing(), "it runs");
        stop(&mut state);
        assert_eq!(start(&mut state, false), [1]);
        assert!(state.begin_sharing());
    }

    #[test]
    fn a_device_that_stops_while_its_front_end_is_asked_is_not_started() {
        let mut state = state();
        start(&mut state, false);
        assert!(state.begin_sharing());
        stop(&mut state);
        assert!(state.is_sharing() && !state.is_started());
        assert_eq!(started(&state.give_up_sharing(true)), Vec::<u16>::new());
        // There is nothing left to ask on.
        assert_eq!(start(&mut state, false), [CONTROL, 1]);
        assert!(!state.begin_sharing());
    }

    #[test]
    fn nothing_waits_where_nobody_can_be_asked() {
        let mut without_channel = GuestState::new(GuestId(0), "a", 1, 4);
        without_channel.set_protocol(VhostUserProtocolFeatures::SHMEM.bits());
        assert_eq!(start(&mut without_channel, false), [CONTROL, 1]);
        let mut not_offered = GuestState::new(GuestId(0), "a", 1, 4);
        not_offered.set_channel();
        assert_eq!(start(&mut not_offered, false), [CONTROL, 1]);
        assert!(!without_channel.begin_sharing() && !not_offered.begin_sharing());
    }
}
