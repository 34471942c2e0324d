// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a reset of the device leaves, and what the end of a connection does.

use virtio_tmem_abi::{
    cap,
    pool_flags::{PERSISTENT, RELEASED_BY_RESET},
    Opcode, Status,
};

use crate::session::{demand, equal, key, untestable, Outcome, Session, Target};

const PAGES: u64 = 8;

/// A pool with pages.
fn filled(target: &Target, flags: u32) -> Outcome<Session> {
    let mut session = target.connect()?;
    if flags & RELEASED_BY_RESET != 0 {
        session.need(cap::KEEP, "KEEP")?;
    }
    session.pool(0, flags)?;
    for n in 0..PAGES {
        session.store(0, key(n, 1), n as u8)?;
    }
    Ok(session)
}

fn all_there(session: &mut Session) -> Outcome {
    (0..PAGES).try_for_each(|n| session.hit(0, key(n, 1), n as u8))
}

pub(crate) fn reset_keeps_pools(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    session.pool(0, 0)?;
    session.reset()?;
    demand(session.has_pool(0)?, "the pool is gone")
}

pub(crate) fn reset_keeps_pages(target: &Target) -> Outcome {
    let mut session = filled(target, PERSISTENT)?;
    session.reset()?;
    all_there(&mut session)
}

pub(crate) fn pools_end_with_connection(target: &Target) -> Outcome {
    let session = filled(target, PERSISTENT)?;
    let epoch = session.device.epoch();
    drop(session);
    let mut session = target.connect()?;
    if session.device.epoch() == epoch {
        return untestable("the device resumes the connection");
    }
    demand(!session.has_pool(0)?, "the next connection has the pool")
}

/// A pool that a reset may have released. Where it has, it was freed at once.
fn released(target: &Target) -> Outcome<(Session, bool)> {
    let mut session = filled(target, PERSISTENT | RELEASED_BY_RESET)?;
    session.reset()?;
    let there = session.has_pool(0)?;
    Ok((session, there))
}

pub(crate) fn freed_pool_is_empty(target: &Target) -> Outcome {
    let (mut session, there) = released(target)?;
    if there {
        return untestable("the device did not free the pool");
    }
    let answer = session.get(0, 0, &[key(0, 1)])?;
    equal("get", answer.status(), Some(Status::NoPool))?;
    session.persistent()?;
    (0..PAGES).try_for_each(|n| session.miss("get of the new pool", 0, key(n, 1)))
}

pub(crate) fn no_part_is_freed(target: &Target) -> Outcome {
    let (mut session, there) = released(target)?;
    if !there {
        return Ok(());
    }
    let kept = session.control(Opcode::PoolKeep, 0)?;
    match kept.status() {
        Some(Status::NoPool) => Ok(()),
        _ => all_there(&mut session),
    }
}

pub(crate) fn kept_pool_stays(target: &Target) -> Outcome {
    let mut session = filled(target, PERSISTENT | RELEASED_BY_RESET)?;
    let kept = session.control(Opcode::PoolKeep, 0)?;
    equal("PoolKeep", kept.status(), Some(Status::Ok))?;
    for _ in 0..3 {
        session.reset()?;
    }
    all_there(&mut session)
}

pub(crate) fn keep_is_answered(target: &Target) -> Outcome {
    let mut session = filled(target, PERSISTENT)?;
    let wanted = if session.has(cap::KEEP) {
        Status::Ok
    } else {
        Status::Unsupported
    };
    let kept = session.control(Opcode::PoolKeep, 0)?;
    equal("PoolKeep", kept.status(), Some(wanted))?;
    drop(session);
    if wanted == Status::Ok {
        kept_pool_stays(target)?;
    }
    Ok(())
}
