// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests parts of which are where there is no memory.

use tmem_driver::Part;
use virtio_tmem_abi::{Key, PageResult};
use zerocopy::IntoBytes;

use crate::session::{
    demand, equal, key, untestable, Answer, Outcome, Session, Target, BUFFERS, DATA, HEADER,
    UNREACHABLE, UNWRITTEN,
};

/// Where pages are that can be reached.
const PAGES: u64 = BUFFERS + (1 << 20);
/// Where answers are.
const ANSWER: u64 = BUFFERS + (2 << 20);

/// Puts pages of which each is where `places` says, and returns what became of them.
fn put(session: &mut Session, keys: &[Key], places: &[u64]) -> Outcome<Vec<PageResult>> {
    let count = keys.len();
    let header = session.header(virtio_tmem_abi::Opcode::Put, 0, count);
    let bytes = [header.as_bytes(), keys.as_bytes()].concat();
    let mut parts = vec![Part::readable(BUFFERS, bytes.len())];
    let size = session.page_size();
    parts.extend(places.iter().map(|at| Part::readable(*at, size)));
    parts.push(Part::writable(ANSWER, HEADER + count));
    let used = session.send_parts(DATA, &bytes, &parts)?;
    session.answer(ANSWER, used, HEADER + count).results(count)
}

/// Gets a page to a place.
fn get(session: &mut Session, flags: u16, key: Key, place: u64) -> Outcome<PageResult> {
    let bytes = session.get_bytes(0, flags, &[key]);
    let size = session.page_size();
    let parts = [
        Part::readable(BUFFERS, bytes.len()),
        Part::writable(ANSWER, HEADER + 1),
        Part::writable(place, size),
    ];
    let used = session.send_parts(DATA, &bytes, &parts)?;
    Ok(session.answer(ANSWER, used, HEADER + 1).results(1)?[0])
}

/// Takes a page of a pool to a place that is out of reach.
pub(super) fn take_out_of_reach(session: &mut Session, key: Key) -> Outcome<PageResult> {
    get(
        session,
        virtio_tmem_abi::request_flags::TAKE,
        key,
        UNREACHABLE,
    )
}

fn start(target: &Target) -> Outcome<Session> {
    let mut session = target.connect()?;
    session.persistent()?;
    session.write(PAGES, &vec![0x61; session.page_size()]);
    Ok(session)
}

pub(crate) fn request_out_of_reach(target: &Target) -> Outcome {
    let mut session = start(target)?;
    session.store(0, key(0, 1), 1)?;
    let bytes = session.get_bytes(0, 0, &[key(0, 1)]);
    let size = session.page_size();
    let (header, table) = (BUFFERS, BUFFERS + 32);
    let cases = [
        ("the header", UNREACHABLE, table, ANSWER),
        ("the table", header, UNREACHABLE, ANSWER),
        ("the answer", header, table, UNREACHABLE),
    ];
    for (what, header, table, answer) in cases {
        let parts = [
            Part::readable(header, 32),
            Part::readable(table, size_of::<Key>()),
            Part::writable(answer, HEADER + 1),
            Part::writable(PAGES + size as u64, size),
        ];
        // A device may take it for an error of the driver, and stop.
        match session.send_parts(DATA, &bytes, &parts) {
            Ok(used) => equal(&format!("used length without {what}"), used, 0)?,
            Err(_) => return untestable("it stops the virtqueue, which it may"),
        }
    }
    session.hit(0, key(0, 1), 1)
}

/// Puts three pages the second of which is out of reach.
fn put_three(target: &Target) -> Outcome<(Session, Vec<PageResult>)> {
    let mut session = start(target)?;
    // What is put on the page that is out of reach is put before.
    session.store(0, key(1, 1), 0x17)?;
    let keys = [key(0, 1), key(1, 1), key(2, 1)];
    let results = put(&mut session, &keys, &[PAGES, UNREACHABLE, PAGES])?;
    Ok((session, results))
}

pub(crate) fn rest_is_carried_out(target: &Target) -> Outcome {
    let (mut session, results) = put_three(target)?;
    for n in [0, 2] {
        equal("put that can be reached", results[n], PageResult::Stored)?;
        session.hit(0, key(n as u64, 1), 0x61)?;
    }
    Ok(())
}

pub(crate) fn page_that_cannot_be_read(target: &Target) -> Outcome {
    let (_, results) = put_three(target)?;
    equal("put", results[1], PageResult::NoMemory)
}

pub(crate) fn nothing_of_what_was_read(target: &Target) -> Outcome {
    let (mut session, _) = put_three(target)?;
    session.miss("get of a page that was refused", 0, key(1, 1))?;
    // Half of it can be read.
    let size = session.page_size();
    let header = session.header(virtio_tmem_abi::Opcode::Put, 0, 1);
    let bytes = [header.as_bytes(), key(3, 1).as_bytes()].concat();
    let parts = [
        Part::readable(BUFFERS, bytes.len()),
        Part::readable(PAGES, size / 2),
        Part::readable(UNREACHABLE, size / 2),
        Part::writable(ANSWER, HEADER + 1),
    ];
    let used = session.send_parts(DATA, &bytes, &parts)?;
    let answer: Answer = session.answer(ANSWER, used, HEADER + 1);
    equal("put of half", answer.results(1)?[0], PageResult::NoMemory)?;
    session.miss("get of half", 0, key(3, 1))
}

fn got_out_of_reach(target: &Target) -> Outcome<(Session, PageResult)> {
    let mut session = start(target)?;
    session.store(0, key(0, 1), 0x29)?;
    let result = get(&mut session, 0, key(0, 1), UNREACHABLE)?;
    Ok((session, result))
}

pub(crate) fn place_that_cannot_be_written(target: &Target) -> Outcome {
    let (_, result) = got_out_of_reach(target)?;
    equal("get", result, PageResult::Miss)
}

pub(crate) fn page_stays_for_a_better_place(target: &Target) -> Outcome {
    let (mut session, _) = got_out_of_reach(target)?;
    for _ in 0..3 {
        get(&mut session, 0, key(0, 1), UNREACHABLE)?;
    }
    let (result, _) = session.get_one(0, key(0, 1))?;
    equal("get", result, PageResult::Hit)
}

pub(crate) fn better_place_is_a_hit(target: &Target) -> Outcome {
    let (mut session, _) = got_out_of_reach(target)?;
    let place = PAGES + session.page_size() as u64;
    session.write(place, &vec![UNWRITTEN; session.page_size()]);
    let result = get(&mut session, 0, key(0, 1), place)?;
    equal("get", result, PageResult::Hit)?;
    let page = session.read(place, session.page_size());
    demand(page.iter().all(|byte| *byte == 0x29), "the page is another")
}
