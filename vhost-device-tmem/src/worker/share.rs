// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sharing memory anew: once a second, and at once where the host is short.

use std::{
    io,
    sync::Arc,
    thread::{self, Thread},
    time::{Duration, Instant},
};

use super::operated::Daemon;
use crate::{
    pressure::{Allowance, Files},
    size::Bytes,
};

/// The time between two steps of the policy.
const STEP: Duration = Duration::from_secs(1);

/// The time between two looks at how short of memory the host is.
const LOOK: Duration = Duration::from_millis(200);

/// Starts the thread that shares memory, which runs until the process ends. `lending` is the thread
/// that looks after windows, if there is one.
///
/// # Errors
///
/// The operating system's, where there is no thread left.
pub(super) fn start(daemon: Arc<Daemon>, files: Files, lending: Option<Thread>) -> io::Result<()> {
    let name = "sharing".to_owned();
    let sharing = move || {
        let mut pressed = Pressed::default();
        let mut last = Instant::now();
        let mut stepped = last;
        loop {
            // Where guests hold nothing there is nothing to be given back at once.
            let idle = files.is_empty() || daemon.held().0 == 0;
            thread::sleep(if idle { STEP } else { LOOK });
            let now = Instant::now();
            let elapsed = now.saturating_duration_since(last);
            last = now;
            let changed = !files.is_empty() && pressed.look(&daemon, &files, elapsed);
            if !changed && now < stepped + STEP {
                continue;
            }
            stepped = now;
            daemon.share();
            if let Some(lending) = lending.as_ref().filter(|_| changed) {
                lending.unpark();
            }
        }
    };
    thread::Builder::new().name(name).spawn(sharing)?;
    Ok(())
}

/// What is known of the host's shortage.
#[derive(Debug, Default)]
struct Pressed {
    allowance: Allowance,
    withheld: u64,
    told: bool,
}

impl Pressed {
    /// Looks how much guests may have. Returns whether it is less than before.
    fn look(&mut self, daemon: &Daemon, files: &Files, elapsed: Duration) -> bool {
        let (held, all) = daemon.held();
        let allowed = self.allowance.follow(&files.read(), held, all, elapsed);
        let before = std::mem::replace(&mut self.withheld, all - allowed);
        daemon.set_withheld(self.withheld);
        if self.allowance.is_short() && self.withheld > before && !self.told {
            tracing::warn!(
                "the host is short of memory: guests have {} of {} until it is not",
                Bytes(allowed),
                Bytes(all)
            );
            self.told = true;
        }
        if self.told && self.withheld == 0 {
            tracing::info!("the host is not short of memory any more: guests have all again");
            self.told = false;
        }
        self.withheld > before
    }
}
