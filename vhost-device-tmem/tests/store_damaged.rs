// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that a store takes over as it was left, with damage, or not at all.

mod pages;
mod places;

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use pages::{config, COMPRESSIONS};
use places::{create, get, key, Place, Stamps, CAPACITY, PERSISTENT, POOLS};
use proptest::prelude::*;
use vhost_device_tmem::store::{
    Compression, Config, Guest, HugePages, Memory, Recovered, Store, StoreError, PAGE_SIZE,
};
use virtio_tmem_abi::PageResult;

/// Puts a page in a version, and it is stored.
fn put_page(store: &Store, guest: &Guest, place: Place, version: u64) {
    let mut result = [PageResult::Absent];
    let keys = [key(place, version)];
    let versions = [version];
    let mut source = Stamps(&versions);
    store
        .put(guest, place.0, &keys, &mut source, &mut result)
        .unwrap();
    assert_eq!(result, [PageResult::Stored]);
}

/// Puts a page of each kind of contents, more than once, and returns what there is.
fn filled(config: &Config) -> (Memory, Vec<(Place, u64)>) {
    let memory = Memory::create(config, None).unwrap();
    let (store, _) = Store::recover(config, memory.try_clone().unwrap()).unwrap();
    let guest = store.guest(3);
    let mut put = Vec::new();
    for (pool, _) in POOLS {
        create(&store, &guest, pool);
        for n in 0..48 {
            let place = (pool, n % 5, n);
            put.push((place, 1000 * u64::from(pool) + n));
        }
    }
    for (place, version) in &put {
        put_page(&store, &guest, *place, *version);
    }
    (memory, put)
}

#[test]
fn what_is_recovered_is_said() {
    for compression in COMPRESSIONS {
        let config = config(CAPACITY, compression);
        let (memory, put) = filled(&config);
        for _ in 0..2 {
            let (store, recovered) = Store::recover(&config, memory.try_clone().unwrap()).unwrap();
            let [guest] = recovered.guests[..] else {
                panic!("{recovered:?}");
            };
            let all = put.len() as u64;
            assert_eq!((guest.guest, guest.pools, guest.pages), (3, 2, all));
            assert_eq!(
                (recovered.pages, recovered.damaged, recovered.lost),
                (all, 0, 0)
            );
            let report = store.report();
            assert_eq!((report.used_pages, report.objects), (all, 10));
            assert_eq!(report.ephemeral_pages, all / 2);
            assert!(store.credits().persistent > 0);
        }
    }
}

#[test]
fn memory_that_is_not_the_stores_is_refused() {
    let config = config(CAPACITY, Compression::Lz4);
    let refused = |memory: Memory, config: &Config, why: &str| {
        let error = Store::recover(config, memory).expect_err(why);
        assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    };
    let memory = || Memory::create(&config, None).unwrap();
    let other = |capacity, compression| Config {
        compression,
        ..Config::new(capacity)
    };
    refused(memory(), &other(CAPACITY * 2, Compression::Lz4), "capacity");
    refused(
        memory(),
        &other(CAPACITY, Compression::Zstd),
        "--compression",
    );
    let take = |memory: Memory| {
        memory
            .descriptors()
            .map(|fd| fd.try_clone_to_owned().unwrap())
    };
    let ([index, _], [_, pages]) = (take(memory()), take(memory()));
    refused(
        Memory::from_descriptors([index, pages]),
        &config,
        "another index",
    );
    let [index, pages] = take(memory());
    refused(
        Memory::from_descriptors([pages, index]),
        &config,
        "not made by",
    );
    let file = || OwnedFd::from(tempfile::tempfile().unwrap());
    refused(
        Memory::from_descriptors([file(), file()]),
        &config,
        "cannot be read",
    );
    // Another format, and a header of which a bit is wrong.
    for (at, byte, why) in [(8, 9, "format 9"), (40, 1, "damaged")] {
        let memory = memory();
        let index = memory.descriptors()[0].try_clone_to_owned().unwrap();
        File::from(index).write_all_at(&[byte], at).unwrap();
        refused(memory, &config, why);
    }
    // A file that could become shorter.
    let copy = tempfile::tempfile().unwrap();
    let [index, pages] = take(memory());
    let mut from = File::from(index);
    std::io::copy(&mut from, &mut &copy).unwrap();
    refused(
        Memory::from_descriptors([copy.into(), pages]),
        &config,
        "sealed",
    );
}

#[test]
fn a_store_for_which_there_is_no_address_space_says_so() {
    let error = Store::new(&Config::new(1 << 62)).expect_err("there is no such machine");
    assert!(matches!(error, StoreError::Map(..)), "{error}");
    let error = Store::new(&Config::new(1 << 19)).expect_err("that is no capacity");
    assert!(matches!(error, StoreError::TooSmall(_)), "{error}");
}

#[test]
fn a_store_that_cannot_be_locked_says_so() {
    // SAFETY: The limit is that of this process, in which no other test locks memory.
    let limit = unsafe {
        let limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit)
    };
    assert_eq!(limit, 0);
    let locked = Store::new(&Config {
        lock_memory: true,
        huge_pages: HugePages::Off,
        ..Config::new(CAPACITY)
    });
    // Who is privileged may lock all the same.
    match locked {
        Ok(store) => assert_eq!(store.report().used_pages, 0),
        Err(error) => assert!(error.to_string().contains("RLIMIT_MEMLOCK"), "{error}"),
    }
}

