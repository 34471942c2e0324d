// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Carrying out requests about the window, a chunk at a time: each takes as long as hundreds of
//! pages.

use virtio_tmem_abi::{
    window_flags, Chunk, ChunkGrant, ChunkKind, Key, Malformed, PageResult, SlotKey, Status,
    WindowOpen, FIRST_CHUNK, MAX_GRANT,
};

use super::{
    execute::{Answer, State, Step},
    lender::Lender,
    meter::Meter,
    request::Reject,
    session::Session,
};
use crate::store::{PoolError, Progress};

/// Pages that a chunk that is given memory, or loses it, counts for.
const CHUNK_PAGES: usize = 256;

/// Chunks that are taken back at a time.
const STEP: usize = 1;

impl Session {
    fn lender(&self) -> Result<&Lender, Reject> {
        let lender = self.lender.as_deref();
        lender.ok_or(Reject::Status(Status::Unsupported))
    }

    /// Stores pages that are in the window. One without a window has none.
    ///
    /// # Errors
    ///
    /// There is no such pool.
    pub(super) fn put_slots(
        &self,
        pool: u32,
        entries: &[SlotKey],
        results: &mut [PageResult],
    ) -> Result<(), PoolError> {
        let Some(lender) = &self.lender else {
            return Ok(());
        };
        let keys: Vec<Key> = entries.iter().map(|entry| entry.key).collect();
        let mut source = lender.source(entries);
        let guest = self.pools.guest();
        self.store.put(guest, pool, &keys, &mut source, results)
    }

    /// Goes on with opening the window.
    ///
    /// # Errors
    ///
    /// What the response says.
    pub(super) fn open_window(&self, open: &WindowOpen, meter: &mut Meter) -> Result<Step, Reject> {
        meter.walked(CHUNK_PAGES);
        if open.reserved != [0; 12] {
            return Err(Malformed::Reserved.into());
        }
        let flags = open.flags.get();
        if flags & !window_flags::RESUME != 0 {
            return Err(Malformed::Flags.into());
        }
        let resume = flags & window_flags::RESUME != 0;
        Ok(match self.lender()?.open(resume, self.epoch(), STEP)? {
            Progress::More => Step::More,
            Progress::Done => Step::Done(Answer::Nothing),
        })
    }

    /// Has the window outlive resets.
    ///
    /// # Errors
    ///
    /// What the response says.
    pub(super) fn keep_window(&self, meter: &mut Meter) -> Result<Step, Reject> {
        meter.walked(1);
        self.lender()?.keep()?;
        Ok(Step::Done(Answer::Nothing))
    }

    /// Goes on with granting chunks.
    ///
    /// # Errors
    ///
    /// What the response says.
    pub(super) fn grant_chunks(
        &self,
        wanted: &ChunkGrant,
        state: &mut State,
        meter: &mut Meter,
    ) -> Result<Step, Reject> {
        let lender = self.lender()?;
        let kind = ChunkKind::from_wire(wanted.kind.get()).ok_or(Malformed::Chunk)?;
        let count = wanted.count.get();
        if !(1..=MAX_GRANT).contains(&count) {
            return Err(Malformed::Chunk.into());
        }
        lender.require_open()?;
        let granted = match state.next {
            0 => lender.begin_grant(wanted.ticket.get()),
            next => next as u32 - 1,
        };
        if granted < count {
            meter.walked(CHUNK_PAGES);
            if lender.grant(kind) {
                state.next = granted as usize + 2;
                return Ok(Step::More);
            }
            lender.refused(kind, count - granted);
        }
        Ok(Step::Done(Answer::Chunks(Box::new(lender.granted()))))
    }

    /// Goes on with taking chunks back that the driver returns.
    ///
    /// # Errors
    ///
    /// What the response says.
    pub(super) fn return_chunks(
        &self,
        chunks: &[Chunk],
        state: &mut State,
        meter: &mut Meter,
    ) -> Result<Step, Reject> {
        let lender = self.lender()?;
        let there = FIRST_CHUNK..lender.chunks();
        if chunks.iter().any(|c| !there.contains(&c.number.get())) {
            meter.walked(1);
            return Err(Malformed::Chunk.into());
        }
        lender.require_open()?;
        if let Some(chunk) = chunks.get(state.next) {
            meter.walked(CHUNK_PAGES);
            lender.give_back(chunk);
            state.next += 1;
        }
        Ok(if state.next < chunks.len() {
            Step::More
        } else {
            Step::Done(Answer::Nothing)
        })
    }
}
