// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the service manager is told of how the daemon is (`sd_notify(3)`).
//!
//! Where no service manager has started the daemon, nothing is said. Where one cannot be told, the
//! log says so once, and the daemon goes on.

use std::sync::atomic::{AtomicBool, Ordering};

use sd_notify::NotifyState;

/// The log was told of a failure.
static FAILED: AtomicBool = AtomicBool::new(false);

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        if !FAILED.swap(true, Ordering::Relaxed) {
            tracing::warn!("systemd cannot be told how the daemon is: {error}");
        }
    }
}

/// The daemon serves. To be called once all sockets are listened on.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The daemon stops.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// How the daemon is, in a line for `systemctl status`.
pub(super) fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

/// The configuration is being read again, until this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Reloading(());

impl Reloading {
    /// Says that it begins.
    pub(super) fn begin() -> Self {
        // systemd takes no reload that does not say when it began.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            tell(&[NotifyState::Reloading, now]);
        }
        Self(())
    }
}

impl Drop for Reloading {
    /// Says that it is over, whatever came of it.
    fn drop(&mut self) {
        ready();
    }
}
