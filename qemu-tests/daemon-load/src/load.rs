// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Keeping requests in flight, and measuring them.

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{ensure, Context, Result};
use rustix::thread::{sched_setaffinity, CpuSet};
use serde::{Deserialize, Serialize};
use tmem_driver::{Part, Queue};

use crate::layout::{Layout, PAGE, SLOTS};

/// How hard a device is pressed.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Pace {
    /// Pages of each request.
    pub(crate) batch: u32,
    /// Requests in flight on each virtqueue.
    pub(crate) depth: usize,
    /// Whether to wait for interrupts; to look for used requests all the time otherwise.
    #[serde(default)]
    pub(crate) wait: bool,
    /// Threads of the driver, among which the virtqueues are divided.
    #[serde(default = "one")]
    pub(crate) threads: usize,
    /// Go over so many pages only, for what takes long.
    #[serde(default)]
    pub(crate) pages: Option<u32>,
    /// Begin again until so much time is over, in place of going once over the pages.
    #[serde(default)]
    pub(crate) seconds: Option<f64>,
}

fn one() -> usize {
    1
}

impl Pace {
    /// Returns the requests that go over `pages` pages, in the order in which they are sent.
    pub(crate) fn order(&self, pages: u32) -> Vec<u32> {
        let mut order = Layout::shuffled(pages / self.batch);
        if let Some(pages) = self.pages {
            order.truncate((pages / self.batch) as usize);
        }
        order
    }
}

/// Requests of one virtqueue.
pub(crate) trait Requests: Send {
    /// Writes request `n` to the memory of a slot, and says what it consists of.
    fn build(&mut self, n: u32, slot: u64, parts: &mut Vec<Part>);

    /// Looks at the answer, and returns how many pages fared as they should.
    fn finish(&mut self, n: u32, slot: u64, len: u32) -> Result<u32>;
}

/// One virtqueue, and what is to go over it.
pub(crate) struct Stream<'a> {
    /// Whose it is.
    pub(crate) guest: usize,
    /// The virtqueue.
    pub(crate) queue: &'a mut Queue,
    /// Where the memory for its requests is.
    pub(crate) slots: u64,
    /// The requests to send, in this order.
    pub(crate) order: Vec<u32>,
    /// What they are.
    pub(crate) requests: Box<dyn Requests + 'a>,
}

/// What a run came to.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) pages: u64,
    pub(crate) requests: u64,
    /// Pages that fared as they should.
    pub(crate) ok: u64,
    pub(crate) seconds: f64,
    /// Notifications of the device.
    pub(crate) kicks: u64,
    /// How long requests took, in nanoseconds.
    pub(crate) latency: Latency,
    pub(crate) guests: Vec<Share>,
}

/// Half of the requests, 99 and 99.9 in a hundred took no longer.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Latency {
    p50: u32,
    p99: u32,
    p999: u32,
}

impl Latency {
    fn of(times: &mut [u32]) -> Self {
        times.sort_unstable();
        let at = |share: f64| {
            let n = (times.len() as f64 * share) as usize;
            times
                .get(n.min(times.len().saturating_sub(1)))
                .copied()
                .unwrap_or(0)
        };
        Self {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
        }
    }
}

/// What one guest had of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Share {
    pages: u64,
    latency: Latency,
}

/// What one stream came to.
#[derive(Default)]
struct Tally {
    guest: usize,
    ok: u64,
    kicks: u64,
    times: Vec<u32>,
}

/// Keeps the calling thread on one processor.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("no processor {cpu}"))
}

/// Sends all that the streams have, from threads on one processor.
pub(crate) fn run(streams: Vec<Stream<'_>>, pace: &Pace, cpu: usize) -> Result<Outcome> {
    ensure!(
        (1..=SLOTS).contains(&pace.depth),
        "the depth is not 1 to {SLOTS}"
    );
    ensure!(
        !pace.wait || streams.len() <= pace.threads,
        "a thread can wait for one virtqueue only"
    );
    let guests = streams
        .iter()
        .map(|stream| stream.guest + 1)
        .max()
        .unwrap_or(0);
    let threads = pace.threads.clamp(1, streams.len().max(1));
    let mut shares: Vec<Vec<Stream<'_>>> = (0..threads).map(|_| Vec::new()).collect();
    for (n, stream) in streams.into_iter().enumerate() {
        shares[n % threads].push(stream);
    }
    let start = Barrier::new(threads);
    let runs = thread::scope(|scope| {
        let started = shares.into_iter().map(|streams| {
            let start = &start;
            scope.spawn(move || {
                pin(cpu)?;
                Runner::new(streams, pace, threads > 1).run(start)
            })
        });
        let started: Vec<_> = started.collect();
        let ended = started
            .into_iter()
            .map(|thread| thread.join().expect("no thread panics"));
        ended.collect::<Result<Vec<_>>>()
    })?;
    let began = runs
        .iter()
        .map(|(began, _, _)| *began)
        .min()
        .context("no streams")?;
    let ended = runs
        .iter()
        .map(|(_, ended, _)| *ended)
        .max()
        .context("no streams")?;
    let mut outcome = Outcome {
        pages: 0,
        requests: 0,
        ok: 0,
        seconds: (ended - began).as_secs_f64(),
        kicks: 0,
        latency: Latency::default(),
        guests: Vec::new(),
    };
    let mut by_guest: Vec<Vec<u32>> = vec![Vec::new(); guests];
    for tally in runs.into_iter().flat_map(|(_, _, tallies)| tallies) {
        outcome.requests += tally.times.len() as u64;
        outcome.ok += tally.ok;
        outcome.kicks += tally.kicks;
        by_guest[tally.guest].extend(tally.times);
    }
    outcome.pages = outcome.requests * u64::from(pace.batch);
    outcome.guests = by_guest
        .iter_mut()
        .map(|times| Share {
            pages: times.len() as u64 * u64::from(pace.batch),
            latency: Latency::of(times),
        })
        .collect();
    outcome.latency = Latency::of(&mut by_guest.concat());
    Ok(outcome)
}

