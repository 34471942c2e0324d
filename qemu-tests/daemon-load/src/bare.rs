// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's work without the daemon: what can be had at best.

use std::{thread, time::Instant};

use anyhow::Result;
use memmap2::{Advice, MmapMut};
use rustix::time::{clock_gettime, ClockId};
use serde::Serialize;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{
    layout::{Layout, PAGE},
    load::pin,
};

/// How fast it was.
#[derive(Debug, Serialize)]
pub(crate) struct Speed {
    pages: u32,
    seconds: f64,
    /// Of processor time.
    cpu_seconds: f64,
}

/// The shared memory, and memory of our own of that size.
pub(crate) struct Bare<'a> {
    layout: &'a Layout,
    mem: GuestMemoryMmap,
    cpu: usize,
    small: MmapMut,
    huge: MmapMut,
}

impl<'a> Bare<'a> {
    /// Takes the memory.
    pub(crate) fn new(mem: &GuestMemoryMmap, layout: &'a Layout, cpu: usize) -> Result<Self> {
        let private = |advice| {
            let mut map = MmapMut::map_anon(layout.pages() as usize * PAGE)?;
            map.advise(advice)?;
            // So that none of it is taken while it is measured.
            map.fill(1);
            Ok::<_, std::io::Error>(map)
        };
        Ok(Self {
            layout,
            mem: mem.clone(),
            cpu,
            small: private(Advice::NoHugePage)?,
            huge: private(Advice::HugePage)?,
        })
    }

    /// Copies each page once, in an order in which nothing is in a cache.
    pub(crate) fn copy(&mut self, out: bool, huge: bool) -> Result<Speed> {
        let pages = self.layout.pages();
        let order = Layout::shuffled(pages);
        let (mem, layout) = (&self.mem, self.layout);
        let private = if huge {
            &mut self.huge
        } else {
            &mut self.small
        };
        timed(self.cpu, pages, || {
            for (page, at) in (0..).zip(order) {
                let at = at as usize * PAGE;
                let private = &mut private[at..at + PAGE];
                if out {
                    mem.read_slice(private, GuestAddress(layout.source(page)))?;
                } else {
                    mem.write_slice(private, GuestAddress(layout.target(page)))?;
                }
            }
            Ok(())
        })
    }
}

/// Runs `work` on a processor, and measures it.
pub(crate) fn timed(
    cpu: usize,
    pages: u32,
    work: impl FnOnce() -> Result<()> + Send,
) -> Result<Speed> {
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            pin(cpu)?;
            let (start, cpu_start) = (Instant::now(), cpu_seconds());
            work()?;
            Ok(Speed {
                pages,
                seconds: start.elapsed().as_secs_f64(),
                cpu_seconds: cpu_seconds() - cpu_start,
            })
        });
        run.join().expect("the thread does not panic")
    })
}

/// Returns the processor time that the calling thread has had.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
