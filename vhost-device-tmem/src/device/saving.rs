// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writing a guest's persistent pages to a stream, of which most may be written while the guest runs.
//!
//! What changed meanwhile is found by the pages' versions: a driver gives no other contents the version
//! of some that it has put. That takes nothing of who puts pages, and some 60 bytes for each page that
//! was written while the guest ran.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use virtio_tmem_abi::{Key, PageResult};

use super::{lender::NoPersistent, session::Session};
use crate::{
    saved::{Contents, GuestHead, Page, PoolHead, Record, Totals, Writer, MAX_PAGES},
    store::{PageBytes, PageSink, PoolKind, PAGE_SHIFT},
};

/// Why a guest is not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// It runs.
    #[error("its virtqueues run: stop the machine first (QEMU: stop), or save --live")]
    Runs,
    /// It ran again before all was written.
    #[error("the machine ran again before all was saved")]
    RanAgain,
    /// The connection ended.
    #[error("its connection, or its epoch, ended meanwhile")]
    Ended,
    /// There are pages of which nobody but the guest knows what they are.
    #[error(
        "it has {0} persistent chunks of its window, and only its driver knows what is in them: save \
         --live while the machine runs, which asks the driver to move that to the store"
    )]
    Window(u32),
    /// The driver was asked for them, and keeps them.
    #[error(
        "its driver did not move what is in {0} persistent chunks of its window to the store, where \
         there may be no room, or the guest is frozen"
    )]
    NotReturned(u32),
    /// Whoever takes the stream does so no more.
    #[error("it cannot be written: {0}")]
    Io(#[from] io::Error),
}

/// Returns how many persistent chunks of its window a guest has.
fn window_chunks(session: &Session) -> u32 {
    session.lender.as_ref().map_or(0, |it| it.persistent())
}

/// Looks whether the store has all persistent pages of a guest.
fn may_save(session: &Session) -> Result<(), SaveError> {
    match window_chunks(session) {
        0 => Ok(()),
        chunks => Err(SaveError::Window(chunks)),
    }
}

/// A key without its version: pool, object and index.
type Place = (u32, [u64; 3], u64);

fn place(pool: u32, key: &Key) -> Place {
    (pool, key.object.0.map(|part| part.get()), key.index.get())
}

fn key_of((_, object, index): &Place) -> Key {
    Key {
        object: virtio_tmem_abi::ObjectId(object.map(Into::into)),
        index: (*index).into(),
        version: 0.into(),
    }
}

/// What was written under a key.
#[derive(Clone, Copy, Debug)]
struct Sent {
    version: u64,
    /// It was there at the last look.
    there: bool,
}

/// A guest that is being saved.
#[derive(Debug)]
pub struct Saving<'s, W> {
    session: &'s Session,
    /// Where there is a window, nothing more of it comes to hold pages that the store does not have.
    _no_persistent: Option<NoPersistent<'s>>,
    output: Writer<W>,
    /// What was written while the guest ran; nothing where it does not.
    sent: Option<HashMap<Place, Sent>>,
    /// Times that virtqueues were started, when they last all stood still.
    starts: u64,
    /// Pages that cannot be read back.
    damaged: u64,
}

impl<'s, W: Write> Saving<'s, W> {
    /// Begins to save a guest: one that runs only if it is to be saved `live`. `output` is asked for
    /// once it is known that there is something to write.
    ///
    /// # Errors
    ///
    /// [`SaveError`].
    pub fn begin(
        session: &'s Session,
        live: bool,
        output: impl FnOnce() -> io::Result<W>,
    ) -> Result<Self, SaveError> {
        let starts = session.starts();
        if !live && session.runs() {
            return Err(SaveError::Runs);
        }
        let no_persistent = session.lender.as_ref().map(|it| it.grant_no_persistent());
        if !live {
            may_save(session)?;
        }
        let mut output = Writer::new(output()?)?;
        output.write(&Record::Guest(GuestHead {
            epoch: session.epoch(),
            page_shift: PAGE_SHIFT,
            name: session.name.clone(),
        }))?;
        let pools = session.pools().into_iter();
        for pool in pools.filter(|pool| pool.kind == PoolKind::Persistent) {
            if let Ok(hold) = session.store.hold(session.pools.guest(), pool.pool) {
                let number = pool.pool;
                output.write(&Record::Pool(PoolHead { number, hold }))?;
            }
        }
        Ok(Self {
            session,
            _no_persistent: no_persistent,
            output,
            sent: live.then(HashMap::new),
            starts,
            damaged: 0,
        })
    }

    /// Asks the guest for the persistent chunks of its window, of which its driver moves the pages to
    /// the store. Returns how many it still has. It is to be asked again until it has none.
    ///
    /// # Errors
    ///
    /// [`SaveError::Window`]: it does not run, and so cannot hear of that.
    pub fn recall(&self) -> Result<u32, SaveError> {
        let chunks = window_chunks(self.session);
        if chunks > 0 {
            if !self.session.runs() {
                return Err(SaveError::Window(chunks));
            }
            self.session.recall(chunks);
        }
        Ok(chunks)
    }