/// A stream at work.
struct Active<'a> {
    stream: Stream<'a>,
    /// The next of its order.
    next: usize,
    free: Vec<usize>,
    /// By first descriptor: the slot, the request, and when it was sent.
    flying: Vec<Option<(usize, u32, Instant)>>,
    parts: Vec<Part>,
    tally: Tally,
}

/// One thread's streams.
struct Runner<'a, 'p> {
    streams: Vec<Active<'a>>,
    pace: &'p Pace,
    /// Others need the processor too.
    yields: bool,
}

impl<'a, 'p> Runner<'a, 'p> {
    fn new(streams: Vec<Stream<'a>>, pace: &'p Pace, yields: bool) -> Self {
        let active = |stream: Stream<'a>| Active {
            next: 0,
            free: (0..pace.depth).collect(),
            flying: vec![None; usize::from(stream.queue.size())],
            parts: Vec::new(),
            tally: Tally {
                guest: stream.guest,
                times: Vec::with_capacity(stream.order.len()),
                ..Tally::default()
            },
            stream,
        };
        Self {
            streams: streams.into_iter().map(active).collect(),
            pace,
            yields,
        }
    }

    fn run(mut self, start: &Barrier) -> Result<(Instant, Instant, Vec<Tally>)> {
        for active in &self.streams {
            active.stream.queue.poll_only();
        }
        start.wait();
        let began = Instant::now();
        let deadline = self
            .pace
            .seconds
            .map(|s| began + Duration::from_secs_f64(s));
        let mut over = false;
        loop {
            let (mut idle, mut done) = (true, true);
            for active in &mut self.streams {
                active.send(deadline.is_some(), over)?;
                idle &= active.receive(deadline)? == 0;
                done &= active.done(self.pace.depth, deadline.is_some(), over);
            }
            if done {
                break;
            }
            over = over || deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if !idle {
                continue;
            }
            if self.pace.wait {
                for active in &mut self.streams {
                    active.stream.queue.wait()?;
                }
            } else if self.yields {
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        let ended = deadline.unwrap_or_else(Instant::now);
        let tallies = self
            .streams
            .into_iter()
            .map(|active| active.tally)
            .collect();
        Ok((began, ended, tallies))
    }
}

impl Active<'_> {
    fn send(&mut self, again: bool, over: bool) -> Result<()> {
        let mut sent = false;
        while let Some(slot) = self.free.pop() {
            if again && self.next == self.stream.order.len() {
                self.next = 0;
            }
            if over || self.next == self.stream.order.len() {
                self.free.push(slot);
                break;
            }
            let n = self.stream.order[self.next];
            self.next += 1;
            let at = self.stream.slots + (slot * PAGE) as u64;
            self.parts.clear();
            self.stream.requests.build(n, at, &mut self.parts);
            let began = Instant::now();
            let table = at + TABLE_OFFSET;
            let head = self.stream.queue.add_indirect(table, &self.parts);
            let head = head.context("no free descriptor")?;
            self.flying[usize::from(head)] = Some((slot, n, began));
            sent = true;
        }
        if sent && self.stream.queue.notify() {
            self.tally.kicks += 1;
        }
        Ok(())
    }

    /// Takes what is there, and returns how much that was. What comes after the deadline does not
    /// count.
    fn receive(&mut self, deadline: Option<Instant>) -> Result<usize> {
        let mut count = 0;
        while let Some((head, len)) = self.stream.queue.next_used() {
            let now = Instant::now();
            let flying = self.flying[usize::from(head)].take();
            let (slot, n, began) = flying.context("a request came back that was not sent")?;
            let at = self.stream.slots + (slot * PAGE) as u64;
            let ok = self.stream.requests.finish(n, at, len)?;
            if deadline.is_none_or(|deadline| now <= deadline) {
                self.tally.ok += u64::from(ok);
                let time = (now - began).as_nanos();
                self.tally
                    .times
                    .push(u32::try_from(time).unwrap_or(u32::MAX));
            }
            self.free.push(slot);
            count += 1;
        }
        Ok(count)
    }

    fn done(&self, depth: usize, again: bool, over: bool) -> bool {
        let sent = over || (!again && self.next == self.stream.order.len());
        sent && self.free.len() == depth
    }
}

/// Where in the memory of a slot its indirect table is.
const TABLE_OFFSET: u64 = 3072;
