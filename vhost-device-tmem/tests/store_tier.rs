// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A store with a tier below it, which is slow, full, broken or lies.

mod pages;
mod places;

use std::{
    collections::BTreeMap,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        Arc, Mutex,
    },
};

use pages::{config, random_page};
use places::{create, get, key, Place, Stamps, Versions, EPHEMERAL, PERSISTENT};
use proptest::prelude::*;
use vhost_device_tmem::{
    store::{Compression, Guest, Held, Memory, Store},
    tier::{
        choice::TierUse,
        spill::{self, Spill, MIN_SIZE},
        Arrival, Place as At, Record, Tier, TierError, TierReport,
    },
};
use virtio_tmem_abi::PageResult::{self, Absent, Damaged, Hit, Miss, Stored};

const CAPACITY: u64 = 4 << 20;

/// A tier in memory that does what it is told to.
#[derive(Debug, Default)]
struct Faulty {
    records: Mutex<BTreeMap<At, (u32, Vec<u8>)>>,
    next: AtomicU64,
    /// Nothing can be written, or synced.
    full: AtomicBool,
    unsynced: AtomicBool,
    /// Whoever asks has to wait.
    stalled: AtomicBool,
    asked: Mutex<Vec<(At, Arc<Arrival>)>>,
    syncs: AtomicU64,
}

impl Faulty {
    fn is(&self, what: &AtomicBool) -> bool {
        what.load(Ordering::SeqCst)
    }

    fn set(&self, what: &AtomicBool, to: bool) {
        what.store(to, Ordering::SeqCst);
    }

    /// Answers all who have waited.
    fn go_on(&self) {
        self.set(&self.stalled, false);
        for (place, arrival) in std::mem::take(&mut *self.asked.lock().unwrap()) {
            self.get(place, arrival);
        }
    }

    fn len(&self) -> usize {
        self.records.lock().unwrap().len()
    }

    /// Changes all that it keeps.
    fn change(&self, change: impl Fn(&mut Vec<u8>)) {
        for (_, bytes) in self.records.lock().unwrap().values_mut() {
            change(bytes);
        }
    }

    /// Gives each record the contents of the next.
    fn exchange(&self) {
        let mut records = self.records.lock().unwrap();
        let mut contents: Vec<_> = records.values().map(|(_, bytes)| bytes.clone()).collect();
        contents.rotate_left(1);
        for ((_, bytes), other) in records.values_mut().zip(contents) {
            *bytes = other;
        }
    }
}

impl Tier for Faulty {
    fn put(&self, records: &[Record]) -> Result<Vec<At>, TierError> {
        if self.is(&self.full) {
            return Err(TierError::Full);
        }
        let put = records.iter().map(|record| {
            let place = At::new(self.next.fetch_add(1, Ordering::SeqCst)).unwrap();
            let kept = (record.owner, record.bytes.clone());
            self.records.lock().unwrap().insert(place, kept);
            place
        });
        Ok(put.collect())
    }

    fn sync(&self) -> Result<(), TierError> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        if self.is(&self.unsynced) {
            return Err(TierError::Failed("no".to_owned()));
        }
        Ok(())
    }

    fn get(&self, place: At, arrival: Arc<Arrival>) {
        if self.is(&self.stalled) {
            return self.asked.lock().unwrap().push((place, arrival));
        }
        let records = self.records.lock().unwrap();
        let record = records.get(&place).map(|(_, bytes)| bytes.clone());
        arrival.arrive(record.ok_or(TierError::Damaged));
    }

    fn remove(&self, place: At) {
        self.records.lock().unwrap().remove(&place);
    }

    fn adopt(&self, place: At, owner: u32) -> bool {
        let records = self.records.lock().unwrap();
        records.get(&place).is_some_and(|(of, _)| *of == owner)
    }

    fn is_crowded(&self) -> bool {
        false
    }

    fn crowded(&self) -> Vec<(At, u32)> {
        Vec::new()
    }

    fn report(&self) -> TierReport {
        TierReport {
            size_bytes: 1 << 30,
            free_bytes: 1 << 30,
            ..TierReport::default()
        }
    }
}

/// Makes the tier of the next process out of that of the one before.
type Again<T> = Box<dyn Fn(&Arc<T>) -> Arc<T>>;

struct World<T> {
    memory: Memory,
    tier: Arc<T>,
    /// Returns the tier as the next process has it.
    again: Again<T>,
    store: Store,
    guest: Guest,
}

