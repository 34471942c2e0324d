// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Direct writes that are all under way at the same time.

use std::{fs::File, io, os::fd::AsRawFd};

use io_uring::{opcode::Write, types::Fd, IoUring};

use super::Aligned;

/// Writes in flight at most.
const DEPTH: usize = 32;

/// Writes each of `pieces` to its offset of `file` through an io_uring, and waits for all.
pub fn write_direct_async(file: &File, pieces: &[(u64, Aligned)]) -> io::Result<()> {
    let mut ring = IoUring::new(u32::try_from(DEPTH).unwrap_or(1))?;
    for batch in pieces.chunks(DEPTH) {
        for (index, (offset, bytes)) in batch.iter().enumerate() {
            let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
            let write = Write::new(Fd(file.as_raw_fd()), bytes.as_ptr(), len)
                .offset(*offset)
                .build()
                .user_data(index as u64);
            // SAFETY: The bytes stay borrowed until every write has completed below.
            unsafe { ring.submission().push(&write) }.map_err(io::Error::other)?;
        }
        let mut outcome = Ok(());
        let mut left = batch.len();
        while left > 0 {
            match ring.submit_and_wait(1) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The kernel may still read from the bytes: they must not be freed.
                Err(error) => panic!("io_uring: {error}"),
                Ok(_) => {}
            }
            for completion in ring.completion() {
                left -= 1;
                let index = usize::try_from(completion.user_data()).map_err(io::Error::other)?;
                let expected = batch.get(index).map_or(0, |(_, bytes)| bytes.len());
                let result = completion.result();
                if result < 0 {
                    outcome = Err(io::Error::from_raw_os_error(-result));
                } else if usize::try_from(result).ok() != Some(expected) {
                    outcome = Err(io::Error::from(io::ErrorKind::WriteZero));
                }
            }
        }
        outcome?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_arrives() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let piece = |number: u8| {
            let offset = u64::from(number) * 512;
            (offset, Aligned::copy_of(&[number; 512]))
        };
        let pieces: Vec<_> = (0..100).map(piece).collect();
        match write_direct_async(file.as_file(), &pieces) {
            // Some sandboxes have no io_uring.
            Err(error) if error.raw_os_error() == Some(1) || error.raw_os_error() == Some(38) => {}
            outcome => {
                outcome.unwrap();
                let bytes = std::fs::read(file.path()).unwrap();
                for (number, part) in (0..).zip(bytes.chunks(512)) {
                    assert_eq!(part, [number; 512]);
                }
            }
        }
    }
}
