// SPDX-License-Identifier: GPL-2.0

//! Volumes whose pages several guests share: filesystems that nobody can write to.
//!
//! Such a filesystem is mounted read-only from a block device that is read-only, too, and has a UUID.
//! When something of it is read or evicted for the first time the host is asked for the pool of that
//! UUID, by work that may sleep. Until there is an answer its pages are not put; where the host's
//! operator does not allow it they are the guest's own, as all others are.
//!
//! What is put there is named by a stamp of what the volume has: the bytes that its filesystem
//! changes whenever it writes. Copies of one image that went different ways have the same UUID, and
//! different stamps. A stamp holds for as long as the filesystem cannot be written to. So a volume
//! is left when it is mounted otherwise, before that has happened, and when it is unmounted.

use core::ptr;

use kernel::{
    error::to_result,
    fmt,
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        SpinLockIrq, //
    },
    time::msecs_to_jiffies, //
};

use crate::{
    bindings::{
        self,
        thread, //
    },
    client::{
        Volume,
        MAX_VOLUMES, //
    },
};

use super::{
    ftrace::Watch,
    points,
    Client,
    Context, //
};

/// After how long a host that has refused is asked again, in milliseconds.
const AGAIN: u32 = 60_000;

/// How far it is with a volume.
#[derive(Clone, Copy)]
enum State {
    /// The host is to be asked. A reference to the superblock is held by whoever asks.
    Wanted {
        /// Whether it has been mounted in the same way since.
        same: bool,
    },
    /// Its pages are shared.
    Joined(Volume),
    /// They are not, and nobody is asked before this, in jiffies.
    Refused { until: usize },
    /// The pool is to be left.
    Leaving,
}

/// Whose the pages of a superblock are.
pub(super) enum Owner {
    /// The guest's own.
    Guest,
    /// All guests' that have the volume.
    All(Volume),
    /// Nobody knows before the host has answered.
    Unknown {
        /// Whether the host is to be asked, by [`Context::join_later`].
        ask: bool,
    },
}

/// A superblock, by its address, and how far it is with it.
struct Place {
    superblock: usize,
    state: State,
}

/// The volumes that are known.
#[pin_data]
pub(super) struct Volumes {
    /// How many there can be.
    most: Atomic<usize>,
    #[pin]
    places: SpinLockIrq<[Option<Place>; MAX_VOLUMES]>,
}

/// What hears of volumes that are mounted otherwise, or not any more: without it there are none.
pub(super) struct Hooks {
    // Dropped in this order.
    _allowed: Allowed,
    _mounted_otherwise: Watch,
    _unmounted: Watch,
}

impl Hooks {
    /// Watches for what ends the sharing of a volume, and has volumes be shared from now on, if the
    /// device can do so.
    ///
    /// Where this kernel lacks a hook point that is needed there are none, and a line says so. What
    /// comes from the host is not shared while it is compared. May sleep.
    pub(super) fn install(client: &Client) -> Option<Self> {
        let places = client.volume_places();
        let context = Context::get().filter(|context| context.verify.is_none())?;

        if places == 0 {
            return None;
        }
        // SAFETY: The functions take the first argument of those that they watch.
        let watches = unsafe {
            Watch::two(points::UNMOUNT, unmounted).and_then(|unmounted| {
                Ok((unmounted, Watch::two(points::REMOUNT, mounted_otherwise)?))
            })
        };
        let Ok((unmounted, mounted_otherwise)) = watches else {
            pr_warn!("no volume is shared: this kernel lacks a hook point that is needed for it\n");
            return None;
        };

        context.volumes.most.store(places, Relaxed);
        Some(Self {
            _allowed: Allowed(()),
            _mounted_otherwise: mounted_otherwise,
            _unmounted: unmounted,
        })
    }
}

/// The permission for there to be volumes.
struct Allowed(());

impl Drop for Allowed {
    fn drop(&mut self) {
        if let Some(context) = Context::get() {
            context.volumes.most.store(0, Relaxed);
        }
    }
}

/// A superblock, by its address, is about to go. Any context.
fn unmounted(superblock: usize, _: usize) {
    forget(superblock);
}

