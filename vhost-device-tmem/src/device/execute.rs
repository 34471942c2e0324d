// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Carrying out requests against the store.

use std::sync::Arc;

use virtio_tmem_abi::{Key, Malformed, PageResult, PoolStats, Range, ResponseHeader, Status};
use zerocopy::{FromZeros, IntoBytes};

use super::{
    chain::{Cursor, Parts},
    request::{parse, Command, QueueKind, Reject, Request, RESPONSE},
    session::Session,
};
use crate::store::{PageBytes, PageSink, PageSource, PoolKind, PoolReport, PAGE_SIZE};

/// Pages of requests that are carried out together: what the store does under one hold of its lock.
const MERGED: usize = 32;

/// Memory that a worker uses for one group of requests after the other. It is bounded by the limits
/// in the configuration space.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    tables: Vec<u8>,
    requests: Vec<Parsed>,
    results: Vec<PageResult>,
    written: Vec<u8>,
    lens: Vec<u32>,
}

/// A request that was read.
type Parsed = Result<Request, Reject>;

/// What follows the response header.
enum Answer {
    Nothing,
    /// A result for each entry of the table. Those of a get are of pages.
    Results {
        pages: bool,
    },
    Stats(PoolStats),
}

/// Carries out requests in their order, whatever their bytes are, and writes the responses.
///
/// Neighbours that ask for the same of one pool are carried out together. `done` is told of those
/// whose responses were written: for each, the number of bytes written without a gap, 0 if there
/// is no room for a response.
///
/// # Errors
///
/// Those of `done`; nothing more is carried out then.
pub(super) fn serve<E>(
    session: &Arc<Session>,
    queue: QueueKind,
    requests: &[Parts<'_>],
    scratch: &mut Scratch,
    mut done: impl FnMut(&[u32]) -> Result<(), E>,
) -> Result<(), E> {
    session.counters.requests.add(requests.len() as u64);
    scratch.tables.clear();
    scratch.requests.clear();
    for parts in requests {
        let (limits, epoch) = (&session.limits, session.epoch());
        let parsed = parse(parts, queue, limits, epoch, &mut scratch.tables);
        scratch.requests.push(parsed);
    }
    let mut first = 0;
    while first < requests.len() {
        let run = Run::first(&requests[first..], &scratch.requests[first..]);
        first += run.parts.len();
        scratch.results.clear();
        scratch.lens.clear();
        let answer = session.execute(&run, &scratch.tables, &mut scratch.results);
        let (written, lens) = (&mut scratch.written, &mut scratch.lens);
        session.respond(&run, answer, &scratch.results, written, lens);
        done(lens)?;
    }
    Ok(())
}

/// Neighbouring requests that are carried out together.
struct Run<'r, 'm> {
    /// What they ask for, as if it were one.
    request: Parsed,
    parts: &'r [Parts<'m>],
    requests: &'r [Parsed],
}

impl<'r, 'm> Run<'r, 'm> {
    /// Returns as many as go together of some, at least one.
    fn first(parts: &'r [Parts<'m>], requests: &'r [Parsed]) -> Self {
        let mut request = requests[0].clone();
        let mut len = 1;
        if let Ok(first) = &mut request {
            let next = requests[1..].iter().map_while(|next| next.as_ref().ok());
            len += next.take_while(|next| first.join(next, MERGED)).count();
        }
        Self {
            request,
            parts: &parts[..len],
            requests: &requests[..len],
        }
    }

    /// Returns each request, and the entries of its table.
    fn each(&self) -> impl Iterator<Item = (&'r Parts<'m>, usize)> + use<'r, 'm> {
        let count = |request: &Parsed| request.as_ref().map_or(0, |request| request.count);
        self.parts.iter().zip(self.requests.iter().map(count))
    }
}

