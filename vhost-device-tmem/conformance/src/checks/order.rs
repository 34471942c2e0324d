// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Order.

use virtio_tmem_abi::{Key, Opcode, PageResult};
use zerocopy::IntoBytes;

use crate::session::{
    equal, fail, key, untestable, Outcome, Session, Target, BUFFERS, DATA, HEADER,
};

const ROUNDS: u64 = 10;
/// How far apart requests are in memory.
const STEP: u64 = 128 << 10;

pub(crate) fn entries_in_order(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    session.persistent()?;
    if session.config().max_pages.get() < 3 {
        return untestable("a put has fewer than three pages");
    }
    let pages: Vec<_> = (1..=3)
        .map(|fill| vec![fill; session.page_size()])
        .collect();
    let of_one_key: Vec<(Key, &[u8])> = (1..=3)
        .map(|n| key(0, n))
        .zip(pages.iter().map(|p| &**p))
        .collect();
    let results = session.put(0, &of_one_key)?;
    if results[2].is_refusal() {
        return untestable("the device refuses a page");
    }
    session.hit(0, key(0, 3), 3)?;
    let flushed = session.flush(Opcode::FlushPage, 0, &[key(0, 3), key(0, 3)])?;
    let wanted = vec![PageResult::Flushed, PageResult::Absent];
    equal("flush of one page twice", flushed, wanted)
}

/// Puts, gets and flushes one page again and again without waiting, and returns which requests were
/// used in which order, and their results.
fn many(session: &mut Session) -> Outcome<(Vec<u16>, Vec<u16>, Vec<PageResult>)> {
    let size = session.page_size();
    let (mut heads, mut answers) = (Vec::new(), Vec::new());
    for n in 0..ROUNDS {
        let page = vec![n as u8; size];
        let key = key(0, n);
        let flush = session.header(Opcode::FlushPage, 0, 1);
        let flush = [flush.as_bytes(), key.as_bytes()].concat();
        let requests = [
            (session.put_bytes(0, &[(key, &page)]), HEADER + 1),
            (session.get_bytes(0, 0, &[key]), HEADER + 1 + size),
            (flush, HEADER + 1),
        ];
        for (m, (bytes, writable)) in requests.into_iter().enumerate() {
            let at = BUFFERS + (3 * n + m as u64) * STEP;
            session.write(at, &bytes);
            let answer = at + bytes.len() as u64;
            let parts = [
                tmem_driver::Part::readable(at, bytes.len()),
                tmem_driver::Part::writable(answer, writable),
            ];
            let head = session.device.queues[DATA].add(&parts);
            heads.push(head.expect("there are as many descriptors"));
            answers.push((answer, writable));
        }
    }
    session.device.queues[DATA].kick_now();
    let mut used = Vec::new();
    let start = std::time::Instant::now();
    while used.len() < heads.len() {
        match session.device.queues[DATA].next_used() {
            Some((head, _)) => used.push(head),
            None if start.elapsed() > session.patience => return fail("no answer in time"),
            None => std::thread::yield_now(),
        }
    }
    let mut results = Vec::new();
    for (at, writable) in answers {
        let answer = session.answer(at, writable, writable);
        results.push(answer.results(1)?[0]);
    }
    Ok((heads, used, results))
}

pub(crate) fn requests_in_order(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    session.persistent()?;
    let (_, _, results) = many(&mut session)?;
    for round in results.chunks(3) {
        let wanted = match round[0] {
            PageResult::Stored => [PageResult::Stored, PageResult::Hit, PageResult::Flushed],
            refused => [refused, PageResult::Miss, PageResult::Absent],
        };
        equal("put, get and flush", round, &wanted)?;
    }
    Ok(())
}

pub(crate) fn returned_in_order(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    session.persistent()?;
    let (heads, used, _) = many(&mut session)?;
    equal("used", used, heads)
}
