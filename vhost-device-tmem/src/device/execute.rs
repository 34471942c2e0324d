// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Carrying out requests against the store.

use std::{ops::Range as Span, sync::Arc};

use virtio_tmem_abi::{
    Chunks, Key, Malformed, PageResult, PoolStats, Range, ResponseHeader, Status,
};
use zerocopy::{FromZeros, IntoBytes};

use super::{
    chain::Parts,
    fault::Watch,
    meter::Meter,
    pages::Pages,
    request::{parse, Command, QueueKind, Reject, Request, RESPONSE},
    session::Session,
};
use crate::{
    store::{Held, PoolError, PoolReport, Progress, Store, Walk},
    tier::Wake,
};

/// Entries of a table of keys to flush that are as much work as copying a page.
const FLUSHES: usize = 2;

/// Memory that a worker uses for one group of requests after the other. It is bounded by the limits
/// in the configuration space.
#[derive(Default)]
pub(super) struct Scratch {
    tables: Vec<u8>,
    requests: Vec<Parsed>,
    state: State,
    written: Vec<u8>,
    lens: Vec<u32>,
}

/// A request that was read.
type Parsed = Result<Request, Reject>;

/// How far a request was carried out.
#[derive(Default)]
pub(super) struct State {
    /// Entries of the table that are done, or what else says how far it is.
    pub(super) next: usize,
    /// What became of them.
    results: Vec<PageResult>,
    /// Pages that are gone once the response was published, and pages that are waited for.
    taken: Held,
    /// A flush that is under way.
    walk: Option<Walk<Arc<Store>>>,
}

impl State {
    fn clear(&mut self) {
        self.next = 0;
        self.results.clear();
        self.walk = None;
    }

    /// Returns the next entries of `total` to be carried out, `step` at most. Their results are
    /// `default` until something else is known.
    fn claim(&mut self, total: usize, step: usize, default: PageResult) -> Span<usize> {
        let span = self.next..total.min(self.next + step);
        self.results.resize(span.end, default);
        self.next = span.end;
        span
    }

    /// All entries that were not carried out have the result `default`: the pool went away in the
    /// middle of the request, and what was done before is not undone by that.
    fn give_up(&mut self, total: usize, default: PageResult) {
        self.results.resize(total, default);
        self.next = total;
    }
}

/// A request that was left in the middle, as others were to have their turn.
///
/// It keeps nothing of guest memory but copies: the chain is looked at again when it goes on.
pub(super) struct Pending {
    /// The request; or several that were carried out together, if they wait for pages.
    requests: Vec<Request>,
    tables: Vec<u8>,
    state: State,
}

impl Pending {
    /// Returns how many requests have to be there for it to go on.
    pub(super) fn count(&self) -> usize {
        self.requests.len()
    }

    /// Returns whether it cannot go on yet, as pages have not arrived. Whoever was to be woken is, once
    /// they have.
    pub(super) fn is_waiting(&self) -> bool {
        self.state.taken.is_waiting()
    }

    /// It will not go on. Nothing is lost: it is carried out from its start if it comes again.
    pub(super) fn abandon(mut self, store: &Store) {
        store.end_take(&mut self.state.taken, false);
    }
}

/// What follows the response header.
pub(super) enum Answer {
    Nothing,
    /// A result for each entry of the table. Those of a get are of pages.
    Results {
        pages: bool,
    },
    Stats(PoolStats),
    Chunks(Box<Chunks>),
}

/// What a step came to.
pub(super) enum Step {
    /// There is more to do.
    More,
    /// There is nothing to do until pages have arrived.
    Wait,
    Done(Answer),
}

/// Requests of one virtqueue.
#[derive(Clone, Copy)]
pub(super) struct Group<'g, 'm> {
    /// The kind of the virtqueue.
    pub(super) queue: QueueKind,
    /// The requests, in their order.
    pub(super) requests: &'g [Parts<'m>],
    /// What says whether the memory that they are in could be had.
    pub(super) watch: &'g Watch,
    /// Who is woken when pages have arrived that one of them waits for; none where that is looked for
    /// again and again.
    pub(super) wake: Option<&'g Wake>,
}

