// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests that somebody else answers than who has heard them.

use std::{
    io::{self, Write},
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use nix::sys::socket::{send, MsgFlags};

use super::{
    protocol::{Reply, VERSION},
    server::encode,
};

/// Answers a request on the connection that it was [passed on](super::Operated::pass_on) with.
/// Nobody is waited for: who does not read does without.
pub fn answer(operator: BorrowedFd<'_>, result: Result<String, String>) {
    let version = VERSION;
    let reply = encode(&match result {
        Ok(message) => Reply::Done { version, message },
        Err(message) => Reply::Error { version, message },
    });
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    if let Err(error) = send(operator.as_raw_fd(), &reply, flags) {
        tracing::debug!("an operator is gone before the answer: {error}");
    }
}

/// Says that a stream follows, or may come, on a connection.
///
/// # Errors
///
/// The operating system's.
pub fn say_ready(mut operator: &UnixStream) -> io::Result<()> {
    operator.write_all(&encode(&Reply::Ready { version: VERSION }))
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::fd::AsFd};

    use super::*;

    #[test]
    fn an_answer_is_a_line_and_waits_for_nobody() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        answer(ours.as_fd(), Err("no".to_owned()));
        // More than anybody reads.
        for _ in 0..10_000 {
            answer(ours.as_fd(), Ok("x".repeat(1000)));
        }
        drop(ours);
        let mut said = String::new();
        theirs.read_to_string(&mut said).unwrap();
        let first = said.lines().next().unwrap();
        let reply = serde_json::from_str::<Reply>(first).unwrap();
        assert!(matches!(reply, Reply::Error { message, .. } if message == "no"));
        answer(std::io::stdin().as_fd(), Ok(String::new()));
    }
}
