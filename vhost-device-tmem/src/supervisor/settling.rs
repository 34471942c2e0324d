// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Operators who hear that something is done only once a worker has done it.
//!
//! A worker carries out what it is told in order, so that it has when it answers a question that was
//! asked after that. One that dies before is followed by another, which is told all that is so now, and
//! asked again.

use std::os::fd::{AsFd, OwnedFd};

use crate::control::answer_passed;

/// An operator who waits.
#[derive(Debug)]
struct Waiting {
    /// The question whose answer is waited for.
    token: u64,
    operator: OwnedFd,
    /// What happened.
    done: String,
}

/// All operators who wait.
#[derive(Debug, Default)]
pub(super) struct Settling(Vec<Waiting>);

impl Settling {
    /// Tells an operator of what was done once the question of this number was answered.
    pub(super) fn add(&mut self, token: u64, operator: OwnedFd, done: String) {
        self.0.push(Waiting {
            token,
            operator,
            done,
        });
    }

    /// Returns whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Another worker was asked the question of this number.
    pub(super) fn asked_again(&mut self, token: u64) {
        for waiting in &mut self.0 {
            waiting.token = token;
        }
    }

    /// The question of this number was answered, and so were all before it.
    pub(super) fn answered(&mut self, token: u64) {
        for waiting in std::mem::take(&mut self.0) {
            if waiting.token <= token {
                answer_passed(waiting.operator.as_fd(), Ok(waiting.done));
            } else {
                self.0.push(waiting);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, ErrorKind, Read},
        os::unix::net::UnixStream,
    };

    use super::*;

    #[test]
    fn operators_hear_of_it_when_a_worker_has_done_it() {
        let mut settling = Settling::default();
        let mut wait = |token| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            settling.add(token, ours.into(), format!("{token} done"));
            BufReader::new(theirs)
        };
        let (mut one, mut two, mut three) = (wait(1), wait(2), wait(3));
        let heard = |stream: &mut BufReader<UnixStream>| {
            let mut line = String::new();
            stream.read_line(&mut line).map(|_| line)
        };
        settling.answered(2);
        assert!(heard(&mut one).unwrap().contains("1 done"));
        assert!(heard(&mut two).unwrap().contains("2 done"));
        assert_eq!(heard(&mut three).unwrap_err().kind(), ErrorKind::WouldBlock);
        // What the worker before would have answered counts no more.
        settling.asked_again(5);
        settling.answered(4);
        assert_eq!(heard(&mut three).unwrap_err().kind(), ErrorKind::WouldBlock);
        settling.answered(5);
        assert!(heard(&mut three).unwrap().contains("3 done"));
        assert!(settling.is_empty());
        assert_eq!(three.read(&mut [0]).unwrap(), 0);
    }
}
