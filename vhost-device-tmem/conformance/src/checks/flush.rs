// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Flushes.

use virtio_tmem_abi::{Key, Opcode, PageResult, Range};

use crate::session::{equal, key, object, Outcome, Target};

pub(crate) fn flushed_is_gone(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    session.persistent()?;
    let elsewhere = Key {
        object: object(2),
        ..key(3, 1)
    };
    for n in 0..8 {
        session.store(0, key(n, 1), n as u8)?;
    }
    session.store(0, elsewhere, 0x77)?;
    let flushed = session.flush(Opcode::FlushPage, 0, &[key(0, 1), key(1, 2), key(9, 1)])?;
    let wanted = vec![PageResult::Flushed, PageResult::Absent, PageResult::Absent];
    equal("FlushPage", flushed, wanted)?;
    session.miss("get after FlushPage", 0, key(0, 1))?;
    session.hit(0, key(1, 1), 1)?;
    let ranges = [(2, 4), (2, 4), (100, u64::MAX)].map(|(first, last)| Range {
        object: object(1),
        first: u64::into(first),
        last: u64::into(last),
    });
    let flushed = session.flush(Opcode::FlushRange, 0, &ranges)?;
    let wanted = vec![PageResult::Flushed, PageResult::Absent, PageResult::Absent];
    equal("FlushRange", flushed, wanted)?;
    for n in 2..=4 {
        session.miss("get after FlushRange", 0, key(n, 1))?;
    }
    session.hit(0, key(1, 1), 1)?;
    session.hit(0, key(5, 1), 5)?;
    let flushed = session.flush(Opcode::FlushObject, 0, &[object(1), object(1)])?;
    let wanted = vec![PageResult::Flushed, PageResult::Absent];
    equal("FlushObject", flushed, wanted)?;
    for n in 0..8 {
        session.miss("get after FlushObject", 0, key(n, 1))?;
    }
    session.hit(0, elsewhere, 0x77)
}
