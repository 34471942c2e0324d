// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is known of a guest's connection, and what a worker has to be told of it.
//!
//! This is plain data: each message of the front-end changes it and yields orders for the worker,
//! and at any time it yields the orders that bring a new worker to where the one before was. It can
//! be written down and read by another process, which then goes on with the connection.

mod sharing;

use serde::{Deserialize, Serialize};
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_tmem_abi::QUEUE_CONTROL;

use crate::link::{GuestId, MemoryRegion, RingLayout, ToWorker};

use sharing::Sharing;

/// A descriptor that the front-end handed over, by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) enum Slot {
    /// The file of a piece of memory.
    Memory(u16),
    /// What notifies a virtqueue.
    Kick(u16),
    /// What interrupts the driver on behalf of a virtqueue.
    Call(u16),
    /// The socket on which the front-end is asked for things.
    Channel,
}

/// A message for the worker, and the descriptors that go with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) message: ToWorker,
    pub(super) slots: Vec<Slot>,
}

impl From<ToWorker> for Order {
    fn from(message: ToWorker) -> Self {
        Self {
            message,
            slots: Vec::new(),
        }
    }
}

/// By what a virtqueue is notified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Kick {
    /// The front-end did not say so yet; the virtqueue is stopped.
    #[default]
    Unknown,
    /// By nothing.
    Polled,
    /// By a descriptor.
    Descriptor,
}

/// Where a virtqueue is, in the front-end's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RingAddress {
    /// The descriptor table.
    pub(super) desc: u64,
    /// The available ring.
    pub(super) avail: u64,
    /// The used ring.
    pub(super) used: u64,
}

/// A virtqueue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ring {
    size: u16,
    address: Option<RingAddress>,
    /// The available index to begin at. It is known only to the virtqueue itself once a worker has
    /// begun.
    base: Option<u16>,
    kick: Kick,
    call: bool,
    enabled: bool,
    /// A worker is at it, or will be as soon as there is one.
    runs: bool,
}

impl Ring {
    /// Returns whether the front-end has said all that a start takes.
    fn is_ready(&self) -> bool {
        self.enabled && self.kick != Kick::Unknown && self.size > 0 && self.address.is_some()
    }
}

/// What a message of the front-end asks for that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GuestError {
    /// More virtqueues than the device has.
    #[error(
        "it sets up virtqueue {ring}, and the device has {rings}; give QEMU's device num_vqs={rings}"
    )]
    NoSuchRing {
        /// The virtqueue's number.
        ring: u32,
        /// How many there are.
        rings: usize,
    },
    /// A virtqueue of a size that the device does not have.
    #[error(
        "virtqueue {ring} has {size} descriptors; a power of two up to {most} works: give QEMU's \
         device vq_size={most} or less"
    )]
    RingSize {
        /// The virtqueue's number.
        ring: u32,
        /// The size that it was given.
        size: u32,
        /// The largest size.
        most: u16,
    },
    /// A virtqueue changes its size though it runs.
    #[error("virtqueue {ring} is given another size while it runs")]
    Runs {
        /// The virtqueue's number.
        ring: u32,
    },
    /// An index that no virtqueue has.
    #[error("virtqueue {ring} is to begin at {base}, which is no index")]
    RingBase {
        /// The virtqueue's number.
        ring: u32,
        /// The index.
        base: u32,
    },
}

/// The most descriptors that a virtqueue may have.
pub(super) const RING_SIZE: u16 = 1024;

/// Why a guest is not served, though it is connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Outage {
    /// The worker said so. It may be better once the driver starts anew.
    Failed(String),
    /// It killed one worker after the other.
    Blamed,
}

/// A guest's connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GuestState {
    guest: GuestId,
    name: String,
    epoch: u64,
    /// The epoch is not the one that the connection began with.
    #[serde(default)]
    renewed: bool,
    features: u64,
    /// The protocol's own features that the front-end accepted.
    protocol: u64,
    regions: Vec<MemoryRegion>,
    rings: Vec<Ring>,
    outage: Option<Outage>,
    /// The driver had virtqueues at some time.
    had_rings: bool,
    /// The worker was told that the guest's ephemeral pages may go.
    abandoned: bool,
    /// Pages of an earlier connection may still be there.
    unclean: bool,
    #[serde(default)]
    sharing: Sharing,
}

