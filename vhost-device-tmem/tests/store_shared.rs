// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pools of the store that guests share.

mod pages;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use pages::{config, contents, key, random_page, Stamped, COMPRESSIONS};
use uuid::Uuid;
use vhost_device_tmem::store::{
    Compression, Guest, Memory, PageBytes, PageSink, Part, PoolError, PoolKind, Progress,
    SharedPool, SharedReport, Store, FIRST_SHARED,
};
use virtio_tmem_abi::PageResult::{self, Absent, Flushed, Frozen, Hit, Miss, OverQuota, Stored};

const CAPACITY: u64 = 16 << 20;
const IMAGE: Uuid = Uuid::from_u128(0x6a1e_3b7c);
const OTHER: Uuid = Uuid::from_u128(0x1111);
/// Numbers that guests give the pool.
const WEB: u32 = 3;
const DB: u32 = 9;

fn pool(number: u32, uuid: Uuid, guests: &[&Guest]) -> SharedPool {
    SharedPool {
        number: FIRST_SHARED + number,
        uuid,
        guests: guests.iter().map(|guest| guest.number()).collect(),
        max: None,
    }
}

/// A store whose first two guests share a pool, and a third one.
struct World {
    store: Store,
    web: Guest,
    db: Guest,
    third: Guest,
}

impl World {
    fn new(compression: Compression) -> Self {
        let store = Store::new(&config(CAPACITY, compression)).unwrap();
        Self::with(store)
    }

    fn with(store: Store) -> Self {
        let [web, db, third] = [0, 1, 2].map(|number| store.guest(number));
        store.set_shared([pool(0, IMAGE, &[&web, &db])]);
        Self {
            store,
            web,
            db,
            third,
        }
    }

    fn joined(compression: Compression) -> Self {
        let world = Self::new(compression);
        world.store.join_pool(&world.web, WEB, IMAGE).unwrap();
        world.store.join_pool(&world.db, DB, IMAGE).unwrap();
        world
    }

    fn report(&self) -> SharedReport {
        self.store.shared_pools().remove(0)
    }

    fn tidy(&self) {
        while self.store.tidy_step(1000) == Progress::More {}
    }
}

fn put(store: &Store, guest: &Guest, pool: u32, index: u64) -> PageResult {
    let mut result = [Absent];
    let (keys, mut source) = ([key(1, index, 1)], Stamped(random_page(index)));
    let put = store.put(guest, pool, &keys, &mut source, &mut result);
    put.unwrap();
    result[0]
}

fn get(store: &Store, guest: &Guest, pool: u32, index: u64) -> Result<PageResult, PoolError> {
    let mut result = [Absent];
    let (keys, mut sink) = ([key(1, index, 1)], Stamped(random_page(index)));
    let got = store.get(guest, pool, false, &keys, &mut sink, &mut result);
    got.map(|_| result[0])
}

#[test]
fn what_one_guest_puts_another_gets_and_it_is_there_once() {
    for compression in COMPRESSIONS {
        let World {
            store,
            web,
            db,
            third,
        } = World::joined(compression);
        for index in 0..100 {
            assert_eq!(put(&store, &web, WEB, index), Stored);
            // The other one has it as well, and says so in vain.
            assert_eq!(put(&store, &db, DB, index), Stored);
        }
        for index in 0..100 {
            assert_eq!(get(&store, &db, DB, index), Ok(Hit));
        }
        assert_eq!(get(&store, &db, DB, 100), Ok(Miss));
        assert_eq!(store.report().used_pages, 100);
        // Neither is charged.
        let holdings = store.holdings();
        for guest in [&web, &db, &third] {
            assert_eq!(holdings[&guest.number()].total(), 0);
            assert_eq!(store.pools(guest), []);
        }
        let held = holdings[&FIRST_SHARED].ephemeral;
        assert!(held >= 100 * 1024 && held <= store.report().used_bytes);
        let report = store.shared_pools().remove(0);
        let whole = report.pool.unwrap();
        assert_eq!((whole.pages, whole.counters.gets_hit), (100, 100));
        assert_eq!(store.pool_report(&db, DB).unwrap().counters, whole.counters);
        let by_guest = report.by_guest();
        let of = |guest: &Guest| {
            let counters = by_guest[&guest.number()];
            (counters.puts, counters.gets, counters.gets_hit)
        };
        assert_eq!((of(&web), of(&db)), ((100, 0, 0), (100, 101, 100)));
        // What one forgets is forgotten for all.
        let mut flushed = [Absent];
        let flush = store.flush_pages(&db, DB, &[key(1, 7, 1)], &mut flushed);
        assert_eq!((flush, flushed), (Ok(()), [Flushed]));
        assert_eq!(get(&store, &web, WEB, 7), Ok(Miss));
        store.flush_pool(&web, WEB).unwrap();
        assert_eq!(get(&store, &db, DB, 8), Ok(Miss));
    }
}

