// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the kernel's files say, as numbers. Text in, numbers out.

use std::str::FromStr;

/// What was read. What could not be is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// The microseconds that some task waited for memory so far: of the host, and of each control
    /// group, always in the same order.
    pub stalled: Vec<Option<u64>>,
    /// The control groups that have a limit.
    pub rooms: Vec<Room>,
}

/// What a control group may take, and takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The least of its limits.
    pub limit: u64,
    /// What it takes that the kernel cannot simply drop.
    pub taken: u64,
}

/// Reads a number of a file such as `/proc/pressure/memory`: of the line `some` or `full`, and of the
/// field `avg10`, `avg60`, `avg300` (percent) or `total` (microseconds).
pub fn psi<T: FromStr>(text: &str, line: &str, field: &str) -> Option<T> {
    let mut words = text.lines().map(str::split_whitespace);
    let mut words = words.find_map(|mut words| (words.next()? == line).then_some(words))?;
    let value = words.find_map(|word| word.strip_prefix(field)?.strip_prefix('='))?;
    value.parse().ok()
}

/// Reads how long some task waited for memory.
pub(super) fn stalled(text: &str) -> Option<u64> {
    psi(text, "some", "total")
}

/// Reads a limit; `max` is none.
///
/// # Errors
///
/// It is neither.
pub(super) fn limit(text: &str) -> Result<Option<u64>, ()> {
    match text.trim() {
        "max" => Ok(None),
        bytes => bytes.parse().map(Some).map_err(|_| ()),
    }
}

/// Reads what of a control group's memory are pages of files that can be dropped, of `memory.stat`.
pub(super) fn droppable(text: &str) -> Option<u64> {
    let of = |key: &str| {
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
        value.trim().parse::<u64>().ok()
    };
    Some(of("active_file")?.saturating_add(of("inactive_file")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let text = "some avg10=0.12 avg60=0.00 avg300=0.00 total=4242\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=17\n";
        assert_eq!(stalled(text), Some(4242));
        assert_eq!(limit("max\n"), Ok(None));
        assert_eq!(limit("1048576\n"), Ok(Some(1 << 20)));
        let stat = "anon 5\nfile 9\nfile_mapped 1\ninactive_file 3\nactive_file 4\n";
        assert_eq!(droppable(stat), Some(7));
    }

    #[test]
    fn nonsense_is_nothing() {
        for text in [
            "",
            "some",
            "some total=x",
            "full total=1",
            "some avg10=1 total=-1\n",
        ] {
            assert_eq!(stalled(text), None, "{text}");
        }
        assert_eq!(limit(""), Err(()));
        assert_eq!(limit("-1"), Err(()));
        assert_eq!(droppable("active_file 1"), None);
        assert_eq!(droppable("active_file 1\ninactive_file x"), None);
    }
}
