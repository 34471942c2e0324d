// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Puts and gets.

use virtio_tmem_abi::{pool_flags, request_flags::TAKE, Key, Opcode, PageResult};

use super::reach::take_out_of_reach;
use crate::session::{
    demand, equal, fail, key, untestable, Outcome, Session, Target, BUFFERS, HEADER,
};

const PERSISTENT: u32 = pool_flags::PERSISTENT;

fn start(target: &Target, flags: u32) -> Outcome<Session> {
    let mut session = target.connect()?;
    session.pool(0, flags)?;
    Ok(session)
}

pub(crate) fn versions_are_equal_or_not(target: &Target) -> Outcome {
    let mut session = start(target, PERSISTENT)?;
    let versions = [5, 3, u64::MAX, 0, 1 << 63, 1 << 32, 1];
    for (n, version) in versions.into_iter().enumerate() {
        session.store(0, key(0, version), n as u8)?;
        session.hit(0, key(0, version), n as u8)?;
        for other in versions.into_iter().filter(|other| *other != version) {
            session.miss("get of another version", 0, key(0, other))?;
            let flushed = session.flush(Opcode::FlushPage, 0, &[key(0, other)])?;
            equal("flush of another version", flushed[0], PageResult::Absent)?;
        }
        session.hit(0, key(0, version), n as u8)?;
    }
    Ok(())
}

/// Puts a page, and overwrites the memory that it was put from.
fn put_and_overwrite(session: &mut Session) -> Outcome {
    session.store(0, key(0, 1), 0x42)?;
    let page = BUFFERS + 32 + size_of::<Key>() as u64;
    session.write(page, &vec![0x99; session.page_size()]);
    Ok(())
}

pub(crate) fn copied_before_stored(target: &Target) -> Outcome {
    let mut session = start(target, PERSISTENT)?;
    put_and_overwrite(&mut session)?;
    session.hit(0, key(0, 1), 0x42)
}

/// As above, after many others that were put from the same memory.
pub(crate) fn memory_is_the_drivers_again(target: &Target) -> Outcome {
    let mut session = start(target, PERSISTENT)?;
    put_and_overwrite(&mut session)?;
    for n in 1..100 {
        session.put_fill(0, key(n, 1), n as u8)?;
    }
    session.hit(0, key(0, 1), 0x42)
}

fn contents(n: u64, size: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(n);
    // Some are easily compressed, some not at all.
    let varied = (n as usize % 4) * size / 3;
    (0..size)
        .map(|at| if at < varied { rng.u8(..) } else { n as u8 })
        .collect()
}

/// Puts pages of all kinds, and gets them in another order. Returns whether all were right.
fn many(session: &mut Session) -> Outcome {
    const PAGES: u64 = 500;
    let size = session.page_size();
    let mut stored = Vec::new();
    for n in 0..PAGES {
        let result = session.put(0, &[(key(n, n), &contents(n, size))])?[0];
        if result == PageResult::Stored {
            stored.push(n);
        }
    }
    if stored.is_empty() {
        return untestable("the device refuses all pages");
    }
    fastrand::Rng::with_seed(7).shuffle(&mut stored);
    for n in stored {
        let (result, page) = session.get_one(0, key(n, n))?;
        equal("get of a page that was stored", result, PageResult::Hit)?;
        demand(page == contents(n, size), "a page is another than was put")?;
    }
    Ok(())
}

pub(crate) fn persistent_pages_stay(target: &Target) -> Outcome {
    many(&mut start(target, PERSISTENT)?)
}

pub(crate) fn contents_are_those_put(target: &Target) -> Outcome {
    many(&mut start(target, PERSISTENT)?)
}

pub(crate) fn hit_of_the_version(target: &Target) -> Outcome {
    let mut session = start(target, PERSISTENT)?;
    session.store(0, key(0, 1), 1)?;
    session.store(0, key(0, 2), 2)?;
    session.miss("get of a version that was replaced", 0, key(0, 1))?;
    session.hit(0, key(0, 2), 2)
}

pub(crate) fn whole_page_is_written(target: &Target) -> Outcome {
    let mut session = start(target, PERSISTENT)?;
    // Pages of one byte, of zeros too, and of anything.
    for fill in [0, 1, 0xff] {
        session.store(0, key(0, 1), fill)?;
        session.hit(0, key(0, 1), fill)?;
    }
    let page = contents(3, session.page_size());
    session.put(0, &[(key(0, 1), &page)])?;
    let answer = session.get(0, 0, &[key(0, 1)])?;
    let why = format!("{} bytes used, of a get that hits", answer.used);
    demand(answer.used >= HEADER + 1 + page.len(), why)?;
    demand(answer.page(0, 1) == page, "the page is another")
}

pub(crate) fn otherwise_a_miss(target: &Target) -> Outcome {
    let mut session = start(target, 0)?;
    for other in [key(0, 1), key(u64::MAX, u64::MAX), Key::default()] {
        let (result, _) = session.get_one(0, other)?;
        let missed = matches!(result, PageResult::Miss | PageResult::Damaged);
        demand(missed, format!("{result:?} of a page that was not put"))?;
    }
    Ok(())
}

pub(crate) fn get_keeps(target: &Target) -> Outcome {
    let mut session = start(target, PERSISTENT)?;
    session.store(0, key(0, 1), 1)?;
    (0..10).try_for_each(|_| session.hit(0, key(0, 1), 1))
}

/// An ephemeral pool with a page that can be got, as long as the device does not forget it.
fn with_ephemeral(target: &Target) -> Outcome<Session> {
    let mut session = start(target, 0)?;
    session.store(0, key(0, 1), 1)?;
    Ok(session)
}

pub(crate) fn take_removes(target: &Target) -> Outcome {
    let mut session = with_ephemeral(target)?;
    let taken = session.get(0, TAKE, &[key(0, 1)])?.results(1)?[0];
    if taken != PageResult::Hit {
        return untestable("the device has forgotten the page");
    }
    session.miss("get of what was taken", 0, key(0, 1))
}

pub(crate) fn take_removes_after_writing(target: &Target) -> Outcome {
    let mut session = with_ephemeral(target)?;
    // That one of so many is forgotten is no breach; that all are is.
    for n in 0..10 {
        session.store(0, key(n, 1), n as u8)?;
        take_out_of_reach(&mut session, key(n, 1))?;
        if session.get_one(0, key(n, 1))?.0 == PageResult::Hit {
            return Ok(());
        }
    }
    fail("a page is gone that could not be written to its place")
}

pub(crate) fn take_of_another_version(target: &Target) -> Outcome {
    let mut session = with_ephemeral(target)?;
    for n in 0..10 {
        session.store(0, key(n, 1), n as u8)?;
        let taken = session.get(0, TAKE, &[key(n, 2)])?.results(1)?[0];
        equal("get of another version", taken, PageResult::Miss)?;
        if session.get_one(0, key(n, 1))?.0 == PageResult::Hit {
            return Ok(());
        }
    }
    fail("a page is gone of which another version was to be taken")
}

pub(crate) fn miss_stays_a_miss(target: &Target) -> Outcome {
    let mut session = start(target, PERSISTENT)?;
    session.store(0, key(0, 1), 1)?;
    session.store(0, key(0, 2), 2)?;
    session.flush(Opcode::FlushPage, 0, &[key(0, 2)])?;
    for version in [1, 2, 1, 2] {
        session.miss("get", 0, key(0, version))?;
    }
    Ok(())
}