#[test]
fn only_guests_that_were_authorised_have_access() {
    let World {
        store, web, third, ..
    } = World::new(Compression::None);
    let refused = Err(PoolError::NotAllowed);
    // There is no such pool yet, and then there is: who may not have it does not learn of that.
    assert_eq!(store.join_pool(&third, 0, IMAGE), refused);
    store.join_pool(&web, WEB, IMAGE).unwrap();
    assert_eq!(store.join_pool(&third, 0, IMAGE), refused);
    for uuid in [OTHER, Uuid::nil()] {
        assert_eq!(store.join_pool(&web, 4, uuid), refused);
    }
    assert_eq!(get(&store, &third, WEB, 0), Err(PoolError::NoPool));
    // The same again is no error, and anything else under its number is.
    store.join_pool(&web, WEB, IMAGE).unwrap();
    assert_eq!(store.join_pool(&web, WEB, OTHER), Err(PoolError::Exists));
    let private = store.create_pool(&web, WEB, PoolKind::Ephemeral);
    assert_eq!(private, Err(PoolError::Exists));
    store.create_pool(&web, 5, PoolKind::Ephemeral).unwrap();
    assert_eq!(store.join_pool(&web, 5, IMAGE), Err(PoolError::Exists));
    assert_eq!(store.may_take(&web, WEB), Ok(false));
    assert_eq!(store.may_take(&web, 5), Ok(true));
}

#[test]
fn the_pool_is_there_until_the_last_guest_has_left() {
    let world = World::joined(Compression::None);
    let World { store, web, db, .. } = &world;
    put(store, web, WEB, 0);
    let dropped = store.destroy_pool(web, WEB).unwrap();
    assert_eq!(dropped.ephemeral.pools, 0);
    assert_eq!(get(store, web, WEB, 0), Err(PoolError::NoPool));
    assert_eq!(get(store, db, DB, 0), Ok(Hit));
    // It comes back, and it is the same pool. A guest that is gone has left, too.
    store.join_pool(web, WEB, IMAGE).unwrap();
    assert_eq!(get(store, web, WEB, 0), Ok(Hit));
    store.remove_guest(db);
    assert_eq!(get(store, web, WEB, 0), Ok(Hit));
    assert_eq!(world.report().accesses.len(), 1);
    store.remove_guest(web);
    world.tidy();
    assert_eq!(store.report().used_pages, 0);
    assert_eq!(
        (world.report().pool, world.report().accesses),
        (None, vec![])
    );
    assert!(!store.holdings().contains_key(&FIRST_SHARED));
    let web = store.guest(0);
    store.join_pool(&web, WEB, IMAGE).unwrap();
    assert_eq!(get(store, &web, WEB, 0), Ok(Miss));
}

#[test]
fn who_is_authorised_no_more_is_out_at_once() {
    let world = World::joined(Compression::None);
    let World { store, web, db, .. } = &world;
    put(store, web, WEB, 0);
    store.set_shared([pool(0, IMAGE, &[db])]);
    assert_eq!(get(store, web, WEB, 0), Err(PoolError::NoPool));
    let again = store.join_pool(web, WEB, IMAGE);
    assert_eq!(again, Err(PoolError::NotAllowed));
    assert_eq!(get(store, db, DB, 0), Ok(Hit));
    // The number of a pool says which it is, and not its UUID: this is another.
    store.set_shared([pool(1, IMAGE, &[web, db])]);
    assert_eq!(get(store, db, DB, 0), Err(PoolError::NoPool));
    world.tidy();
    assert_eq!(store.report().used_pages, 0);
    store.join_pool(db, DB, IMAGE).unwrap();
    assert_eq!(get(store, db, DB, 0), Ok(Miss));
}

