// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The window, as far as requests tell of it: its memory comes by another way than the socket.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use virtio_tmem_abi::{
    cap, pool_flags, Chunk, ChunkGrant, ChunkKind, Chunks, Malformed, Opcode, PageResult, SlotKey,
    Status, WindowOpen, FIRST_CHUNK, MAX_GRANT,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::session::{
    demand, equal, key, untestable, Answer, Outcome, Session, Target, CONTROL, DATA, HEADER,
};

/// A chunk: number and generation.
type Granted = (u32, u32);

const PERSISTENT: u32 = ChunkKind::Persistent as u32;

fn request(
    session: &mut Session,
    opcode: Opcode,
    count: usize,
    table: &[u8],
    extra: usize,
) -> Outcome<Answer> {
    let header = session.header(opcode, 0, count);
    let bytes = [header.as_bytes(), table].concat();
    session.send(CONTROL, &bytes, HEADER + extra)
}

fn open(session: &mut Session, flags: u32, reserved: u8) -> Outcome<Answer> {
    let mut open = WindowOpen::new_zeroed();
    open.flags = flags.into();
    open.reserved[11] = reserved;
    request(session, Opcode::WindowOpen, 1, open.as_bytes(), 0)
}

fn ask(session: &mut Session, kind: u32, count: u32, ticket: u64) -> Outcome<Answer> {
    let grant = ChunkGrant {
        kind: kind.into(),
        count: count.into(),
        ticket: ticket.into(),
    };
    let extra = size_of::<Chunks>();
    request(session, Opcode::ChunkGrant, 1, grant.as_bytes(), extra)
}

fn grant(session: &mut Session, count: u32, ticket: u64) -> Outcome<Vec<Granted>> {
    let answer = ask(session, PERSISTENT, count, ticket)?;
    equal("ChunkGrant", answer.status(), Some(Status::Ok))?;
    let chunks = Chunks::read_from_bytes(&answer.rest).expect("it has that length");
    let granted = chunks.chunks.iter().take(chunks.count.get() as usize);
    let granted = granted.map(|chunk| (chunk.number.get(), chunk.generation.get()));
    Ok(granted.collect())
}

fn give_back(session: &mut Session, chunks: &[Granted]) -> Outcome<Answer> {
    let table: Vec<_> = chunks
        .iter()
        .map(|(number, generation)| Chunk {
            number: (*number).into(),
            generation: (*generation).into(),
        })
        .collect();
    let (count, table) = (table.len(), table.as_bytes());
    request(session, Opcode::ChunkReturn, count, table, 0)
}

fn with_window(target: &Target) -> Outcome<Session> {
    let session = target.connect()?;
    session.need(cap::WINDOW, "window")?;
    Ok(session)
}

fn opened(target: &Target) -> Outcome<Session> {
    let mut session = with_window(target)?;
    let start = Instant::now();
    loop {
        match open(&mut session, 0, 0)?.status() {
            // What the driver before had may still be on its way back.
            Some(Status::NoMemory) if start.elapsed() < session.patience => {
                thread::sleep(Duration::from_millis(10));
            }
            Some(Status::NoMemory) => return untestable("the window cannot be had"),
            status => return equal("WindowOpen", status, Some(Status::Ok)).map(|()| session),
        }
    }
}

/// Grants chunks, where the device has any.
fn granted(session: &mut Session, count: u32, ticket: u64) -> Outcome<Vec<Granted>> {
    match grant(session, count, ticket)? {
        none if none.is_empty() => untestable("the device grants no chunk"),
        chunks => Ok(chunks),
    }
}

fn refused(what: &str, answer: &Answer, detail: Malformed) -> Outcome {
    equal(what, answer.status(), Some(Status::Malformed))?;
    equal(what, answer.detail(), Some(detail))
}

