// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two drivers.

use virtio_tmem_abi::{Opcode, Status};

use crate::session::{equal, key, Outcome, Target};

pub(crate) fn numbers_are_apart(target: &Target) -> Outcome {
    let mut other = target.connect_other()?;
    let mut session = target.connect()?;
    for session in [&mut session, &mut other] {
        session.persistent()?;
    }
    session.store(0, key(0, 1), 0x11)?;
    other.store(0, key(0, 1), 0x22)?;
    other.store(0, key(1, 1), 0x33)?;
    session.hit(0, key(0, 1), 0x11)?;
    session.miss("get of another driver's page", 0, key(1, 1))?;
    let destroyed = session.control(Opcode::PoolDestroy, 0)?;
    equal("PoolDestroy", destroyed.status(), Some(Status::Ok))?;
    other.hit(0, key(0, 1), 0x22)
}

pub(crate) fn nobody_elses_pool(target: &Target) -> Outcome {
    let mut other = target.connect_other()?;
    let mut session = target.connect()?;
    other.persistent()?;
    other.store(0, key(0, 1), 0x22)?;
    for opcode in [Opcode::PoolStats, Opcode::FlushPool, Opcode::PoolDestroy] {
        let answer = session.control(opcode, 0)?;
        let what = format!("{opcode:?} of another driver's pool");
        equal(&what, answer.status(), Some(Status::NoPool))?;
    }
    other.hit(0, key(0, 1), 0x22)
}