#[test]
fn a_frozen_guest_puts_nothing_there_either() {
    let World { store, web, db, .. } = World::joined(Compression::None);
    put(&store, &db, DB, 0);
    store.set_frozen(web.number(), true);
    assert_eq!(put(&store, &web, WEB, 0), Frozen);
    assert_eq!(put(&store, &web, WEB, 1), Frozen);
    // As with any put that is refused, what was under the key is gone.
    assert_eq!(get(&store, &db, DB, 0), Ok(Miss));
    assert_eq!(put(&store, &db, DB, 1), Stored);
    assert_eq!(get(&store, &web, WEB, 1), Ok(Hit));
}

#[test]
fn a_limit_holds_for_the_pool_alone() {
    for compression in COMPRESSIONS {
        let World { store, web, db, .. } = World::joined(compression);
        store.create_pool(&web, 0, PoolKind::Ephemeral).unwrap();
        for index in 0..200 {
            assert_eq!(put(&store, &web, 0, index), Stored);
        }
        let limit = |max| SharedPool {
            max: Some(max),
            ..pool(0, IMAGE, &[&web, &db])
        };
        store.set_shared([limit(1 << 20)]);
        for index in 0..1000 {
            assert_eq!(put(&store, &web, WEB, index), Stored);
            assert!(store.holdings()[&FIRST_SHARED].ephemeral <= 1 << 20);
        }
        // The last ones are there, and nothing of anybody else's is gone.
        assert_eq!(get(&store, &db, DB, 999), Ok(Hit));
        assert_eq!(get(&store, &db, DB, 0), Ok(Miss));
        assert_eq!(store.pools(&web)[0].pages, 200);
        // A page that is put anew finds its own room.
        assert_eq!(put(&store, &db, DB, 999), Stored);
        store.set_shared([limit(256 << 10)]);
        let held = store.holdings()[&FIRST_SHARED].ephemeral;
        assert!((200 << 10..=256 << 10).contains(&held), "{held}");
        store.set_shared([limit(1000)]);
        assert_eq!(put(&store, &web, WEB, 0), OverQuota);
    }
}

#[test]
fn a_flood_takes_nothing_of_what_others_may_have() {
    let World {
        store, web, third, ..
    } = World::joined(Compression::None);
    let share = |ephemeral| Part {
        ephemeral: Some(ephemeral),
        ..Part::default()
    };
    let parts = [(0, 4 << 20), (1, 0), (2, 4 << 20), (FIRST_SHARED, 2 << 20)];
    let parts = parts.map(|(number, bytes)| (number, share(bytes)));
    store.set_parts(BTreeMap::from(parts));
    store.create_pool(&third, 0, PoolKind::Ephemeral).unwrap();
    for index in 0..900 {
        assert_eq!(put(&store, &third, 0, index), Stored);
    }
    for index in 0..8000 {
        assert_eq!(put(&store, &web, WEB, index), Stored);
    }
    assert!(store.report().evictions > 3000);
    let there = (0..900).filter(|index| get(&store, &third, 0, *index) == Ok(Hit));
    assert_eq!(there.count(), 900);
}

/// Takes what is asked for, and compares it with nothing.
struct Any;

impl PageSink for Any {
    fn write_page(&mut self, _: usize, page: &PageBytes) -> bool {
        *page == contents(random_page(5))
    }
}

