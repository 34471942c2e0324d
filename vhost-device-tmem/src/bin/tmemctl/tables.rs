// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The statistics, for people to read: tables whose columns each have one unit, which is below the
//! head.

use comfy_table::{presets::NOTHING, CellAlignment, Table};
use vhost_device_tmem::{
    control::{part, Freeable, GuestStat, Stat},
    store::{Compression, Contents, PoolCounters, PoolKind},
    tier::TierReport,
    window::CHUNK,
};

use crate::figures::Listed;

/// A column: its head, and the unit of what is in it; none of words.
pub(crate) type Column = (&'static str, &'static str);

/// What stands for a number that there is not.
pub(crate) const NONE: &str = "-";

pub(crate) const WORDS: &str = "";

/// Returns the guests, one a line, and the pools that they share.
pub(crate) fn overview(stat: &Stat) -> String {
    let mut parts = vec![list(stat), shared(stat)];
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

/// Returns the guests, one a line.
fn list(stat: &Stat) -> String {
    let columns = [
        ("GUEST", WORDS),
        ("STATE", WORDS),
        ("MEMORY", "MiB"),
        ("SHARE", "%"),
        ("PERSISTENT", "pages"),
        ("EPHEMERAL", "pages"),
        ("PUT", "pages"),
        ("REFUSED", "%"),
        ("GOT", "pages"),
        ("HIT", "%"),
    ];
    let listed = Listed::all(stat);
    let memory = listed.iter().map(|guest| guest.usage.memory_bytes);
    let whole = memory.fold(0, u64::saturating_add);
    let rows = listed.into_iter().map(|guest| {
        let usage = guest.usage;
        vec![
            guest.name.to_owned(),
            state(&guest),
            mib(usage.memory_bytes),
            percent(part(usage.memory_bytes, whole)),
            usage.persistent_pages.to_string(),
            usage.ephemeral_pages.to_string(),
            usage.puts.to_string(),
            percent(guest.refused_rate),
            usage.gets.to_string(),
            percent(guest.hit_rate),
        ]
    });
    table(&columns, rows)
}

/// Returns the pools that guests share, one a line; nothing where there are none.
fn shared(stat: &Stat) -> String {
    let columns = [
        ("SHARED POOL", WORDS),
        ("GUESTS", WORDS),
        ("WITH ACCESS", WORDS),
        ("WEIGHT", "of 10000"),
        ("MEMORY", "MiB"),
        ("SHARE", "MiB"),
        ("MAX", "MiB"),
        ("HELD", "pages"),
        ("PUT", "pages"),
        ("GOT", "pages"),
        ("HIT", "%"),
        ("EVICTED", "pages"),
    ];
    let rows = stat.shared.iter().map(|pool| {
        let of = pool.part.unwrap_or_default();
        let counters = &pool.counters;
        vec![
            pool.uuid.to_string(),
            pool.guests.len().to_string(),
            pool.members.len().to_string(),
            of.weight.to_string(),
            mib(pool.bytes),
            mib(of.ephemeral.share_bytes),
            pool.max_bytes.map_or(NONE.to_owned(), mib),
            pool.pages.to_string(),
            counters.puts.to_string(),
            counters.gets.to_string(),
            percent(part(counters.gets_hit, counters.gets)),
            counters.pages_evicted.to_string(),
        ]
    });
    table(&columns, rows)
}

/// Returns what each guest may and did in shared pools.
fn members(stat: &Stat) -> String {
    let columns = [
        ("SHARED POOL", WORDS),
        ("GUEST", WORDS),
        ("ACCESS", WORDS),
        ("PUT", "pages"),
        ("STORED", "pages"),
        ("GOT", "pages"),
        ("HIT", "pages"),
        ("FLUSHED", "times"),
    ];
    let mut rows = Vec::new();
    for pool in &stat.shared {
        for guest in &pool.guests {
            let member = pool.members.iter().find(|member| member.guest == *guest);
            let counters = member.map(|member| member.counters).unwrap_or_default();
            rows.push(vec![
                pool.uuid.to_string(),
                guest.clone(),
                if member.is_some() { "yes" } else { "no" }.to_owned(),
                counters.puts.to_string(),
                counters.puts_stored.to_string(),
                counters.gets.to_string(),
                counters.gets_hit.to_string(),
                counters.flushes.to_string(),
            ]);
        }
    }
    table(&columns, rows)
}

/// Returns what could be had of each guest at once, and of all together.
pub(crate) fn freeable(stat: &Stat) -> String {
    let columns = [
        ("GUEST", WORDS),
        ("FREEABLE", "MiB"),
        ("STORE", "MiB"),
        ("WINDOW", "MiB"),
    ];
    let row = |name: &str, of: Freeable| {
        let parts = [of.bytes(), of.store_bytes, of.window_bytes];
        let mut row = vec![name.to_owned()];
        row.extend(parts.map(mib));
        row
    };
    let mut all = Freeable::default();
    let mut rows = Vec::new();
    for guest in &stat.guests {
        let freeable = Freeable::of(guest);
        all.store_bytes += freeable.store_bytes;
        all.window_bytes += freeable.window_bytes;
        rows.push(row(&guest.name, freeable));
    }
    if stat.guests.len() > 1 {
        rows.push(row("(all)", all));
    }
    table(&columns, rows)
}

fn state(guest: &Listed<'_>) -> String {
    let frozen = if guest.frozen { ", frozen" } else { "" };
    guest.state.words().to_owned() + frozen
}

/// Returns all that there is: the store, the guests, their virtqueues, windows and pools.
pub(crate) fn all(stat: &Stat) -> String {
    let compressed = stat.compression != Compression::None;
    let mut parts = vec![store(stat)];
    if compressed {
        parts.push(contents(&stat.contents));
    }
    parts.extend(stat.tier.as_ref().map(|it| tier(it, &stat.contents)));
    parts.extend([list(stat), shares(stat), requests(stat), windows(stat)]);
    parts.push(pools(stat, compressed));
    parts.extend([shared(stat), members(stat)]);
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

fn store(stat: &Stat) -> String {
    let columns = [
        ("CAPACITY", "MiB"),
        ("USED", "MiB"),
        ("USED", "%"),
        ("RESIDENT", "MiB"),
        ("LENT", "MiB"),
        ("WITHHELD", "MiB"),
        ("ALL", "pages"),
        ("EPHEMERAL", "pages"),
        ("ROOM FOR", "pages"),
        ("EVICTED", "pages"),
    ];
    let row = vec![
        mib(stat.capacity_bytes),
        mib(stat.used_bytes),
        percent(part(stat.used_bytes, stat.capacity_bytes)),
        mib(stat.resident_bytes),
        mib(stat.lent_bytes),
        mib(stat.withheld_bytes),
        stat.used_pages.to_string(),
        stat.ephemeral_pages.to_string(),
        stat.capacity_pages.to_string(),
        stat.evictions.to_string(),
    ];
    table(&columns, [row])
}

fn contents(contents: &Contents) -> String {
    let columns = [
        ("COMPRESSED", "pages"),
        ("TO", "MiB"),
        ("SAME-FILLED", "pages"),
        ("INCOMPRESSIBLE", "pages"),
        ("TAKE", "MiB"),
        ("RATIO", "to 1"),
    ];
    let row = vec![
        contents.compressed_pages.to_string(),
        mib(contents.compressed_bytes),
        contents.same_filled_pages.to_string(),
        contents.raw_pages.to_string(),
        mib(contents.slot_bytes),
        ratio(contents),
    ];
    table(&columns, [row])
}

/// Returns how the tier below the store is.
fn tier(tier: &TierReport, contents: &Contents) -> String {
    let columns = [
        ("TIER", WORDS),
        ("SIZE", "MiB"),
        ("USED", "MiB"),
        ("FREE", "MiB"),
        ("HELD", "pages"),
        ("WRITTEN", "pages"),
        ("READ", "pages"),
        ("FAILED", "times"),
        ("WAITED FOR", "pages"),
        ("SINCE", "ms"),
    ];
    let row = vec![
        tier.engine.clone(),
        mib(tier.size_bytes),
        mib(tier.used_bytes),
        mib(tier.free_bytes),
        contents.below_pages.to_string(),
        tier.written.to_string(),
        tier.read.to_string(),
        (tier.write_errors + tier.read_errors).to_string(),
        tier.waiting.to_string(),
        tier.slowest_ms.to_string(),
    ];
    table(&columns, [row])
}

/// Returns what guests may have, and what operators say of that.
fn shares(stat: &Stat) -> String {
    let columns = [
        ("GUEST", WORDS),
        ("WEIGHT", "of 10000"),
        ("PERSISTENT", "MiB"),
        ("QUOTA", "MiB"),
        ("MIN", "MiB"),
        ("MAX", "MiB"),
        ("DRAIN", "MiB"),
        ("EPHEMERAL", "MiB"),
        ("SHARE", "MiB"),
        ("MIN", "MiB"),
        ("MAX", "MiB"),
    ];
    let max = |bytes: Option<u64>| bytes.map_or(NONE.to_owned(), mib);
    let rows = stat.guests.iter().filter_map(|guest| {
        let part = guest.part?;
        let (persistent, ephemeral) = (part.persistent, part.ephemeral);
        Some(vec![
            guest.name.clone(),
            part.weight.to_string(),
            mib(persistent.used_bytes),
            mib(persistent.share_bytes),
            mib(persistent.min_bytes),
            max(persistent.max_bytes),
            mib(part.drain_bytes),
            mib(ephemeral.used_bytes),
            mib(ephemeral.share_bytes),
            mib(ephemeral.min_bytes),
            max(ephemeral.max_bytes),
        ])
    });
    table(&columns, rows)
}

fn requests(stat: &Stat) -> String {
    let columns = [
        ("GUEST", WORDS),
        ("EPOCH", WORDS),
        ("PERSISTENT CREDIT", "pages"),
        ("EPHEMERAL CREDIT", "pages"),
        ("REQUESTS", "times"),
        ("MALFORMED", "times"),
        ("OUT OF REACH", "times"),
        ("BROKEN", "times"),
        ("KICKS", "times"),
        ("POLLS", "times"),
        ("FOUND", "times"),
        ("CALLS", "times"),
        ("EVENTS", "times"),
    ];
    let rows = stat.guests.iter().map(|guest| {
        vec![
            guest.name.clone(),
            match guest.epoch {
                0 => NONE.to_owned(),
                epoch => format!("{epoch:016x}"),
            },
            guest.persistent_credits.to_string(),
            guest.ephemeral_credits.to_string(),
            guest.requests.to_string(),
            guest.malformed.to_string(),
            guest.out_of_reach.to_string(),
            guest.ring_errors.to_string(),
            guest.kicks.to_string(),
            guest.polls.to_string(),
            guest.polls_found.to_string(),
            guest.calls.to_string(),
            guest.events.to_string(),
        ]
    });
    table(&columns, rows)
}

fn windows(stat: &Stat) -> String {
    let columns = [
        ("GUEST", WORDS),
        ("WINDOW", WORDS),
        ("SIZE", "MiB"),
        ("ALLOCATED", "MiB"),
        ("EPHEMERAL", "MiB"),
        ("PERSISTENT", "MiB"),
        ("READY", "MiB"),
        ("TAKEN BACK", "MiB"),
        ("TRIMMED", "MiB"),
        ("PUT", "pages"),
        ("NO ROOM", "pages"),
        ("GOT", "pages"),
        ("HIT", "%"),
        ("REPLACED", "pages"),
        ("TO STORE", "pages"),
    ];
    let chunks = |count: u32| mib(u64::from(count) * CHUNK);
    let rows = stat.guests.iter().filter_map(|guest| {
        let window = guest.window?;
        Some(vec![
            guest.name.clone(),
            if window.open { "open" } else { "closed" }.to_owned(),
            mib(window.bytes),
            mib(window.allocated),
            chunks(window.chunks.ephemeral),
            chunks(window.chunks.persistent),
            chunks(window.chunks.ready),
            mib(window.taken.saturating_mul(CHUNK)),
            mib(window.trimmed),
            window.puts.to_string(),
            window.no_slot.to_string(),
            window.gets.to_string(),
            percent(part(window.hits, window.gets)),
            window.replaced.to_string(),
            window.moved.to_string(),
        ])
    });
    table(&columns, rows)
}

fn pools(stat: &Stat, compressed: bool) -> String {
    let mut columns = vec![
        ("GUEST", WORDS),
        ("POOL", WORDS),
        ("KIND", WORDS),
        ("HELD", "pages"),
        ("MEMORY", "MiB"),
        ("SHARE", "%"),
    ];
    if compressed {
        columns.push(("RATIO", "to 1"));
    }
    columns.extend([
        ("PUT", "pages"),
        ("STORED", "pages"),
        ("REFUSED", "pages"),
        ("GOT", "pages"),
        ("HIT", "pages"),
        ("FLUSHED", "pages"),
        ("EVICTED", "pages"),
    ]);
    let mut rows = Vec::new();
    for guest in &stat.guests {
        for pool in &guest.pools {
            let mut row = vec![
                guest.name.clone(),
                pool.pool.to_string(),
                pool.kind.name().to_owned(),
                pool.pages.to_string(),
                mib(pool.bytes),
                percent(part(pool.bytes, stat.used_bytes)),
            ];
            if compressed {
                row.push(ratio(&pool.contents));
            }
            row.extend(counters(&pool.counters));
            rows.push(row);
        }
        rows.extend(gone(guest, compressed));
    }
    table(&columns, rows)
}

/// Returns the rows of a guest's pools that are gone.
fn gone(guest: &GuestStat, compressed: bool) -> Vec<Vec<String>> {
    let rows = PoolKind::ALL.into_iter().filter_map(|kind| {
        let dropped = guest.dropped.of(kind);
        let mut row = vec![
            guest.name.clone(),
            format!("{} gone", dropped.pools),
            kind.name().to_owned(),
            format!("({})", dropped.pages),
        ];
        row.extend(vec![NONE.to_owned(); if compressed { 3 } else { 2 }]);
        row.extend(counters(&dropped.counters));
        (dropped.pools > 0).then_some(row)
    });
    rows.collect()
}

fn counters(counters: &PoolCounters) -> [String; 7] {
    [
        counters.puts,
        counters.puts_stored,
        counters.puts_refused,
        counters.gets,
        counters.gets_hit,
        counters.pages_flushed,
        counters.pages_evicted,
    ]
    .map(|count| count.to_string())
}

fn ratio(contents: &Contents) -> String {
    contents
        .ratio()
        .map_or(NONE.to_owned(), |ratio| format!("{ratio:.2}"))
}

/// Shows bytes as MiB.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// Shows a part of 1 as a percentage.
pub(crate) fn percent(part: Option<f64>) -> String {
    part.map_or(NONE.to_owned(), |part| format!("{:.1}", part * 100.0))
}

/// Lays rows out below heads and units; nothing if there are no rows. Words are to the left, numbers
/// to the right.
pub(crate) fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let heads = columns.iter().map(|(head, unit)| format!("{head}\n{unit}"));
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(heads).add_rows(rows);
    if table.is_empty() {
        return String::new();
    }
    for (column, (_, unit)) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, 2));
        if *unit != WORDS {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use vhost_device_tmem::{
        control::VERSION,
        device::WindowState,
        store::{Dropped, PoolReport},
        window::Counts,
    };

    use super::*;

    fn stat(compression: Compression) -> Stat {
        let pool = PoolReport {
            pool: 3,
            kind: PoolKind::Persistent,
            pages: 256,
            objects: 1,
            bytes: 1 << 20,
            contents: Contents {
                compressed_pages: 256,
                slot_bytes: 1 << 19,
                ..Contents::default()
            },
            counters: PoolCounters {
                puts: 300,
                puts_stored: 290,
                puts_refused: 10,
                ..PoolCounters::default()
            },
        };
        let mut dropped = Dropped::default();
        dropped.add(&pool);
        let web = GuestStat {
            name: "web".to_owned(),
            connected: true,
            epoch: 0xabc,
            pools: vec![pool],
            dropped,
            ..GuestStat::default()
        };
        let new = GuestStat {
            name: "a-new-one".to_owned(),
            ..GuestStat::default()
        };
        Stat {
            version: VERSION,
            worker_starts: 1,
            capacity_bytes: 1 << 30,
            compression,
            used_bytes: 4 << 20,
            resident_bytes: 5 << 20,
            lent_bytes: 6 << 20,
            capacity_pages: 1,
            used_pages: 256,
            objects: 1,
            guests: vec![web, new],
            ..Stat::default()
        }
    }

    /// The words of the line that begins with some.
    fn words<'t>(table: &'t str, first: &[&str]) -> Vec<&'t str> {
        let lines = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut found = lines.filter(|words| words.starts_with(first));
        found
            .next()
            .unwrap_or_else(|| panic!("no line {first:?}: {table}"))
    }

    #[test]
    fn each_number_is_below_its_head_and_unit() {
        let table = all(&stat(Compression::None));
        let store = words(&table, &["1024.0"]);
        assert_eq!(store[1..5], ["4.0", "0.4", "5.0", "6.0"]);
        let web = words(&table, &["web", "connected"]);
        assert_eq!(
            web[2..],
            ["1.0", "100.0", "256", "0", "600", "3.3", "0", "-"]
        );
        words(&table, &["a-new-one", "never", "connected", "0.0", "0.0"]);
        words(&table, &["web", "0000000000000abc"]);
        let pool = words(&table, &["web", "3", "persistent", "256"]);
        assert_eq!(pool[4..9], ["1.0", "25.0", "300", "290", "10"]);
        let gone = words(&table, &["web", "1", "gone", "persistent", "(256)"]);
        assert_eq!(gone[5..10], ["-", "-", "300", "290", "10"]);
        // Heads, units and numbers end in the same column.
        let lines: Vec<_> = table.lines().collect();
        let head = lines
            .iter()
            .position(|line| line.contains("MEMORY"))
            .unwrap();
        let end = |line: &str, word: &str| line.find(word).unwrap() + word.len();
        let memory = end(lines[head], "MEMORY");
        assert_eq!(end(lines[head + 1], "MiB"), memory);
        assert_eq!(end(lines[head + 2], "1.0"), memory);
    }

    #[test]
    fn windows_are_shown_where_there_are_some() {
        let mut stat = stat(Compression::None);
        assert!(!all(&stat).contains("ALLOCATED"));
        stat.guests[0].window = Some(WindowState {
            bytes: 4 << 30,
            open: true,
            chunks: Counts {
                ephemeral: 2,
                persistent: 512,
                ..Counts::default()
            },
            allocated: 1 << 30,
            puts: 5,
            no_slot: 1,
            gets: 10,
            hits: 7,
            ..WindowState::default()
        });
        let table = all(&stat);
        let window = words(&table, &["web", "open"]);
        assert_eq!(window[2..6], ["4096.0", "1024.0", "4.0", "1024.0"]);
        assert_eq!(window[9..], ["5", "1", "10", "70.0", "0", "0"]);
        // What the guest did by itself counts as what it did.
        let web = words(&table, &["web", "connected"]);
        assert_eq!(web[web.len() - 2..], ["10", "70.0"]);
    }

    #[test]
    fn ratios_are_shown_where_pages_are_compressed() {
        let table = all(&stat(Compression::Lz4));
        let pool = words(&table, &["web", "3", "persistent", "256"]);
        assert_eq!(pool[4..9], ["1.0", "25.0", "2.00", "300", "290"]);
        words(&table, &["COMPRESSED", "TO", "SAME-FILLED"]);
    }
}
