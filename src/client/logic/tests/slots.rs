// SPDX-License-Identifier: GPL-2.0

//! Chunks and slots: each slot is in one place, and comes back.

use std::collections::BTreeSet;

use proptest::prelude::*;
use virtio_tmem_logic::window::{
    chunk_of,
    first_slot,
    Broken,
    Depot,
    Given,
    Kind,
    Magazine,
    FIRST_CHUNK,
    SLOTS_PER_CHUNK, //
};

const CHUNKS: u32 = 6;
const PROCESSORS: usize = 2;

fn depot() -> Depot {
    Depot::new(CHUNKS).unwrap()
}

/// Takes a slot out.
fn pop(magazine: &mut Magazine) -> Option<u32> {
    let mut slot = [0];
    (magazine.take(&mut slot) == 1).then_some(slot[0])
}

/// Takes all slots out.
fn drain(magazine: &mut Magazine) -> Vec<u32> {
    let mut slots = vec![0; Magazine::SIZE];
    let count = magazine.take(&mut slots);
    slots.truncate(count);
    slots
}

#[test]
fn only_what_can_be_granted_is() {
    let mut depot = depot();
    let kind = Kind::Ephemeral;
    for (chunk, generation) in [(0, 2), (1, 2), (CHUNKS, 2), (u32::MAX, 2), (2, 0), (2, 3)] {
        assert_eq!(depot.grant(chunk, generation, kind), Err(Broken));
    }
    assert_eq!(depot.level(kind).free, 0);
    assert_eq!(depot.grant(2, 4, kind), Ok(()));
    // The driver has it.
    assert_eq!(depot.grant(2, 6, kind), Err(Broken));
    assert_eq!(depot.grant(2, 6, Kind::Persistent), Err(Broken));
    assert_eq!(depot.generation(2), 4);
    assert_eq!(depot.level(kind).free, SLOTS_PER_CHUNK);
    assert_eq!(depot.level(Kind::Persistent).free, 0);
}

#[test]
fn a_slot_that_is_not_in_use_does_not_come_back() {
    let mut depot = depot();
    assert_eq!(depot.give(first_slot(2)), Err(Broken));
    depot.grant(2, 2, Kind::Persistent).unwrap();
    assert_eq!(depot.give(first_slot(2)), Err(Broken));
    let mut slots = [0; 1];
    assert_eq!(depot.take(Kind::Persistent, &mut slots), 1);
    assert_eq!(depot.give(slots[0]), Ok(Given::Free));
    assert_eq!(depot.give(slots[0]), Err(Broken));
}

#[test]
fn the_kinds_are_apart() {
    let mut depot = depot();
    depot.grant(2, 2, Kind::Ephemeral).unwrap();
    let mut magazine = Magazine::EMPTY;
    assert_eq!(magazine.fill(&mut depot, Kind::Persistent), 0);
    assert!(magazine.fill(&mut depot, Kind::Ephemeral) > 0);
}

#[test]
fn the_last_one_in_is_the_first_one_out() {
    let mut magazine = Magazine::EMPTY;
    assert_eq!(magazine.put(&[7, 3, 9]), 3);
    assert_eq!(pop(&mut magazine), Some(9));
    assert_eq!(magazine.put(&[4]), 1);
    assert_eq!([pop(&mut magazine), pop(&mut magazine)], [Some(4), Some(3)]);
}

#[test]
fn several_go_in_and_out_at_once() {
    let mut magazine = Magazine::EMPTY;
    assert_eq!(magazine.put(&[7, 3, 9]), 3);
    let mut slots = [0; 2];
    assert_eq!(magazine.take(&mut slots), 2);
    assert_eq!(slots, [3, 9]);
    assert_eq!(magazine.take(&mut slots), 1);
    assert_eq!(slots[0], 7);
    assert_eq!(magazine.take(&mut slots), 0);
    let many: Vec<u32> = (0..100).collect();
    assert_eq!(magazine.put(&many), Magazine::SIZE);
    assert_eq!(magazine.put(&many), 0);
}