pub(crate) fn open_checks(target: &Target) -> Outcome {
    let mut session = with_window(target)?;
    let answer = open(&mut session, 1 << 31, 1)?;
    refused("reserved and flags", &answer, Malformed::Reserved)?;
    let answer = open(&mut session, 1 << 31, 0)?;
    refused("flags", &answer, Malformed::Flags)?;
    let answer = ask(&mut session, PERSISTENT, 1, 1)?;
    let what = "ChunkGrant of a window that is not open";
    equal(what, answer.status(), Some(Status::NoWindow))
}

pub(crate) fn open_is_ready(target: &Target) -> Outcome {
    // Its generations can be seen as those of chunks that are granted.
    let mut session = opened(target)?;
    for (number, generation) in granted(&mut session, MAX_GRANT, 1)? {
        let why = format!("chunk {number} has the generation {generation}");
        demand(generation > 0 && generation % 2 == 0, why)?;
        demand(number >= FIRST_CHUNK, format!("chunk {number} is granted"))?;
    }
    Ok(())
}

pub(crate) fn grant_checks(target: &Target) -> Outcome {
    let mut session = opened(target)?;
    for (kind, count) in [(0, 1), (3, 1), (PERSISTENT, 0), (PERSISTENT, MAX_GRANT + 1)] {
        let answer = ask(&mut session, kind, count, 1)?;
        let what = format!("{count} chunks of kind {kind}");
        refused(&what, &answer, Malformed::Chunk)?;
    }
    Ok(())
}

pub(crate) fn ticket_again(target: &Target) -> Outcome {
    let mut session = opened(target)?;
    let first = granted(&mut session, 2, 7)?;
    let again = grant(&mut session, 2, 7)?;
    let sorted = |chunks: &[Granted]| chunks.iter().copied().collect::<BTreeSet<_>>();
    equal("the same ticket", sorted(&again), sorted(&first))?;
    let other = grant(&mut session, 2, 8)?;
    let both = sorted(&first).intersection(&sorted(&other)).count();
    equal("chunks that another ticket gets again", both, 0)
}

pub(crate) fn return_checks(target: &Target) -> Outcome {
    let mut session = opened(target)?;
    for number in [0, FIRST_CHUNK - 1, u32::MAX] {
        let answer = give_back(&mut session, &[(number, 2)])?;
        refused(&format!("chunk {number}"), &answer, Malformed::Chunk)?;
    }
    Ok(())
}

pub(crate) fn chunk_is_granted_once(target: &Target) -> Outcome {
    let mut session = opened(target)?;
    let mut held = granted(&mut session, 4, 1)?;
    let returned = held.pop().expect("there is one at least");
    let answer = give_back(&mut session, &[returned])?;
    equal("ChunkReturn", answer.status(), Some(Status::Ok))?;
    for ticket in 2..20 {
        for (number, generation) in grant(&mut session, MAX_GRANT, ticket)? {
            let twice = held.iter().any(|(other, _)| *other == number);
            demand(!twice, format!("chunk {number} is granted twice"))?;
            let new = number != returned.0 || generation != returned.1;
            demand(new, format!("chunk {number} has its earlier generation"))?;
            held.push((number, generation));
        }
    }
    Ok(())
}

pub(crate) fn put_slot_of_no_chunk(target: &Target) -> Outcome {
    let mut session = opened(target)?;
    session.pool(0, pool_flags::PERSISTENT)?;
    let (number, generation) = granted(&mut session, 1, 1)?[0];
    let slots = (2 << 20) / session.page_size() as u32;
    let cases = [
        ("another generation", number * slots, generation + 2),
        ("the header", 0, 2),
        ("the report", slots, 2),
        ("beyond any window", u32::MAX, 2),
    ];
    for (what, slot, generation) in cases {
        let entry = SlotKey {
            key: key(0, 1),
            slot: slot.into(),
            generation: generation.into(),
        };
        let header = session.header(Opcode::PutSlot, 0, 1);
        let bytes = [header.as_bytes(), entry.as_bytes()].concat();
        let answer = session.send(DATA, &bytes, HEADER + 1)?;
        equal(what, answer.results(1)?[0], PageResult::NoMemory)?;
    }
    session.miss("get of what was refused", 0, key(0, 1))
}
