// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lines of no more than so many bytes, for no longer than so long.

use std::io::{self, BufRead};

/// Why there is no line.
#[derive(Debug)]
pub(super) enum LineError {
    Late,
    TooLong,
    Ended,
    Io(io::Error),
}

impl From<io::Error> for LineError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Late,
            _ => Self::Io(error),
        }
    }
}

/// Reads a line, with its end. `before` is called before each look at the input, so that whoever
/// sends byte after byte is not waited for without end.
pub(super) fn read_line<R: BufRead>(
    input: &mut R,
    most: usize,
    mut before: impl FnMut(&mut R) -> Result<(), LineError>,
) -> Result<Vec<u8>, LineError> {
    let mut line = Vec::new();
    loop {
        before(input)?;
        let seen = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            seen => seen?,
        };
        if seen.is_empty() {
            return Err(LineError::Ended);
        }
        let end = seen.iter().position(|byte| *byte == b'\n');
        let len = end.map_or(seen.len(), |end| end + 1);
        if line.len() + len > most {
            return Err(LineError::TooLong);
        }
        line.extend_from_slice(&seen[..len]);
        input.consume(len);
        if end.is_some() {
            return Ok(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_where_they_should() {
        let mut input = &b"one\ntwo\nthree"[..];
        let mut line = || read_line(&mut input, 6, |_| Ok(()));
        assert_eq!(line().unwrap(), b"one\n");
        assert_eq!(line().unwrap(), b"two\n");
        assert!(matches!(line(), Err(LineError::Ended)));
        let long = read_line(&mut &b"seven77\n"[..], 7, |_| Ok(()));
        assert!(matches!(long, Err(LineError::TooLong)));
        assert!(read_line(&mut &b"seven7\n"[..], 7, |_| Ok(())).is_ok());
        let late = read_line(&mut &b"one\n"[..], 7, |_| Err(LineError::Late));
        assert!(matches!(late, Err(LineError::Late)));
    }
}
