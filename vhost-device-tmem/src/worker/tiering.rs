// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Looking after the tier below the store.

use std::{
    io,
    sync::Arc,
    thread::{self, Thread},
    time::{Duration, Instant},
};

use crate::{backoff::Backoff, store::Store};

/// The time between two looks while nothing was evicted.
const LOOK: Duration = Duration::from_millis(50);

/// Starts the thread that looks after the tier, which runs until the process ends. It looks at once when
/// it is unparked. It alone waits for the tier where that is slow: nothing new is moved there meanwhile.
///
/// # Errors
///
/// The operating system's, where there is no thread left.
pub(super) fn start(store: Arc<Store>) -> io::Result<Thread> {
    let tending = move || {
        let mut failures = Backoff::default();
        loop {
            let pause = match store.tend_tier() {
                Ok(more) => {
                    let before = failures.succeeded();
                    if before > 0 {
                        tracing::info!(
                            "pages are moved to the tier again, after {before} failures"
                        );
                    }
                    if more {
                        continue;
                    }
                    LOOK
                }
                Err(error) => {
                    let now = Instant::now();
                    if failures.failed(now) {
                        tracing::error!("no pages are moved to the tier for now: {error}");
                    }
                    let until = failures.until(now).unwrap_or(now);
                    thread::sleep(until.saturating_duration_since(now));
                    continue;
                }
            };
            thread::park_timeout(pause);
        }
    };
    let handle = thread::Builder::new()
        .name("tier".to_owned())
        .spawn(tending)?;
    Ok(handle.thread().clone())
}
