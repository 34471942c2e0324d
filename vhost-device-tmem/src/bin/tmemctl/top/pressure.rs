// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How short of memory the host is, as its kernel says (PSI).

use std::fs;

use serde::Serialize;
use vhost_device_tmem::pressure::psi;

/// Parts of the time, in percent, that tasks waited for memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Pressure {
    /// Some of them, over the last 10 seconds.
    pub(crate) some_10s: f64,
    /// Some of them, over the last minute.
    pub(crate) some_60s: f64,
    /// All of them, over the last 10 seconds.
    pub(crate) full_10s: f64,
    /// All of them, over the last minute.
    pub(crate) full_60s: f64,
}

/// Returns the host's; nothing where its kernel does not say.
pub(crate) fn read() -> Option<Pressure> {
    parse(&fs::read_to_string("/proc/pressure/memory").ok()?)
}

fn parse(text: &str) -> Option<Pressure> {
    Some(Pressure {
        some_10s: psi(text, "some", "avg10")?,
        some_60s: psi(text, "some", "avg60")?,
        full_10s: psi(text, "full", "avg10")?,
        full_60s: psi(text, "full", "avg60")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_understood() {
        let text = "some avg10=1.25 avg60=2.50 avg300=0.00 total=123\n\
                    full avg10=0.50 avg60=0.75 avg300=0.00 total=45\n";
        let pressure = Pressure {
            some_10s: 1.25,
            some_60s: 2.5,
            full_10s: 0.5,
            full_60s: 0.75,
        };
        assert_eq!(parse(text), Some(pressure));
        assert_eq!(parse(""), None);
        assert_eq!(parse("some avg10=x avg60=1\nfull avg10=0 avg60=0"), None);
    }
}
