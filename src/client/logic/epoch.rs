// SPDX-License-Identifier: GPL-2.0

//! The device's epoch, from what it says in answers and events that may be late.

/// How often a device may change its epoch while a driver runs: each change is a restart of the
/// device, or a machine that was set back, and neither happens time and again.
const MOST_CHANGES: u32 = 16;

/// What is never an epoch: what a configuration space that was cut short reads as.
pub const NONE: u64 = u64::MAX;

/// The epoch as the driver knows it.
#[derive(Clone, Copy, Debug)]
pub struct Epoch {
    current: u64,
    previous: Option<u64>,
    changes: u32,
}

/// What an epoch that the device names means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is the same.
    Same,
    /// What names it is older than the change to the one that is in force.
    Late,
    /// It is a new one: what was stored under the one before is not to be used.
    New,
    /// No device does that which keeps to the rules.
    Lie,
}

impl Epoch {
    /// The driver begins with the epoch that the configuration space shows.
    pub const fn new(current: u64) -> Self {
        Self {
            current,
            previous: None,
            changes: 0,
        }
    }

    /// Returns the epoch to be named in requests.
    pub const fn current(&self) -> u64 {
        self.current
    }

    /// Says what it means that the device names `told`: in the answer to a request that named
    /// `asked`, or in an event.
    pub fn told(&self, told: u64, asked: Option<u64>) -> Told {
        if told == self.current {
            return Told::Same;
        }
        if asked.is_some_and(|asked| asked != self.current) {
            return Told::Late;
        }
        if told == NONE || self.changes >= MOST_CHANGES {
            return Told::Lie;
        }
        if self.previous == Some(told) {
            return match asked {
                // Events have waited for nobody knows how long.
                None => Told::Late,
                Some(_) => Told::Lie,
            };
        }
        Told::New
    }

    /// Goes over to a new epoch, once nothing of the one before is used any more.
    pub fn change(&mut self, to: u64) {
        self.previous = Some(self.current);
        self.current = to;
        self.changes = self.changes.saturating_add(1);
    }
}
