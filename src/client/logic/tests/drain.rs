// SPDX-License-Identifier: GPL-2.0

//! Draining, step by step, and against everything else that happens to the same places.

mod common;

use std::collections::BTreeMap;

use proptest::prelude::*;
use virtio_tmem_logic::{
    drain::{
        Course,
        End,
        Goal,
        InFlight,
        Next,
        Run,
        Tally,
        Window,
        WINDOW, //
    },
    index::{
        Entry,
        Flush,
        Inserted,
        Outcome,
        Shard, //
    },
};

use common::{
    shard,
    store,
    STORED,
    TAG, //
};

fn window(offsets: &[u64]) -> Window {
    let mut window = Window::EMPTY;

    for &offset in offsets {
        assert!(window.push(offset, 1));
    }
    window
}

fn tally(written: u64, failed: u64) -> Tally {
    Tally {
        written,
        failed,
        outdated: 0,
    }
}

#[test]
fn pages_that_are_stored_are_found_in_their_order() {
    let mut shard = shard();
    for index in [4095, 0, 63, 64, 1000] {
        store(&mut shard, TAG, index);
    }
    shard.insert_pending(TAG, 5, 0).unwrap();
    let mut seen = Vec::new();
    let next = shard.away_from(TAG, 0, |index, _| {
        seen.push(index);
        true
    });
    assert_eq!((next, seen), (None, vec![0, 63, 64, 1000, 4095]));

    let next = shard.away_from(TAG, 1, |index, _| index != 64);
    assert_eq!(next, Some(64));
    assert_eq!(shard.away_from(TAG + 1, 0, |_, _| true), None);
}

#[test]
fn an_object_of_one_page_is_found_too() {
    let mut shard = shard();
    let version = store(&mut shard, TAG, 0).version;
    let mut seen = Vec::new();
    assert_eq!(
        shard.away_from(TAG, 0, |i, entry| {
            seen.push((i, entry.version()));
            true
        }),
        None
    );
    assert_eq!(seen, [(0, version)]);
    assert_eq!(shard.away_from(TAG, 1, |_, _| panic!()), None);
    assert_eq!(shard.away_from(TAG, 0, |_, _| false), Some(0));
}

#[test]
fn only_the_version_that_was_written_is_erased() {
    let mut shard = shard();
    let old = store(&mut shard, TAG, 7).version;
    let new = store(&mut shard, TAG, 7).version;
    assert!(!shard.erase_stored(TAG, 7, old));
    assert!(shard.is_stored(TAG, 7, new));
    assert!(shard.erase_stored(TAG, 7, new));
    assert!(!shard.erase_stored(TAG, 7, new));
    assert_eq!(shard.stats().live, 0);

    let pending = shard.insert_pending(TAG, 7, 0).unwrap().version;
    assert!(!shard.erase_stored(TAG, 7, pending));
}

#[test]
fn a_window_is_written_in_as_few_pieces_as_the_disk_allows() {
    let mut window = window(&[1, 2, 3, 10, 11, 12]);
    // Offset 11 is elsewhere, and nobody knows where 12 is.
    let block = |offset| match offset {
        11 => Some(500),
        12 => None,
        offset => Some(offset + 100),
    };
    let mut runs = Vec::new();
    let mut from = 0;
    while let Some(run) = window.run(from, block) {
        runs.push((run.first, run.count, run.block));
        from = run.first + run.count;
    }
    assert_eq!(runs, [(0, 3, 101), (3, 1, 110), (4, 1, 500)]);
    assert_eq!(window.settle(|_| true), tally(5, 1));
}

#[test]
fn pages_next_to_each_other_on_the_disk_are_one_piece_wherever_they_are_in_the_area() {
    let mut window = window(&[1, 50]);
    let run = window.run(0, |offset| Some(if offset == 1 { 9 } else { 10 }));
    assert_eq!(
        run,
        Some(Run {
            first: 0,
            count: 2,
            block: 9
        })
    );
    assert_eq!(window.run(2, Some), None);
}

