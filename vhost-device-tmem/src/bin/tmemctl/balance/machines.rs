// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests' machines: what is seen of them, and what their balloons are told.

use std::{
    thread,
    time::{Duration, Instant},
};

use vhost_device_tmem::{
    balance::{Balancer, GuestStats, Observation, Plan, TmemCounters},
    control::{GuestStat, Stat},
    qmp::{Balloon, QmpError},
};

use super::options::GuestOption;
use crate::failure::Failure;

/// How long QEMU may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a guest may take to tell figures for the first time.
const FIRST_FIGURES: Duration = Duration::from_secs(10);

/// How often balloons are looked at that are on their way.
const LOOK: Duration = Duration::from_millis(200);

/// The weight of guests of which the daemon says nothing.
const WEIGHT: u32 = 100;

/// A guest's machine.
pub(super) struct Machine {
    guest: GuestOption,
    /// How often the guest is to tell figures, in seconds.
    polling: u64,
    /// Its monitor; nothing after something went wrong with that.
    balloon: Option<Balloon>,
}

impl Machine {
    pub(super) fn new(guest: GuestOption, polling: u64) -> Self {
        Self {
            guest,
            polling,
            balloon: None,
        }
    }

    /// Connects, and waits until the guest has told figures: for a while, as it may have no driver.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub(super) fn begin(&mut self) -> Result<(), Failure> {
        let ram = self.ask(|balloon| Ok(balloon.ram()))?;
        let (guest, min) = (&self.guest.terms.name, self.guest.terms.min);
        if ram < min {
            let guest = guest.clone();
            return Err(Failure::MinAboveRam { guest, min, ram });
        }
        let until = Instant::now() + FIRST_FIGURES;
        while !self.ask(Balloon::stats)?.is_there() && Instant::now() < until {
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Looks at it; `stat` is what the daemon knows.
    ///
    /// # Errors
    ///
    /// [`Failure::Qmp`], [`Failure::NoGuest`].
    pub(super) fn look(&mut self, stat: &Stat) -> Result<Observation, Failure> {
        let known = self.known(stat)?;
        let weight = known.and_then(|guest| guest.part).map(|part| part.weight);
        let tmem = known.map(TmemCounters::of);
        let (actual, ram, stats): (u64, u64, GuestStats) = self.ask(|balloon| {
            let actual = balloon.actual()?;
            Ok((actual, balloon.ram(), balloon.stats()?))
        })?;
        Ok(Observation {
            actual,
            ram: Some(ram),
            stats,
            tmem,
            weight: weight.unwrap_or(WEIGHT),
        })
    }

    /// Returns what the daemon knows of it; nothing if it is not meant to know it.
    fn known<'s>(&self, stat: &'s Stat) -> Result<Option<&'s GuestStat>, Failure> {
        if !self.guest.has_tmem {
            return Ok(None);
        }
        let name = &self.guest.terms.name;
        let known = stat.guests.iter().find(|guest| guest.name == *name);
        known.map(Some).ok_or_else(|| Failure::NoGuest {
            name: name.clone(),
            names: stat.guests.iter().map(|guest| guest.name.clone()).collect(),
        })
    }

    /// Asks the monitor, and connects to it where that has to be.
    fn ask<T>(
        &mut self,
        what: impl FnOnce(&mut Balloon) -> Result<T, QmpError>,
    ) -> Result<T, Failure> {
        let answer = self.connected().and_then(what);
        answer.map_err(|error| {
            // Of what comes next nobody knows what it answers.
            self.balloon = None;
            Failure::Qmp {
                guest: self.guest.terms.name.clone(),
                error,
            }
        })
    }

    fn connected(&mut self) -> Result<&mut Balloon, QmpError> {
        let balloon = match self.balloon.take() {
            Some(balloon) => balloon,
            None => {
                let mut balloon = Balloon::connect(&self.guest.monitor, PATIENCE)?;
                balloon.poll_each(self.polling)?;
                balloon
            }
        };
        Ok(self.balloon.insert(balloon))
    }
}

/// Has balloons do what is planned: first those that take memory, and once they have it, for `patience`
/// at most, those that give it. Hands to `failed` what goes wrong with a guest, and goes on with the
/// others. Returns what each was told.
///
/// # Errors
///
/// The first of `failed`.
pub(super) fn apply(
    plan: &Plan,
    machines: &mut [Machine],
    balancer: &mut Balancer,
    patience: Duration,
    mut failed: impl FnMut(Failure) -> Result<(), Failure>,
) -> Result<Vec<Option<u64>>, Failure> {
    let mut told = vec![None; machines.len()];
    let mut actual: Vec<_> = plan.proposals.iter().map(|of| of.actual_bytes).collect();
    let mut tell = |n: usize, machine: &mut Machine, bytes: u64| {
        machine.ask(|balloon| balloon.set(bytes))?;
        balancer.told(n, bytes);
        told[n] = Some(bytes);
        Ok(())
    };
    let is_raise = |n: usize| {
        let of = &plan.proposals[n];
        of.target_bytes > of.actual_bytes
    };
    let mut awaited = Vec::new();
    for (n, machine) in machines.iter_mut().enumerate() {
        if plan.proposals[n].is_change() && !is_raise(n) {
            match tell(n, machine, plan.proposals[n].target_bytes) {
                Ok(()) => awaited.push(n),
                Err(failure) => failed(failure)?,
            }
        }
    }
    let until = Instant::now() + patience;
    loop {
        let mut left = Vec::new();
        for n in awaited {
            match machines[n].ask(Balloon::actual) {
                Ok(now) => {
                    actual[n] = now;
                    if now > plan.proposals[n].target_bytes {
                        left.push(n);
                    }
                }
                Err(failure) => failed(failure)?,
            }
        }
        if left.is_empty() || Instant::now() >= until {
            break;
        }
        awaited = left;
        thread::sleep(LOOK);
    }
    for (n, bytes) in plan.affordable(&actual).into_iter().enumerate() {
        if is_raise(n) && bytes > actual[n] {
            if let Err(failure) = tell(n, &mut machines[n], bytes) {
                failed(failure)?;
            }
        }
    }
    Ok(told)
}
