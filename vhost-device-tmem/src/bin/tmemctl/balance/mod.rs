// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How large guests' own memory should be.
//!
//! ```text
//! QEMU's monitors ─┐                          ┌─ table, or JSON
//! daemon ──────────┴─ look ── Balancer ── plan ┴─ apply ── QEMU's monitors
//! ```

mod machines;
mod options;
mod report;

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use vhost_device_tmem::{
    balance::{Balancer, Observation},
    control::{Client, ClientError, Stat},
};

use self::machines::{apply, Machine};
pub(crate) use self::options::Options;
use self::options::Shared;
use crate::{failure::Failure, print, print_json};

/// How long one proposal waits for balloons that take memory before others give what there is.
const ONCE: Duration = Duration::from_secs(60);

/// Proposes, and applies if it is to; once, or until somebody ends it.
///
/// # Errors
///
/// [`Failure`]. With `--interval`, a guest or a daemon that goes away later is none, and may come back.
pub(crate) fn run(path: &Path, options: &Options) -> Result<(), Failure> {
    let shared = options.shared()?;
    let terms = shared.guests.iter().map(|guest| guest.terms.clone());
    let mut balancer = Balancer::new(shared.total, terms.collect())?;
    let seconds = options.interval.unwrap_or(options.sample);
    let polling = (seconds / 2).max(1);
    let guests = shared.guests.iter();
    let mut machines: Vec<_> = guests
        .map(|guest| Machine::new(guest.clone(), polling))
        .collect();
    for machine in &mut machines {
        machine.begin()?;
    }
    let mut at = Instant::now();
    let seen = look(&mut machines, &stat(path, &shared)?, Err)?;
    balancer.step(&seen, Duration::ZERO);
    let mut next = at;
    loop {
        next = next.max(at) + Duration::from_secs(seconds);
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let mut trouble = |failure: Failure| match options.interval {
            // It may come back.
            Some(_) => {
                eprintln!("tmemctl: {failure}");
                Ok(())
            }
            None => Err(failure),
        };
        let now = Instant::now();
        let stat = match stat(path, &shared) {
            Ok(stat) => stat,
            Err(error) => {
                // Without its counters, guests would seem to need less.
                trouble(error.into())?;
                continue;
            }
        };
        let seen = look(&mut machines, &stat, &mut trouble)?;
        let plan = balancer.step(&seen, now - at);
        at = now;
        let told = if options.apply {
            let patience = options.interval.map_or(ONCE, Duration::from_secs);
            apply(&plan, &mut machines, &mut balancer, patience, &mut trouble)?
        } else {
            vec![None; machines.len()]
        };
        if options.output.json {
            print_json(&report::figures(&shared, &plan, &told))?;
        } else {
            for doubt in &plan.doubts {
                eprintln!("tmemctl: {doubt}");
            }
            print(report::table(
                &shared,
                &plan,
                options.apply.then_some(&told),
            ))?;
        }
        if options.interval.is_none() {
            return Ok(());
        }
    }
}

/// Asks the daemon, if any guest has tmem.
fn stat(path: &Path, shared: &Shared) -> Result<Stat, ClientError> {
    if shared.guests.iter().any(|guest| guest.has_tmem) {
        Client::connect(path)?.stat()
    } else {
        Ok(Stat::default())
    }
}

/// Looks at all machines. Hands to `failed` what goes wrong with one.
///
/// # Errors
///
/// The first of `failed`.
fn look(
    machines: &mut [Machine],
    stat: &Stat,
    mut failed: impl FnMut(Failure) -> Result<(), Failure>,
) -> Result<Vec<Option<Observation>>, Failure> {
    let mut seen = Vec::new();
    for machine in machines {
        seen.push(match machine.look(stat) {
            Ok(observation) => Some(observation),
            Err(failure) => {
                failed(failure)?;
                None
            }
        });
    }
    Ok(seen)
}
