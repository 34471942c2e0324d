// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptors, lengths, and what is written into an answer.

use tmem_driver::Part;
use virtio_tmem_abi::{Malformed, Opcode, PageResult, Status};
use zerocopy::IntoBytes;

use crate::session::{
    demand, equal, key, Outcome, Session, Target, BUFFERS, CONTROL, DATA, HEADER, UNWRITTEN,
};

/// Cuts `len` bytes from `at` on into at most `most` pieces, the first of them of odd lengths.
fn cut(at: u64, len: usize, most: usize, writable: bool) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut done = 0;
    while done < len {
        let piece = match parts.len() + 1 {
            last if last == most => len - done,
            n => (2 * n + 1).min(len - done),
        };
        let addr = at + done as u64;
        let part = Part {
            addr,
            len: piece,
            writable,
        };
        parts.push(part);
        done += piece;
    }
    parts
}

fn in_pieces(session: &mut Session, bytes: &[u8], writable: usize) -> Outcome<usize> {
    let answer = BUFFERS + bytes.len() as u64;
    let mut parts = cut(BUFFERS, bytes.len(), 24, false);
    parts.extend(cut(answer, writable, 24, true));
    let used = session.send_parts(DATA, bytes, &parts)?;
    demand(used <= writable, format!("{used} bytes used of {writable}"))?;
    Ok(used)
}

pub(crate) fn any_descriptors(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    session.persistent()?;
    let page: Vec<u8> = (0..session.page_size()).map(|n| (n % 251) as u8).collect();
    let bytes = session.put_bytes(0, &[(key(0, 1), &page)]);
    let used = in_pieces(&mut session, &bytes, HEADER + 1)?;
    let answer = session.answer(BUFFERS + bytes.len() as u64, used, HEADER + 1);
    equal("put", answer.results(1)?[0], PageResult::Stored)?;
    let bytes = session.get_bytes(0, 0, &[key(0, 1)]);
    let writable = HEADER + 1 + page.len();
    let used = in_pieces(&mut session, &bytes, writable)?;
    let answer = session.answer(BUFFERS + bytes.len() as u64, used, writable);
    equal("get", answer.results(1)?[0], PageResult::Hit)?;
    demand(answer.page(0, 1) == page, "the page is another")
}

pub(crate) fn lengths_do_not_overflow(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    session.pool(0, 0)?;
    let operations = [
        Opcode::Put,
        Opcode::Get,
        Opcode::FlushPage,
        Opcode::FlushRange,
        Opcode::FlushObject,
    ];
    // So many that 32, 40 and 4096 bytes of each are few or none in 32 bits.
    for count in [u32::MAX, 1 << 31, 1 << 29, 1 << 27, 1 << 20, (1 << 20) + 1] {
        for opcode in operations {
            let most = match opcode {
                Opcode::Put | Opcode::Get => session.config().max_pages.get(),
                _ => session.config().max_flushes.get(),
            };
            if count <= most {
                continue;
            }
            let mut header = session.header(opcode, 0, 0);
            header.count = count.into();
            let answer = session.send(DATA, header.as_bytes(), HEADER)?;
            let what = format!("{opcode:?} of {count} entries");
            equal(&what, answer.detail(), Some(Malformed::Count))?;
        }
    }
    Ok(())
}

pub(crate) fn used_length(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    session.persistent()?;
    let stats = session.control(Opcode::PoolStats, 0)?;
    equal("used length of PoolStats", stats.used, HEADER + 128)?;
    let flush = session.control(Opcode::FlushPool, 0)?;
    equal("used length of FlushPool", flush.used, HEADER)?;
    session.store(0, key(1, 1), 0x33)?;
    for keys in [[key(0, 1), key(1, 1)], [key(1, 1), key(0, 1)]] {
        let size = session.page_size();
        let answer = session.get(0, 0, &keys)?;
        answer.results(2)?;
        let told = &answer.rest[..answer.used - HEADER];
        let pages = told[2..].chunks_exact(size);
        let mut gaps = pages.map(|page| page.iter().all(|byte| *byte == UNWRITTEN));
        let why = "the used length is beyond a page that was not written";
        demand(!gaps.any(|gap| gap), why)?;
    }
    Ok(())
}

pub(crate) fn nothing_of_other_pages(target: &Target) -> Outcome {
    const SECRET: u8 = 0x5e;
    let mut session = target.connect()?;
    session.persistent()?;
    session.store(0, key(0, 1), SECRET)?;
    let (_, place) = session.get_one(0, key(0, 2))?;
    let why = "a get of another version has written the page";
    demand(!place.contains(&SECRET), why)?;
    session.flush(Opcode::FlushPage, 0, &[key(0, 1)])?;
    let (_, place) = session.get_one(0, key(0, 1))?;
    let why = "a get has written a page that was flushed";
    demand(!place.contains(&SECRET), why)
}

/// An answer of each status that can be had of any device.
fn answers(session: &mut Session) -> Outcome<Vec<(Status, crate::session::Answer)>> {
    session.pool(0, 0)?;
    let mut malformed = session.header(Opcode::PoolStats, 0, 0);
    malformed.reserved = 1.into();
    let mut unknown = session.header(Opcode::PoolStats, 0, 0);
    unknown.opcode = 0x7fff.into();
    let mut stale = session.header(Opcode::FlushPool, 0, 0);
    stale.epoch = (session.device.epoch() ^ 1).into();
    let none = session.header(Opcode::FlushPool, session.config().max_pools.get() - 1, 0);
    let ok = session.header(Opcode::FlushPool, 0, 0);
    let requests = [
        (Status::Ok, ok),
        (Status::Malformed, malformed),
        (Status::Unsupported, unknown),
        (Status::StaleEpoch, stale),
        (Status::NoPool, none),
    ];
    let mut answers = Vec::new();
    for (status, header) in requests {
        let answer = session.send(CONTROL, header.as_bytes(), HEADER)?;
        equal("status", answer.status(), Some(status))?;
        answers.push((status, answer));
    }
    Ok(answers)
}

pub(crate) fn reserved_response(target: &Target) -> Outcome {
    for (status, answer) in answers(&mut target.connect()?)? {
        let what = format!("reserved with {status:?}");
        equal(&what, answer.header.reserved.get(), 0)?;
    }
    Ok(())
}

pub(crate) fn epoch_and_credits_always(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    let unwritten = u32::from_le_bytes([UNWRITTEN; 4]);
    for (status, answer) in answers(&mut session)? {
        let header = &answer.header;
        let what = format!("epoch with {status:?}");
        equal(&what, header.epoch.get(), session.device.epoch())?;
        let credits = [header.persistent_credits, header.ephemeral_credits];
        let written = credits.iter().all(|credits| credits.get() != unwritten);
        demand(written, format!("no credits with {status:?}"))?;
    }
    Ok(())
}