impl GuestState {
    /// A connection that has just been made to a device with so many virtqueues.
    pub(super) fn new(guest: GuestId, name: &str, epoch: u64, rings: u16) -> Self {
        Self {
            guest,
            name: name.to_owned(),
            epoch,
            renewed: false,
            features: 0,
            protocol: 0,
            regions: Vec::new(),
            rings: vec![Ring::default(); usize::from(rings)],
            outage: None,
            had_rings: false,
            abandoned: false,
            unclean: false,
            sharing: Sharing::default(),
        }
    }

    /// Says whether pages of an earlier connection may still be there.
    pub(super) fn set_unclean(&mut self, unclean: bool) {
        self.unclean = unclean;
    }

    /// Returns whether pages of an earlier connection may still be there.
    pub(super) fn is_unclean(&self) -> bool {
        self.unclean
    }

    /// Returns the guest's number.
    pub(super) fn guest(&self) -> GuestId {
        self.guest
    }

    /// Returns the guest's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The guest has another name.
    pub(super) fn set_name(&mut self, name: &str) {
        name.clone_into(&mut self.name);
    }

    /// Returns the epoch of the connection.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What the guest has stored cannot be vouched for: it is to forget it, by a new epoch.
    pub(super) fn set_epoch(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.renewed = true;
    }

    /// Returns the features that were accepted: virtio's, and the protocol's own.
    pub(super) fn features(&self) -> (u64, u64) {
        (self.features, self.protocol)
    }

    /// Returns whether a virtqueue runs.
    pub(super) fn has_running_ring(&self) -> bool {
        self.rings.iter().any(|ring| ring.runs)
    }

    /// Returns whether the virtqueue runs.
    pub(super) fn runs(&self, ring: u16) -> bool {
        self.rings
            .get(usize::from(ring))
            .is_some_and(|ring| ring.runs)
    }

    /// Returns the numbers of the virtqueues that run.
    pub(super) fn running(&self) -> Vec<u16> {
        (0..self.rings.len() as u16)
            .filter(|ring| self.runs(*ring))
            .collect()
    }

    /// Returns the slots that have to have a file.
    pub(super) fn slots(&self) -> Vec<Slot> {
        self.bring_up()
            .into_iter()
            .flat_map(|order| order.slots)
            .collect()
    }

    /// Returns the orders that bring a worker which knows nothing to where the one before was.
    pub(super) fn bring_up(&self) -> Vec<Order> {
        let mut orders = vec![Order::from(ToWorker::AddGuest {
            guest: self.guest,
            name: self.name.clone(),
            epoch: self.epoch,
            renewed: self.renewed,
            features: self.features,
        })];
        orders.extend(self.memory_order());
        orders.extend(
            self.running()
                .into_iter()
                .filter_map(|ring| self.start_order(ring)),
        );
        orders
    }

    /// Notes that a worker got a message: what it was told once need not be told to the next one.
    pub(super) fn sent(&mut self, message: &ToWorker) {
        if let ToWorker::StartRing { ring, .. } = message {
            if let Some(ring) = self.rings.get_mut(usize::from(*ring)) {
                ring.base = None;
            }
        }
    }

    /// Returns what another process is to go on with. By then a worker may have begun with each
    /// virtqueue that runs, and carried out any number of requests: only the virtqueue itself says
    /// where it is.
    pub(super) fn resumable(&self) -> Self {
        let mut this = self.clone();
        for ring in this.rings.iter_mut().filter(|ring| ring.runs) {
            ring.base = None;
        }
        this
    }