fn recover<T: Tier + 'static>(memory: &Memory, tier: &Arc<T>, uses: TierUse) -> (Store, Guest) {
    let tier = Arc::clone(tier) as Arc<dyn Tier>;
    let memory = memory.try_clone().unwrap();
    let config = config(CAPACITY, Compression::Lz4);
    let (store, _) = Store::recover_above(&config, memory, Some(tier)).unwrap();
    let guest = store.guest(0);
    store.set_tier_uses([(0, uses)].into());
    (store, guest)
}

impl<T: Tier + 'static> World<T> {
    fn above(tier: T, uses: TierUse) -> Self {
        Self::above_one(tier, uses, Arc::clone)
    }

    fn above_one(tier: T, uses: TierUse, again: impl Fn(&Arc<T>) -> Arc<T> + 'static) -> Self {
        let tier = Arc::new(tier);
        let config = config(CAPACITY, Compression::Lz4);
        let memory = Memory::create(&config, None).unwrap();
        let (store, guest) = recover(&memory, &tier, uses);
        for pool in [PERSISTENT, EPHEMERAL] {
            create(&store, &guest, pool);
        }
        Self {
            memory,
            tier,
            again: Box::new(again),
            store,
            guest,
        }
    }

    /// Has the process end, and another one go on.
    fn next_process(self) -> Self {
        let Self {
            memory,
            tier,
            again,
            store,
            ..
        } = self;
        drop(store);
        let tier = again(&tier);
        let (store, guest) = recover(&memory, &tier, TierUse::All);
        Self {
            memory,
            tier,
            again,
            store,
            guest,
        }
    }

    fn put(&self, place: Place, version: u64) -> PageResult {
        self.put_of(&self.guest, place, version)
    }

    fn put_of(&self, guest: &Guest, place: Place, version: u64) -> PageResult {
        let mut result = [Absent];
        let keys = [key(place, version)];
        let put = self
            .store
            .put(guest, place.0, &keys, &mut Stamps(&[version]), &mut result);
        put.unwrap();
        result[0]
    }

    fn get(&self, place: Place, version: u64) -> PageResult {
        get(&self.store, &self.guest, place, version)
    }

    fn tend(&self) {
        while self.store.tend_tier().unwrap() {}
    }

    fn below(&self) -> u64 {
        self.store.report().contents.below_pages
    }

    /// Puts pages until there are none to be put, and has each be moved that is to be.
    fn fill(&self, pool: u32, pages: u64) -> u64 {
        let mut stored = 0;
        for n in 0..pages {
            if self.put((pool, 0, n), random_page(n)) != Stored {
                break;
            }
            stored += 1;
            if pool == EPHEMERAL && n % 2 == 0 {
                assert_eq!(self.get((pool, 0, n), random_page(n)), Hit);
            }
            if n % 16 == 15 {
                self.tend();
            }
        }
        self.tend();
        stored
    }

    fn count(&self, pool: u32, pages: u64, result: PageResult) -> u64 {
        let are = (0..pages).filter(|n| self.get((pool, 0, *n), random_page(*n)) == result);
        are.count() as u64
    }
}

/// The size of the spill file.
const SIZE: u64 = 3 * MIN_SIZE / 2;

/// What is far more than fits.
const MANY: u64 = 3 * CAPACITY / 4096;

#[test]
fn ephemeral_pages_go_below_if_their_guest_comes_back_for_them() {
    let world = World::above(Faulty::default(), TierUse::default());
    assert_eq!(world.fill(EPHEMERAL, MANY), MANY);
    let below = world.below();
    assert!(below > MANY / 4, "{below}");
    for n in 0..MANY {
        let got = world.get((EPHEMERAL, 0, n), random_page(n));
        if n % 2 == 0 {
            assert_eq!(got, Hit, "{n}");
        }
    }
    // Of the others those are there that had room.
    let others = (1..MANY).step_by(2);
    let there = others.filter(|n| world.get((EPHEMERAL, 0, *n), random_page(*n)) == Hit);
    assert!(there.count() < (CAPACITY / 4096) as usize);
    assert_eq!(world.tier.len() as u64, world.below());
}

