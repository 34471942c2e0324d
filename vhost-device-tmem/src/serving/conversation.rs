// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was said by one client, and is to be said to it: bytes in, bytes out.

use std::time::{Duration, Instant};

/// What a client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The longest request, in bytes.
    pub(crate) request: usize,
    /// How long it may take for a request, and to read the answer.
    pub(crate) patience: Duration,
}

/// A request, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// All of it.
    Whole(Vec<u8>),
    /// Longer than a request may be. Nothing more is read.
    TooLong,
}

/// A conversation with one client. One request is answered after the other; what is sent before
/// the answer was read waits outside.
///
/// # Invariants
///
/// `input` is no longer than a request may be, and empty once the conversation is `closing`.
#[derive(Debug)]
pub(crate) struct Conversation {
    limits: Limits,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of the output that were sent.
    sent: usize,
    /// Nothing more is read, and all is over once the output was sent.
    closing: bool,
    /// When the last step was made that brought it on.
    since: Instant,
}

impl Conversation {
    /// Begins at `now`.
    pub(crate) fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            closing: false,
            since: now,
        }
    }

    /// Returns how many more bytes it takes; none while an answer was not sent.
    pub(crate) fn room(&self) -> usize {
        if self.closing || self.has_output() {
            0
        } else {
            self.limits.request - self.input.len()
        }
    }

    /// Takes bytes, no more than there is room for.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        let room = self.room().min(bytes.len());
        self.input.extend(&bytes[..room]);
    }

    /// The client says no more.
    pub(crate) fn ended(&mut self) {
        self.closing = true;
        self.input.clear();
    }

    /// Returns the next request, if there is one and the answer to the one before was sent. `len_of`
    /// returns how many bytes the first request of some has, if that is whole.
    pub(crate) fn next_request(
        &mut self,
        len_of: impl FnOnce(&[u8]) -> Option<usize>,
    ) -> Option<Request> {
        if self.closing || self.has_output() {
            return None;
        }
        if let Some(len) = len_of(&self.input) {
            let len = len.min(self.input.len());
            return Some(Request::Whole(self.input.drain(..len).collect()));
        }
        if self.input.len() >= self.limits.request {
            self.ended();
            return Some(Request::TooLong);
        }
        None
    }

    /// Returns whether [`Self::next_request`] would return a whole one.
    pub(crate) fn has_request(&self, len_of: impl FnOnce(&[u8]) -> Option<usize>) -> bool {
        !self.closing && !self.has_output() && len_of(&self.input).is_some()
    }

    /// Answers the last request.
    pub(crate) fn answer(&mut self, answer: Vec<u8>, now: Instant) {
        self.output = answer;
        self.sent = 0;
        self.since = now;
    }

    /// Says something, and nothing after that.
    pub(crate) fn dismiss(&mut self, answer: Vec<u8>, now: Instant) {
        self.ended();
        self.answer(answer, now);
    }

    /// Returns what is to be sent.
    pub(crate) fn output(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// Returns whether something is to be sent.
    pub(crate) fn has_output(&self) -> bool {
        !self.output().is_empty()
    }

    /// So many bytes of the output were sent.
    pub(crate) fn sent(&mut self, count: usize, now: Instant) {
        self.sent += count;
        if !self.has_output() {
            self.output = Vec::new();
            self.sent = 0;
            self.since = now;
        }
    }

    /// Returns whether it is over.
    pub(crate) fn is_over(&self) -> bool {
        self.closing && !self.has_output()
    }

    /// Returns when it will have taken too long.
    pub(crate) fn deadline(&self) -> Instant {
        self.since + self.limits.patience
    }

    /// Returns since when nothing whole was said, by anybody.
    pub(crate) fn idle_since(&self) -> Instant {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        request: 64,
        patience: Duration::from_secs(10),
    };
    const PATIENCE: Duration = LIMITS.patience;

    /// Requests are lines here.
    fn len(input: &[u8]) -> Option<usize> {
        Some(input.iter().position(|&byte| byte == b'\n')? + 1)
    }

    fn line(text: &str) -> Option<Request> {
        Some(Request::Whole(text.as_bytes().to_vec()))
    }

    #[test]
    fn requests_are_answered_one_after_the_other() {
        let start = Instant::now();
        let later = start + Duration::from_secs(3);
        let mut conversation = Conversation::new(LIMITS, start);
        conversation.receive(b"on");
        assert_eq!(conversation.next_request(len), None);
        conversation.receive(b"e\ntwo\nthr");
        assert_eq!(conversation.deadline(), start + PATIENCE);
        assert_eq!(conversation.next_request(len), line("one\n"));
        conversation.answer(b"1\n".to_vec(), later);
        // Nothing more is taken in before that was read.
        let next = conversation.next_request(len);
        assert_eq!((conversation.room(), next), (0, None));
        assert_eq!(conversation.output(), b"1\n");
        conversation.sent(1, later);
        assert_eq!(conversation.output(), b"\n");
        conversation.sent(1, later);
        assert!(!conversation.has_output() && conversation.has_request(len));
        assert_eq!(conversation.deadline(), later + PATIENCE);
        assert_eq!(conversation.next_request(len), line("two\n"));
        conversation.answer(b"2\n".to_vec(), later);
        conversation.ended();
        assert!(!conversation.is_over());
        conversation.sent(2, later);
        // What is not whole is no request.
        assert_eq!(conversation.next_request(len), None);
        assert!(conversation.is_over());
    }

    #[test]
    fn bytes_that_trickle_in_give_no_more_time() {
        let start = Instant::now();
        let mut conversation = Conversation::new(LIMITS, start);
        for _ in 0..100 {
            conversation.receive(b"x");
        }
        assert_eq!(conversation.deadline(), start + PATIENCE);
        conversation.answer(vec![b'x'; 100], start);
        conversation.sent(50, start + PATIENCE / 2);
        assert_eq!(conversation.deadline(), start + PATIENCE);
    }

    #[test]
    fn a_request_has_an_end() {
        let most = LIMITS.request;
        let mut conversation = Conversation::new(LIMITS, Instant::now());
        conversation.receive(&vec![b'x'; most - 1]);
        assert_eq!(conversation.next_request(len), None);
        conversation.receive(b"\nmore");
        let whole = conversation.next_request(len);
        assert!(matches!(whole, Some(Request::Whole(line)) if line.len() == most));
        conversation.receive(&vec![b'x'; 2 * most]);
        assert_eq!(conversation.next_request(len), Some(Request::TooLong));
        let next = conversation.next_request(len);
        assert_eq!((conversation.room(), next), (0, None));
        assert!(conversation.is_over());
    }
}