#[test]
fn slots_come_back_by_chunk_and_not_twice() {
    let mut depot = depot();
    let kind = Kind::Ephemeral;
    for chunk in 2..4 {
        depot.grant(chunk, 2, kind).unwrap();
    }
    let mut slots = [0; SLOTS_PER_CHUNK as usize + 1];
    assert_eq!(depot.take(kind, &mut slots), slots.len());
    let (last, others) = slots.split_last().unwrap();
    depot.withdraw(chunk_of(others[0])).unwrap();
    let mut complete = Vec::new();
    // One of them twice, and one that is of no chunk.
    let given = [*last, others[5], others[5], u32::MAX];
    depot.give_all(&given, |chunk| complete.push(chunk));
    assert!(complete.is_empty());
    assert_eq!(depot.used(chunk_of(others[0])), SLOTS_PER_CHUNK - 1);
    assert_eq!(depot.level(kind).free, SLOTS_PER_CHUNK);
    depot.give_all(others, |chunk| complete.push(chunk));
    assert_eq!(complete, [chunk_of(others[0])]);
    assert_eq!(depot.collect(complete[0]), Ok(2));
}

#[test]
fn a_put_and_a_get_by_turns_do_not_go_to_the_depot() {
    let mut depot = depot();
    let kind = Kind::Persistent;
    depot.grant(2, 2, kind).unwrap();
    let mut magazine = Magazine::EMPTY;
    magazine.fill(&mut depot, kind);
    let mut used = drain(&mut magazine);
    let mut trips = 0;
    for _ in 0..100 {
        let slot = pop(&mut magazine).unwrap_or_else(|| {
            magazine.fill(&mut depot, kind);
            trips += 1;
            pop(&mut magazine).unwrap()
        });
        used.push(slot);
        assert_eq!(magazine.put(&[used.remove(0)]), 1);
    }
    assert_eq!(trips, 1);
}

#[test]
fn an_empty_chunk_is_touched_last_and_left_first() {
    let mut depot = depot();
    let kind = Kind::Persistent;
    for chunk in 2..5 {
        depot.grant(chunk, 2, kind).unwrap();
    }
    let mut slots = [0; 8];
    depot.take(kind, &mut slots);
    let chunk = chunk_of(slots[0]);
    assert_ne!(depot.cheapest(kind), Some(chunk));
    // The next ones are from there, too, and so they are after some have come back.
    let mut more = [0; 8];
    depot.give(slots[3]).unwrap();
    depot.take(kind, &mut more);
    assert!(more.iter().all(|slot| chunk_of(*slot) == chunk));
    // When nothing is in use, all of them can go.
    for slot in slots.into_iter().chain(more).collect::<BTreeSet<_>>() {
        depot.give(slot).unwrap();
    }
    for _ in 0..3 {
        let chunk = depot.cheapest(kind).unwrap();
        assert_eq!(depot.withdraw(chunk), Ok(0));
        assert_eq!(depot.collect(chunk), Ok(2));
    }
    assert_eq!(depot.cheapest(kind), None);
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Grant(u32, bool),
    /// Take so many slots as a processor does.
    Put(usize, bool, u8),
    /// Give back those that have been in use for longest, or not.
    Free(usize, u8, bool),
    Withdraw(u32),
    Keep(u32),
    LetGo(usize),
    Empty(usize),
    Collect(u32),
}

fn op() -> impl Strategy<Value = Op> {
    let chunk = || 0..CHUNKS + 1;
    let cpu = || 0..PROCESSORS;
    prop_oneof![
        6 => (chunk(), any::<bool>()).prop_map(|(c, kind)| Op::Grant(c, kind)),
        6 => (cpu(), any::<bool>(), any::<u8>()).prop_map(|(p, kind, n)| Op::Put(p, kind, n)),
        6 => (cpu(), any::<u8>(), any::<bool>()).prop_map(|(p, n, old)| Op::Free(p, n, old)),
        4 => chunk().prop_map(Op::Withdraw),
        1 => chunk().prop_map(Op::Keep),
        2 => cpu().prop_map(Op::LetGo),
        1 => cpu().prop_map(Op::Empty),
        3 => chunk().prop_map(Op::Collect),
    ]
}

