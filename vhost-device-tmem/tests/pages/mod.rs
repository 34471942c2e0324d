// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pages to put into a store, and to recognise when they come out.

use vhost_device_tmem::store::{PageBytes, PageSink, PageSource};
use virtio_tmem_abi::{Key, ObjectId};

pub(crate) fn key(object: u64, index: u64, version: u64) -> Key {
    Key {
        object: ObjectId([object.into(), 0.into(), 0.into()]),
        index: index.into(),
        version: version.into(),
    }
}

/// Pages that say which they are, in every eight bytes: this number, the next, and so on.
pub(crate) struct Stamped(pub(crate) u64);

impl PageSource for Stamped {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        for word in frame.chunks_exact_mut(8) {
            word.copy_from_slice(&(self.0 + n as u64).to_le_bytes());
        }
        true
    }
}

impl PageSink for Stamped {
    fn write_page(&mut self, n: usize, page: &PageBytes) -> bool {
        let stamp = (self.0 + n as u64).to_le_bytes();
        assert!(
            page.chunks_exact(8).all(|word| word == stamp),
            "a foreign page"
        );
        true
    }
}