/// Carries out requests in their order, whatever their bytes are, and writes the responses, until
/// the meter says that it is enough. Returns how many were finished; the next one may be left in
/// the middle then, in `pending`, and is to be the first of the requests next time.
///
/// Neighbours that ask for the same of one pool are carried out together. `done` is told of those
/// whose responses were written: for each, the number of bytes written without a gap, 0 if there
/// is no room for a response. It is not told of those that met a fault in the guest's memory, after
/// which nothing more is carried out.
///
/// # Errors
///
/// Those of `done`; nothing more is carried out then.
pub(super) fn serve<E>(
    session: &Arc<Session>,
    group: Group<'_, '_>,
    pending: &mut Option<Box<Pending>>,
    scratch: &mut Scratch,
    meter: &mut Meter,
    mut done: impl FnMut(&[u32]) -> Result<(), E>,
) -> Result<usize, E> {
    let Group {
        queue,
        requests,
        watch,
        wake,
    } = group;
    let mut resumed = scratch.read(session, queue, requests, pending.take());
    scratch.state.taken.set_wake(wake.cloned());
    let mut first = 0;
    while first < requests.len() {
        if watch.fault().is_some() || (first > 0 && meter.is_spent()) {
            break;
        }
        // What waited together goes on together.
        let (end, most) = match std::mem::take(&mut resumed) {
            several @ 2.. => (several, usize::MAX),
            _ => (requests.len(), meter.pages()),
        };
        let run = Run::first(&requests[first..end], &scratch.requests[first..end], most);
        let state = &mut scratch.state;
        let answer = loop {
            match session.step(&run, &scratch.tables, watch, state, meter) {
                // Several are never so many pages that they have to be left.
                Ok(Step::More) if run.parts.len() > 1 || !meter.is_spent() => {}
                Ok(Step::More) => {
                    *pending = scratch.leave(first, 1);
                    return Ok(first);
                }
                Ok(Step::Wait) => {
                    let count = run.parts.len();
                    *pending = scratch.leave(first, count);
                    return Ok(first);
                }
                Ok(Step::Done(answer)) => break Ok(answer),
                Err(reject) => break Err(reject),
            }
            if watch.fault().is_some() {
                break Err(Reject::OutOfReach);
            }
        };
        let (written, lens) = (&mut scratch.written, &mut scratch.lens);
        lens.clear();
        session.respond(&run, answer, &state.results, written, lens);
        let mut published = Ok(false);
        if watch.fault().is_none() {
            session.counters.requests.add(run.parts.len() as u64);
            published = done(lens).map(|()| true);
        }
        if !state.taken.is_empty() {
            // The driver has them now, or never will.
            let told = published.as_ref().is_ok_and(|published| *published);
            let arrived = told && watch.fault().is_none();
            session.store.end_take(&mut state.taken, arrived);
        }
        let count = run.parts.len();
        state.clear();
        if !published? {
            break;
        }
        first += count;
    }
    // What was left in the middle before, and met a fault now.
    session.store.end_take(&mut scratch.state.taken, false);
    scratch.state.clear();
    Ok(first)
}

impl Scratch {
    /// Reads requests. The first ones are known already if they were left in the middle: returns how
    /// many.
    fn read(
        &mut self,
        session: &Session,
        queue: QueueKind,
        requests: &[Parts<'_>],
        pending: Option<Box<Pending>>,
    ) -> usize {
        self.tables.clear();
        self.requests.clear();
        self.state.clear();
        let mut known = 0;
        if let Some(pending) = pending {
            if pending.count() <= requests.len() {
                let Pending {
                    requests,
                    tables,
                    state,
                } = *pending;
                known = requests.len();
                (self.tables, self.state) = (tables, state);
                self.requests.extend(requests.into_iter().map(Ok));
            } else {
                // They are carried out again when all of them are there.
                pending.abandon(&session.store);
            }
        }
        for parts in &requests[known..] {
            let parsed = parse(parts, queue, &session.offer(), &mut self.tables);
            self.requests.push(parsed);
        }
        known
    }

    /// Takes out what is needed to go on with some requests. Nothing else is read any more.
    fn leave(&mut self, first: usize, count: usize) -> Option<Box<Pending>> {
        let requests = self.requests.get(first..first + count)?.iter();
        let requests: Vec<_> = requests
            .filter_map(|request| request.as_ref().ok())
            .collect();
        let (requests, tables) = Request::alone(&requests, &mut self.tables)?;
        Some(Box::new(Pending {
            requests,
            tables,
            state: std::mem::take(&mut self.state),
        }))
    }
}

/// Neighbouring requests that are carried out together.
pub(super) struct Run<'r, 'm> {
    /// What they ask for, as if it were one.
    request: Parsed,
    parts: &'r [Parts<'m>],
    requests: &'r [Parsed],
}

