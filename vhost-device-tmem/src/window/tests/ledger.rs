// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ledger against what a driver, a restart and the operator can do to it.

use std::collections::HashMap;

use proptest::prelude::*;
use virtio_tmem_abi::{ChunkKind, FIRST_CHUNK, MAX_GRANT};

use crate::window::ledger::{Counts, Ledger};

const CHUNKS: u32 = 18;

#[derive(Clone, Debug)]
enum Op {
    /// The driver asks, with a new ticket or the last one again.
    Ask {
        persistent: bool,
        count: u32,
        again: bool,
    },
    /// The driver returns what it was granted, or claims to.
    Return { pick: usize, older: bool },
    /// The device takes an ephemeral chunk back, and may be interrupted before it is through.
    TakeBack { pick: usize, interrupted: bool },
    /// Memory is made ready ahead.
    Prepare,
    /// And given back.
    Unprepare,
    /// Another process goes on.
    Restart,
}

/// Returns the chunks that have no memory, looked for in parts.
fn unoccupied(ledger: &Ledger) -> Vec<u32> {
    let (mut all, mut from) = (Vec::new(), 0);
    while let Some(part) = ledger.unoccupied(from, 3) {
        assert!((1..=3).contains(&part.len()) && part.start >= from);
        from = part.end;
        all.extend(part);
    }
    all
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (any::<bool>(), 1..=MAX_GRANT.min(6), any::<bool>()).prop_map(
            |(persistent, count, again)| Op::Ask { persistent, count, again }
        ),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(pick, older)| Op::Return { pick, older }),
        2 => (any::<usize>(), any::<bool>()).prop_map(
            |(pick, interrupted)| Op::TakeBack { pick, interrupted }
        ),
        1 => Just(Op::Prepare),
        1 => Just(Op::Unprepare),
        1 => Just(Op::Restart),
    ]
}

/// A ledger, what was written down of it, and what a driver knows.
struct Scene {
    ledger: Ledger,
    words: Vec<u64>,
    ticket: u64,
    asked: bool,
    /// The chunks that the driver has, or believes to have.
    known: HashMap<u32, (ChunkKind, u32)>,
    /// The last request, and what it was granted.
    last: Vec<(u32, u32)>,
    kind: ChunkKind,
    /// The highest generation that each chunk was seen with.
    seen: HashMap<u32, u32>,
}

impl Scene {
    fn new() -> Self {
        Self {
            ledger: Ledger::new(CHUNKS),
            words: vec![0; (CHUNKS - FIRST_CHUNK) as usize],
            ticket: 0,
            asked: false,
            known: HashMap::new(),
            last: Vec::new(),
            kind: ChunkKind::Ephemeral,
            seen: HashMap::new(),
        }
    }

    fn write(&mut self) {
        for (number, entry) in self.ledger.take_changes() {
            self.words[(number - FIRST_CHUNK) as usize] = entry.word(number);
        }
    }

    fn restart(&mut self) {
        let ticket = self.asked.then_some(self.ticket);
        let (ledger, damaged) = Ledger::restore(&self.words, ticket);
        assert_eq!(damaged, 0);
        self.ledger = ledger;
        // What was being taken back is taken back to its end.
        let leaving = self
            .ledger
            .entries()
            .filter(|(_, entry)| entry.is_leaving());
        for (number, _) in leaving.collect::<Vec<_>>() {
            self.ledger.end_return(number);
        }
        self.write();
    }

    fn ask(&mut self, kind: ChunkKind, count: u32, again: bool) {
        let again = again && self.asked;
        if !again {
            self.ticket += 1;
        }
        // The same request is the same in all.
        let kind = if again { self.kind } else { kind };
        let before = self.ledger.begin(self.ticket);
        let still: Vec<_> = self.ledger.granted().collect();
        assert_eq!(before as usize, still.len());
        if again {
            assert!(still.iter().all(|chunk| self.last.contains(chunk)));
        } else {
            assert_eq!(still, []);
        }
        for _ in before..count {
            let Some(number) = self.ledger.next_ready().or(self.ledger.next_free()) else {
                break;
            };
            self.ledger.ready(number);
            assert!(self.ledger.grant(number, kind));
        }
        self.write();
        (self.asked, self.kind) = (true, kind);
        self.last = self.ledger.granted().collect();
        for (number, generation) in &self.last {
            assert!((FIRST_CHUNK..CHUNKS).contains(number));
            assert_eq!(generation % 2, 0);
            let newly = !still.contains(&(*number, *generation));
            let older = self.known.insert(*number, (kind, *generation));
            if let (true, Some((_, older))) = (newly, older) {
                // It was taken back before, or it is granted twice.
                assert!(older < *generation, "chunk {number} was granted twice");
            }
        }
    }

    fn end(&mut self, number: u32, generation: u32) {
        self.ledger.end_return(number);
        self.write();
        let entry = self.ledger.entry(number).unwrap();
        assert!(entry.is_free() && entry.generation == generation + 2);
    }

    fn check(&mut self) {
        let Counts {
            free,
            ready,
            ephemeral,
            persistent,
            leaving,
            gone,
        } = self.ledger.counts();
        assert_eq!(
            free + ephemeral + persistent + leaving + gone,
            CHUNKS - FIRST_CHUNK
        );
        assert!(ready <= free);
        let occupied = ready + ephemeral + persistent + leaving;
        assert_eq!(self.ledger.occupied(), occupied);
        let unoccupied = unoccupied(&self.ledger).len() as u32;
        assert_eq!(occupied + unoccupied, CHUNKS - FIRST_CHUNK);
        assert!(self.ledger.ahead() <= 8);
        for (number, entry) in self.ledger.entries() {
            let seen = self.seen.entry(number).or_default();
            assert!(entry.generation >= *seen, "a generation came back");
            *seen = entry.generation;
            if let Some(kind) = entry.granted() {
                assert_eq!(self.known.get(&number), Some(&(kind, entry.generation)));
                assert!(self.ledger.holds(number, entry.generation));
            }
            assert!(!self.ledger.holds(number, entry.generation + 2));
        }
        // What is written down says the same.
        let ticket = self.ledger.ticket();
        let (mut restored, _) = Ledger::restore(&self.words, ticket);
        let counts = self.ledger.counts();
        assert_eq!(restored.counts(), Counts { ready: 0, ..counts });
        assert!(restored.entries().eq(self.ledger.entries()));
        assert!(restored.take_changes().is_empty());
    }
}