#[test]
fn a_page_that_was_taken_and_comes_again_is_known() {
    let world = World::above(Faulty::default(), TierUse::default());
    let few = 100;
    for n in 0..few {
        let (place, version) = ((EPHEMERAL, 0, n), random_page(n));
        assert_eq!(world.put(place, version), Stored);
        let mut result = [Absent];
        let keys = [key(place, version)];
        let versions = [version];
        let mut sink = Versions(&versions);
        let store = &world.store;
        let taken = store.get(&world.guest, EPHEMERAL, true, &keys, &mut sink, &mut result);
        drop(taken.unwrap());
        assert_eq!(result, [Hit]);
        assert_eq!(world.put(place, version), Stored);
    }
    for n in few..MANY {
        assert_eq!(world.put((EPHEMERAL, 0, n), random_page(n)), Stored);
        world.tend();
    }
    assert_eq!(world.count(EPHEMERAL, few, Hit), few);
}

#[test]
fn a_guest_that_may_not_has_nothing_below() {
    let world = World::above(Faulty::default(), TierUse::Off);
    world.fill(EPHEMERAL, MANY);
    assert_eq!(world.below(), 0);
    let world = World::above(Faulty::default(), TierUse::Ephemeral);
    assert!(world.fill(PERSISTENT, MANY) < MANY);
    assert_eq!((world.below(), world.tier.len()), (0, 0));
}

#[test]
fn pages_that_may_not_go_below_are_in_nobodys_way() {
    let world = World::above(Faulty::default(), TierUse::Ephemeral);
    let uses = [(0, TierUse::Ephemeral), (1, TierUse::Off)];
    world.store.set_tier_uses(uses.into());
    // Another guest has most pages, and the coldest: it came back for all of them.
    let other = world.store.guest(1);
    create(&world.store, &other, EPHEMERAL);
    for n in 0..CAPACITY / 4096 {
        let (place, version) = ((EPHEMERAL, 0, n), random_page(n));
        assert_eq!(world.put_of(&other, place, version), Stored);
        assert_eq!(get(&world.store, &other, place, version), Hit);
    }
    for n in 0..200 {
        let (place, version) = ((EPHEMERAL, 0, n), random_page(n));
        assert_eq!(world.put(place, version), Stored);
        assert_eq!(world.get(place, version), Hit);
    }
    world.tend();
    assert!(world.below() > 0);
    assert_eq!(world.count(EPHEMERAL, 200, Hit), 200);
}

#[test]
fn persistent_pages_go_below_where_they_may_and_all_come_back() {
    let world = World::above(Faulty::default(), TierUse::All);
    assert_eq!(world.fill(PERSISTENT, MANY), MANY);
    assert!(world.below() > MANY / 2);
    assert!(world.tier.syncs.load(Ordering::SeqCst) > 0);
    assert_eq!(world.count(PERSISTENT, MANY, Hit), MANY);
    // What is flushed, or put over, is gone there as well.
    let keys: Vec<_> = (0..MANY)
        .map(|n| key((PERSISTENT, 0, n), random_page(n)))
        .collect();
    let mut results = vec![Absent; keys.len()];
    let store = &world.store;
    store
        .flush_pages(&world.guest, PERSISTENT, &keys, &mut results)
        .unwrap();
    assert_eq!((world.below(), world.tier.len()), (0, 0));
}

#[test]
fn what_is_not_synced_stays_in_the_store() {
    let world = World::above(Faulty::default(), TierUse::All);
    world.tier.set(&world.tier.unsynced, true);
    let stored =
        (0..MANY).take_while(|n| world.put((PERSISTENT, 0, *n), random_page(*n)) == Stored);
    let stored = stored.count() as u64;
    assert!(stored < MANY);
    while world.store.tend_tier().is_ok() {}
    assert_eq!((world.below(), world.tier.len()), (0, 0));
    // A tier that is full is no better.
    world.tier.set(&world.tier.full, true);
    assert!(world.store.tend_tier().is_err());
    assert_eq!(world.below(), 0);
    assert_eq!(world.count(PERSISTENT, stored, Hit), stored);
    world.tier.set(&world.tier.full, false);
    world.tier.set(&world.tier.unsynced, false);
    world.tend();
    assert!(world.below() > 0);
    assert_eq!(world.count(PERSISTENT, stored, Hit), stored);
}