impl Session {
    /// Writes the responses, and adds the lengths of what was written.
    fn respond(
        self: &Arc<Self>,
        run: &Run<'_, '_>,
        answer: Result<Answer, Reject>,
        mut results: &[PageResult],
        written: &mut Vec<u8>,
        lens: &mut Vec<u32>,
    ) {
        let credits = self.credits_to_tell();
        let mut header = ResponseHeader {
            status: Status::Ok.to_wire().into(),
            detail: 0.into(),
            count: 0.into(),
            persistent_credits: credits.persistent.into(),
            ephemeral_credits: credits.ephemeral.into(),
            reserved: 0.into(),
            epoch: self.epoch().into(),
        };
        if let Err(reject) = answer {
            let (status, detail) = match reject {
                Reject::Malformed(rule) => (Status::Malformed, rule.to_wire()),
                Reject::Status(status) => (status, 0),
                Reject::OutOfReach => {
                    lens.resize(run.parts.len(), 0);
                    self.note_out_of_reach(lens.len() as u64);
                    return;
                }
            };
            header.status = status.to_wire().into();
            header.detail = detail.into();
        }
        for (parts, count) in run.each() {
            // Neither is ever one that was carried out.
            if parts.writable_len() < RESPONSE {
                self.note_malformed("there is no room for a response");
                lens.push(0);
                continue;
            }
            if !parts.writer().reaches(RESPONSE) {
                self.note_out_of_reach(1);
                lens.push(0);
                continue;
            }
            let mut pages = 0;
            written.clear();
            match &answer {
                Ok(Answer::Nothing) => {}
                Ok(Answer::Results { pages: of_pages }) => {
                    let (own, others) = results.split_at(count);
                    results = others;
                    // The limits keep all of these far from 2³².
                    header.count = (count as u32).into();
                    written.extend(own.iter().map(|result| result.to_wire()));
                    if *of_pages {
                        pages = own.iter().take_while(|r| **r == PageResult::Hit).count();
                    }
                }
                Ok(Answer::Stats(stats)) => written.extend(stats.as_bytes()),
                Err(reject) => {
                    let broken = [Status::Malformed, Status::Unsupported].map(Status::to_wire);
                    if broken.contains(&header.status.get()) {
                        self.note_malformed(&format!("{reject:?}"));
                    }
                }
            }
            let mut writer = parts.writer();
            writer.write(header.as_bytes());
            writer.write(written);
            lens.push((RESPONSE + written.len() + pages * PAGE_SIZE) as u32);
        }
    }

    fn execute(
        &self,
        run: &Run<'_, '_>,
        tables: &[u8],
        results: &mut Vec<PageResult>,
    ) -> Result<Answer, Reject> {
        let request = run.request.as_ref().map_err(|reject| *reject)?;
        let (store, guest, pool) = (&*self.store, self.pools.guest(), request.pool);
        match request.command(tables)? {
            Command::Put(keys) => {
                results.resize(keys.len(), PageResult::NoMemory);
                let entry = size_of::<Key>();
                let mut source = Pages::new(run, |parts, count| (parts.reader(), count * entry));
                let put = store.put(guest, pool, keys, &mut source, results);
                self.note_out_of_reach(source.out_of_reach);
                put?;
            }
            Command::Get { keys, take } => {
                if take && store.pool_kind(guest, pool)? != PoolKind::Ephemeral {
                    return Err(Malformed::Flags.into());
                }
                results.resize(keys.len(), PageResult::Miss);
                let mut sink = Pages::new(run, |parts, count| (parts.writer(), count));
                let got = store.get(guest, pool, take, keys, &mut sink, results);
                self.note_out_of_reach(sink.out_of_reach);
                got?;
                return Ok(Answer::Results { pages: true });
            }
            Command::FlushPages(keys) => {
                results.resize(keys.len(), PageResult::Absent);
                store.flush_pages(guest, pool, keys, results)?;
            }
            Command::FlushRanges(ranges) => {
                if ranges.iter().any(backwards) {
                    // That there is no pool has the first word.
                    store.pool_kind(guest, pool)?;
                    return Err(Malformed::Range.into());
                }
                results.resize(ranges.len(), PageResult::Absent);
                store.flush_ranges(guest, pool, ranges, results)?;
            }
            Command::FlushObjects(objects) => {
                results.resize(objects.len(), PageResult::Absent);
                store.flush_objects(guest, pool, objects, results)?;
            }
            Command::FlushPool => {
                store.flush_pool(guest, pool)?;
                return Ok(Answer::Nothing);
            }
            Command::PoolCreate(create) => {
                self.pools.create(pool, &create)?;
                return Ok(Answer::Nothing);
            }
            Command::PoolDestroy => {
                self.pools.destroy(pool)?;
                return Ok(Answer::Nothing);
            }
            Command::PoolKeep => {
                self.pools.keep(pool)?;
                return Ok(Answer::Nothing);
            }
            Command::PoolStats => {
                return Ok(Answer::Stats(stats(&store.pool_report(guest, pool)?)));
            }
        }
        Ok(Answer::Results { pages: false })
    }
}

