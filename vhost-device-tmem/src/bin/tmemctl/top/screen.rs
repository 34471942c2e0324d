// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The terminal, which is given back as it was, however this ends.

use std::{
    io,
    process::exit,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ratatui::{DefaultTerminal, Frame};
use vhost_device_tmem::{
    signals::{Signal, Signals},
    stop::Running,
};

/// A terminal that shows nothing but what is drawn. It is given back when this is dropped, when a
/// thread panics, and when a signal ends the process.
pub(super) struct Screen(Arc<Mutex<DefaultTerminal>>);

impl Screen {
    /// Takes the terminal over. To be called before there are other threads.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn enter() -> io::Result<Self> {
        let signals = Signals::block()?;
        let terminal = Arc::new(Mutex::new(ratatui::try_init()?));
        let this = Self(Arc::clone(&terminal));
        // It runs until the process ends.
        let _ends_with_the_process = Running::start("signals", move |stop| {
            if let Ok(Some(signal)) = signals.wait(stop) {
                // Nothing is drawn any more once the lock is held.
                let _drawing = lock(&terminal);
                ratatui::restore();
                exit(code(signal));
            }
        })?;
        Ok(this)
    }

    /// Draws a frame.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn draw(&self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        lock(&self.0).draw(draw)?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn lock(terminal: &Mutex<DefaultTerminal>) -> MutexGuard<'_, DefaultTerminal> {
    terminal.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns what shells say of a process that a signal has ended.
fn code(signal: Signal) -> i32 {
    128 + match signal {
        Signal::Terminate => libc::SIGTERM,
        Signal::Interrupt => libc::SIGINT,
        Signal::Reload => libc::SIGHUP,
        Signal::Statistics => libc::SIGUSR1,
        Signal::Upgrade => libc::SIGUSR2,
    }
}