#[test]
fn a_damaged_or_exchanged_record_is_never_another_page() {
    let flip = |bytes: &mut Vec<u8>| bytes[30] ^= 1;
    let changes: [&dyn Fn(&Faulty); 3] = [&|tier| tier.change(flip), &Faulty::exchange, &|tier| {
        tier.change(Vec::clear)
    }];
    for change in changes {
        let world = World::above(Faulty::default(), TierUse::All);
        world.fill(PERSISTENT, MANY);
        let below = world.below();
        change(&world.tier);
        // The sink would not take another page.
        assert_eq!(world.count(PERSISTENT, MANY, Damaged), below);
        assert_eq!(world.count(PERSISTENT, MANY, Damaged), below);
        assert_eq!(world.count(PERSISTENT, MANY, Hit), MANY - below);
        assert_eq!(world.put((PERSISTENT, 0, 0), random_page(0)), Stored);
        assert_eq!(world.get((PERSISTENT, 0, 0), random_page(0)), Hit);

        let world = World::above(Faulty::default(), TierUse::All);
        world.fill(EPHEMERAL, MANY);
        let there = world.count(EPHEMERAL, MANY, Hit);
        let below = world.below();
        change(&world.tier);
        assert_eq!(world.count(EPHEMERAL, MANY, Hit), there - below);
        assert_eq!(world.count(EPHEMERAL, MANY, Hit), there - below);
        assert_eq!(world.below(), 0);
    }
}

#[test]
fn a_tier_that_stands_still_is_a_miss_or_is_waited_for() {
    let world = World::above(Faulty::default(), TierUse::All);
    world.fill(EPHEMERAL, MANY);
    world.tier.set(&world.tier.stalled, true);
    // The coldest, which were asked for.
    assert_eq!(world.get((EPHEMERAL, 0, 0), random_page(0)), Miss);
    world.tier.go_on();
    // That was its last.
    assert_eq!(world.get((EPHEMERAL, 0, 0), random_page(0)), Miss);
    assert_eq!(world.get((EPHEMERAL, 0, 2), random_page(2)), Hit);

    let world = World::above(Faulty::default(), TierUse::All);
    world.fill(PERSISTENT, MANY);
    world.tier.set(&world.tier.stalled, true);
    let versions: Vec<_> = (0..MANY).map(random_page).collect();
    let keys: Vec<_> = (0..MANY)
        .map(|n| key((PERSISTENT, 0, n), random_page(n)))
        .collect();
    let mut results = vec![Absent; keys.len()];
    let woken = Arc::new(AtomicU64::new(0));
    let mut held = Held::default();
    let copy = Arc::clone(&woken);
    held.set_wake(Some(Arc::new(move || {
        copy.fetch_add(1, Ordering::SeqCst);
    })));
    let (store, guest) = (&world.store, &world.guest);
    let mut sink = Versions(&versions);
    store
        .begin_get(
            guest,
            PERSISTENT,
            false,
            0,
            &keys,
            &mut sink,
            &mut results,
            &mut held,
        )
        .unwrap();
    assert!(held.is_waiting());
    // Others are served meanwhile, and pages that are waited for may be forgotten.
    let mut flushed = [Absent];
    store
        .flush_pages(guest, PERSISTENT, &keys[..1], &mut flushed)
        .unwrap();
    assert_eq!(flushed, [PageResult::Flushed]);
    assert_eq!(woken.load(Ordering::SeqCst), 0);
    world.tier.go_on();
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    assert!(!held.is_waiting());
    let below = store.finish_get(&mut sink, &mut results, &mut held);
    assert!(below > 0);
    assert_eq!(results, vec![Hit; keys.len()]);
    store.end_take(&mut held, true);
    assert_eq!(world.tier.len() as u64, world.below());
    assert_eq!(world.get((PERSISTENT, 0, 0), random_page(0)), Miss);
    assert_eq!(world.get((PERSISTENT, 0, 1), random_page(1)), Hit);
}

#[test]
fn who_does_not_wait_any_more_leaves_all_as_it_was() {
    let world = World::above(Faulty::default(), TierUse::All);
    world.fill(EPHEMERAL, MANY);
    world.tier.set(&world.tier.stalled, true);
    let version = [random_page(0)];
    let keys = [key((EPHEMERAL, 0, 0), version[0])];
    let (mut held, mut results) = (Held::default(), [Absent]);
    let mut sink = Versions(&version);
    let (store, guest) = (&world.store, &world.guest);
    store
        .begin_get(
            guest,
            EPHEMERAL,
            true,
            0,
            &keys,
            &mut sink,
            &mut results,
            &mut held,
        )
        .unwrap();
    assert!(held.is_waiting());
    store.end_take(&mut held, false);
    world.tier.go_on();
    assert_eq!(world.get((EPHEMERAL, 0, 0), version[0]), Hit);
}