fn backwards(range: &Range) -> bool {
    range.first.get() > range.last.get()
}

fn stats(report: &PoolReport) -> PoolStats {
    let counters = &report.counters;
    PoolStats {
        pages: report.pages.into(),
        bytes: report.bytes.into(),
        puts: counters.puts.into(),
        puts_stored: counters.puts_stored.into(),
        gets: counters.gets.into(),
        gets_hit: counters.gets_hit.into(),
        flushes: counters.flushes.into(),
        pages_flushed: counters.pages_flushed.into(),
        pages_evicted: counters.pages_evicted.into(),
        ..PoolStats::new_zeroed()
    }
}

/// The pages of requests, in ascending order.
struct Pages<'r, 'm, I> {
    /// Where the pages of each request are, and how many.
    requests: I,
    cursor: Option<Cursor<'r, 'm>>,
    /// The page that the cursor is at, and the first one of the next request.
    next: usize,
    end: usize,
    /// Pages that could not be copied.
    out_of_reach: u64,
}

impl<'r, 'm> Pages<'r, 'm, ()> {
    /// Starts with the first page. `part` returns the part of a request that has the pages, and so
    /// many bytes of table or results that are between its header and them.
    fn new(
        run: &Run<'r, 'm>,
        part: impl Fn(&'r Parts<'m>, usize) -> (Cursor<'r, 'm>, usize),
    ) -> Pages<'r, 'm, impl Iterator<Item = (Cursor<'r, 'm>, usize)>> {
        const { assert!(super::request::REQUEST == RESPONSE) };
        let requests = run.each().map(move |(parts, count)| {
            let (mut cursor, between) = part(parts, count);
            cursor.skip(RESPONSE + between);
            (cursor, count)
        });
        Pages {
            requests,
            cursor: None,
            next: 0,
            end: 0,
            out_of_reach: 0,
        }
    }
}

impl<'r, 'm, I: Iterator<Item = (Cursor<'r, 'm>, usize)>> Pages<'r, 'm, I> {
    /// Goes to page `n`; [`None`] if it is behind, or there is none.
    fn seek(&mut self, n: usize) -> Option<&mut Cursor<'r, 'm>> {
        while n >= self.end {
            let (cursor, count) = self.requests.next()?;
            self.cursor = Some(cursor);
            self.next = self.end;
            self.end += count;
        }
        let ahead = n.checked_sub(self.next)?;
        self.next = n + 1;
        let cursor = self.cursor.as_mut()?;
        cursor.skip(ahead * PAGE_SIZE).then_some(cursor)
    }
}

impl<'r, 'm, I: Iterator<Item = (Cursor<'r, 'm>, usize)>> PageSource for Pages<'r, 'm, I> {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        let read = self.seek(n).is_some_and(|cursor| cursor.read(frame));
        self.out_of_reach += u64::from(!read);
        read
    }
}

impl<'r, 'm, I: Iterator<Item = (Cursor<'r, 'm>, usize)>> PageSink for Pages<'r, 'm, I> {
    fn write_page(&mut self, n: usize, page: &PageBytes) -> bool {
        let written = self.seek(n).is_some_and(|cursor| cursor.write(page));
        self.out_of_reach += u64::from(!written);
        written
    }
}

const _: () = assert!(size_of::<Key>() == 40);