#[test]
fn a_page_that_was_let_go_is_neither_written_nor_erased() {
    let mut window = window(&[1, 2, 3]);
    window.confirm(|page| page.offset != 2);
    window.fail(0);
    window.fail(0);
    assert_eq!(window.run(0, Some).map(|run| run.first), Some(2));
    let tally = window.settle(|page| page.offset == 3);
    assert_eq!((tally.written, tally.failed, tally.outdated), (1, 1, 1));
}

#[test]
fn neighbours_end_where_a_piece_of_the_area_ends() {
    let mut window = window(&[6, 7, 8, 9, 20]);
    assert_eq!(window.neighbours(0, 8), 2);
    assert_eq!(window.neighbours(2, 8), 2);
    window.fail(3);
    assert_eq!(window.neighbours(2, 8), 1);
    assert_eq!(window.neighbours(3, 8), 0);
}

#[test]
fn a_full_window_takes_no_more() {
    let mut window = window(&(0..WINDOW as u64).collect::<Vec<_>>());
    assert!(!window.push(1000, 1));
    assert_eq!(window.len(), WINDOW);
    assert!(window.in_flight(3).overlaps(3, WINDOW as u64 - 1, 1));
}

#[test]
fn what_is_in_flight_overlaps_only_what_it_covers() {
    let flight = window(&[5, 9]).in_flight(1);
    assert!(flight.overlaps(1, 5, 1));
    assert!(flight.overlaps(1, 0, 6));
    assert!(flight.overlaps(1, 6, 4));
    assert!(!flight.overlaps(1, 6, 3));
    assert!(!flight.overlaps(1, 10, u64::MAX));
    assert!(!flight.overlaps(2, 5, 1));
    assert!(!InFlight::NONE.overlaps(0, 0, u64::MAX));
}

#[test]
fn what_fails_is_tried_again_while_others_succeed_and_then_once_more() {
    let mut course = Course::new(Goal::All);
    course.note(tally(10, 3));
    assert_eq!(course.failed(), 3);
    assert_eq!(course.end_pass(3, false), Next::Again);
    course.note(tally(1, 2));
    assert_eq!(course.end_pass(2, false), Next::Again);
    course.note(tally(0, 2));
    assert_eq!(course.end_pass(2, false), Next::Over(End::Left(2)));
    assert_eq!((course.written(), course.failed()), (11, 2));
}

#[test]
fn all_is_over_only_when_nothing_is_on_its_way() {
    let mut course = Course::new(Goal::All);
    assert_eq!(course.end_pass(0, true), Next::Wait);
    assert_eq!(course.end_pass(4, true), Next::Wait);
    course.pass_over();
    assert_eq!(course.end_pass(4, false), Next::Wait);
    course.note(tally(4, 0));
    assert_eq!(course.end_pass(0, false), Next::Over(End::Done));
}

#[test]
fn some_is_over_when_there_are_so_many_or_no_more() {
    let mut course = Course::new(Goal::Some(10));
    course.note(tally(9, 0));
    assert!(!course.is_enough());
    assert_eq!(course.end_pass(100, true), Next::Again);
    course.note(tally(1, 0));
    assert!(course.is_enough());
    assert_eq!(course.end_pass(99, true), Next::Over(End::Done));

    let mut course = Course::new(Goal::Some(10));
    assert_eq!(course.end_pass(7, true), Next::Over(End::Left(7)));
    assert_eq!(course.end_pass(0, true), Next::Over(End::Done));
    course.set_goal(Goal::All);
    assert_eq!(course.end_pass(0, true), Next::Wait);
}

