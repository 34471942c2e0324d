// SPDX-License-Identifier: GPL-2.0

//! Which ephemeral pages are to be replaced: what the driver does beside what else could be done.
//!
//! A guest reads pages by made-up traces. Behind its page cache is a window with room for less, as
//! much, or more; what is in neither is read from the disk, and counts. Prints, by tabs, either
//!
//! ```text
//! misses  SLOTS  POLICY  TRACE  disk reads for each thousand of accesses
//! cost    SLOTS  POLICY  BYTES  nanoseconds that a page costs, put and gone; least of some rounds
//! ```
//!
//! `make bench-policy` makes tables of it.

mod guest;
mod policies;
mod traces;

use std::time::{
    Duration,
    Instant, //
};

use guest::{
    Guest,
    Step, //
};
use policies::Policy;

/// Pages of the guest's page cache.
const CACHE: usize = 1024;

/// Slots of the window.
const WINDOWS: [u32; 3] = [512, 1024, 3072];

/// How often what a page costs is measured.
const ROUNDS: usize = 7;

/// Returns the disk reads for each thousand of accesses, and what the policy was told.
fn run(policy: &mut dyn Policy, slots: u32, trace: &[u64]) -> (f64, Vec<Step>) {
    let mut guest = Guest::new(CACHE, slots);
    let warm = trace.len() / 4;
    let mut misses = 0usize;
    for (n, page) in trace.iter().enumerate() {
        if !guest.read(*page, policy) && n >= warm {
            misses += 1;
        }
    }
    let counted = (trace.len() - warm) as f64;
    (misses as f64 * 1000.0 / counted, guest.into_steps())
}

/// Tells a policy once more what it was told before, and returns how long that took for each put.
fn cost(policy: &mut dyn Policy, steps: &[Step]) -> Duration {
    let puts = steps.iter().filter(|step| matches!(step, Step::Put(..)));
    let puts = u32::try_from(puts.count()).unwrap_or(u32::MAX).max(1);
    let begin = Instant::now();
    for step in steps {
        match *step {
            Step::Put(slot, page) => policy.put(slot, page),
            Step::Got(slot, page) => policy.got(slot, page),
            Step::Victim(slot) => assert_eq!(policy.victim(), slot),
        }
    }
    begin.elapsed() / puts
}

fn main() {
    for slots in WINDOWS {
        let traces = traces::all(CACHE as u64 + u64::from(slots));
        for (name, new) in policies::ALL {
            let mut kept = Vec::new();
            for (trace, pages) in &traces {
                let (misses, steps) = run(&mut *new(slots), slots, pages);
                println!("misses\t{slots}\t{name}\t{trace}\t{misses:.1}");
                if *trace == traces::FOR_COST {
                    kept = steps;
                }
            }
            let times = (0..ROUNDS).map(|_| cost(&mut *new(slots), &kept));
            let least = times.min().unwrap_or_default();
            let bytes = new(slots).bytes();
            println!("cost\t{slots}\t{name}\t{bytes}\t{}", least.as_nanos());
        }
        // What could be had if both were one memory, used least recently first.
        for (trace, pages) in &traces {
            let mut guest = guest::Lru::new(CACHE + slots as usize);
            let warm = pages.len() / 4;
            let mut misses = 0usize;
            for (n, page) in pages.iter().enumerate() {
                misses += usize::from(!guest.read(*page) && n >= warm);
            }
            let misses = misses as f64 * 1000.0 / (pages.len() - warm) as f64;
            println!("misses\t{slots}\tLRU, of both as one memory\t{trace}\t{misses:.1}");
        }
    }
}
