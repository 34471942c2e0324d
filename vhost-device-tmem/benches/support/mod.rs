// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What benchmarks of the store share.

// Not every benchmark uses all of it.
#![allow(dead_code)]

pub(crate) mod pages;

use criterion::{
    measurement::{Measurement, ValueFormatter, WallTime},
    Criterion,
};

/// The processor time of the measuring thread, so that other work on the machine shows less.
pub(crate) struct CpuTime(WallTime);

impl CpuTime {
    /// Returns a [`Criterion`] that measures by it, as the command line says.
    pub(crate) fn criterion() -> Criterion<Self> {
        Criterion::default()
            .with_measurement(Self(WallTime))
            .configure_from_args()
    }
}

/// Returns the processor time that this thread has had, in nanoseconds.
pub(crate) fn cpu_nanoseconds() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: The structure is ours.
    let ret = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(ret, 0, "Linux has this clock");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

impl Measurement for CpuTime {
    type Intermediate = u64;
    type Value = u64;

    fn start(&self) -> u64 {
        cpu_nanoseconds()
    }

    fn end(&self, start: u64) -> u64 {
        cpu_nanoseconds() - start
    }

    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        self.0.formatter()
    }
}
