// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device that is filled, and what it says when there is room again.

use virtio_tmem_abi::{cap, Event, EventKind, Opcode, PageResult};

use crate::session::{
    demand, equal, fail, key, untestable, Outcome, Session, Target, DATA, HEADER,
};

const BATCH: usize = 16;
/// So many pages of one byte each come before those that fill it, from this index on.
const SMALL: u64 = 32;
const SMALL_AT: u64 = 1 << 40;
const EVENT: usize = size_of::<Event>();

/// A page that cannot be compressed.
fn random(rng: &mut fastrand::Rng, size: usize) -> Vec<u8> {
    (0..size).map(|_| rng.u8(..)).collect()
}

/// A driver of a device that refuses pages.
struct Full {
    session: Session,
    /// The last credits that it told.
    credits: u32,
}

/// Puts pages that cannot be compressed into a persistent pool until the device refuses one.
fn full(target: &Target) -> Outcome<Full> {
    let mut session = target.connect()?;
    session.persistent()?;
    let mut rng = fastrand::Rng::with_seed(1);
    let batch = BATCH.min(session.config().max_pages.get() as usize);
    let mut stored = 0;
    for n in 0..SMALL {
        session.store(0, key(SMALL_AT + n, 1), n as u8)?;
    }
    while stored < target.fill as u64 {
        let size = session.page_size();
        let pages: Vec<_> = (0..batch).map(|_| random(&mut rng, size)).collect();
        let keyed = pages.iter().zip(stored..);
        let put: Vec<_> = keyed.map(|(page, n)| (key(n, 1), &**page)).collect();
        let bytes = session.put_bytes(0, &put);
        let answer = session.send(DATA, &bytes, HEADER + batch)?;
        let results = answer.results(batch)?;
        let taken = results.iter().take_while(|r| **r == PageResult::Stored);
        let taken = taken.count();
        stored += taken as u64;
        if taken < batch {
            if !results[taken..].iter().any(|result| result.is_refusal()) {
                return fail(format_args!("{results:?} answer a put"));
            }
            let credits = answer.header.persistent_credits.get();
            return Ok(Full { session, credits });
        }
    }
    untestable(format_args!(
        "it takes {stored} pages and more: --fill, or a smaller device"
    ))
}

impl Full {
    fn empty(&mut self) -> Outcome {
        self.session.control(Opcode::FlushPool, 0).map(|_| ())
    }

    /// The same, where the device has told that it takes no more, so that it has to tell of room.
    fn without_credits(mut self) -> Outcome<Self> {
        // More of these make the credits follow what was refused.
        let page = vec![0x5c; self.session.page_size()];
        let refused = (key(u64::MAX, 1), &*page);
        let bytes = self.session.put_bytes(0, &[refused]);
        if self.credits != 0 {
            let answer = self.session.send(DATA, &bytes, HEADER + 1)?;
            self.credits = answer.header.persistent_credits.get();
        }
        if self.credits != 0 {
            return untestable(format_args!(
                "it refuses pages and tells {} credits",
                self.credits
            ));
        }
        Ok(self)
    }
}

/// The first event that a full device sends when it is empty again, into a buffer of `len` bytes
/// that is there before, or only afterwards.
fn event(target: &Target, len: usize, before: bool) -> Outcome<(Session, usize, Event)> {
    let mut full = full(target)?.without_credits()?;
    if before {
        full.session.offer_event(len);
    }
    full.empty()?;
    if !before {
        full.session.offer_event(len);
    }
    let (used, event) = full.session.event()?;
    Ok((full.session, used, event))
}

pub(crate) fn event_length(target: &Target) -> Outcome {
    let (_, used, _) = event(target, EVENT, true)?;
    equal("used length", used, EVENT)
}

pub(crate) fn event_reserved(target: &Target) -> Outcome {
    let (_, _, event) = event(target, EVENT, true)?;
    equal("reserved", event.reserved, [0; 6])
}

pub(crate) fn event_waits_for_a_buffer(target: &Target) -> Outcome {
    let (_, used, event) = event(target, EVENT, false)?;
    equal("used length", used, EVENT)?;
    let why = "the credits are not those of the time";
    demand(event.persistent_credits.get() != 0, why)
}

pub(crate) fn short_event_buffer(target: &Target) -> Outcome {
    let (_, used, _) = event(target, EVENT / 2, true)?;
    equal("used length", used, 0)
}

pub(crate) fn credits_event(target: &Target) -> Outcome {
    let (_, _, event) = event(target, EVENT, true)?;
    let wanted = EventKind::Credits.to_wire();
    equal("kind of event", event.kind.get(), wanted)
}

pub(crate) fn credits_event_when_all_is_free(target: &Target) -> Outcome {
    let (_, _, event) = event(target, EVENT, true)?;
    let why = "all is free, and it still tells no credits";
    demand(event.persistent_credits.get() != 0, why)
}

pub(crate) fn credits_follow_puts(target: &Target) -> Outcome {
    let mut full = full(target)?.without_credits()?;
    // What was carried out is to be in them already.
    let answer = full.session.control(Opcode::FlushPool, 0)?;
    let why = "the answer to FlushPool tells no credits";
    demand(answer.header.persistent_credits.get() != 0, why)
}

pub(crate) fn credits_of_no_pools(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    let answer = session.control(Opcode::PoolStats, 0)?;
    let told = &answer.header;
    let kinds = [
        (cap::PERSISTENT, told.persistent_credits.get()),
        (cap::EPHEMERAL, told.ephemeral_credits.get()),
    ];
    let mut none = kinds.into_iter().filter(|(kind, _)| !session.has(*kind));
    match none.next() {
        Some((_, credits)) => equal("credits", credits, 0),
        None => untestable("the device has pools of both kinds"),
    }
}

/// The first of two pages may be refused; the second is to be processed all the same, so that what
/// was stored in its place before is gone.
pub(crate) fn refused_put_lets_others_be(target: &Target) -> Outcome {
    let mut session = full(target)?.session;
    let mut rng = fastrand::Rng::with_seed(2);
    for n in 0..SMALL {
        let pages = [0, 1].map(|_| random(&mut rng, session.page_size()));
        let small = key(SMALL_AT + n, 2);
        let new = key(2 * SMALL_AT + n, 1);
        let results = session.put(0, &[(new, &pages[0]), (small, &pages[1])])?;
        session.miss("get of the page before", 0, key(SMALL_AT + n, 1))?;
        if results[1] == PageResult::Stored {
            let (result, page) = session.get_one(0, small)?;
            equal("get", result, PageResult::Hit)?;
            demand(page == pages[1], "the page is another")?;
        }
        if results[0].is_refusal() {
            return Ok(());
        }
    }
    untestable("no page is refused")
}

/// A page that grows is refused where there is no room.
pub(crate) fn refused_put_forgets(target: &Target) -> Outcome {
    let mut session = full(target)?.session;
    let mut rng = fastrand::Rng::with_seed(2);
    for n in 0..SMALL {
        let page = random(&mut rng, session.page_size());
        let small = key(SMALL_AT + n, 2);
        if session.put(0, &[(small, &page)])?[0].is_refusal() {
            return session.miss("get of the page before", 0, key(SMALL_AT + n, 1));
        }
    }
    untestable("each page that replaces another is taken")
}

pub(crate) fn flush_while_full(target: &Target) -> Outcome {
    let mut full = full(target)?;
    let key = key(0, 1);
    let flushed = full.session.flush(Opcode::FlushPage, 0, &[key])?;
    equal("flush", flushed[0], PageResult::Flushed)?;
    full.session.miss("get of what was flushed", 0, key)
}