    /// `SET_FEATURES`.
    pub(super) fn set_features(&mut self, features: u64) -> Vec<Order> {
        self.features = features;
        let guest = self.guest;
        let mut orders = vec![ToWorker::SetFeatures { guest, features }.into()];
        // Without the protocol's features there is no message that enables a virtqueue.
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            for ring in 0..self.rings.len() as u16 {
                self.rings[usize::from(ring)].enabled = true;
                orders.extend(self.start(ring));
            }
        }
        orders
    }

    /// `SET_PROTOCOL_FEATURES`.
    pub(super) fn set_protocol(&mut self, features: u64) {
        self.protocol = features;
    }

    /// `SET_MEM_TABLE`, without the window, which the front-end has `mapped` or not. The files are in
    /// the slots of the pieces.
    pub(super) fn set_memory(&mut self, regions: Vec<MemoryRegion>, mapped: bool) -> Vec<Order> {
        self.regions = regions;
        let mut orders: Vec<_> = self.memory_order().into_iter().collect();
        self.sharing.told(mapped, self.has_running_ring());
        if mapped {
            // It may have waited for that.
            orders.extend(self.start(QUEUE_CONTROL));
        }
        // The driver starts anew, or memory was plugged in.
        if matches!(self.outage, Some(Outage::Failed(_))) {
            self.outage = None;
            for ring in 0..self.rings.len() as u16 {
                orders.extend(self.start(ring));
            }
        }
        orders
    }

    fn memory_order(&self) -> Option<Order> {
        let (guest, regions) = (self.guest, self.regions.clone());
        let slots = (0..regions.len() as u16).map(Slot::Memory).collect();
        (!regions.is_empty()).then_some(Order {
            message: ToWorker::SetMemory { guest, regions },
            slots,
        })
    }

    /// Returns the number of a virtqueue that the front-end means.
    ///
    /// # Errors
    ///
    /// [`GuestError::NoSuchRing`].
    pub(super) fn ring(&self, ring: u32) -> Result<u16, GuestError> {
        let rings = self.rings.len();
        match u16::try_from(ring) {
            Ok(number) if usize::from(number) < rings => Ok(number),
            _ => Err(GuestError::NoSuchRing { ring, rings }),
        }
    }

    fn ring_mut(&mut self, ring: u32) -> Result<(u16, &mut Ring), GuestError> {
        let number = self.ring(ring)?;
        Ok((number, &mut self.rings[usize::from(number)]))
    }

    /// `SET_VRING_NUM`.
    ///
    /// # Errors
    ///
    /// [`GuestError`].
    pub(super) fn set_size(&mut self, ring: u32, size: u32) -> Result<(), GuestError> {
        let (_, state) = self.ring_mut(ring)?;
        if state.runs {
            return Err(GuestError::Runs { ring });
        }
        state.size = match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= RING_SIZE => size,
            _ => {
                let most = RING_SIZE;
                return Err(GuestError::RingSize { ring, size, most });
            }
        };
        Ok(())
    }

    /// `SET_VRING_ADDR`.
    ///
    /// # Errors
    ///
    /// [`GuestError`].
    pub(super) fn set_address(
        &mut self,
        ring: u32,
        address: RingAddress,
    ) -> Result<Vec<Order>, GuestError> {
        let (number, state) = self.ring_mut(ring)?;
        let moved = state.address.replace(address) != Some(address);
        if state.runs && moved {
            state.base = None;
            return Ok(self.start_order(number).into_iter().collect());
        }
        Ok(self.start(number).into_iter().collect())
    }

    /// `SET_VRING_BASE`.
    ///
    /// # Errors
    ///
    /// [`GuestError`].
    pub(super) fn set_base(&mut self, ring: u32, base: u32) -> Result<(), GuestError> {
        let (_, state) = self.ring_mut(ring)?;
        let base = u16::try_from(base).map_err(|_| GuestError::RingBase { ring, base })?;
        state.base = Some(base);
        Ok(())
    }

    /// `SET_VRING_KICK`. The descriptor, if there is one, is in its slot.
    ///
    /// # Errors
    ///
    /// [`GuestError`].
    pub(super) fn set_kick(
        &mut self,
        ring: u32,
        descriptor: bool,
    ) -> Result<Vec<Order>, GuestError> {
        let (number, state) = self.ring_mut(ring)?;
        state.kick = if descriptor {
            Kick::Descriptor
        } else {
            Kick::Polled
        };
        // One that runs goes on with the new descriptor where it was.
        if state.runs {
            state.base = None;
            return Ok(self.start_order(number).into_iter().collect());
        }
        Ok(self.start(number).into_iter().collect())
    }

    /// `SET_VRING_CALL`. The descriptor, if there is one, is in its slot.
    ///
    /// # Errors
    ///
    /// [`GuestError`].
    pub(super) fn set_call(&mut self, ring: u32, call: bool) -> Result<Vec<Order>, GuestError> {
        let (number, state) = self.ring_mut(ring)?;
        state.call = call;
        let order = state.runs.then(|| Order {
            message: ToWorker::SetCall {
                guest: self.guest,
                ring: number,
                call,
            },
            slots: call.then_some(Slot::Call(number)).into_iter().collect(),
        });
        Ok(order.into_iter().collect())
    }

    /// `SET_VRING_ENABLE` with one.
    ///
    /// # Errors
    ///
    /// [`GuestError`].
    pub(super) fn enable(&mut self, ring: u32) -> Result<Vec<Order>, GuestError> {
        let (number, state) = self.ring_mut(ring)?;
        state.enabled = true;
        Ok(self.start(number).into_iter().collect())
    }

    /// `SET_VRING_ENABLE` with zero, for a virtqueue that does not run or was just
    /// [stopped](Self::stopped).
    ///
    /// # Errors
    ///
    /// [`GuestError`].
    pub(super) fn disable(&mut self, ring: u32) -> Result<(), GuestError> {
        let (_, state) = self.ring_mut(ring)?;
        state.enabled = false;
        Ok(())
    }

    /// The second half of `GET_VRING_BASE`, for a virtqueue that does not run or was just
    /// [stopped](Self::stopped): it waits for a new kick descriptor. Returns the index of the first
    /// chain that was not carried out.
    ///
    /// # Errors
    ///
    /// [`GuestError`].
    pub(super) fn end_ring(&mut self, ring: u32) -> Result<u16, GuestError> {
        let (_, state) = self.ring_mut(ring)?;
        state.kick = Kick::Unknown;
        Ok(state.base.unwrap_or(0))
    }

    /// No worker is at a virtqueue any more, which was at `base` then.
    pub(super) fn stopped(&mut self, ring: u16, base: u16) {
        if let Some(ring) = self.rings.get_mut(usize::from(ring)) {
            ring.runs = false;
            ring.base = Some(base);
        }
    }

    /// `RESET_DEVICE`, when no virtqueue runs any more.
    pub(super) fn reset(&mut self) -> Vec<Order> {
        for ring in &mut self.rings {
            *ring = Ring::default();
        }
        self.features = 0;
        vec![ToWorker::ResetGuest { guest: self.guest }.into()]
    }

    /// A worker cannot serve the guest. No other one tries, until the driver starts anew.
    pub(super) fn failed(&mut self, why: String) {
        if self.outage.is_none() {
            self.outage = Some(Outage::Failed(why));
        }
        self.all_stop();
    }

    /// The guest kills one worker after the other: it is not served any more.
    pub(super) fn blamed(&mut self) {
        self.outage = Some(Outage::Blamed);
        self.all_stop();
    }

    fn all_stop(&mut self) {
        for ring in &mut self.rings {
            ring.runs = false;
        }
    }

    /// Starts a virtqueue if all is known of it.
    fn start(&mut self, ring: u16) -> Option<Order> {
        let state = self.rings.get(usize::from(ring))?;
        if state.runs || !state.is_ready() || self.outage.is_some() {
            return None;
        }
        if self.sharing.holds(ring, self.protocol) {
            return None;
        }
        self.rings[usize::from(ring)].runs = true;
        self.had_rings = true;
        self.abandoned = false;
        self.start_order(ring)
    }

    fn start_order(&self, ring: u16) -> Option<Order> {
        let state = self.rings.get(usize::from(ring))?;
        let address = state.address?;
        let kick = state.kick == Kick::Descriptor;
        let mut slots = Vec::new();
        slots.extend(kick.then_some(Slot::Kick(ring)));
        slots.extend(state.call.then_some(Slot::Call(ring)));
        Some(Order {
            message: ToWorker::StartRing {
                guest: self.guest,
                ring,
                layout: RingLayout {
                    size: state.size,
                    desc: address.desc,
                    avail: address.avail,
                    used: address.used,
                },
                base: state.base,
                kick,
                call: state.call,
            },
            slots,
        })
    }

    /// Returns whether the guest had virtqueues and has none, and nobody was told so yet.
    pub(super) fn may_be_abandoned(&self) -> bool {
        self.had_rings && !self.abandoned && !self.has_running_ring()
    }

    /// The guest has had no virtqueue for long enough.
    pub(super) fn abandon(&mut self) -> Order {
        self.abandoned = true;
        ToWorker::AbandonGuest { guest: self.guest }.into()
    }
}

#[cfg(test)]
mod tests;
