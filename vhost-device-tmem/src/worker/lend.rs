// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Looking after windows.

use std::{
    io,
    sync::Arc,
    thread::{self, Thread},
    time::Duration,
};

use crate::device::Lenders;

/// The time between two looks while there is something to do.
const BUSY: Duration = Duration::from_millis(20);

/// The time between two looks while a guest uses its window.
const OPEN: Duration = Duration::from_millis(500);

/// The time between two looks while no guest does.
const CLOSED: Duration = Duration::from_secs(2);

/// Starts the thread that looks after the windows, which runs until the process ends. It looks at once
/// when it is unparked.
///
/// # Errors
///
/// The operating system's, where there is no thread left.
pub(super) fn start(lenders: Arc<Lenders>) -> io::Result<Thread> {
    let looking = move || loop {
        let busy = lenders.look();
        thread::park_timeout(if busy {
            BUSY
        } else if lenders.are_open() {
            OPEN
        } else {
            CLOSED
        });
    };
    let name = "windows".to_owned();
    let handle = thread::Builder::new().name(name).spawn(looking)?;
    Ok(handle.thread().clone())
}
