// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What there is to show: rates, and how they were.

use std::{cmp::Ordering, collections::VecDeque, time::Duration};

use clap::ValueEnum;
use serde::Serialize;
use vhost_device_tmem::control::{part, GuestStat, SharedStat, Stat, Usage};

use super::pressure::Pressure;
use crate::figures::State;

/// Looks that are remembered: more than a line has room for.
const REMEMBERED: usize = 256;

/// What was seen at one look.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) stat: Stat,
    pub(super) pressure: Option<Pressure>,
    /// When that was, since some beginning.
    pub(super) at: Duration,
}

/// What guests are sorted by. All but names begin with the largest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    Name,
    #[default]
    Memory,
    Puts,
    Refused,
    Gets,
    Hits,
    Misses,
}

impl Sort {
    /// Each with the key that chooses it.
    pub(super) const LETTERS: [(char, Self, &'static str); 7] = [
        ('n', Self::Name, "name"),
        ('m', Self::Memory, "memory"),
        ('p', Self::Puts, "put"),
        ('f', Self::Refused, "refused"),
        ('g', Self::Gets, "got"),
        ('h', Self::Hits, "hit"),
        ('x', Self::Misses, "miss"),
    ];

    pub(super) fn by_letter(letter: char) -> Option<Self> {
        let mut all = Self::LETTERS.into_iter();
        all.find_map(|(of, sort, _)| (of == letter).then_some(sort))
    }

    pub(super) fn name(self) -> &'static str {
        let mut all = Self::LETTERS.into_iter();
        all.find_map(|(_, sort, name)| (sort == self).then_some(name))
            .unwrap_or_default()
    }
}

/// What the operator can press.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Quit,
    Sort(Sort),
    Reverse,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
}

/// Pages a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Rates {
    pub(super) puts_per_second: f64,
    pub(super) refused_per_second: f64,
    pub(super) gets_per_second: f64,
    pub(super) hits_per_second: f64,
    pub(super) misses_per_second: f64,
    /// From 0 to 1, of the pages put since the last look; nothing if there were none.
    pub(super) refused_rate: Option<f64>,
    /// From 0 to 1, of the pages looked for since the last look.
    pub(super) hit_rate: Option<f64>,
}

impl Rates {
    fn between(before: &Usage, now: &Usage, seconds: f64) -> Self {
        let puts = increase(before.puts, now.puts);
        let refused = increase(before.refused, now.refused);
        let gets = increase(before.gets, now.gets);
        let hits = increase(before.hits, now.hits).min(gets);
        let rate = |count: u64| count as f64 / seconds;
        Self {
            puts_per_second: rate(puts),
            refused_per_second: rate(refused),
            gets_per_second: rate(gets),
            hits_per_second: rate(hits),
            misses_per_second: rate(gets - hits),
            refused_rate: part(refused, puts),
            hit_rate: part(hits, gets),
        }
    }
}

/// A counter that is less than before has begun anew.
fn increase(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

/// What was seen lately, the last first.
#[derive(Clone, Debug, Default)]
pub(super) struct History(VecDeque<u64>);

impl History {
    fn push(&mut self, value: u64) {
        self.0.push_front(value);
        self.0.truncate(REMEMBERED);
    }

    /// Returns what was seen at so many last looks.
    pub(super) fn last(&self, count: usize) -> Vec<u64> {
        self.0.iter().copied().take(count).collect()
    }

    fn max(&self) -> u64 {
        self.0.iter().copied().max().unwrap_or(0)
    }
}

/// A guest.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) state: State,
    #[serde(flatten)]
    pub(super) usage: Usage,
    #[serde(flatten)]
    pub(super) rates: Rates,
    #[serde(skip)]
    pub(super) hits: History,
    #[serde(skip)]
    pub(super) misses: History,
    #[serde(skip)]
    pub(super) memory: History,
}

impl Row {
    fn new(guest: &GuestStat) -> Self {
        Self {
            name: guest.name.clone(),
            state: State::of(guest),
            usage: Usage::of(guest),
            rates: Rates::default(),
            hits: History::default(),
            misses: History::default(),
            memory: History::default(),
        }
    }