fn kind_of(persistent: bool) -> Kind {
    if persistent {
        Kind::Persistent
    } else {
        Kind::Ephemeral
    }
}

/// What is known of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Granted(Kind),
    Leaving(Kind),
}

struct World {
    depot: Depot,
    states: Vec<State>,
    generation: u32,
    magazines: Vec<[Magazine; 2]>,
    used: Vec<(Kind, u32)>,
    complete: BTreeSet<u32>,
}

impl World {
    fn new() -> Self {
        Self {
            depot: depot(),
            states: vec![State::Absent; CHUNKS as usize],
            generation: 0,
            magazines: vec![[Magazine::EMPTY, Magazine::EMPTY]; PROCESSORS],
            used: Vec::new(),
            complete: BTreeSet::new(),
        }
    }

    fn state(&self, chunk: u32) -> State {
        let state = self.states.get(chunk as usize).copied();
        state.unwrap_or(State::Absent)
    }

    /// Does something with the magazines of a processor; notes which chunks are complete.
    fn each(&mut self, cpu: usize, f: fn(&mut Magazine, &mut Depot, &mut BTreeSet<u32>)) {
        for magazine in &mut self.magazines[cpu] {
            f(magazine, &mut self.depot, &mut self.complete);
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Grant(chunk, persistent) => {
                self.generation += 2;
                let kind = kind_of(persistent);
                let free = chunk >= FIRST_CHUNK && self.state(chunk) == State::Absent;
                let granted = self.depot.grant(chunk, self.generation, kind);
                assert_eq!(granted.is_ok(), free && chunk < CHUNKS);
                if granted.is_ok() {
                    assert_eq!(self.depot.generation(chunk), self.generation);
                    self.states[chunk as usize] = State::Granted(kind);
                }
            }
            Op::Put(cpu, persistent, count) => {
                let kind = kind_of(persistent);
                let magazine = &mut self.magazines[cpu][usize::from(persistent)];
                let mut slots = vec![0; count.into()];
                let mut taken = 0;
                while taken < slots.len() {
                    let more = magazine.take(&mut slots[taken..]);
                    taken += more;
                    if more == 0 && magazine.fill(&mut self.depot, kind) == 0 {
                        break;
                    }
                }
                slots.truncate(taken);
                self.used.extend(slots.into_iter().map(|slot| (kind, slot)));
            }
            Op::Free(cpu, count, old) => {
                let count = usize::from(count).min(self.used.len());
                let from = if old { 0 } else { self.used.len() - count };
                let freed: Vec<_> = self.used.drain(from..from + count).collect();
                for kind in Kind::ALL {
                    let slots = freed.iter().filter(|(of, _)| *of == kind);
                    let slots: Vec<u32> = slots.map(|(_, slot)| *slot).collect();
                    let magazine = &mut self.magazines[cpu][usize::from(kind == Kind::Persistent)];
                    let complete = &mut self.complete;
                    let mut left = &slots[..];
                    while !left.is_empty() {
                        left = &left[magazine.put(left)..];
                        if !left.is_empty() {
                            magazine.spill(&mut self.depot, |chunk| complete.extend([chunk]));
                        }
                    }
                }
            }
            Op::Withdraw(chunk) => {
                let expected = match self.state(chunk) {
                    State::Granted(kind) => {
                        self.states[chunk as usize] = State::Leaving(kind);
                        Ok(self.out(chunk))
                    }
                    _ => Err(Broken),
                };
                assert_eq!(self.depot.withdraw(chunk), expected);
            }
            Op::Keep(chunk) => {
                let state = self.state(chunk);
                if let State::Leaving(kind) = state {
                    self.states[chunk as usize] = State::Granted(kind);
                    self.complete.remove(&chunk);
                }
                assert_eq!(
                    self.depot.keep(chunk).is_ok(),
                    matches!(state, State::Leaving(_))
                );
            }
            Op::LetGo(cpu) => {
                self.each(cpu, |magazine, depot, complete| {
                    magazine.let_go(depot, |chunk| complete.extend([chunk]));
                });
                let left = self.magazines[cpu].clone();
                for slot in left
                    .into_iter()
                    .flat_map(|mut magazine| drain(&mut magazine))
                {
                    assert!(!self.depot.is_leaving(chunk_of(slot)));
                }
            }
            Op::Empty(cpu) => {
                self.each(cpu, |magazine, depot, complete| {
                    magazine.empty(depot, |chunk| complete.extend([chunk]));
                    assert_eq!(drain(magazine), []);
                });
            }
            Op::Collect(chunk) => {
                let ready = matches!(self.state(chunk), State::Leaving(_)) && self.out(chunk) == 0;
                assert!(ready || !self.complete.contains(&chunk));
                assert_eq!(self.depot.collect(chunk).is_ok(), ready);
                if ready {
                    self.states[chunk as usize] = State::Absent;
                    self.complete.remove(&chunk);
                }
            }
        }
    }