/// How many places the area of the model has.
const PLACES: u64 = 6;

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// The place is not used any more.
    Free(u64),
    /// A new page for the place goes to the device.
    Put(u64),
    /// The device has stored the page, or refuses it.
    Answer(u64, bool),
    /// A new page for the place goes to the area.
    Write(u64),
    /// Somebody looks for the page of a place.
    Look(u64),
    /// And reads it from where it should be.
    Read(u64),
    /// The device hears of what it need not keep.
    Flush,
    /// The drain takes its next step; it may fail.
    Drain(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let place = 0..PLACES;

    prop_oneof![
        2 => place.clone().prop_map(Op::Free),
        4 => place.clone().prop_map(Op::Put),
        4 => (place.clone(), prop::bool::weighted(0.8)).prop_map(|(p, ok)| Op::Answer(p, ok)),
        2 => place.clone().prop_map(Op::Write),
        3 => place.clone().prop_map(Op::Look),
        3 => place.prop_map(Op::Read),
        2 => Just(Op::Flush),
        9 => prop::bool::weighted(0.1).prop_map(Op::Drain),
    ]
}

/// What goes on at a place. Nothing else begins there meanwhile, as its folio is locked.
enum Busy {
    /// A page is on its way to the device.
    Put(Inserted, u64),
    /// A write waits for the drain.
    Waits(u64),
    /// Somebody looked, and found it in the index or not.
    Looked(Option<(u64, u32)>),
}

/// How far the drain is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Filled,
    Got,
    Published,
    Confirmed(usize),
}

struct World {
    shard: Shard,
    /// By wire id and index: the version and the content.
    host: BTreeMap<(u64, u64), (u32, u64)>,
    area: [u64; PLACES as usize],
    /// What each place should have.
    truth: BTreeMap<u64, u64>,
    busy: BTreeMap<u64, Busy>,
    content: u64,
    phase: Phase,
    window: Window,
    got: [u64; WINDOW],
    flight: InFlight,
}

impl World {
    fn new() -> Self {
        Self {
            shard: shard(),
            host: BTreeMap::new(),
            area: [0; PLACES as usize],
            truth: BTreeMap::new(),
            busy: BTreeMap::new(),
            content: 0,
            phase: Phase::Idle,
            window: Window::EMPTY,
            got: [0; WINDOW],
            flight: InFlight::NONE,
        }
    }