proptest! {
    #[test]
    fn no_chunk_is_granted_twice_and_all_are_accounted_for(
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut scene = Scene::new();
        for op in ops {
            match op {
                Op::Ask { persistent, count, again } => {
                    let kind = if persistent { ChunkKind::Persistent } else { ChunkKind::Ephemeral };
                    scene.ask(kind, count, again);
                }
                Op::Return { pick, older } => {
                    let mut known: Vec<_> = scene.known.iter().map(|(n, k)| (*n, *k)).collect();
                    known.sort_unstable_by_key(|(number, _)| *number);
                    let Some((number, (kind, generation))) =
                        (!known.is_empty()).then(|| known[pick % known.len()])
                    else {
                        continue;
                    };
                    let generation = if older { generation.wrapping_sub(2) } else { generation };
                    if scene.ledger.holds(number, generation) {
                        assert_eq!(scene.ledger.begin_return(number), Some(kind));
                        assert_eq!(scene.ledger.begin_return(number), None);
                        scene.end(number, generation);
                    }
                }
                Op::TakeBack { pick, interrupted } => {
                    let ephemeral = scene.ledger.entries().filter(|(_, entry)| {
                        entry.granted() == Some(ChunkKind::Ephemeral)
                    });
                    let ephemeral: Vec<_> = ephemeral.collect();
                    let Some((number, entry)) =
                        (!ephemeral.is_empty()).then(|| ephemeral[pick % ephemeral.len()])
                    else {
                        continue;
                    };
                    scene.ledger.begin_return(number);
                    scene.write();
                    assert!(!scene.ledger.holds(number, entry.generation));
                    if interrupted {
                        scene.restart();
                    } else {
                        scene.end(number, entry.generation);
                    }
                }
                Op::Prepare => {
                    for _ in 0..scene.ledger.ahead() {
                        if let Some(number) = scene.ledger.next_free() {
                            scene.ledger.ready(number);
                        }
                    }
                }
                Op::Unprepare => {
                    if let Some(number) = scene.ledger.unready() {
                        assert!(scene.ledger.entry(number).unwrap().is_free());
                        assert!(unoccupied(&scene.ledger).contains(&number));
                    }
                }
                Op::Restart => scene.restart(),
            }
            scene.check();
        }
    }

    #[test]
    fn words_of_any_kind_make_a_ledger(words in prop::collection::vec(any::<u64>(), 0..40)) {
        let (mut ledger, damaged) = Ledger::restore(&words, None);
        let counts = ledger.counts();
        assert!(counts.gone >= damaged);
        let sum = counts.free + counts.ephemeral + counts.persistent + counts.leaving + counts.gone;
        assert_eq!(sum as usize, words.len());
        let changes = ledger.take_changes();
        assert_eq!(changes.len(), damaged as usize);
        for (number, entry) in changes {
            assert!(!entry.is_free());
            assert!(!ledger.grant(number, ChunkKind::Ephemeral));
            assert_eq!(ledger.begin_return(number), None);
        }
    }
}

#[test]
fn what_was_damaged_is_lost_and_nothing_else() {
    let mut ledger = Ledger::new(CHUNKS);
    ledger.begin(1);
    for number in FIRST_CHUNK..FIRST_CHUNK + 4 {
        ledger.ready(number);
        ledger.grant(number, ChunkKind::Persistent);
    }
    let mut words: Vec<_> = ledger.entries().map(|(n, entry)| entry.word(n)).collect();
    words[1] ^= 1 << 9;
    let (restored, damaged) = Ledger::restore(&words, Some(1));
    assert_eq!(damaged, 1);
    assert_eq!(restored.counts().persistent, 3);
    assert_eq!(restored.counts().gone, 1);
    for (number, entry) in ledger.entries() {
        let lost = number == FIRST_CHUNK + 1;
        assert_eq!(
            restored.holds(number, entry.generation),
            !lost && entry.granted().is_some()
        );
    }
}

#[test]
fn as_much_is_made_ready_as_was_asked_for_last() {
    let mut ledger = Ledger::new(64);
    assert_eq!(ledger.ahead(), 0);
    let ask = |ledger: &mut Ledger, ticket, count| {
        ledger.begin(ticket);
        for _ in 0..count {
            let number = ledger.next_free().unwrap();
            ledger.ready(number);
            ledger.grant(number, ChunkKind::Ephemeral);
        }
    };
    ask(&mut ledger, 1, 3);
    assert_eq!(ledger.ahead(), 3);
    let number = ledger.next_free().unwrap();
    ledger.ready(number);
    assert_eq!((ledger.ahead(), ledger.next_ready()), (2, Some(number)));
    assert_eq!(ledger.occupied(), 4);
    ask(&mut ledger, 2, 20);
    assert_eq!(ledger.ahead(), 7);
    assert_eq!(ledger.unready(), Some(number));
    assert_eq!((ledger.ahead(), ledger.next_ready()), (8, None));
    ledger.calm();
    assert_eq!(ledger.ahead(), 0);
}
