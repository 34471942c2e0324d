// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Putting the statistics together.

use super::protocol::{GuestStat, SharedMember, SharedStat, Stat, VERSION};
use crate::{
    device::Slot,
    store::{Credits, SharedReport, Store},
};

/// Returns the statistics of this moment, as the last of so many workers. Each pool's numbers belong
/// together; those of different pools were taken one after the other.
pub fn stat<'s>(
    store: &Store,
    worker_starts: u64,
    slots: impl IntoIterator<Item = &'s Slot>,
) -> Stat {
    let report = store.report();
    Stat {
        version: VERSION,
        worker_starts,
        capacity_bytes: report.capacity_bytes,
        compression: report.compression,
        used_bytes: report.used_bytes,
        resident_bytes: report.resident_bytes,
        lent_bytes: report.lent_bytes,
        withheld_bytes: report.withheld_bytes,
        capacity_pages: report.capacity_pages,
        used_pages: report.used_pages,
        ephemeral_pages: report.ephemeral_pages,
        objects: report.objects,
        contents: report.contents,
        evictions: report.evictions,
        tier: store.tier_report().map(Box::new),
        guests: slots.into_iter().map(guest).collect(),
        // Whoever knows guests by their numbers says so.
        shared: Vec::new(),
    }
}

/// Returns the statistics of a shared pool whose guests have these names.
pub fn shared(report: &SharedReport, name: impl Fn(u32) -> String) -> SharedStat {
    let members = report.by_guest().into_iter();
    let mut stat = SharedStat {
        uuid: report.terms.uuid,
        guests: report
            .terms
            .guests
            .iter()
            .map(|guest| name(*guest))
            .collect(),
        max_bytes: report.terms.max,
        members: members
            .map(|(guest, counters)| SharedMember {
                guest: name(guest),
                counters,
            })
            .collect(),
        ..SharedStat::default()
    };
    if let Some(pool) = report.pool {
        stat.pages = pool.pages;
        stat.objects = pool.objects;
        stat.bytes = pool.bytes;
        stat.contents = pool.contents;
        stat.counters = pool.counters;
    }
    stat
}

fn guest(slot: &Slot) -> GuestStat {
    let state = slot.state();
    let name = slot.name();
    let Some(session) = &state.session else {
        return GuestStat {
            name,
            ..GuestStat::default()
        };
    };
    let connected = state.connected;
    let credits = if connected {
        session.credits()
    } else {
        Credits {
            persistent: 0,
            ephemeral: 0,
        }
    };
    let counters = &session.counters;
    GuestStat {
        name,
        connected,
        // Whoever knows guests by their numbers knows that.
        frozen: false,
        epoch: session.epoch(),
        kicks: counters.kicks.get(),
        polls: counters.polls.get(),
        polls_found: counters.polls_found.get(),
        calls: counters.calls.get(),
        events: counters.events.get(),
        requests: counters.requests.get(),
        malformed: counters.malformed.get(),
        out_of_reach: counters.out_of_reach.get(),
        ring_errors: counters.ring_errors.get(),
        persistent_credits: credits.persistent,
        ephemeral_credits: credits.ephemeral,
        // Who decides it says so.
        part: None,
        window: session.window(),
        pools: session.pools(),
        dropped: session.dropped(),
    }
}
