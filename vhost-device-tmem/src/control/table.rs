// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The statistics, for people to read.

use comfy_table::{presets::NOTHING, CellAlignment, Table};

use super::protocol::{GuestStat, Stat};
use crate::{
    size::Bytes,
    store::{Compression, Contents, DroppedKind, PoolCounters, PoolKind},
    window::CHUNK,
};

/// Returns the statistics as tables: the store, the guests, and their pools. Sizes have their unit;
/// all other numbers are pages, or times.
pub fn table(stat: &Stat) -> String {
    let compressed = stat.compression != Compression::None;
    let mut parts = vec![store(stat)];
    if compressed {
        parts.push(contents(&stat.contents));
    }
    parts.push(guests(stat));
    let windows = windows(stat);
    if !windows.is_empty() {
        parts.push(windows);
    }
    let pools = pools(stat, compressed);
    if !pools.is_empty() {
        parts.push(pools);
    }
    parts.join("\n")
}

fn store(stat: &Stat) -> String {
    columns(
        &[
            "CAPACITY",
            "USED",
            "",
            "RESIDENT",
            "LENT",
            "PAGES",
            "EPHEMERAL",
            "ROOM FOR",
            "EVICTED",
        ],
        &[],
        [vec![
            Bytes(stat.capacity_bytes).to_string(),
            Bytes(stat.used_bytes).to_string(),
            share(stat.used_bytes, stat.capacity_bytes),
            Bytes(stat.resident_bytes).to_string(),
            Bytes(stat.lent_bytes).to_string(),
            stat.used_pages.to_string(),
            stat.ephemeral_pages.to_string(),
            stat.capacity_pages.to_string(),
            stat.evictions.to_string(),
        ]],
    )
}

fn contents(contents: &Contents) -> String {
    columns(
        &[
            "COMPRESSED",
            "TO",
            "SAME-FILLED",
            "INCOMPRESSIBLE",
            "TAKE",
            "RATIO",
        ],
        &[],
        [vec![
            contents.compressed_pages.to_string(),
            Bytes(contents.compressed_bytes).to_string(),
            contents.same_filled_pages.to_string(),
            contents.raw_pages.to_string(),
            Bytes(contents.slot_bytes).to_string(),
            ratio(contents),
        ]],
    )
}

fn guests(stat: &Stat) -> String {
    let heads = [
        "GUEST",
        "STATE",
        "EPOCH",
        "SIZE",
        "SHARE",
        "CREDITS",
        "REQUESTS",
        "MALFORMED",
        "OUT OF REACH",
        "KICKS",
        "POLLS",
        "FOUND",
        "CALLS",
        "EVENTS",
    ];
    let rows = stat.guests.iter().map(|guest| {
        let bytes = guest.pools.iter().map(|pool| pool.bytes).sum();
        vec![
            guest.name.clone(),
            state(guest).to_owned(),
            match guest.epoch {
                0 => "-".to_owned(),
                epoch => format!("{epoch:016x}"),
            },
            Bytes(bytes).to_string(),
            share(bytes, stat.used_bytes),
            format!("{}/{}", guest.persistent_credits, guest.ephemeral_credits),
            guest.requests.to_string(),
            guest.malformed.to_string(),
            guest.out_of_reach.to_string(),
            guest.kicks.to_string(),
            guest.polls.to_string(),
            guest.polls_found.to_string(),
            guest.calls.to_string(),
            guest.events.to_string(),
        ]
    });
    columns(&heads, &[0, 1, 2], rows)
}

fn windows(stat: &Stat) -> String {
    let heads = [
        "GUEST",
        "WINDOW",
        "SIZE",
        "ALLOCATED",
        "EPHEMERAL",
        "PERSISTENT",
        "READY",
        "TAKEN BACK",
        "TRIMMED",
        "GOT",
        "HIT",
    ];
    let windows = stat.guests.iter().filter_map(|guest| {
        let window = guest.window?;
        let chunks = |count: u32| Bytes(u64::from(count) * CHUNK).to_string();
        Some(vec![
            guest.name.clone(),
            if window.open { "open" } else { "closed" }.to_owned(),
            Bytes(window.bytes).to_string(),
            Bytes(window.allocated).to_string(),
            chunks(window.chunks.ephemeral),
            chunks(window.chunks.persistent),
            chunks(window.chunks.ready),
            Bytes(window.taken * CHUNK).to_string(),
            Bytes(window.trimmed).to_string(),
            window.gets.to_string(),
            window.hits.to_string(),
        ])
    });
    let rows: Vec<_> = windows.collect();
    if rows.is_empty() {
        return String::new();
    }
    columns(&heads, &[0, 1], rows)
}

fn state(guest: &GuestStat) -> &'static str {
    match (guest.connected, guest.epoch) {
        (true, _) => "connected",
        (false, 0) => "never connected",
        (false, _) => "disconnected",
    }
}

