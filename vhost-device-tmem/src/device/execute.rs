// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Carrying out requests against the store.

use std::sync::Arc;

use virtio_tmem_abi::{
    pool_flags, Key, Malformed, PageResult, PoolCreate, PoolStats, Range, ResponseHeader, Status,
};
use zerocopy::{FromZeros, IntoBytes};

use super::{
    chain::{Cursor, Parts},
    request::{check_create, parse, Command, QueueKind, Reject, Request, RESPONSE},
    session::Session,
};
use crate::store::{
    PageBytes, PageSink, PageSource, PoolError, PoolKind, PoolReport, Store, PAGE_SIZE,
};

/// Memory that a worker uses for one request after the other. It is bounded by the limits in the
/// configuration space.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    table: Vec<u8>,
    results: Vec<PageResult>,
}

/// What follows the response header.
enum Answer {
    Nothing,
    /// Results of the whole table, and so many pages of a get before the first gap.
    Results {
        leading_pages: usize,
    },
    Stats(PoolStats),
}

impl From<PoolError> for Reject {
    fn from(error: PoolError) -> Self {
        Self::Status(match error {
            PoolError::NoPool => Status::NoPool,
            PoolError::Exists => Status::PoolExists,
        })
    }
}

/// Carries out one request, whatever its bytes are, and writes the response. Returns the number of
/// bytes written without a gap: 0 if there is no room for a response.
pub(super) fn serve(
    session: &Arc<Session>,
    queue: QueueKind,
    parts: &Parts<'_>,
    scratch: &mut Scratch,
) -> u32 {
    session.counters.requests.add(1);
    if parts.writable_len() < RESPONSE {
        session.note_malformed("there is no room for a response");
        return 0;
    }
    let epoch = session.epoch();
    let Scratch { table, results } = scratch;
    results.clear();
    let answer = parse(parts, queue, &session.limits, epoch, table)
        .and_then(|request| session.execute(&request, parts, results));
    let credits = session.credits_to_tell();
    let mut header = ResponseHeader {
        status: Status::Ok.to_wire().into(),
        detail: 0.into(),
        count: 0.into(),
        persistent_credits: credits.persistent.into(),
        ephemeral_credits: credits.ephemeral.into(),
        reserved: 0.into(),
        epoch: epoch.into(),
    };
    let mut writer = parts.writer();
    match answer {
        Ok(Answer::Nothing) => {
            writer.write(header.as_bytes());
            RESPONSE as u32
        }
        Ok(Answer::Results { leading_pages }) => {
            // The limits keep all of these far from 2³².
            header.count = (results.len() as u32).into();
            writer.write(header.as_bytes());
            table.clear();
            table.extend(results.iter().map(|result| result.to_wire()));
            writer.write(table);
            (RESPONSE + results.len() + leading_pages * PAGE_SIZE) as u32
        }
        Ok(Answer::Stats(stats)) => {
            writer.write(header.as_bytes());
            writer.write(stats.as_bytes());
            (RESPONSE + size_of::<PoolStats>()) as u32
        }
        Err(reject) => {
            let (status, detail) = match reject {
                Reject::Malformed(rule) => (Status::Malformed, rule.to_wire()),
                Reject::Status(status) => (status, 0),
            };
            if matches!(status, Status::Malformed | Status::Unsupported) {
                session.note_malformed(&format!("{reject:?}"));
            }
            header.status = status.to_wire().into();
            header.detail = detail.into();
            writer.write(header.as_bytes());
            RESPONSE as u32
        }
    }
}

impl Session {
    fn execute(
        &self,
        request: &Request<'_>,
        parts: &Parts<'_>,
        results: &mut Vec<PageResult>,
    ) -> Result<Answer, Reject> {
        let (store, guest, pool) = (&*self.store, &self.guest, request.pool);
        let mut leading_pages = 0;
        match &request.command {
            Command::Put(keys) => {
                results.resize(keys.len(), PageResult::NoMemory);
                let mut source = Pages::after(parts.reader(), size_of_val(*keys));
                store.put(guest, pool, keys, &mut source, results)?;
            }
            Command::Get { keys, take } => {
                if *take && store.pool_kind(guest, pool)? != PoolKind::Ephemeral {
                    return Err(Malformed::Flags.into());
                }
                results.resize(keys.len(), PageResult::Miss);
                let mut sink = Pages::after(parts.writer(), keys.len());
                store.get(guest, pool, *take, keys, &mut sink, results)?;
                leading_pages = results
                    .iter()
                    .take_while(|r| **r == PageResult::Hit)
                    .count();
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
                self.create_pool(store, pool, create)?;
                return Ok(Answer::Nothing);
            }
            Command::PoolDestroy => {
                store.destroy_pool(guest, pool)?;
                return Ok(Answer::Nothing);
            }
            Command::PoolStats => {
                return Ok(Answer::Stats(stats(&store.pool_report(guest, pool)?)));
            }
        }
        Ok(Answer::Results { leading_pages })
    }

    fn create_pool(&self, store: &Store, pool: u32, create: &PoolCreate) -> Result<(), Reject> {
        check_create(create)?;
        let flags = create.flags.get();
        if flags & pool_flags::SHARED != 0 {
            // What there is has the first word; no UUID is authorised.
            return Err(Reject::Status(match store.pool_kind(&self.guest, pool) {
                Ok(_) => Status::PoolExists,
                Err(_) => Status::NotAllowed,
            }));
        }
        let kind = if flags & pool_flags::PERSISTENT != 0 {
            PoolKind::Persistent
        } else {
            PoolKind::Ephemeral
        };
        Ok(store.create_pool(&self.guest, pool, kind)?)
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

/// The pages of a request, in ascending order.
struct Pages<'a, 'm> {
    cursor: Cursor<'a, 'm>,
    next: usize,
}

impl<'a, 'm> Pages<'a, 'm> {
    /// Starts after a header and `table` bytes of table or results.
    fn after(mut cursor: Cursor<'a, 'm>, table: usize) -> Self {
        const { assert!(super::request::REQUEST == RESPONSE) };
        cursor.skip(RESPONSE + table);
        Self { cursor, next: 0 }
    }

    fn seek(&mut self, n: usize) -> bool {
        let ahead = n.checked_sub(self.next);
        self.next = n + 1;
        ahead.is_some_and(|pages| self.cursor.skip(pages * PAGE_SIZE))
    }
}

impl PageSource for Pages<'_, '_> {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        self.seek(n) && self.cursor.read(frame)
    }
}

impl PageSink for Pages<'_, '_> {
    fn write_page(&mut self, n: usize, page: &PageBytes) -> bool {
        self.seek(n) && self.cursor.write(page)
    }
}

const _: () = assert!(size_of::<Key>() == 40);