    /// Writes what there is while the guest runs.
    ///
    /// # Errors
    ///
    /// [`SaveError`].
    pub fn write_live(&mut self) -> Result<(), SaveError> {
        self.pass()?;
        let pages = self.output.totals().pages;
        Ok(self.output.write(&Record::Live { pages })?)
    }

    /// Has all that was written sent.
    ///
    /// # Errors
    ///
    /// [`SaveError::Io`].
    pub fn flush(&mut self) -> Result<(), SaveError> {
        Ok(self.output.flush()?)
    }

    /// Returns whether the guest stands still, so that the rest can be written.
    pub fn may_finish(&mut self) -> bool {
        self.starts = self.session.starts();
        !self.session.runs()
    }

    /// Writes the rest. Returns how much there is in the stream, and how many pages are missing there.
    ///
    /// # Errors
    ///
    /// [`SaveError`], and the stream says that it has no end.
    pub fn finish(mut self) -> Result<Totals, SaveError> {
        match self.write_rest() {
            Ok(()) => Ok(self.output.end()?),
            Err(error) => {
                self.fail(&error.to_string());
                Err(error)
            }
        }
    }

    /// Says in the stream why it has no end.
    pub fn fail(&mut self, why: &str) {
        // Whoever does not hear that sees that there is no end.
        let _ = self.output.write(&Record::Failed(why.to_owned()));
        let _ = self.output.flush();
    }

    fn write_rest(&mut self) -> Result<(), SaveError> {
        self.damaged = 0;
        self.pass()?;
        self.write_gone()?;
        if self.session.has_ended() {
            return Err(SaveError::Ended);
        }
        if self.session.runs() || self.session.starts() != self.starts {
            return Err(SaveError::RanAgain);
        }
        may_save(self.session)?;
        if self.damaged > 0 {
            let pages = self.damaged;
            self.output.write(&Record::Damaged { pages })?;
        }
        Ok(())
    }

    /// Goes over all pages, and writes those that were not written as they are.
    fn pass(&mut self) -> Result<(), SaveError> {
        for sent in self.sent.iter_mut().flat_map(HashMap::values_mut) {
            sent.there = false;
        }
        let (store, guest) = (&self.session.store, self.session.pools.guest());
        let (mut from, mut found) = (Some(0), Vec::new());
        while let Some(place) = from {
            found.clear();
            from = store.scan(guest, place, &mut found);
            found.retain(|(pool, key)| !self.was_sent(*pool, key));
            // Pages next to each other in the store are mostly of one pool.
            for group in found.chunk_by(|(one, _), (other, _)| one == other) {
                for keys in group.chunks(MAX_PAGES) {
                    let of = keys[0].0;
                    let keys: Vec<_> = keys.iter().map(|(_, key)| *key).collect();
                    self.write_pages(of, &keys)?;
                }
            }
        }
        Ok(())
    }

    /// Returns whether a page was written as it is, and notes that it is there.
    fn was_sent(&mut self, pool: u32, key: &Key) -> bool {
        let sent = self
            .sent
            .as_mut()
            .and_then(|it| it.get_mut(&place(pool, key)));
        sent.is_some_and(|sent| {
            sent.there = sent.version == key.version.get();
            sent.there
        })
    }

    fn write_pages(&mut self, pool: u32, keys: &[Key]) -> Result<(), SaveError> {
        let (store, guest) = (&self.session.store, self.session.pools.guest());
        let mut sink = Copies(vec![None; keys.len()]);
        let mut results = vec![PageResult::Miss; keys.len()];
        // What is not there any more is told by the next look, and that of a pool by its number.
        let _ = store.copy_out_of(guest, pool, keys, &mut sink, &mut results);
        let mut pages = Vec::new();
        for ((key, result), contents) in keys.iter().zip(results).zip(sink.0) {
            self.damaged += u64::from(result == PageResult::Damaged);
            let Some(contents) = contents.filter(|_| result == PageResult::Hit) else {
                continue;
            };
            if let Some(sent) = &mut self.sent {
                let (version, there) = (key.version.get(), true);
                sent.insert(place(pool, key), Sent { version, there });
            }
            pages.push(Page {
                key: *key,
                contents,
            });
        }
        if pages.is_empty() {
            return Ok(());
        }
        Ok(self.output.write(&Record::Pages { pool, pages })?)
    }

    /// Writes which pages are not there any more.
    fn write_gone(&mut self) -> Result<(), SaveError> {
        let sent = self.sent.iter().flatten();
        let gone = sent.filter(|(_, sent)| !sent.there);
        let mut gone: Vec<_> = gone.map(|(place, _)| *place).collect();
        gone.sort_unstable();
        for group in gone.chunk_by(|one, other| one.0 == other.0) {
            for places in group.chunks(MAX_PAGES) {
                let keys = places.iter().map(key_of).collect();
                let pool = places[0].0;
                self.output.write(&Record::Gone { pool, keys })?;
            }
        }
        Ok(())
    }
}

/// Copies of pages.
struct Copies(Vec<Option<Contents>>);

impl PageSink for Copies {
    fn write_page(&mut self, n: usize, page: &PageBytes) -> bool {
        self.0[n] = Some(Contents::of(page));
        true
    }
}
