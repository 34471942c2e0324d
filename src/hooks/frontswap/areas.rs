// SPDX-License-Identifier: GPL-2.0

//! Where swapped pages come from: swap areas of the kernel's, and devices of our own for swapping.
//!
//! Both have a number, by which their pages are named to the client, and a place for each page on a
//! block device, which is where the page goes if the host does not have it.

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed, //
        },
        Arc, //
    },
};

use crate::{
    bindings::{
        self,
        block::BlockDevice,
        swap::{
            self,
            Area, //
        },
    },
    client::{
        logic::drain::InFlight,
        Pool, //
    },
    params,
};

use super::{
    device::{
        self,
        Device,
        MAX_DEVICES, //
    },
    Client,
    Entered, //
};

/// Pages of a swap area that are one object to the client, as a power of two.
pub(super) const OBJECT_SHIFT: u32 = 12;

pub(super) const OBJECT_PAGES: u64 = 1 << OBJECT_SHIFT;

/// Where the number of the area begins in the tag of an object; below it is the object's own.
const AREA_SHIFT: u32 = 48;

const OBJECT_MASK: u64 = (1 << AREA_SHIFT) - 1;

/// How many swap areas the kernel can have; our own devices are numbered from there on.
const MAX_AREAS: usize = bindings::MAX_SWAPFILES as usize;

/// What has to be remembered of a swap area that pages were put from.
///
/// # Invariants
///
/// `info` is null or was an area of the kernel's once, with this number.
struct AreaOf {
    info: Atomic<*mut bindings::swap_info_struct>,
    /// The last object in use, plus one.
    objects: Atomic<u64>,
}

static AREAS: [AreaOf; MAX_AREAS + MAX_DEVICES] =
    [const { AreaOf::new() }; MAX_AREAS + MAX_DEVICES];

impl AreaOf {
    const fn new() -> Self {
        Self {
            info: Atomic::new(ptr::null_mut()),
            objects: Atomic::new(0),
        }
    }

    fn get(area: u32) -> Option<&'static Self> {
        // CAST: To more bits.
        AREAS.get(area as usize)
    }

    /// Remembers how far the objects go, of which one will have pages.
    fn note(&self, tag: u64) {
        let end = (tag & OBJECT_MASK) + 1;
        let mut old = self.objects.load(Relaxed);

        while old < end {
            // What was stored before can be seen by whoever sees this.
            match self.objects.cmpxchg(old, end, Full) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }
}

/// Returns the number of our own device with this place among those.
pub(super) fn number_of_device(place: usize) -> u32 {
    // CAST: There are few.
    (MAX_AREAS + place) as u32
}

/// Returns what tells one area, or device, from others for as long as the module is there.
pub(super) fn identity(area: u32) -> *const c_void {
    AreaOf::get(area).map_or(ptr::null(), |area| ptr::from_ref(area).cast())
}

/// Remembers how far the objects of an area go, of which one will have pages.
pub(super) fn note(area: Area, tag: u64) {
    // CAST: It was made of a number of 32 bits.
    let Some(this) = AreaOf::get((tag >> AREA_SHIFT) as u32) else {
        return;
    };

    // INVARIANT: It is an area whose pages have tags with this number.
    this.info.store(area.as_ptr(), Relaxed);
    this.note(tag);
}

/// As [`note()`], of a device of our own.
pub(super) fn note_device(tag: u64) {
    // CAST: It was made of a number of 32 bits.
    if let Some(this) = AreaOf::get((tag >> AREA_SHIFT) as u32) {
        this.note(tag);
    }
}

/// Returns all numbers that areas and devices may have, and the last object in use of each, plus one.
pub(super) fn all() -> impl Iterator<Item = (u32, u64)> {
    (0..).zip(AREAS.iter().map(|area| area.objects.load(Acquire)))
}

/// Returns the last object of an area in use, plus one.
pub(super) fn objects(area: u32) -> u64 {
    AreaOf::get(area).map_or(0, |area| area.objects.load(Acquire))
}