/// A filesystem, by its `struct fs_context`, is about to be mounted otherwise. Any context.
///
/// # Safety
///
/// `context` must be the address of the `struct fs_context` of a mount that there is.
unsafe fn mounted_otherwise(context: usize, _: usize) {
    // SAFETY: By the safety requirements.
    let superblock =
        unsafe { bindings::tmem_reconfigured(ptr::with_exposed_provenance_mut(context)) };

    forget(superblock.addr());
}

/// Has what is shared of a superblock not be used any more. Any context.
fn forget(superblock: usize) {
    if let Some(context) = Context::get() {
        if context.volumes.forget(superblock) {
            context.join_later();
        }
    }
}

impl Volumes {
    /// Makes room for volumes, of which there can be none before there are [`Hooks`].
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            most: Atomic::new(0),
            places <- new_spinlock_irq!([const { None }; MAX_VOLUMES], "Volumes::places"),
        })
    }

    /// Returns whether there can be any.
    #[inline]
    pub(super) fn any(&self) -> bool {
        self.most.load(Relaxed) > 0
    }

    /// Returns whether pages of a superblock could be shared. Any context.
    ///
    /// # Safety
    ///
    /// `superblock` must be valid.
    #[inline]
    pub(super) unsafe fn can_have(&self, superblock: *mut bindings::super_block) -> bool {
        // SAFETY: By the safety requirements it is valid.
        self.any() && unsafe { bindings::tmem_superblock_shareable(superblock) }
    }

    /// Returns the volume of a superblock, if its pages are shared now. Any context.
    ///
    /// # Safety
    ///
    /// `superblock` must be valid.
    pub(super) unsafe fn of(
        &self,
        client: &Client,
        superblock: *mut bindings::super_block,
    ) -> Option<Volume> {
        // SAFETY: By the safety requirements it is valid.
        if !unsafe { self.can_have(superblock) } {
            return None;
        }
        self.places
            .lock()
            .iter()
            .flatten()
            .find(|place| place.superblock == superblock.addr())
            .and_then(|place| match place.state {
                State::Joined(volume) => client.has_joined(volume).then_some(volume),
                _ => None,
            })
    }

    /// Returns whose the pages of a superblock are, of which something is read or evicted. Where
    /// that has not been decided yet, it is taken note that the host is to be asked. Any context.
    ///
    /// # Safety
    ///
    /// `superblock` must be valid, and in use.
    pub(super) unsafe fn owner(
        &self,
        client: &Client,
        superblock: *mut bindings::super_block,
    ) -> Owner {
        // SAFETY: By the safety requirements it is valid.
        if !unsafe { self.can_have(superblock) } {
            return Owner::Guest;
        }
        let mut places = self.places.lock();
        let known = places.iter().position(
            |place| matches!(place, Some(place) if place.superblock == superblock.addr()),
        );
        let at = known.or_else(|| {
            places
                .iter()
                .take(self.most.load(Relaxed))
                .position(Option::is_none)
        });
        let Some(place) = at.and_then(|at| places.get_mut(at)) else {
            return Owner::Guest;
        };

        match place.as_ref().map(|place| place.state) {
            Some(State::Joined(volume)) if client.has_joined(volume) => {
                return Owner::All(volume);
            }
            Some(State::Wanted { .. }) => return Owner::Unknown { ask: false },
            Some(State::Refused { until })
                if (thread::jiffies().wrapping_sub(until) as isize) < 0 =>
            {
                return Owner::Guest;
            }
            Some(State::Leaving) => return Owner::Guest,
            // The device was reset, the last answer is old, or there was none.
            Some(State::Joined(_) | State::Refused { .. }) | None => (),
        }
        // SAFETY: It is in use, so that there is a reference to take another one with.
        if !client.running() || !unsafe { bindings::tmem_superblock_hold(superblock) } {
            return Owner::Guest;
        }
        *place = Some(Place {
            superblock: superblock.expose_provenance(),
            state: State::Wanted { same: true },
        });
        Owner::Unknown { ask: true }
    }

    /// Takes note that a superblock goes, or may be written to soon; returns whether there is
    /// something to be done about it by [`Self::settle`]. Any context.
    fn forget(&self, superblock: usize) -> bool {
        let mut places = self.places.lock();
        let Some(place) = places
            .iter_mut()
            .find(|place| matches!(place, Some(place) if place.superblock == superblock))
        else {
            return false;
        };

        match place {
            Some(Place {
                state: State::Wanted { same },
                ..
            }) => *same = false,
            Some(
                joined @ Place {
                    state: State::Joined(_),
                    ..
                },
            ) => {
                joined.state = State::Leaving;
                return true;
            }
            Some(Place {
                state: State::Refused { .. },
                ..
            }) => *place = None,
            _ => (),
        }
        false
    }

    /// Asks the host about the volumes that are to be joined, and leaves those that are to be left.
    ///
    /// Sleeps. One at a time.
    pub(super) fn settle(&self, client: &Client) {
        for at in 0..MAX_VOLUMES {
            loop {
                let found = self
                    .places
                    .lock()
                    .get(at)
                    .and_then(Option::as_ref)
                    .map(|place| (place.superblock, place.state));

                match found {
                    Some((superblock, State::Wanted { .. })) => {
                        // SAFETY: `owner()` has taken a reference for whoever asks, which is this.
                        let held = unsafe { Held::new(superblock) };

                        self.join(client, at, held);
                    }
                    Some((_, State::Leaving)) => {
                        // CAST: There are few places.
                        client.leave_volume(at as u8);
                        if let Some(place) = self.places.lock().get_mut(at) {
                            *place = None;
                        }
                    }
                    _ => break,
                }
            }
        }
    }

    fn join(&self, client: &Client, at: usize, held: Held) {
        let uuid = held.uuid();
        let joined = held
            .stamp()
            // CAST: There are few places.
            .and_then(|stamp| client.join(at as u8, uuid, stamp));
        let now = thread::jiffies();
        let state = match joined {
            Ok(Some(volume)) => State::Joined(volume),
            Ok(None) | Err(_) => State::Refused {
                until: now.wrapping_add(msecs_to_jiffies(AGAIN)),
            },
        };

        let mut same = false;
        if let Some(Some(place)) = self.places.lock().get_mut(at) {
            same = matches!(place.state, State::Wanted { same: true });
            place.state = if same { state } else { State::Leaving };
        }
        let uuid = Uuid(uuid);
        match joined {
            Ok(Some(_)) if same => pr_info!(
                "{:?}: pages of this volume are shared with other guests (UUID {uuid})\n",
                held.name()
            ),
            Ok(None) => pr_info!(
                "{:?}: pages of this volume are the guest's own: the host does not allow to share \
                 those of UUID {uuid} (tmemctl shared add)\n",
                held.name()
            ),
            Err(error) if error != EAGAIN => pr_warn!(
                "{:?}: pages of this volume are the guest's own: it cannot be shared ({error:?})\n",
                held.name()
            ),
            _ => (),
        }
    }
}

