// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Recorded traces: what guests read, as text.
//!
//! ```text
//! # Whatever follows a hash is a remark.
//! seconds,guest,page
//! 0.013,web,81920
//! 0.013,web,81921
//! 0.207,db,7
//! ```
//!
//! Each line is one access to a page, whether the guest's page cache had it or not: seconds since
//! the trace began, which do not go back; the guest's name, without commas; and the page's number,
//! 0 to 2⁶⁴-1, in which file and offset are one. A line of names first is allowed.

use std::{collections::BTreeMap, io::BufRead};

use anyhow::{bail, ensure, Context};

/// An access to a page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Access {
    /// Seconds since the trace began.
    pub seconds: f64,
    /// The page's number.
    pub page: u64,
}

/// Reads a recorded trace: the accesses of each guest, by its name.
///
/// # Errors
///
/// Names the line that is wrong.
pub fn read(from: impl BufRead) -> anyhow::Result<BTreeMap<String, Vec<Access>>> {
    let mut guests: BTreeMap<String, Vec<Access>> = BTreeMap::new();
    let mut now = 0.0;
    for (n, line) in from.lines().enumerate() {
        let line = line.with_context(|| format!("line {}", n + 1))?;
        let what = line.split('#').next().unwrap_or_default().trim();
        if what.is_empty() || what == "seconds,guest,page" {
            continue;
        }
        let (name, access) = parse(what).with_context(|| format!("line {} is {what:?}", n + 1))?;
        ensure!(access.seconds >= now, "line {} goes back in time", n + 1);
        now = access.seconds;
        match guests.get_mut(name) {
            Some(accesses) => accesses.push(access),
            None => {
                guests.insert(name.to_owned(), vec![access]);
            }
        }
    }
    ensure!(!guests.is_empty(), "there is no access in it");
    Ok(guests)
}

fn parse(line: &str) -> anyhow::Result<(&str, Access)> {
    let mut fields = line.split(',').map(str::trim);
    let (Some(seconds), Some(guest), Some(page), None) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        bail!("it should be: seconds,guest,page");
    };
    let seconds: f64 = seconds.parse().context("the seconds are no number")?;
    ensure!(seconds.is_finite(), "the seconds are no number");
    ensure!(!guest.is_empty(), "the guest has no name");
    let page = page.parse().context("the page is no number")?;
    Ok((guest, Access { seconds, page }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read() {
        let text = "# two guests\nseconds,guest,page\n0.5,web,7\n0.5,db,18446744073709551615 # last\n\n1,web,7\n";
        let guests = read(text.as_bytes()).unwrap();
        let access = |seconds, page| Access { seconds, page };
        assert_eq!(guests["web"], [access(0.5, 7), access(1.0, 7)]);
        assert_eq!(guests["db"], [access(0.5, u64::MAX)]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, said) in [
            ("1,web,7\n0.5,web,7", "line 2 goes back in time"),
            ("1,web", "line 1 is \"1,web\""),
            ("1,,7", "line 1"),
            ("inf,web,7", "line 1"),
            ("1,web,-1", "line 1"),
            ("# nothing", "there is no access in it"),
        ] {
            let error = read(text.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with(said), "{error}");
        }
    }
}
