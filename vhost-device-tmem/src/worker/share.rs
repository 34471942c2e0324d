// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sharing memory anew, once a second.

use std::{io, sync::Arc, thread, time::Duration};

use super::operated::Daemon;

/// The time between two steps of the policy.
const STEP: Duration = Duration::from_secs(1);

/// Starts the thread that shares memory, which runs until the process ends.
///
/// # Errors
///
/// The operating system's, where there is no thread left.
pub(super) fn start(daemon: Arc<Daemon>) -> io::Result<()> {
    let sharing = move || loop {
        thread::sleep(STEP);
        daemon.share();
    };
    let name = "sharing".to_owned();
    thread::Builder::new().name(name).spawn(sharing)?;
    Ok(())
}