fn pools(stat: &Stat, compressed: bool) -> String {
    let mut heads = vec!["GUEST", "POOL", "KIND", "PAGES", "SIZE", "SHARE"];
    if compressed {
        heads.push("RATIO");
    }
    heads.extend([
        "PUT", "STORED", "REFUSED", "GOT", "HIT", "FLUSHED", "EVICTED",
    ]);
    let mut rows = Vec::new();
    for guest in &stat.guests {
        for pool in &guest.pools {
            let mut row = vec![
                guest.name.clone(),
                pool.pool.to_string(),
                kind(pool.kind).to_owned(),
                pool.pages.to_string(),
                Bytes(pool.bytes).to_string(),
                share(pool.bytes, stat.used_bytes),
            ];
            if compressed {
                row.push(ratio(&pool.contents));
            }
            row.extend(counters(&pool.counters));
            rows.push(row);
        }
        let dropped = [
            (PoolKind::Persistent, &guest.dropped.persistent),
            (PoolKind::Ephemeral, &guest.dropped.ephemeral),
        ];
        for (kind_of, dropped) in dropped {
            if dropped.pools > 0 {
                rows.push(gone(&guest.name, kind_of, dropped, compressed));
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    columns(&heads, &[0, 1, 2], rows)
}

/// The row of pools that are gone.
fn gone(guest: &str, kind_of: PoolKind, dropped: &DroppedKind, compressed: bool) -> Vec<String> {
    let mut row = vec![
        guest.to_owned(),
        format!("{} gone", dropped.pools),
        kind(kind_of).to_owned(),
        format!("({})", dropped.pages),
    ];
    row.extend(vec!["-".to_owned(); if compressed { 3 } else { 2 }]);
    row.extend(counters(&dropped.counters));
    row
}

fn kind(kind: PoolKind) -> &'static str {
    match kind {
        PoolKind::Ephemeral => "ephemeral",
        PoolKind::Persistent => "persistent",
    }
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
        .map_or("-".to_owned(), |ratio| format!("{ratio:.2}"))
}

/// Returns how much of the whole a part is.
fn share(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        whole => format!("{:.1} %", part as f64 * 100.0 / whole as f64),
    }
}

/// Lays rows out below heads. Columns are to the right, but those that are named.
fn columns(heads: &[&str], left: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(heads.to_vec());
    table.add_rows(rows);
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if !left.contains(&at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::VERSION,
        device::WindowState,
        store::{Dropped, PoolReport},
        window::Counts,
    };

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
            capacity_bytes: 1 << 30,
            compression,
            used_bytes: 4 << 20,
            resident_bytes: 5 << 20,
            lent_bytes: 6 << 20,
            capacity_pages: 1,
            used_pages: 256,
            ephemeral_pages: 0,
            objects: 1,
            contents: Contents::default(),
            evictions: 0,
            guests: vec![web, new],
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
    fn each_number_is_below_its_head() {
        let table = table(&stat(Compression::None));
        let store = words(&table, &["1.00", "GiB"]);
        let sizes = ["4.00", "MiB", "0.4", "%", "5.00", "MiB", "6.00", "MiB"];
        assert_eq!(store[2..10], sizes);
        let web = words(&table, &["web", "connected"]);
        assert_eq!(web[2..7], ["0000000000000abc", "1.00", "MiB", "25.0", "%"]);
        words(&table, &["a-new-one", "never", "connected", "-", "0", "B"]);
        let pool = words(&table, &["web", "3", "persistent", "256"]);
        assert_eq!(
            pool[4..11],
            ["1.00", "MiB", "25.0", "%", "300", "290", "10"]
        );
        let gone = words(&table, &["web", "1", "gone", "persistent", "(256)"]);
        assert_eq!(gone[5..10], ["-", "-", "300", "290", "10"]);
        // Heads and numbers end in the same column.
        let lines: Vec<_> = table.lines().collect();
        let head = lines
            .iter()
            .position(|line| line.contains("STORED"))
            .unwrap();
        let end = |line: &str, word: &str| line.find(word).unwrap() + word.len();
        assert_eq!(end(lines[head], "STORED"), end(lines[head + 1], "290"));
    }

    #[test]
    fn windows_are_shown_where_there_are_some() {
        let mut stat = stat(Compression::None);
        assert!(!table(&stat).contains("ALLOCATED"));
        stat.guests[0].window = Some(WindowState {
            bytes: 4 << 30,
            open: true,
            chunks: Counts {
                ephemeral: 2,
                persistent: 512,
                ..Counts::default()
            },
            allocated: 1 << 30,
            gets: 10,
            hits: 7,
            ..WindowState::default()
        });
        let table = table(&stat);
        let window = words(&table, &["web", "open"]);
        assert_eq!(
            window[2..10],
            ["4.00", "GiB", "1.00", "GiB", "4.00", "MiB", "1.00", "GiB"]
        );
        assert_eq!(window[window.len() - 2..], ["10", "7"]);
    }

    #[test]
    fn ratios_are_shown_where_pages_are_compressed() {
        let table = table(&stat(Compression::Lz4));
        let pool = words(&table, &["web", "3", "persistent", "256"]);
        assert_eq!(
            pool[4..11],
            ["1.00", "MiB", "25.0", "%", "2.00", "300", "290"]
        );
        words(&table, &["COMPRESSED", "TO", "SAME-FILLED"]);
    }
}
