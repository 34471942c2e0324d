// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What operators have done to a guest's pages. It may take long, so that each operation has a thread
//! of its own, which answers.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        atomic::{AtomicUsize, Ordering},
        Arc,
    },
    thread,
};

use uuid::Uuid;

use crate::{
    control::answer_passed,
    device::{Flushed, OperateError, Session},
    size::Bytes,
    store::{Store, Walk},
};

/// The most operations that are carried out at a time.
const MOST: usize = 8;

/// The operations that are under way.
#[derive(Debug, Default)]
pub(super) struct Operations(Arc<AtomicUsize>);

/// One of those.
struct Ticket(Arc<AtomicUsize>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Operations {
    /// Has `work` done, and what comes of it answered on the operator's connection.
    ///
    /// # Errors
    ///
    /// Why it is not begun.
    pub(super) fn answer(
        &self,
        operator: BorrowedFd<'_>,
        work: impl FnOnce() -> Result<String, String> + Send + 'static,
    ) -> Result<(), String> {
        self.begin(operator, move |operator| {
            answer_passed(operator.as_fd(), work());
        })
    }

    /// Has `work` done, which has the operator's connection.
    ///
    /// # Errors
    ///
    /// Why it is not begun.
    pub(super) fn begin(
        &self,
        operator: BorrowedFd<'_>,
        work: impl FnOnce(OwnedFd) + Send + 'static,
    ) -> Result<(), String> {
        if self.0.fetch_add(1, Ordering::AcqRel) >= MOST {
            self.0.fetch_sub(1, Ordering::AcqRel);
            return Err(format!("{MOST} operations are under way; wait for one"));
        }
        let ticket = Ticket(Arc::clone(&self.0));
        let begun = operator.try_clone_to_owned().and_then(|operator| {
            let thread = thread::Builder::new().name("operation".to_owned());
            thread.spawn(move || {
                let _ticket = ticket;
                work(operator);
            })
        });
        begun
            .map(drop)
            .map_err(|error| format!("it cannot be begun: {error}"))
    }
}

/// Drops ephemeral pages of a guest, and says which.
///
/// # Errors
///
/// What is wrong with the pool.
pub(super) fn flush(name: &str, session: &Session, pool: Option<u32>) -> Result<String, String> {
    let told = |error: OperateError| format!("guest {name:?}: {error}");
    let Flushed { pages, chunks } = session.flush_ephemeral(pool).map_err(told)?;
    let mut said = format!("{pages} ephemeral pages of guest {name:?} dropped");
    match (session.window(), pool) {
        (None, _) => {}
        (Some(_), None) => {
            said += &format!(", and {} of its window taken back", window_bytes(chunks));
        }
        (Some(_), Some(pool)) => {
            said += &format!(
                "; what is in its window stays, as nobody but the guest knows what of it is of \
                 pool {pool}"
            );
        }
    }
    tracing::info!("{said}");
    Ok(said)
}

/// Drops what a shared pool has now, and says what that was.
pub(super) fn flush_shared(store: &Store, uuid: Uuid) -> String {
    let pool = store.shared_pool(uuid);
    let walk = pool.map(|(owner, number)| Walk::flush_pool(store, &owner, number));
    let pages = match walk {
        Some(Ok(mut walk)) => {
            walk.finish();
            walk.visited()
        }
        // No guest has access, so that it has no pages.
        Some(Err(_)) | None => 0,
    };
    let said = format!("{pages} pages of shared pool {uuid} dropped");
    tracing::info!("{said}");
    said
}

/// Says what was dropped of a guest of which nothing persistent was lost.
pub(super) fn emptied(name: &str, flushed: Flushed) -> String {
    let Flushed { pages, chunks } = flushed;
    let said = format!(
        "{pages} ephemeral pages and {} of the window of guest {name:?} dropped; it had no persistent \
         pages, and its pools are empty",
        window_bytes(chunks)
    );
    tracing::info!("{said}");
    said
}

fn window_bytes(chunks: u64) -> Bytes {
    Bytes(chunks.saturating_mul(crate::window::CHUNK))
}