    fn new_content(&mut self) -> u64 {
        self.content += 1;
        self.content
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Free(p) if !self.busy.contains_key(&p) => {
                self.shard.erase(TAG, p);
                self.truth.remove(&p);
            }
            Op::Put(p) if !self.busy.contains_key(&p) => {
                let content = self.new_content();
                let inserted = self.shard.insert_pending(TAG, p, 0).unwrap();
                self.truth.insert(p, content);
                self.busy.insert(p, Busy::Put(inserted, content));
            }
            Op::Answer(p, stored) => self.answer(p, stored),
            Op::Write(p) if !self.busy.contains_key(&p) => {
                let content = self.new_content();
                self.truth.insert(p, content);
                self.write(p, content);
            }
            Op::Look(p) if !self.busy.contains_key(&p) && self.truth.contains_key(&p) => {
                let found = self.shard.peek(TAG, p);
                let found = found.map(|found| (found.wire, found.entry.version()));
                self.busy.insert(p, Busy::Looked(found));
            }
            Op::Read(p) => self.read(p),
            Op::Flush => self.flush(),
            Op::Drain(fails) => self.drain(fails),
            _ => (),
        }
    }

    fn answer(&mut self, p: u64, stored: bool) {
        if !matches!(self.busy.get(&p), Some(Busy::Put(..))) {
            return;
        }
        let Some(Busy::Put(inserted, content)) = self.busy.remove(&p) else {
            return;
        };
        let Inserted { wire, version, .. } = inserted;
        self.host.remove(&(wire, p));
        let outcome = if stored { STORED } else { Outcome::Refused };
        if stored {
            self.host.insert((wire, p), (version, content));
        }
        self.shard.complete(TAG, wire, p, version, outcome);
        if !stored {
            self.write(p, content);
        }
    }

    /// As the kernel's writes to the area: first out of the index, then after the drain's.
    fn write(&mut self, p: u64, content: u64) {
        self.shard.erase(TAG, p);
        if self.flight.overlaps(1, p, 1) {
            self.busy.insert(p, Busy::Waits(content));
        } else {
            self.area[p as usize] = content;
        }
    }

    fn read(&mut self, p: u64) {
        if !matches!(self.busy.get(&p), Some(Busy::Looked(_))) {
            return;
        }
        let Some(Busy::Looked(found)) = self.busy.remove(&p) else {
            return;
        };
        let from_host = found.and_then(|(wire, version)| {
            let (there, content) = self.host.get(&(wire, p)).copied()?;
            (there == version).then_some(content)
        });
        let content = from_host.unwrap_or_else(|| {
            assert!(
                self.shard.peek(TAG, p).is_none(),
                "{p} is in the index, and the host does not have it"
            );
            self.area[p as usize]
        });
        assert_eq!(content, self.truth[&p], "place {p}");
    }

    fn flush(&mut self) {
        let host = &mut self.host;
        self.shard.harvest(usize::MAX, |flush| match flush {
            Flush::Object { wire } => host.retain(|(w, _), _| *w != wire),
            Flush::Page {
                wire,
                index,
                version,
            } => {
                if host.get(&(wire, index)).is_some_and(|(v, _)| *v == version) {
                    host.remove(&(wire, index));
                }
            }
            Flush::Any { wire, index } => {
                host.remove(&(wire, index));
            }
        });
    }

    fn drain(&mut self, fails: bool) {
        match self.phase {
            Phase::Idle => {
                self.window.clear();
                let window = &mut self.window;
                self.shard
                    .away_from(TAG, 0, |index, entry| window.push(index, entry.version()));
                if !window.is_empty() {
                    self.phase = Phase::Filled;
                }
            }
            Phase::Filled => {
                for n in 0..self.window.len() {
                    let offset = self.window.page(n).unwrap().offset;
                    // What is got is what the index has now, of whatever version.
                    let got = self.shard.peek(TAG, offset).and_then(|found| {
                        let Entry::Remote { version, .. } = found.entry else {
                            return None;
                        };
                        let (there, content) = self.host[&(found.wire, offset)];
                        assert_eq!(there, version);
                        Some(content)
                    });
                    match got {
                        Some(content) if !fails => self.got[n] = content,
                        Some(_) => self.window.fail(n),
                        None => self.window.let_go(n),
                    }
                }
                self.phase = Phase::Got;
            }
            Phase::Got => {
                self.flight = self.window.in_flight(1);
                self.phase = Phase::Published;
            }
            Phase::Published => {
                let shard = &self.shard;
                self.window
                    .confirm(|page| shard.is_stored(TAG, page.offset, page.version));
                self.phase = Phase::Confirmed(0);
            }
            Phase::Confirmed(from) => match self.window.run(from, Some) {
                Some(run) => {
                    for n in run.first..run.first + run.count {
                        let offset = self.window.page(n).unwrap().offset;
                        if fails {
                            self.area[offset as usize] = 0;
                            self.window.fail(n);
                        } else {
                            self.area[offset as usize] = self.got[n];
                        }
                    }
                    self.phase = Phase::Confirmed(run.first + run.count);
                }
                None => {
                    let shard = &mut self.shard;
                    self.window
                        .settle(|page| shard.erase_stored(TAG, page.offset, page.version));
                    self.flight = InFlight::NONE;
                    self.phase = Phase::Idle;
                    for p in 0..PLACES {
                        if let Some(Busy::Waits(content)) = self.busy.get(&p) {
                            self.area[p as usize] = *content;
                            self.busy.remove(&p);
                        }
                    }
                }
            },
        }
    }

    /// Drains all there is, and takes the host away.
    fn finish(&mut self) {
        for p in 0..PLACES {
            self.answer(p, true);
            self.read(p);
        }
        while self.phase != Phase::Idle || self.shard.stats().live > 0 {
            self.drain(false);
        }
        self.flush();
        assert!(self.host.is_empty(), "{:?}", self.host);
        for (p, content) in &self.truth {
            assert_eq!(self.area[*p as usize], *content, "place {p}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn nothing_is_stale_and_nothing_is_lost_in_a_storm(ops in prop::collection::vec(op(), 1..120)) {
        let mut world = World::new();

        for op in ops {
            world.step(op);
        }
        world.finish();
    }
}
