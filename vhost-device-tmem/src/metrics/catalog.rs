// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which metrics there are: the one place that names them, says what they mean, and where they come
//! from.

use std::fmt::Write;

use crate::{
    control::{Freeable, GuestStat, KindState, SharedStat, Stat, Usage},
    device::WindowState,
    store::{AccessCounters, PoolCounters, PoolKind},
    tier::TierReport,
    window::CHUNK,
};

/// What all names begin with.
pub(super) const PREFIX: &str = "tmem";

/// How a metric changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// It grows, and begins anew with another worker, or another guest on the socket.
    Counter,
    /// It is what it is.
    Gauge,
}

/// Where the values of a metric come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Values {
    /// One.
    Host(fn(&Stat) -> u64),
    /// One of each guest.
    Guest(fn(&GuestStat) -> u64),
    /// One of each guest and kind of pool.
    GuestKind(fn(&GuestStat, PoolKind) -> u64),
    /// One of each guest that has a window.
    Window(fn(&WindowState) -> u64),
    /// One of each guest that has a window, and kind of pool.
    WindowKind(fn(&WindowState, PoolKind) -> u64),
    /// One of each shared pool.
    Shared(fn(&SharedStat) -> u64),
    /// One of each guest that has access to a shared pool.
    Member(fn(&AccessCounters) -> u64),
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metric {
    /// Without prefix, unit, and what follows the names of counters.
    pub(super) name: &'static str,
    pub(super) unit: Option<&'static str>,
    pub(super) sort: Sort,
    pub(super) help: &'static str,
    pub(super) values: Values,
}

impl Metric {
    /// Returns the name of its samples.
    fn full_name(&self) -> String {
        let mut name = format!("{PREFIX}_{}", self.name);
        if let Some(unit) = self.unit {
            name = format!("{name}_{unit}");
        }
        match self.sort {
            Sort::Counter => name + "_total",
            Sort::Gauge => name,
        }
    }

    fn labels(&self) -> &'static str {
        match self.values {
            Values::Host(_) => "",
            Values::Guest(_) | Values::Window(_) => "guest",
            Values::GuestKind(_) | Values::WindowKind(_) => "guest, kind",
            Values::Shared(_) => "pool",
            Values::Member(_) => "pool, guest",
        }
    }
}

/// The metric that has the version of the daemon as its label.
pub(super) const BUILD: (&str, &str) = ("build", "The version of the daemon.");

/// Returns the names of all samples.
pub fn names() -> Vec<String> {
    let build = format!("{PREFIX}_{}_info", BUILD.0);
    let names = METRICS.iter().map(Metric::full_name);
    [build].into_iter().chain(names).collect()
}

/// Returns a table of all metrics, in Markdown.
pub fn reference() -> String {
    let mut table = String::from("| metric | labels | |\n|---|---|---|\n");
    let mut row = |name: &str, labels: &str, help: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| `{name}` | {labels} | {help} |");
    };
    row(&format!("{PREFIX}_{}_info", BUILD.0), "version", BUILD.1);
    for metric in METRICS {
        row(&metric.full_name(), metric.labels(), metric.help);
    }
    table
}

const PAGES: Option<&str> = Some("pages");
const BYTES: Option<&str> = Some("bytes");

const fn gauge(
    name: &'static str,
    unit: Option<&'static str>,
    help: &'static str,
    values: Values,
) -> Metric {
    Metric {
        name,
        unit,
        sort: Sort::Gauge,
        help,
        values,
    }
}

const fn counter(
    name: &'static str,
    unit: Option<&'static str>,
    help: &'static str,
    values: Values,
) -> Metric {
    Metric {
        name,
        unit,
        sort: Sort::Counter,
        help,
        values,
    }
}

/// A counter of pools, also of those that are gone.
const fn pools(
    name: &'static str,
    help: &'static str,
    count: fn(&GuestStat, PoolKind) -> u64,
) -> Metric {
    counter(name, PAGES, help, Values::GuestKind(count))
}

/// A counter of what a guest tells of its window.
const fn told(name: &'static str, help: &'static str, count: fn(&WindowState) -> u64) -> Metric {
    counter(name, PAGES, help, Values::Window(count))
}

/// A counter of what a guest did in a shared pool.
const fn member(
    name: &'static str,
    help: &'static str,
    count: fn(&AccessCounters) -> u64,
) -> Metric {
    counter(name, PAGES, help, Values::Member(count))
}

fn of(guest: &GuestStat, kind: PoolKind, count: fn(&PoolCounters) -> u64) -> u64 {
    count(&guest.counters(kind))
}

fn tier(stat: &Stat, of: fn(&TierReport) -> u64) -> u64 {
    stat.tier.as_deref().map_or(0, of)
}