    fn observe(&mut self, guest: &GuestStat, seconds: f64) {
        let usage = Usage::of(guest);
        self.rates = Rates::between(&self.usage, &usage, seconds);
        self.state = State::of(guest);
        self.usage = usage;
        self.hits.push(self.rates.hits_per_second as u64);
        self.misses.push(self.rates.misses_per_second as u64);
        self.memory.push(usage.memory_bytes);
    }

    fn compare(&self, other: &Self, sort: Sort) -> Ordering {
        let by = |of: fn(&Self) -> f64| of(other).total_cmp(&of(self));
        let order = match sort {
            Sort::Name => Ordering::Equal,
            Sort::Memory => other.usage.memory_bytes.cmp(&self.usage.memory_bytes),
            Sort::Puts => by(|row| row.rates.puts_per_second),
            Sort::Refused => by(|row| row.rates.refused_per_second),
            Sort::Gets => by(|row| row.rates.gets_per_second),
            Sort::Hits => by(|row| row.rates.hits_per_second),
            Sort::Misses => by(|row| row.rates.misses_per_second),
        };
        order.then_with(|| self.name.cmp(&other.name))
    }
}

/// The host.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Host {
    pub(super) capacity_bytes: u64,
    pub(super) used_bytes: u64,
    pub(super) lent_bytes: u64,
    pub(super) evicted_per_second: f64,
    pub(super) shared: Shared,
    pub(super) pressure: Option<Pressure>,
}

/// All pools that guests share.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Shared {
    pub(super) pools: usize,
    pub(super) bytes: u64,
    pub(super) gets_per_second: f64,
    pub(super) hits_per_second: f64,
    #[serde(skip)]
    gets: u64,
    #[serde(skip)]
    hits: u64,
}

impl Shared {
    /// Returns what there is, with rates since the last look if that is known.
    fn observe(before: Self, stat: &Stat, seconds: Option<f64>) -> Self {
        let sum = |of: fn(&SharedStat) -> u64| stat.shared.iter().map(of).sum::<u64>();
        let gets = sum(|pool| pool.counters.gets);
        let hits = sum(|pool| pool.counters.gets_hit);
        let rate = |before, now| seconds.map_or(0.0, |s| increase(before, now) as f64 / s);
        Self {
            pools: stat.shared.len(),
            bytes: sum(|pool| pool.bytes),
            gets_per_second: rate(before.gets, gets),
            hits_per_second: rate(before.hits, hits),
            gets,
            hits,
        }
    }
}

/// Everything, for programs.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures<'m> {
    version: u32,
    host: Host,
    guests: Vec<&'m Row>,
}

/// The largest of what is drawn to one scale, of all guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Scale {
    /// Of hits and misses, in pages a second.
    pub(super) pages: u64,
    /// Of memory, in bytes.
    pub(super) memory: u64,
}

/// All that is shown.
#[derive(Clone, Debug)]
pub(super) struct Model {
    version: u32,
    host: Host,
    evictions: u64,
    last: Option<Duration>,
    rows: Vec<Row>,
    sort: Sort,
    reversed: bool,
    /// The first guest that is shown, and how many are.
    first: usize,
    fits: usize,
    trouble: Option<String>,
}

impl Model {
    pub(super) fn new(sort: Sort) -> Self {
        Self {
            version: 0,
            host: Host::default(),
            evictions: 0,
            last: None,
            rows: Vec::new(),
            sort,
            reversed: false,
            first: 0,
            fits: usize::MAX,
            trouble: None,
        }
    }

    /// Takes in what was seen.
    pub(super) fn observe(&mut self, sample: Sample) {
        let Sample { stat, pressure, at } = sample;
        let since = self
            .last
            .replace(at)
            .map(|last| at.saturating_sub(last).as_secs_f64());
        let since = since.filter(|seconds| *seconds > 0.0);
        let evicted =
            since.map(|seconds| increase(self.evictions, stat.evictions) as f64 / seconds);
        self.version = stat.version;
        self.evictions = stat.evictions;
        self.host = Host {
            capacity_bytes: stat.capacity_bytes,
            used_bytes: stat.used_bytes,
            lent_bytes: stat.lent_bytes,
            evicted_per_second: evicted.unwrap_or(0.0),
            shared: Shared::observe(self.host.shared, &stat, since),
            pressure,
        };
        let mut before = std::mem::take(&mut self.rows);
        for guest in &stat.guests {
            let known = before.iter().position(|row| row.name == guest.name);
            let row = match (known, since) {
                (Some(at), Some(seconds)) => {
                    let mut row = before.swap_remove(at);
                    row.observe(guest, seconds);
                    row
                }
                _ => Row::new(guest),
            };
            self.rows.push(row);
        }
        self.trouble = None;
        self.arrange();
    }

