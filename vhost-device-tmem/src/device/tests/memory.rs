// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that a front-end hands over.

use std::{
    fs::{File, OpenOptions},
    os::fd::OwnedFd,
};

use crate::device::memory::{GuestMap, MemoryError, MemoryRegion, MAX_REGIONS};

const LEN: u64 = 1 << 20;

fn file(len: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    file
}

fn region(guest_addr: u64, size: u64, offset: u64) -> MemoryRegion {
    MemoryRegion {
        guest_addr,
        size,
        user_addr: guest_addr.wrapping_add(1 << 40),
        offset,
    }
}

fn map(regions: &[MemoryRegion], files: Vec<File>) -> Result<GuestMap, MemoryError> {
    let fds = files.into_iter().map(OwnedFd::from).collect();
    GuestMap::new(regions.to_vec(), fds)
}

#[test]
fn addresses_of_the_front_end_lead_into_one_region() {
    let regions = [region(8 * LEN, LEN, LEN), region(0, LEN, 0)];
    let map = map(&regions, vec![file(2 * LEN), file(LEN)]).unwrap();
    let user = |guest: u64| guest + (1 << 40);
    assert_eq!(map.translate(user(16), 8).unwrap().0, 16);
    assert_eq!(map.translate(user(9 * LEN - 8), 8).unwrap().0, 9 * LEN - 8);
    for (at, len) in [(LEN - 8, 9), (LEN, 1), (8 * LEN - 1, 2), (0, u64::MAX)] {
        assert_eq!(map.translate(user(at), len), None);
    }
    assert_eq!(map.translate(0, 1), None);
    assert_eq!(map.failure(), None);
}

#[test]
fn memory_past_the_end_of_its_file_is_refused() {
    for (size, offset, len) in [(2 * LEN, 0, LEN), (LEN, 4096, LEN), (LEN, 0, 0)] {
        let error = map(&[region(0, size, offset)], vec![file(len)]).unwrap_err();
        let MemoryError::PastEnd { end, len: has, .. } = error else {
            panic!("{error}");
        };
        assert_eq!((end, has), (size + offset, len));
    }
}

#[test]
fn bounds_that_are_none_are_refused() {
    let bad = [
        region(0, 0, 0),
        region(u64::MAX - LEN, LEN + 1, 0),
        region(0, LEN, u64::MAX - LEN + 1),
        region(0, LEN, i64::MAX as u64),
        MemoryRegion {
            user_addr: u64::MAX,
            ..region(0, LEN, 0)
        },
    ];
    for region in bad {
        let refused = map(&[region], vec![file(LEN)]);
        assert!(refused.is_err(), "{region:?}");
    }
}

#[test]
fn descriptors_that_are_no_memory_are_refused() {
    let one = [region(0, LEN, 0)];
    let (reader, _writer) = nix::unistd::pipe().unwrap();
    let pipe = File::from(reader);
    let error = map(&one, vec![pipe]).unwrap_err();
    assert!(matches!(error, MemoryError::NotAFile(0)), "{error}");
    let device = OpenOptions::new().read(true).write(true).open("/dev/zero");
    let error = map(&one, vec![device.unwrap()]).unwrap_err();
    assert!(matches!(error, MemoryError::NotAFile(0)), "{error}");
    let place = tempfile::NamedTempFile::new().unwrap();
    place.as_file().set_len(LEN).unwrap();
    for (read, write) in [(true, false), (false, true)] {
        let file = OpenOptions::new()
            .read(read)
            .write(write)
            .open(place.path());
        let error = map(&one, vec![file.unwrap()]).unwrap_err();
        assert!(matches!(error, MemoryError::Map { .. }), "{error}");
    }
    let error = map(&one, Vec::new()).unwrap_err();
    assert!(error.to_string().contains("share=on"), "{error}");
}

#[test]
fn regions_are_few_and_apart() {
    let two = [region(0, LEN, 0), region(LEN - 4096, LEN, 0)];
    let error = map(&two, vec![file(LEN), file(LEN)]).unwrap_err();
    assert!(matches!(error, MemoryError::Overlap), "{error}");
    let many = |count| {
        let regions: Vec<_> = (0..count).map(|n| region(n * LEN, LEN, 0)).collect();
        let files = (0..count).map(|_| file(LEN)).collect();
        map(&regions, files)
    };
    many(MAX_REGIONS as u64).unwrap();
    let error = many(MAX_REGIONS as u64 + 1).unwrap_err();
    assert!(matches!(error, MemoryError::TooMany(_)), "{error}");
}