fn part(guest: &GuestStat, kind: PoolKind) -> KindState {
    let part = guest.part.unwrap_or_default();
    match kind {
        PoolKind::Persistent => part.persistent,
        PoolKind::Ephemeral => part.ephemeral,
    }
}

/// All metrics but [`BUILD`].
pub(super) const METRICS: &[Metric] = &[
    counter(
        "worker_starts",
        None,
        "Workers that the supervisor has started; an upgrade is one, and so is each that takes over \
         from one that died.",
        Values::Host(|stat| stat.worker_starts),
    ),
    gauge(
        "capacity",
        BYTES,
        "Memory that all pages together may take.",
        Values::Host(|stat| stat.capacity_bytes),
    ),
    gauge(
        "used",
        BYTES,
        "Memory that the pages in the store take, with what finds them.",
        Values::Host(|stat| stat.used_bytes),
    ),
    gauge(
        "resident",
        BYTES,
        "Memory of the host that the store takes, with what is free and was not given back.",
        Values::Host(|stat| stat.resident_bytes),
    ),
    gauge(
        "lent",
        BYTES,
        "Memory of the capacity that is lent for windows.",
        Values::Host(|stat| stat.lent_bytes),
    ),
    gauge(
        "withheld",
        BYTES,
        "Memory of the capacity that guests do not get, since the host is short of memory.",
        Values::Host(|stat| stat.withheld_bytes),
    ),
    gauge(
        "capacity",
        PAGES,
        "Pages that the store could hold without compression.",
        Values::Host(|stat| stat.capacity_pages),
    ),
    gauge(
        "objects",
        None,
        "Objects that the pages in the store belong to.",
        Values::Host(|stat| stat.objects),
    ),
    gauge(
        "compressed",
        PAGES,
        "Pages in the store that are compressed.",
        Values::Host(|stat| stat.contents.compressed_pages),
    ),
    gauge(
        "compressed",
        BYTES,
        "What those pages are compressed to.",
        Values::Host(|stat| stat.contents.compressed_bytes),
    ),
    gauge(
        "same_filled",
        PAGES,
        "Pages in the store that repeat one word, and take no memory but that of their entry.",
        Values::Host(|stat| stat.contents.same_filled_pages),
    ),
    gauge(
        "raw",
        PAGES,
        "Pages in the store that are kept as they are.",
        Values::Host(|stat| stat.contents.raw_pages),
    ),
    gauge(
        "slot",
        BYTES,
        "Memory set aside for compressed and raw pages.",
        Values::Host(|stat| stat.contents.slot_bytes),
    ),
    counter(
        "evicted",
        PAGES,
        "Ephemeral pages that the store forgot to make room.",
        Values::Host(|stat| stat.evictions),
    ),
    gauge(
        "below",
        PAGES,
        "Pages that are in the tier below the store, and take no memory but that of their entry.",
        Values::Host(|stat| stat.contents.below_pages),
    ),
    gauge(
        "tier_size",
        BYTES,
        "What the tier below the store may take; 0 where there is none.",
        Values::Host(|stat| tier(stat, |tier| tier.size_bytes)),
    ),
    gauge(
        "tier_used",
        BYTES,
        "What the pages in the tier take there.",
        Values::Host(|stat| tier(stat, |tier| tier.used_bytes)),
    ),
    gauge(
        "tier_free",
        BYTES,
        "What can be written to the tier before something there has to be moved or dropped.",
        Values::Host(|stat| tier(stat, |tier| tier.free_bytes)),
    ),
    counter(
        "tier_written",
        PAGES,
        "Pages that were written to the tier.",
        Values::Host(|stat| tier(stat, |tier| tier.written)),
    ),
    counter(
        "tier_read",
        PAGES,
        "Pages that were read from the tier.",
        Values::Host(|stat| tier(stat, |tier| tier.read)),
    ),
    counter(
        "tier_write_errors",
        None,
        "Writes to the tier that failed; what was to be moved stays in the store.",
        Values::Host(|stat| tier(stat, |tier| tier.write_errors)),
    ),
    counter(
        "tier_read_errors",
        None,
        "Reads from the tier that failed; an ephemeral page is missed then, and a persistent one damaged.",
        Values::Host(|stat| tier(stat, |tier| tier.read_errors)),
    ),
    gauge(
        "tier_waiting",
        PAGES,
        "Pages that are waited for from the tier.",
        Values::Host(|stat| tier(stat, |tier| tier.waiting)),
    ),
    gauge(
        "tier_slowest",
        Some("milliseconds"),
        "For how long the oldest write to, or read from, the tier has been under way.",
        Values::Host(|stat| tier(stat, |tier| tier.slowest_ms)),
    ),
    gauge(
        "guest_connected",
        None,
        "1 if the guest's front-end is connected, 0 if not.",
        Values::Guest(|guest| guest.connected.into()),
    ),
    gauge(
        "guest_frozen",
        None,
        "1 if nothing more is taken of the guest, as the operator wanted, 0 if not.",
        Values::Guest(|guest| guest.frozen.into()),
    ),
    gauge(
        "guest_memory",
        BYTES,
        "Memory of the host that the guest takes, in the store and for its window.",
        Values::Guest(|guest| Usage::of(guest).memory_bytes),
    ),
    gauge(
        "guest_weight",
        None,
        "How much the guest counts beside others, from 1 to 10000.",
        Values::Guest(|guest| guest.part.unwrap_or_default().weight.into()),
    ),
    gauge(
        "guest_held",
        BYTES,
        "Memory that the guest has, in the store and in its window.",
        Values::GuestKind(|guest, kind| part(guest, kind).used_bytes),
    ),
    gauge(
        "guest_share",
        BYTES,
        "Memory that the guest may have now: its quota, or its share of ephemeral memory.",
        Values::GuestKind(|guest, kind| part(guest, kind).share_bytes),
    ),
    gauge(
        "guest_min",
        BYTES,
        "Memory that the guest can always have.",
        Values::GuestKind(|guest, kind| part(guest, kind).min_bytes),
    ),
    gauge(
        "guest_max",
        BYTES,
        "Memory that the guest never has more of; 2⁶⁴ - 1 where it has no cap.",
        Values::GuestKind(|guest, kind| part(guest, kind).max_bytes.unwrap_or(u64::MAX)),
    ),
    gauge(
        "guest_drain",
        BYTES,
        "Persistent memory that the guest is to give back.",
        Values::Guest(|guest| guest.part.unwrap_or_default().drain_bytes),
    ),
    gauge(
        "guest_freeable",
        BYTES,
        "Memory of the guest's that could be had at once: what ephemeral pages take, and chunks of its \
         window for such.",
        Values::Guest(|guest| Freeable::of(guest).bytes()),
    ),
    gauge(
        "guest_stored",
        PAGES,
        "Pages that the guest has in the store.",
        Values::GuestKind(GuestStat::pages),
    ),
    gauge(
        "guest_credit",
        PAGES,
        "Pages that the guest could put now.",
        Values::GuestKind(|guest, kind| match kind {
            PoolKind::Persistent => guest.persistent_credits.into(),
            PoolKind::Ephemeral => guest.ephemeral_credits.into(),
        }),
    ),
    pools(
        "guest_put",
        "Pages that the guest put by requests, stored or refused.",
        |guest, kind| of(guest, kind, |pool| pool.puts),
    ),
    pools(
        "guest_refused",
        "Pages put that were refused, for whatever reason.",
        |guest, kind| of(guest, kind, |pool| pool.puts_refused),
    ),
    pools(
        "guest_over_quota",
        "Pages refused because the capacity was used up.",
        |guest, kind| of(guest, kind, |pool| pool.refused_over_quota),
    ),
    pools(
        "guest_frozen_out",
        "Pages refused because the operator froze the guest.",
        |guest, kind| of(guest, kind, |pool| pool.refused_frozen),
    ),
    pools(
        "guest_replaced",
        "Pages put in the place of another under their key.",
        |guest, kind| of(guest, kind, |pool| pool.puts_replaced),
    ),
    pools(
        "guest_looked_for",
        "Pages that the guest asked for by requests.",
        |guest, kind| of(guest, kind, |pool| pool.gets),
    ),
    pools(
        "guest_hit",
        "Pages that it asked for and got.",
        |guest, kind| of(guest, kind, |pool| pool.gets_hit),
    ),
    pools(
        "guest_flushed",
        "Pages that it had forgotten.",
        |guest, kind| of(guest, kind, |pool| pool.pages_flushed),
    ),
    pools(
        "guest_evicted",
        "Pages of it that the store forgot to make room.",
        |guest, kind| of(guest, kind, |pool| pool.pages_evicted),
    ),
    pools(
        "guest_moved_below",
        "Pages of it that were moved to the tier below the store.",
        |guest, kind| of(guest, kind, |pool| pool.pages_moved_below),
    ),
    pools(
        "guest_got_below",
        "Pages that the guest asked for, and that came back from the tier.",
        |guest, kind| of(guest, kind, |pool| pool.gets_below),
    ),
    pools(
        "guest_lost_below",
        "Pages that the guest asked for, and that did not come back from the tier: too late, or damaged.",
        |guest, kind| of(guest, kind, |pool| pool.gets_lost_below),
    ),
    counter(
        "guest_requests",
        None,
        "Requests of the guest, whatever became of them.",
        Values::Guest(|guest| guest.requests),
    ),
    counter(
        "guest_malformed_requests",
        None,
        "Requests that break a rule.",
        Values::Guest(|guest| guest.malformed),
    ),
    counter(
        "guest_out_of_reach",
        None,
        "Requests, and pages of others, in memory that the front-end does not share.",
        Values::Guest(|guest| guest.out_of_reach),
    ),
    counter(
        "guest_ring_errors",
        None,
        "Virtqueues found broken.",
        Values::Guest(|guest| guest.ring_errors),
    ),
    counter(
        "guest_kicks",
        None,
        "Notifications of the guest.",
        Values::Guest(|guest| guest.kicks),
    ),
    counter(
        "guest_interrupts",
        None,
        "Interrupts sent to the guest.",
        Values::Guest(|guest| guest.calls),
    ),
    counter(
        "guest_events",
        None,
        "Events sent to the guest.",
        Values::Guest(|guest| guest.events),
    ),
    gauge(
        "window_open",
        None,
        "1 if the guest's driver uses its window, 0 if not.",
        Values::Window(|window| window.open.into()),
    ),
    gauge(
        "window_size",
        BYTES,
        "Size of the window: the most that the guest can take by it.",
        Values::Window(|window| window.bytes),
    ),
    gauge(
        "window_allocated",
        BYTES,
        "Memory of the host that the window takes.",
        Values::Window(|window| window.allocated),
    ),
    gauge(
        "window_granted",
        BYTES,
        "Memory of the window that the guest may use.",
        Values::WindowKind(|window, kind| {
            CHUNK
                * u64::from(match kind {
                    PoolKind::Persistent => window.chunks.persistent,
                    PoolKind::Ephemeral => window.chunks.ephemeral,
                })
        }),
    ),
    counter(
        "window_taken_back",
        BYTES,
        "Memory of the window taken back that the guest had not returned.",
        Values::Window(|window| window.taken.saturating_mul(CHUNK)),
    ),
    counter(
        "window_trimmed",
        BYTES,
        "Memory that the guest took without a grant, and that was taken from it.",
        Values::Window(|window| window.trimmed),
    ),
    told(
        "window_put",
        "Pages put into the window, as the guest tells.",
        |window| window.puts,
    ),
    told(
        "window_no_room",
        "Pages for which there was no place in the window, as the guest tells.",
        |window| window.no_slot,
    ),
    told(
        "window_looked_for",
        "Pages looked for in the window, as the guest tells.",
        |window| window.gets,
    ),
    told(
        "window_hit",
        "Pages found there, as the guest tells.",
        |window| window.hits,
    ),
    told(
        "window_replaced",
        "Ephemeral pages that others took the place of, as the guest tells.",
        |window| window.replaced,
    ),
    told(
        "window_near_miss",
        "Ephemeral pages that a somewhat larger window would still have had, as the guest tells.",
        |window| window.near_misses,
    ),
    told(
        "window_moved",
        "Pages that went from the window to the store, as the guest tells.",
        |window| window.moved,
    ),
    gauge(
        "shared_members",
        None,
        "Guests that have access to the shared pool now.",
        Values::Shared(|pool| pool.members.len() as u64),
    ),
    gauge(
        "shared_held",
        BYTES,
        "Memory that the shared pool takes, with what finds its pages; no guest is charged for it.",
        Values::Shared(|pool| pool.bytes),
    ),
    gauge(
        "shared_share",
        BYTES,
        "Memory that the shared pool may have now: its share beside those of guests.",
        Values::Shared(|pool| pool.part.unwrap_or_default().ephemeral.share_bytes),
    ),
    gauge(
        "shared_max",
        BYTES,
        "Memory that the shared pool never has more of; 2⁶⁴ - 1 where it has no cap.",
        Values::Shared(|pool| pool.max_bytes.unwrap_or(u64::MAX)),
    ),
    gauge(
        "shared_stored",
        PAGES,
        "Pages that the shared pool has in the store.",
        Values::Shared(|pool| pool.pages),
    ),
    counter(
        "shared_evicted",
        PAGES,
        "Pages of the shared pool that the store forgot to make room.",
        Values::Shared(|pool| pool.counters.pages_evicted),
    ),
    member(
        "shared_put",
        "Pages that the guest put into the shared pool, stored or refused.",
        |guest| guest.puts,
    ),
    member(
        "shared_looked_for",
        "Pages that the guest asked the shared pool for.",
        |guest| guest.gets,
    ),
    member(
        "shared_hit",
        "Pages that it asked for and got, whoever had put them.",
        |guest| guest.gets_hit,
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let all = names();
        let different: BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        for name in &all {
            let allowed = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(
                name.starts_with("tmem_") && name.chars().all(allowed),
                "{name}"
            );
        }
        for metric in METRICS {
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            let ends = metric.full_name().ends_with("_total");
            assert_eq!(ends, metric.sort == Sort::Counter, "{}", metric.name);
        }
    }
}