    /// The daemon could not be asked.
    pub(super) fn lost(&mut self, why: &str) {
        self.trouble = Some(why.to_owned());
    }

    /// The operator pressed a key.
    pub(super) fn pressed(&mut self, key: Key) {
        let page = self.fits.max(1);
        match key {
            Key::Quit => {}
            Key::Sort(sort) => {
                self.reversed = false;
                self.sort = sort;
            }
            Key::Reverse => self.reversed = !self.reversed,
            Key::Up => self.first = self.first.saturating_sub(1),
            Key::Down => self.first = self.first.saturating_add(1),
            Key::PageUp => self.first = self.first.saturating_sub(page),
            Key::PageDown => self.first = self.first.saturating_add(page),
            Key::Home => self.first = 0,
        }
        self.arrange();
    }

    /// So many guests can be shown.
    pub(super) fn fit(&mut self, rows: usize) {
        self.fits = rows;
        self.arrange();
    }

    fn arrange(&mut self) {
        let (sort, reversed) = (self.sort, self.reversed);
        self.rows.sort_by(|one, other| {
            let order = one.compare(other, sort);
            if reversed {
                order.reverse()
            } else {
                order
            }
        });
        let most = self.rows.len().saturating_sub(self.fits);
        self.first = self.first.min(most);
    }

    /// Returns the guests that are shown, the first on top.
    pub(super) fn shown(&self) -> &[Row] {
        let end = self.first.saturating_add(self.fits).min(self.rows.len());
        &self.rows[self.first..end]
    }

    /// Returns how many guests there are.
    pub(super) fn guests(&self) -> usize {
        self.rows.len()
    }

    /// Returns what the host is like.
    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// Returns what the guests are sorted by, and whether that is reversed.
    pub(super) fn sorted(&self) -> (Sort, bool) {
        (self.sort, self.reversed)
    }

    /// Returns why what is shown is old, if it is.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Returns the largest values that are remembered.
    pub(super) fn scale(&self) -> Scale {
        let pages = self
            .rows
            .iter()
            .map(|row| row.hits.max().max(row.misses.max()));
        let memory = self.rows.iter().map(|row| row.memory.max());
        Scale {
            pages: pages.max().unwrap_or(0),
            memory: memory.max().unwrap_or(0),
        }
    }