/// A UUID as `blkid` shows it.
struct Uuid([u8; 16]);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, byte) in self.0.iter().enumerate() {
            if matches!(n, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// A superblock that does not go away.
///
/// # Invariants
///
/// An active reference is held.
struct Held(*mut bindings::super_block);

impl Held {
    /// Takes a reference over.
    ///
    /// # Safety
    ///
    /// It must be the address of a superblock to which there is an active reference that nobody else
    /// will give back.
    unsafe fn new(superblock: usize) -> Self {
        // INVARIANT: By the safety requirements.
        Self(ptr::with_exposed_provenance_mut(superblock))
    }

    fn uuid(&self) -> [u8; 16] {
        // SAFETY: By the type invariants it is valid.
        unsafe { (*self.0).s_uuid.b }
    }

    /// Returns the name of the device.
    fn name(&self) -> &CStr {
        // SAFETY: By the type invariants it is valid, and the kernel ends the name by a zero.
        unsafe { CStr::from_char_ptr((*self.0).s_id.as_ptr()) }
    }

    /// Reads what the volume's content is known by. Sleeps.
    fn stamp(&self) -> Result<u64> {
        let mut stamp = 0;

        // SAFETY: By the type invariants it is valid; it is one that `owner()` has found to have a
        // block device, which it keeps for as long as it lives.
        to_result(unsafe { bindings::tmem_superblock_stamp(self.0, &raw mut stamp) })?;
        Ok(stamp)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: By the type invariants there is a reference to give back; this is a work item,
        // which may sleep, and holds no lock of a filesystem's.
        unsafe { bindings::deactivate_super(self.0) };
    }
}