#[test]
fn the_next_process_knows_what_is_below() {
    let mut world = World::above(Faulty::default(), TierUse::All);
    let stored = world.fill(PERSISTENT, MANY);
    for _ in 0..3 {
        let below = world.below();
        world = world.next_process();
        assert_eq!(world.below(), below);
        assert_eq!(world.count(PERSISTENT, stored, Hit), stored);
    }
    // One that has no tier, or another, says that they are lost.
    let memory = world.memory.try_clone().unwrap();
    let config = config(CAPACITY, Compression::Lz4);
    let below = world.below();
    drop(world.store);
    let (store, recovered) = Store::recover(&config, memory).unwrap();
    assert_eq!(recovered.damaged, below);
    let damaged = (0..stored).filter(|n| {
        let place = (PERSISTENT, 0, *n);
        get(&store, &store.guest(0), place, random_page(*n)) == Damaged
    });
    assert_eq!(damaged.count() as u64, below);
}

fn spilled(uses: TierUse) -> (World<Spill>, tempfile::TempDir) {
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let file = spill::prepare(&place.path().join("spill"), SIZE, "test").unwrap();
    let start = move || Spill::start(file.try_clone().unwrap(), SIZE).unwrap();
    let first = start();
    let world = World::above_one(first, uses, move |_| Arc::new(start()));
    (world, place)
}

#[test]
fn a_spill_file_keeps_pages_and_is_cleaned() {
    let (mut world, _place) = spilled(TierUse::All);
    // More is written over time than there is, by each process.
    for round in 1..8 {
        for n in 0..MANY {
            // Some stay.
            if round > 1 && n % 5 == 0 {
                continue;
            }
            let put = world.put((PERSISTENT, 0, n), random_page(n + round * MANY));
            let report = world.store.tier_report();
            assert_eq!(put, Stored, "{round} {n} {} {report:?}", world.below());
            if n % 8 == 0 {
                world.tend();
            }
        }
        if round == 4 {
            world = world.next_process();
        }
        for n in 0..MANY {
            let of = if n % 5 == 0 { 1 } else { round };
            assert_eq!(
                world.get((PERSISTENT, 0, n), random_page(n + of * MANY)),
                Hit
            );
        }
    }
    let report = world.store.tier_report().unwrap();
    assert!(report.written * 4096 > SIZE, "{report:?}");
    assert!(report.used_bytes < report.size_bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever is done, also by the next process, a page is what was put, or it is gone.
    #[test]
    fn no_page_is_another(
        steps in prop::collection::vec((0..10u8, 0..2u32, 0..600u64, 1..80u64), 1..150),
    ) {
        let (mut world, _place) = spilled(TierUse::All);
        let mut model: BTreeMap<Place, u64> = BTreeMap::new();
        let mut version = 0;
        for (what, pool, first, count) in steps {
            match what {
                0..5 => for n in first..first + count {
                    version += 1;
                    let place = (pool, 0, n);
                    model.remove(&place);
                    if world.put(place, random_page(version)) == Stored {
                        model.insert(place, random_page(version));
                    }
                },
                5 | 6 => { let _ = world.store.tend_tier().unwrap(); }
                7 => for n in first..first + count {
                    let place = (pool, 0, n);
                    if let Some(version) = model.remove(&place) {
                        let keys = [key(place, version)];
                        world.store.flush_pages(&world.guest, pool, &keys, &mut [Absent]).unwrap();
                    }
                },
                8 => for n in first..first + count {
                    let place = (pool, 0, n);
                    let known = model.get(&place).copied();
                    let got = world.get(place, known.unwrap_or(1));
                    match (known, pool) {
                        (Some(_), PERSISTENT) => prop_assert_eq!(got, Hit),
                        (Some(_), _) => prop_assert!(matches!(got, Hit | Miss)),
                        (None, _) => prop_assert_eq!(got, Miss),
                    }
                },
                _ => world = world.next_process(),
            }
        }
        world.tend();
        let report = world.store.report();
        prop_assert!(report.resident_bytes <= report.capacity_bytes, "{:?}", report);
        for (place, version) in &model {
            let got = world.get(*place, *version);
            prop_assert!(got == Hit || (place.0 == EPHEMERAL && got == Miss), "{:?}", place);
        }
    }
}
