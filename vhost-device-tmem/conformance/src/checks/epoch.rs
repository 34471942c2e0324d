// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Epochs.

use std::collections::BTreeSet;

use virtio_tmem_abi::{Opcode, PageResult, Status, EPOCH_NONE};
use zerocopy::IntoBytes;

use crate::session::{demand, equal, key, untestable, Outcome, Target, CONTROL, DATA, HEADER};

pub(crate) fn connection_has_new_epoch(target: &Target) -> Outcome {
    let mut first = target.connect()?;
    let before = first.device.epoch();
    first.persistent()?;
    first.store(0, key(0, 1), 1)?;
    drop(first);
    let mut second = target.connect()?;
    let epoch = second.device.epoch();
    demand(epoch != EPOCH_NONE, "the epoch is EPOCH_NONE")?;
    if epoch != before {
        return Ok(());
    }
    // It may, where it takes this for the same driver, which has lost nothing then.
    let why = "the epoch is that of an earlier connection, whose page is lost";
    let there = second.has_pool(0)? && second.get_one(0, key(0, 1))?.0 == PageResult::Hit;
    demand(there, why)
}

pub(crate) fn epochs_differ(target: &Target) -> Outcome {
    const CONNECTIONS: usize = 8;
    let mut seen = BTreeSet::new();
    for _ in 0..CONNECTIONS {
        seen.insert(target.connect()?.device.epoch());
    }
    if seen.len() == 1 {
        return untestable("the device resumes connections");
    }
    let why = format!("{} epochs in {CONNECTIONS} connections", seen.len());
    demand(seen.len() == CONNECTIONS, why)
}

pub(crate) fn stale_epoch(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    session.persistent()?;
    session.store(0, key(0, 1), 1)?;
    let epoch = session.device.epoch() ^ 1;
    let mut header = session.header(Opcode::FlushPage, 0, 1);
    header.epoch = epoch.into();
    let bytes = [header.as_bytes(), key(0, 1).as_bytes()].concat();
    let answer = session.send(DATA, &bytes, HEADER + 1)?;
    equal("flush", answer.status(), Some(Status::StaleEpoch))?;
    let mut header = session.header(Opcode::PoolDestroy, 0, 0);
    header.epoch = epoch.into();
    let answer = session.send(CONTROL, header.as_bytes(), HEADER)?;
    equal("PoolDestroy", answer.status(), Some(Status::StaleEpoch))?;
    session.hit(0, key(0, 1), 1)
}

pub(crate) fn no_page_of_another_epoch(target: &Target) -> Outcome {
    let mut first = target.connect()?;
    first.persistent()?;
    first.store(0, key(0, 1), 1)?;
    let before = first.device.epoch();
    drop(first);
    let mut second = target.connect()?;
    if second.device.epoch() == before {
        return untestable("the device resumes the connection");
    }
    second.persistent()?;
    second.miss("get of a page of another epoch", 0, key(0, 1))
}