/// Forgets all pages of an area that is off, or of a device that is not in use. Any context.
pub(super) fn forget(client: &Client, area: u32) {
    let objects = AreaOf::get(area).map_or(0, |area| area.objects.xchg(0, Full));

    for object in 0..objects {
        let (tag, _) = key(area, object << OBJECT_SHIFT);

        client.flush_object(Pool::Frontswap, tag);
    }
}

/// Returns how many pages of an area the host has. Any context.
pub(super) fn present(client: &Client, area: u32) -> u64 {
    (0..objects(area))
        .map(|object| {
            let (tag, _) = key(area, object << OBJECT_SHIFT);

            client.present(Pool::Frontswap, tag, 0, OBJECT_PAGES)
        })
        .sum()
}

/// Returns the tag and index of a page of a swap area.
pub(super) fn key(area: u32, offset: u64) -> (u64, u64) {
    let object = offset >> OBJECT_SHIFT;

    (
        u64::from(area) << AREA_SHIFT | object,
        offset & (OBJECT_PAGES - 1),
    )
}

/// Neighbouring pages of an area, or of a device of our own.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) area: u32,
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Span {
    /// Returns its pages by objects: the tag, and the index of the first and number of all in it.
    fn parts(self) -> impl Iterator<Item = (u64, u64, u64)> {
        let mut at = 0;

        core::iter::from_fn(move || {
            let left = self.count.checked_sub(at).filter(|&left| left > 0)?;
            let (tag, index) = key(self.area, self.first + at);
            let count = left.min(OBJECT_PAGES - index);

            at += count;
            Some((tag, index, count))
        })
    }

    /// Returns page `n` of it alone.
    pub(super) fn page(self, n: u64) -> Self {
        Self {
            first: self.first + n,
            count: 1,
            ..self
        }
    }

    /// Returns whether the area has what the host did not return of its pages, which nobody writes or
    /// frees meanwhile: what the index had and has not any more was drained. Any context.
    pub(super) fn is_in_area(self, context: &Entered) -> bool {
        params::write_through() || self.present(context) == 0
    }

    /// Returns how many of its pages the host has. Any context.
    pub(super) fn present(self, context: &Entered) -> u64 {
        self.parts()
            .map(|(tag, index, count)| context.client.present(Pool::Frontswap, tag, index, count))
            .sum()
    }

    /// Makes sure that nothing that the host has of its pages can be got any more. Any context.
    pub(super) fn forget(self, context: &Entered) {
        let client = &context.client;

        if client.pages(Pool::Frontswap).load(Relaxed) == 0 {
            return;
        }
        for (tag, index, count) in self.parts() {
            client.flush_range(Pool::Frontswap, tag, index, index + count - 1);
        }
    }

    /// Returns whether one of its places is being written.
    pub(super) fn is_in(self, flight: &InFlight) -> bool {
        flight.overlaps(self.area, self.first, self.count)
    }
}

/// An area, or a device of our own, that stays where it is for as long as the instance lives.
pub(super) enum Held {
    /// A swap area: whoever swaps it off waits.
    Area(swap::Held),
    /// A device of our own.
    Device(Arc<Device>),
}

impl Held {
    /// Keeps an area from being swapped off, or a device from going, unless it is on its way. Sleeps.
    pub(super) fn new(area: u32) -> Option<Self> {
        // CAST: To more bits.
        if let Some(place) = (area as usize).checked_sub(MAX_AREAS) {
            return device::at(place).map(Self::Device);
        }
        let info = NonNull::new(AreaOf::get(area)?.info.load(Relaxed))?;

        // SAFETY: By the type invariants it was an area of the kernel's once.
        unsafe { swap::Held::new(info) }.map(Self::Area)
    }

    /// Returns where page `offset` is on the block device, in pages. Any context.
    pub(super) fn block(&self, offset: u64) -> Option<u64> {
        match self {
            Self::Area(area) => area.block(offset),
            Self::Device(_) => Some(offset),
        }
    }

    /// Returns the block device, if there is one.
    pub(super) fn device(&self) -> Option<BlockDevice<'_>> {
        match self {
            Self::Area(area) => area.device(),
            Self::Device(device) => Some(device.below()),
        }
    }
}
