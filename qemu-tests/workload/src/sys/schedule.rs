// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When and where a thread, and those that it starts later, run.

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

/// Lets this thread run only when nobody else wants the CPU.
pub fn run_when_idle() -> io::Result<()> {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: The kernel only reads the parameters, which live until it has.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const priority) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
