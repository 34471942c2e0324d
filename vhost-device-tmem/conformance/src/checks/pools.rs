// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pools.

use virtio_tmem_abi::{cap, pool_flags, Malformed, Opcode, PoolCreate, PoolStats, Status};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::session::{demand, equal, key, untestable, Outcome, Session, Target, CONTROL, HEADER};

type Wanted = (Status, Option<Malformed>);

fn created(session: &mut Session, what: &str, create: &PoolCreate, wanted: Wanted) -> Outcome {
    let header = session.header(Opcode::PoolCreate, 0, 1);
    let bytes = [header.as_bytes(), create.as_bytes()].concat();
    let answer = session.send(CONTROL, &bytes, HEADER)?;
    let found = (answer.status(), answer.detail());
    equal(what, found, (Some(wanted.0), wanted.1))
}

/// Each breach with all that come after it, as with requests as a whole.
pub(crate) fn pool_checks_in_order(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    let page_shift = session.config().page_shift;
    session.persistent()?;
    session.store(0, key(0, 1), 1)?;
    // Of another kind than the one that is there.
    let mut create = PoolCreate {
        page_shift,
        ..PoolCreate::new_zeroed()
    };
    let exists = (Status::PoolExists, None);
    created(&mut session, "check 5: another kind", &create, exists)?;
    create.page_shift = page_shift + 1;
    let shift = (Status::Malformed, Some(Malformed::PageShift));
    created(&mut session, "check 4: page_shift", &create, shift)?;
    create.uuid[15] = 1;
    let reserved = (Status::Malformed, Some(Malformed::Reserved));
    created(&mut session, "check 3: uuid", &create, reserved)?;
    let flags = (Status::Malformed, Some(Malformed::Flags));
    let mut wrong = vec![
        1 << 31,
        pool_flags::SHARED | pool_flags::PERSISTENT,
        pool_flags::SHARED | pool_flags::RELEASED_BY_RESET,
    ];
    if !session.has(cap::KEEP) {
        wrong.push(pool_flags::RELEASED_BY_RESET);
    }
    for wrong in wrong {
        create.flags = wrong.into();
        let what = format!("check 2: flags {wrong:#x}");
        created(&mut session, &what, &create, flags)?;
    }
    create.reserved[10] = 1;
    created(&mut session, "check 1: reserved", &create, reserved)?;
    // The same once more changes nothing.
    let again = session.create(0, pool_flags::PERSISTENT, [0; 16])?;
    equal("check 5: the same", again.status(), Some(Status::Ok))?;
    session.hit(0, key(0, 1), 1)
}

/// A UUID that nobody has authorised by chance.
fn unknown(rng: &mut fastrand::Rng) -> [u8; 16] {
    let mut uuid = [0; 16];
    rng.fill(&mut uuid);
    uuid
}

pub(crate) fn shared_pool_is_authorised(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    let mut rng = fastrand::Rng::new();
    for _ in 0..10 {
        let answer = session.create(0, pool_flags::SHARED, unknown(&mut rng))?;
        let what = "a shared pool of any UUID";
        equal(what, answer.status(), Some(Status::NotAllowed))?;
    }
    Ok(())
}

pub(crate) fn uuid_zero_is_not_authorised(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    let answer = session.create(0, pool_flags::SHARED, [0; 16])?;
    let why = "a shared pool of the UUID zero is there";
    demand(answer.status() != Some(Status::Ok), why)
}

pub(crate) fn destroyed_is_gone(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    session.persistent()?;
    for n in 0..100 {
        session.store(0, key(n, 1), 1)?;
    }
    let destroyed = session.control(Opcode::PoolDestroy, 0)?;
    equal("PoolDestroy", destroyed.status(), Some(Status::Ok))?;
    let answer = session.get(0, 0, &[key(0, 1)])?;
    equal("get", answer.status(), Some(Status::NoPool))?;
    session.persistent()?;
    (0..100).try_for_each(|n| session.miss("get of the next pool", 0, key(n, 1)))
}

pub(crate) fn reserved_stats(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    session.pool(0, 0)?;
    let answer = session.control(Opcode::PoolStats, 0)?;
    equal("PoolStats", answer.status(), Some(Status::Ok))?;
    match PoolStats::read_from_bytes(&answer.rest) {
        Ok(stats) => demand(
            stats.reserved.iter().all(|word| word.get() == 0),
            "reserved is not zero",
        ),
        Err(_) => untestable("it has another length"),
    }
}