/// Takes damaged memory over, and sees that no page has contents other than its own.
fn damaged(config: &Config, memory: Memory, put: &[(Place, u64)]) -> Recovered {
    let (store, recovered) = Store::recover(config, memory).unwrap();
    let guest = store.guest(3);
    let (mut missing, mut damaged) = (0, 0);
    for (place, version) in put {
        if store.pool_kind(&guest, place.0).is_err() {
            missing += 1;
            continue;
        }
        match get(&store, &guest, *place, *version) {
            PageResult::Hit => {}
            PageResult::Damaged => {
                assert_eq!(place.0, PERSISTENT);
                assert_eq!(get(&store, &guest, *place, *version), PageResult::Damaged);
                damaged += 1;
                // Until it is flushed, or put anew.
                let keys = [key(*place, *version)];
                let mut result = [PageResult::Absent];
                store
                    .flush_pages(&guest, place.0, &keys, &mut result)
                    .unwrap();
                assert_eq!(result, [PageResult::Flushed]);
                assert_eq!(get(&store, &guest, *place, *version), PageResult::Miss);
            }
            PageResult::Miss => missing += 1,
            other => panic!("{other:?}"),
        }
    }
    // Pages of which nothing is known any more are known to be some. (One whose contents do not
    // come to its check is found out by who asks for it.)
    assert!(
        missing == 0 || recovered.lost > 0,
        "{missing} {recovered:?}"
    );
    assert!(
        damaged >= recovered.damaged || missing > 0,
        "{damaged} {recovered:?}"
    );
    recovered
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_damaged_description_is_never_another_page(
        compression in 0..3usize,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8u32), 1..4),
    ) {
        let config = config(CAPACITY, COMPRESSIONS[compression]);
        let (memory, put) = filled(&config);
        let index = File::from(memory.descriptors()[0].try_clone_to_owned().unwrap());
        let len = index.metadata().unwrap().len() as usize;
        // Bits of what was written, but for the header.
        let mut bytes = vec![0; len];
        index.read_exact_at(&mut bytes, 0).unwrap();
        let written: Vec<_> = (PAGE_SIZE..len).filter(|at| bytes[*at] != 0).collect();
        for (at, bit) in flips {
            let at = *at.get(&written);
            index.write_all_at(&[bytes[at] ^ (1 << bit)], at as u64).unwrap();
        }
        damaged(&config, memory, &put);
    }
}

#[test]
fn contents_that_are_damaged_are_never_returned() {
    for compression in COMPRESSIONS {
        let config = Config {
            check_contents: true,
            ..config(CAPACITY, compression)
        };
        let (memory, put) = filled(&config);
        let pages = File::from(memory.descriptors()[1].try_clone_to_owned().unwrap());
        // A bit of each slot of pages as they are, and of some of the others.
        let mut bytes = vec![0; CAPACITY as usize / 2];
        pages.read_exact_at(&mut bytes, 0).unwrap();
        for at in (100..bytes.len()).step_by(512) {
            bytes[at] ^= 4;
        }
        pages.write_all_at(&bytes, 0).unwrap();
        let (store, recovered) = Store::recover(&config, memory).unwrap();
        // That is found out by who reads them.
        assert_eq!((recovered.damaged, recovered.lost), (0, 0));
        let guest = store.guest(3);
        let mut damaged = 0;
        for (place, version) in put.iter().filter(|(place, _)| place.0 == PERSISTENT) {
            let once = get(&store, &guest, *place, *version);
            assert_eq!(get(&store, &guest, *place, *version), once);
            match once {
                PageResult::Hit => assert_ne!(compression, Compression::None),
                PageResult::Damaged => damaged += 1,
                other => panic!("{other:?}"),
            }
            // What is put over it is a page as any other.
            let mut result = [PageResult::Absent];
            let keys = [key(*place, 5)];
            store
                .put(&guest, place.0, &keys, &mut Stamps(&[5]), &mut result)
                .unwrap();
            assert_eq!(get(&store, &guest, *place, 5), PageResult::Hit);
        }
        assert!(damaged > 10, "{damaged}");
    }
}

/// A process that wants checks takes over pages that have none, and the other way round.
#[test]
fn contents_with_and_without_checks_are_read_by_either() {
    for compression in COMPRESSIONS {
        let [with, without] = [true, false].map(|check_contents| Config {
            check_contents,
            ..config(CAPACITY, compression)
        });
        for (one, other) in [(&with, &without), (&without, &with)] {
            let (memory, put) = filled(one);
            for config in [other, one, other] {
                let (store, _) = Store::recover(config, memory.try_clone().unwrap()).unwrap();
                let guest = store.guest(3);
                for (place, version) in &put {
                    assert_eq!(get(&store, &guest, *place, *version), PageResult::Hit);
                    // Both pools' entries are used by turns.
                    let (keys, mut result) = ([key(*place, *version)], [PageResult::Absent]);
                    store
                        .flush_pages(&guest, place.0, &keys, &mut result)
                        .unwrap();
                }
                for (place, version) in put.iter().rev() {
                    put_page(&store, &guest, *place, *version);
                }
            }
        }
    }
}