    /// Returns all slots that are not in the depot.
    fn all_out(&self) -> Vec<u32> {
        let mut out: Vec<u32> = self.used.iter().map(|(_, slot)| *slot).collect();
        for mut magazine in self.magazines.iter().flatten().cloned() {
            out.extend(drain(&mut magazine));
        }
        out
    }

    fn out(&self, chunk: u32) -> u32 {
        let out = self.all_out();
        out.iter().filter(|slot| chunk_of(**slot) == chunk).count() as u32
    }

    fn check(&self) {
        let out = self.all_out();
        let slots: BTreeSet<u32> = out.iter().copied().collect();
        assert_eq!(slots.len(), out.len(), "a slot is in two places");
        for slot in slots {
            assert_ne!(
                self.state(chunk_of(slot)),
                State::Absent,
                "a slot of nobody's"
            );
        }
        for kind in Kind::ALL {
            let of = |state: State| {
                (0..CHUNKS).filter(move |chunk| self.states[*chunk as usize] == state)
            };
            let level = self.depot.level(kind);
            let free = of(State::Granted(kind)).map(|chunk| SLOTS_PER_CHUNK - self.out(chunk));
            assert_eq!(level.free, free.sum::<u32>());
            assert_eq!(level.chunks, of(State::Granted(kind)).count() as u32);
            assert_eq!(level.leaving, of(State::Leaving(kind)).count() as u32);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 200 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever is done: each slot is in one place, and all of them can be had in the end.
    #[test]
    fn slots_are_neither_lost_nor_doubled(ops in prop::collection::vec(op(), 0..80)) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
            world.check();
        }
        let used = world.used.len();
        for _ in 0..=used / 255 {
            world.apply(Op::Free(0, u8::MAX, true));
        }
        for cpu in 0..PROCESSORS {
            world.apply(Op::Empty(cpu));
        }
        for chunk in 0..CHUNKS {
            if matches!(world.state(chunk), State::Leaving(_)) {
                world.apply(Op::Collect(chunk));
            }
        }
        world.check();
        for kind in Kind::ALL {
            let level = world.depot.level(kind);
            let mut slots = vec![0; (CHUNKS * SLOTS_PER_CHUNK) as usize];
            assert_eq!(world.depot.take(kind, &mut slots), level.free as usize);
            assert_eq!(level.free, level.chunks * SLOTS_PER_CHUNK);
            assert_eq!(level.leaving, 0);
        }
    }
}