#[test]
fn the_next_process_knows_who_has_access() {
    for compression in COMPRESSIONS {
        let config = config(CAPACITY, compression);
        let memory = Memory::create(&config, None).unwrap();
        let next = memory.try_clone().unwrap();
        let (store, _) = Store::recover(&config, memory).unwrap();
        let world = World::with(store);
        let World {
            store,
            web,
            db,
            third,
        } = &world;
        store.set_shared([pool(0, IMAGE, &[web, db]), pool(1, OTHER, &[web, third])]);
        store.join_pool(web, WEB, IMAGE).unwrap();
        store.join_pool(db, DB, IMAGE).unwrap();
        store.join_pool(web, 0, OTHER).unwrap();
        store.join_pool(third, 0, OTHER).unwrap();
        store.create_pool(web, 1, PoolKind::Persistent).unwrap();
        for index in 0..50 {
            put(store, web, WEB, index);
        }
        put(store, web, 0, 5);
        store.destroy_pool(web, 0).unwrap();
        drop(world);
        let last = next.try_clone().unwrap();
        let (store, recovered) = Store::recover(&config, next).unwrap();
        assert_eq!((recovered.lost, recovered.pages), (0, 51));
        let guests = recovered.guests.iter().map(|it| it.guest);
        assert_eq!(guests.collect::<BTreeSet<_>>(), BTreeSet::from([0, 1, 2]));
        let [web, db, third] = [0, 1, 2].map(|number| store.guest(number));
        store.set_shared([
            pool(0, IMAGE, &[&web, &db]),
            pool(1, OTHER, &[&web, &third]),
        ]);
        for index in 0..50 {
            assert_eq!(get(&store, &db, DB, index), Ok(Hit));
        }
        assert_eq!(get(&store, &web, 0, 5), Err(PoolError::NoPool));
        assert_eq!(get(&store, &third, 0, 5), Ok(Hit));
        assert_eq!(store.shared_pools()[0].accesses.len(), 2);
        // Both go on with it.
        assert_eq!(put(&store, &db, DB, 77), Stored);
        assert_eq!(get(&store, &web, WEB, 77), Ok(Hit));
        // Its place is not taken for another's.
        for number in 10..20 {
            let kind = PoolKind::Ephemeral;
            store.create_pool(&web, number, kind).unwrap();
            assert_eq!(get(&store, &web, number, 5), Ok(Miss));
        }
        // One of them is authorised no more when the one after that begins.
        store.remove_guest(&third);
        drop(store);
        let (store, _) = Store::recover(&config, last).unwrap();
        let [web, db] = [0, 1].map(|number| store.guest(number));
        store.set_shared([pool(0, IMAGE, &[&db])]);
        assert_eq!(get(&store, &web, WEB, 77), Err(PoolError::NoPool));
        let mut result = [Absent];
        let got = store.get(&db, DB, false, &[key(1, 5, 1)], &mut Any, &mut result);
        drop(got.unwrap());
        assert_eq!(result, [Hit]);
        assert_eq!(store.shared_pools()[0].accesses.len(), 1);
    }
}

#[test]
fn guests_that_work_at_once_never_get_another_page() {
    for compression in COMPRESSIONS {
        let store = Store::new(&config(1 << 20, compression)).unwrap();
        let guests = [0, 1, 2].map(|number| store.guest(number));
        let small = |guests: &[&Guest]| SharedPool {
            max: Some(256 << 10),
            ..pool(0, IMAGE, guests)
        };
        let [one, two, three] = &guests;
        let all = [one, two, three];
        store.set_shared([small(&all)]);
        let hits = AtomicU64::new(0);
        thread::scope(|scope| {
            for guest in &guests {
                let (store, hits) = (&store, &hits);
                scope.spawn(move || {
                    let mut dice = 0x9e37_79b9_7f4a_7c15 + u64::from(guest.number());
                    for _ in 0..3000 {
                        dice ^= dice << 13;
                        dice ^= dice >> 7;
                        dice ^= dice << 17;
                        let index = (dice >> 20) % 61;
                        let (keys, mut page) = ([key(1, index, 1)], Stamped(random_page(index)));
                        let mut result = [Absent];
                        let done = match dice % 4 {
                            0 => store.put(guest, WEB, &keys, &mut page, &mut result),
                            1 => store.flush_pages(guest, WEB, &keys, &mut result),
                            // What it finds is what was put under the key, or it panics.
                            _ => store
                                .get(guest, WEB, false, &keys, &mut page, &mut result)
                                .map(drop),
                        };
                        if done == Err(PoolError::NoPool) {
                            // It was taken off, and comes back when it may.
                            let _ = store.join_pool(guest, WEB, IMAGE);
                        }
                        hits.fetch_add(u64::from(result == [Hit]), Ordering::Relaxed);
                    }
                });
            }
            for n in 0..300 {
                let left = all.iter().enumerate().filter(|(at, _)| n % 7 != *at);
                let left: Vec<_> = left.map(|(_, guest)| *guest).collect();
                store.set_shared([small(&left)]);
                let _ = store.tidy_step(100);
                thread::yield_now();
            }
        });
        let hits = hits.into_inner();
        assert!(hits > 100, "{hits}");
        store.set_shared([]);
        while store.tidy_step(1000) == Progress::More {}
        assert_eq!(store.report().used_pages, 0);
    }
}
