// SPDX-License-Identifier: GPL-2.0

//! Finding and opening the window, and keeping it over a reset.

use kernel::{
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    },
};
use virtio_tmem_abi::{
    window_flags,
    Le32,
    Opcode,
    Status,
    WindowOpen,
    EPOCH_NONE, //
};
use zerocopy::IntoBytes;

use crate::{
    bindings::memory::total_pages,
    window::{
        self,
        Source, //
    },
};

use super::{
    super::{
        logic::window::Serves,
        request::Origin,
        Client,
        Pool, //
    },
    Window, //
};

impl<O: Origin> Client<O> {
    /// Opens the window, if the device has one; with `resume` what was granted before stays granted.
    ///
    /// Where it cannot be used a line says why, and all goes on without it. Fails only where nothing
    /// else could be asked either: there is another epoch, which is [`ESTALE`], or there are no
    /// virtqueues any more. May sleep, but not for longer than the device is given time for.
    pub(crate) fn open_window(&self, resume: bool) -> Result {
        let Some(identity) = &self.identity else {
            return Ok(());
        };
        let flags = if resume { window_flags::RESUME } else { 0 };
        let open = WindowOpen {
            flags: Le32::new(flags),
            reserved: [0; 12],
        };

        if let Some(window) = self.window() {
            // Before it is somebody's who grants chunks in generations that were those of others.
            self.find_lost(window, self.serves(window, identity) == Serves::Nobody);
        }
        match self.ask(Opcode::WindowOpen, Pool::Frontswap, open.as_bytes()) {
            Ok(Status::Ok) => (),
            Ok(Status::StaleEpoch) => return Err(ESTALE),
            Ok(status) => {
                pr_warn!(
                    "the host does not open its window ({status:?}), see its log: pages go by \
                     requests\n"
                );
                if let Some(window) = self.window() {
                    self.find_lost(window, false);
                }
                return Ok(());
            }
            Err(error) if error == ENODEV || self.is_gone() => return Err(error),
            Err(error) => {
                pr_warn!(
                    "the host's window is not opened ({error:?}): pages go by requests until the \
                     driver is bound anew\n"
                );
                return Ok(());
            }
        }
        if self.window.as_ref().is_none() {
            let Some(source) = window::find(identity) else {
                return Ok(());
            };
            if let Err(error) = self.begin_window(source) {
                pr_warn!("there is no memory for the window ({error:?}): pages go by requests\n");
                return Ok(());
            }
        }
        let Some(window) = self.window() else {
            return Ok(());
        };

        let serves = self.serves(window, identity);
        // All chunks were taken back, unless nobody has touched the window: so generations say nothing
        // of those that are granted from now on.
        let all = match serves {
            Serves::Now => !resume,
            Serves::Before => false,
            Serves::Nobody => true,
        };
        self.find_lost(window, all);
        if serves != Serves::Now {
            pr_warn!(
                "the window that QEMU has is not the one that the host has opened: pages go by \
                 requests; to have a window again, start QEMU anew with the file that the daemon made\n"
            );
            return Ok(());
        }
        if !resume {
            *window.asked.lock() = None;
        }
        window.opened.store(self.epoch(), Relaxed);
        window.open.store(true, Relaxed);
        self.want_chunks();
        Ok(())
    }

    /// Looks whose the window's memory is.
    fn serves(&self, window: &Window, identity: &[u8; 16]) -> Serves {
        let header = window.source.header();
        let opened = window.opened.load(Relaxed);

        Serves::of(
            header.as_ref(),
            kernel::page::PAGE_SHIFT as u8,
            identity,
            self.epoch(),
            (opened != EPOCH_NONE).then_some(opened),
        )
    }

    fn begin_window(&self, source: Arc<Source>) -> Result {
        // CAST: Clamped.
        let remembered = total_pages().clamp(1, 1 << 24) as u32;
        let window = Window::new(source, remembered)?;

        self.window.populate(window);
        Ok(())
    }

    /// Has what is in the window outlive a reset that follows. May sleep.
    pub(in super::super) fn keep_window(&self) {
        if self.window().is_some_and(Window::is_open) {
            // What has become of it is seen when it is open again.
            let _ = self.ask(Opcode::WindowKeep, Pool::Frontswap, &[]);
        }
    }

    /// Has nothing put into the window, nor chunks looked after, until it is opened again. May sleep,
    /// but not for long.
    pub(in super::super) fn close_window(&self) {
        if let Some(window) = self.window() {
            window.open.store(false, Relaxed);
            // Who has seen it open and looks for lost chunks is done after that.
            drop(window.turn.lock());
        }
    }
}