    /// Returns all figures, for programs.
    pub(super) fn figures(&self) -> Figures<'_> {
        Figures {
            version: self.version,
            host: self.host,
            guests: self.rows.iter().collect(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use vhost_device_tmem::{control::VERSION, device::WindowState};

    use super::*;

    /// A guest that says so of its window.
    pub(crate) fn guest(name: &str, mib: u64, puts: u64, gets: u64, hits: u64) -> GuestStat {
        GuestStat {
            name: name.to_owned(),
            connected: true,
            epoch: 1,
            window: Some(WindowState {
                allocated: mib << 20,
                puts,
                gets,
                hits,
                ..WindowState::default()
            }),
            ..GuestStat::default()
        }
    }

    pub(crate) fn sample(seconds: u64, evictions: u64, guests: Vec<GuestStat>) -> Sample {
        Sample {
            stat: Stat {
                version: VERSION,
                worker_starts: 1,
                capacity_bytes: 8 << 30,
                used_bytes: 1 << 30,
                resident_bytes: 1 << 30,
                lent_bytes: 512 << 20,
                capacity_pages: 2 << 20,
                evictions,
                guests,
                ..Stat::default()
            },
            pressure: Some(Pressure {
                some_10s: 1.5,
                some_60s: 0.25,
                ..Pressure::default()
            }),
            at: Duration::from_secs(seconds),
        }
    }

    fn names(model: &Model) -> Vec<&str> {
        model.shown().iter().map(|row| &*row.name).collect()
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let mut model = Model::new(Sort::Name);
        model.observe(sample(10, 100, vec![guest("web", 1, 1000, 500, 500)]));
        assert_eq!(model.shown()[0].rates, Rates::default());
        model.observe(sample(14, 500, vec![guest("web", 1, 1400, 700, 650)]));
        let rates = model.shown()[0].rates;
        assert_eq!(
            (rates.puts_per_second, rates.gets_per_second),
            (100.0, 50.0)
        );
        assert_eq!(
            (rates.hits_per_second, rates.misses_per_second),
            (37.5, 12.5)
        );
        assert_eq!(rates.hit_rate, Some(0.75));
        assert_eq!(model.host().evicted_per_second, 100.0);
        // Another worker counts anew, and the next guest on the socket as well.
        model.observe(sample(15, 3, vec![guest("web", 1, 7, 5, 5)]));
        let rates = model.shown()[0].rates;
        assert_eq!((rates.puts_per_second, rates.hit_rate), (7.0, Some(1.0)));
        assert_eq!(model.host().evicted_per_second, 3.0);
    }

    #[test]
    fn absurd_figures_are_shown_as_they_are() {
        let mut model = Model::new(Sort::Name);
        model.observe(sample(1, 0, vec![guest("web", 1, 0, 0, 0)]));
        let absurd = guest("web", 1, u64::MAX, 1, u64::MAX);
        model.observe(sample(2, 0, vec![absurd]));
        let rates = model.shown()[0].rates;
        assert_eq!((rates.hit_rate, rates.misses_per_second), (Some(1.0), 0.0));
        // Two looks at one moment are no reason to divide by nothing.
        model.observe(sample(2, 0, vec![guest("web", 1, 3, 3, 3)]));
        assert_eq!(model.shown()[0].rates, Rates::default());
    }

    #[test]
    fn guests_are_sorted_by_what_was_pressed() {
        let mut model = Model::new(Sort::Memory);
        let none = ["a", "b", "c"].map(|name| guest(name, 0, 0, 0, 0));
        model.observe(sample(0, 0, none.to_vec()));
        let some = vec![
            guest("a", 1, 9, 5, 0),
            guest("b", 3, 1, 7, 7),
            guest("c", 2, 5, 9, 8),
        ];
        model.observe(sample(1, 0, some));
        assert_eq!(names(&model), ["b", "c", "a"]);
        let sorted = [
            ('n', ["a", "b", "c"]),
            ('p', ["a", "c", "b"]),
            ('g', ["c", "b", "a"]),
            ('h', ["c", "b", "a"]),
            ('x', ["a", "c", "b"]),
            // None of them was refused anything: by name then.
            ('f', ["a", "b", "c"]),
        ];
        for (letter, order) in sorted {
            model.pressed(Key::Sort(Sort::by_letter(letter).unwrap()));
            assert_eq!(names(&model), order, "{letter}");
        }
        model.pressed(Key::Reverse);
        assert_eq!(names(&model), ["c", "b", "a"]);
        assert_eq!(Sort::by_letter('z'), None);
    }

    #[test]
    fn there_is_no_scrolling_past_the_end() {
        let mut model = Model::new(Sort::Name);
        let guests = ["a", "b", "c", "d", "e"].map(|name| guest(name, 0, 0, 0, 0));
        model.observe(sample(0, 0, guests.to_vec()));
        model.fit(2);
        assert_eq!(names(&model), ["a", "b"]);
        model.pressed(Key::PageDown);
        assert_eq!(names(&model), ["c", "d"]);
        for _ in 0..9 {
            model.pressed(Key::Down);
        }
        assert_eq!(names(&model), ["d", "e"]);
        model.pressed(Key::Up);
        assert_eq!(names(&model), ["c", "d"]);
        // Guests go, and there is more room.
        model.fit(9);
        assert_eq!(names(&model), ["a", "b", "c", "d", "e"]);
        model.fit(0);
        assert!(names(&model).is_empty());
        model.observe(sample(1, 0, Vec::new()));
        assert!(names(&model).is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut model = Model::new(Sort::Name);
        for second in 0..1000 {
            model.observe(sample(second, 0, vec![guest("web", second, 0, 0, 0)]));
        }
        let row = &model.shown()[0];
        assert_eq!(row.memory.last(2), [999 << 20, 998 << 20]);
        assert_eq!(row.memory.last(usize::MAX).len(), REMEMBERED);
        assert_eq!(model.scale().memory, 999 << 20);
    }
}
