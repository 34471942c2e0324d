// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When and where a thread, and those that it starts later, run.

use std::io;

use rustix::thread::{sched_setaffinity, CpuSet};

/// Runs on this CPU only.
pub fn run_on(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Runs only when nobody else wants the CPU.
pub fn run_when_idle() -> io::Result<()> {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: The kernel only reads the parameters, which live until it has.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &priority) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
