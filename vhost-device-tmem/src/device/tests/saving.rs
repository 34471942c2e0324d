// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saving a guest some of whose pages cannot be read back.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use virtio_tmem_abi::{Key, ObjectId, PageResult};

use super::{Limits, LogLimit, Session, EPOCH};
use crate::{
    device::Saving,
    saved::{Reader, Record},
    store::{Config, Memory, PageBytes, PageSource, PoolKind, Store, PAGE_SIZE},
};

const CAPACITY: u64 = 1 << 20;
const GUEST: u32 = 3;
const COUNT: u64 = 48;

/// Pages that do not repeat a word.
struct Numbered(u64);

impl PageSource for Numbered {
    fn read_page(&mut self, _: usize, frame: &mut PageBytes) -> bool {
        for (at, bytes) in (self.0..).zip(frame.chunks_exact_mut(size_of::<u64>())) {
            bytes.copy_from_slice(&at.to_le_bytes());
        }
        true
    }
}

/// Puts pages, and changes a bit of every other one of them where they are stored.
fn damaged(config: &Config) -> Store {
    let memory = Memory::create(config, None).unwrap();
    let (store, _) = Store::recover(config, memory.try_clone().unwrap()).unwrap();
    let guest = store.guest(GUEST);
    store.create_pool(&guest, 0, PoolKind::Persistent).unwrap();
    for index in 0..COUNT {
        let key = Key {
            object: ObjectId([0.into(); 3]),
            index: index.into(),
            version: 1.into(),
        };
        let mut result = [PageResult::Absent];
        store
            .put(&guest, 0, &[key], &mut Numbered(index), &mut result)
            .unwrap();
        assert_eq!(result, [PageResult::Stored]);
    }
    drop(store);
    let pages = File::from(memory.descriptors()[1].try_clone_to_owned().unwrap());
    let mut bytes = vec![0; CAPACITY as usize / 2];
    pages.read_exact_at(&mut bytes, 0).unwrap();
    for at in (100..bytes.len()).step_by(2 * PAGE_SIZE) {
        bytes[at] ^= 4;
    }
    pages.write_all_at(&bytes, 0).unwrap();
    Store::recover(config, memory).unwrap().0
}

#[test]
fn pages_that_cannot_be_read_back_are_not_left_out_in_silence() {
    let config = Config {
        check_contents: true,
        ..Config::new(CAPACITY)
    };
    let (store, log) = (Arc::new(damaged(&config)), Arc::<LogLimit>::default());
    let session = Session::new(GUEST, "test", store, Limits::new(2), EPOCH, log, None);
    let mut stream = Vec::new();
    let saving = Saving::begin(&session, false, || Ok(&mut stream)).unwrap();
    let totals = saving.finish().unwrap();
    assert!(totals.pages > 0 && totals.damaged > 0, "{totals:?}");
    assert_eq!(totals.pages + totals.damaged, COUNT);
    // Whoever reads it hears of that.
    let mut reader = Reader::new(&*stream).unwrap();
    let told = loop {
        if let Record::End(told) = reader.read_record().unwrap() {
            break told;
        }
    };
    assert_eq!(told, totals);
}
