// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where and when a thread runs.

use std::io;

use rustix::thread::{sched_getaffinity, sched_setaffinity, CpuSet};

/// Returns the CPUs that this thread may run on.
pub fn cpus() -> io::Result<Vec<usize>> {
    let all = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&cpu| all.is_set(cpu))
        .collect())
}

/// Lets this thread run on these CPUs only.
pub fn run_on(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu);
    }
    Ok(sched_setaffinity(None, &set)?)
}

/// Lets this thread run before all others that are not real-time threads of a higher priority.
///
/// Without the right to it, this does nothing.
pub fn real_time(priority: i32) {
    let param = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: The parameter is valid, and 0 stands for this thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) };
}