impl<'r, 'm> Run<'r, 'm> {
    /// Returns as many as go together of some, at least one, and no more than `most` pages if it
    /// is more than one.
    fn first(parts: &'r [Parts<'m>], requests: &'r [Parsed], most: usize) -> Self {
        let mut request = requests[0].clone();
        let mut len = 1;
        if let Ok(first) = &mut request {
            let next = requests[1..].iter().map_while(|next| next.as_ref().ok());
            len += next.take_while(|next| first.join(next, most)).count();
        }
        Self {
            request,
            parts: &parts[..len],
            requests: &requests[..len],
        }
    }

    /// Returns each request, and the entries of its table.
    pub(super) fn each(&self) -> impl Iterator<Item = (&'r Parts<'m>, usize)> + use<'r, 'm> {
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
                    } else if let Some(refusal) = own.iter().find(|r| r.is_refusal()) {
                        self.note_refusal(*refusal);
                    }
                }
                Ok(Answer::Stats(stats)) => written.extend(stats.as_bytes()),
                Ok(Answer::Chunks(chunks)) => written.extend(chunks.as_bytes()),
                Err(reject) => {
                    let broken = [Status::Malformed, Status::Unsupported].map(Status::to_wire);
                    if broken.contains(&header.status.get()) {
                        self.note_malformed(reject);
                    }
                }
            }
            let mut writer = parts.writer();
            writer.write(header.as_bytes());
            writer.write(written);
            lens.push((RESPONSE + written.len() + pages * crate::store::PAGE_SIZE) as u32);
        }
    }

    /// Carries out a part of a request that the meter has room for.
    fn step(
        &self,
        run: &Run<'_, '_>,
        tables: &[u8],
        watch: &Watch,
        state: &mut State,
        meter: &mut Meter,
    ) -> Result<Step, Reject> {
        let request = match &run.request {
            Ok(request) => request,
            Err(reject) => {
                meter.copied(1);
                return Err(*reject);
            }
        };
        let (store, guest, pool) = (&*self.store, self.pools.guest(), request.pool);
        let total = request.count;
        let pages = meter.pages();
        match request.command(tables)? {
            Command::Put(keys) => {
                let default = PageResult::NoMemory;
                let span = state.claim(total, pages, default);
                let mut source = Pages::to_put(run, span.start, watch);
                let (keys, results) = (&keys[span.clone()], &mut state.results[span.clone()]);
                let put = store.put(guest, pool, keys, &mut source, results);
                self.note_out_of_reach(source.out_of_reach());
                meter.copied(span.len());
                self.went_on(put, span.start, state, total, default)?;
            }
            Command::PutSlots(entries) => {
                let default = PageResult::NoMemory;
                let span = state.claim(total, pages, default);
                let (entries, results) = (&entries[span.clone()], &mut state.results[span.clone()]);
                let put = self.put_slots(pool, entries, results);
                meter.copied(span.len());
                self.went_on(put, span.start, state, total, default)?;
            }
            Command::Get { keys, take } => {
                let default = PageResult::Miss;
                if take && state.next == 0 && !store.may_take(guest, pool)? {
                    meter.copied(1);
                    return Err(Malformed::Flags.into());
                }
                if state.next < total {
                    let span = state.claim(total, pages, default);
                    let mut sink = Pages::to_get(run, span.start, watch);
                    let (keys, results) = (&keys[span.clone()], &mut state.results[span.clone()]);
                    let (first, held) = (span.start, &mut state.taken);
                    let got =
                        store.begin_get(guest, pool, take, first, keys, &mut sink, results, held);
                    self.note_out_of_reach(sink.out_of_reach());
                    meter.copied(span.len());
                    self.went_on(got, span.start, state, total, default)?;
                }
                if state.next < total {
                    return Ok(Step::More);
                }
                if state.taken.is_waiting() {
                    return Ok(Step::Wait);
                }
                let mut sink = Pages::to_get(run, 0, watch);
                let copied = store.finish_get(&mut sink, &mut state.results, &mut state.taken);
                self.note_out_of_reach(sink.out_of_reach());
                meter.copied(copied);
                return Ok(Step::Done(Answer::Results { pages: true }));
            }
            Command::FlushPages(keys) => {
                let default = PageResult::Absent;
                let span = state.claim(total, pages * FLUSHES, default);
                let (keys, results) = (&keys[span.clone()], &mut state.results[span.clone()]);
                let flushed = store.flush_pages(guest, pool, keys, results);
                meter.walked(span.len() / FLUSHES);
                self.went_on(flushed, span.start, state, total, default)?;
            }
            Command::FlushRanges(ranges) => {
                if state.walk.is_none() {
                    if ranges.iter().any(backwards) {
                        // That there is no pool has the first word.
                        store.pool_kind(guest, pool)?;
                        meter.walked(1);
                        return Err(Malformed::Range.into());
                    }
                    let store = Arc::clone(&self.store);
                    let walk = Walk::flush_ranges(store, guest, pool, ranges)?;
                    state.walk = Some(walk);
                }
                return Ok(state.walk(meter, Answer::Results { pages: false }));
            }
            Command::FlushObjects(objects) => {
                if state.walk.is_none() {
                    let store = Arc::clone(&self.store);
                    let walk = Walk::flush_objects(store, guest, pool, objects)?;
                    state.walk = Some(walk);
                }
                return Ok(state.walk(meter, Answer::Results { pages: false }));
            }
            Command::FlushPool => {
                if state.walk.is_none() {
                    let store = Arc::clone(&self.store);
                    state.walk = Some(Walk::flush_pool(store, guest, pool)?);
                }
                return Ok(state.walk(meter, Answer::Nothing));
            }
            Command::PoolDestroy => {
                if state.walk.is_none() {
                    state.walk = Some(self.pools.destroy(pool)?);
                }
                return Ok(state.walk(meter, Answer::Nothing));
            }
            Command::PoolCreate(create) => {
                meter.walked(1);
                self.pools.create(pool, &create)?;
                self.note_pool();
                return Ok(Step::Done(Answer::Nothing));
            }
            Command::PoolKeep => {
                meter.walked(1);
                self.pools.keep(pool)?;
                return Ok(Step::Done(Answer::Nothing));
            }
            Command::WindowOpen(open) => return self.open_window(&open, meter),
            Command::WindowKeep => return self.keep_window(meter),
            Command::ChunkGrant(wanted) => return self.grant_chunks(&wanted, state, meter),
            Command::ChunkReturn(chunks) => return self.return_chunks(chunks, state, meter),
            Command::PoolStats => {
                meter.walked(1);
                let report = store.pool_report(guest, pool)?;
                return Ok(Step::Done(Answer::Stats(stats(&report))));
            }
        }
        Ok(if state.next == total {
            Step::Done(Answer::Results { pages: false })
        } else {
            Step::More
        })
    }

    /// A pool that is not there is an error only where nothing was done before.
    fn went_on(
        &self,
        done: Result<(), PoolError>,
        start: usize,
        state: &mut State,
        total: usize,
        default: PageResult,
    ) -> Result<(), Reject> {
        match done {
            Err(_) if start > 0 => state.give_up(total, default),
            done => done?,
        }
        Ok(())
    }
}

impl State {
    /// Goes on with a flush.
    fn walk(&mut self, meter: &mut Meter, answer: Answer) -> Step {
        let Some(walk) = &mut self.walk else {
            return Step::Done(answer);
        };
        let before = walk.visited();
        let progress = walk.step(meter.pages() * FLUSHES);
        let visited = walk.visited() - before;
        meter.walked(visited as usize / FLUSHES);
        if progress == Progress::More {
            return Step::More;
        }
        self.results.extend_from_slice(walk.results());
        self.walk = None;
        Step::Done(answer)
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

const _: () = assert!(size_of::<Key>() == 40);
