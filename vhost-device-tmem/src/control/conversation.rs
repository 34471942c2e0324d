// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was said by one operator, and is to be said to them: bytes in, bytes out.

use std::time::{Duration, Instant};

use super::protocol::MAX_LINE;

/// How long an operator may take for a request, and to read the answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A request, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line, without its end.
    Whole(Vec<u8>),
    /// Longer than a line may be. Nothing more is read.
    TooLong,
}

/// A conversation with one operator. One request is answered after the other; what is sent before
/// the answer was read waits outside.
///
/// # Invariants
///
/// `input` is no longer than [`MAX_LINE`], and empty once the conversation is `closing`.
#[derive(Debug)]
pub(super) struct Conversation {
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
    pub(super) fn new(now: Instant) -> Self {
        Self {
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            closing: false,
            since: now,
        }
    }

    /// Returns how many more bytes it takes; none while an answer was not sent.
    pub(super) fn room(&self) -> usize {
        if self.closing || self.has_output() {
            0
        } else {
            MAX_LINE - self.input.len()
        }
    }

    /// Takes bytes, no more than there is room for.
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        let room = self.room().min(bytes.len());
        self.input.extend(&bytes[..room]);
    }

    /// The operator says no more.
    pub(super) fn ended(&mut self) {
        self.closing = true;
        self.input.clear();
    }

    /// Returns the next request, if there is one and the answer to the one before was sent.
    pub(super) fn next_line(&mut self) -> Option<Line> {
        if self.closing || self.has_output() {
            return None;
        }
        if let Some(end) = self.input.iter().position(|&byte| byte == b'\n') {
            let mut line: Vec<_> = self.input.drain(..=end).collect();
            line.pop();
            return Some(Line::Whole(line));
        }
        if self.input.len() >= MAX_LINE {
            self.ended();
            return Some(Line::TooLong);
        }
        None
    }

    /// Returns whether [`Self::next_line`] would return a whole line.
    pub(super) fn has_line(&self) -> bool {
        !self.closing && !self.has_output() && self.input.contains(&b'\n')
    }

    /// Answers the last request.
    pub(super) fn answer(&mut self, answer: &[u8], now: Instant) {
        self.output = [answer, b"\n"].concat();
        self.sent = 0;
        self.since = now;
    }

    /// Says something, and nothing after that.
    pub(super) fn dismiss(&mut self, answer: &[u8], now: Instant) {
        self.ended();
        self.answer(answer, now);
    }

    /// Returns what is to be sent.
    pub(super) fn output(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// Returns whether something is to be sent.
    pub(super) fn has_output(&self) -> bool {
        !self.output().is_empty()
    }

    /// So many bytes of the output were sent.
    pub(super) fn sent(&mut self, count: usize, now: Instant) {
        self.sent += count;
        if !self.has_output() {
            self.output = Vec::new();
            self.sent = 0;
            self.since = now;
        }
    }

    /// Returns whether it is over.
    pub(super) fn is_over(&self) -> bool {
        self.closing && !self.has_output()
    }

    /// Returns when it will have taken too long.
    pub(super) fn deadline(&self) -> Instant {
        self.since + PATIENCE
    }

    /// Returns since when nothing whole was said, by anybody.
    pub(super) fn idle_since(&self) -> Instant {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Option<Line> {
        Some(Line::Whole(text.as_bytes().to_vec()))
    }

    #[test]
    fn requests_are_answered_one_after_the_other() {
        let start = Instant::now();
        let later = start + Duration::from_secs(3);
        let mut conversation = Conversation::new(start);
        conversation.receive(b"on");
        assert_eq!(conversation.next_line(), None);
        conversation.receive(b"e\ntwo\nthr");
        assert_eq!(conversation.deadline(), start + PATIENCE);
        assert_eq!(conversation.next_line(), line("one"));
        conversation.answer(b"1", later);
        // Nothing more is taken in before that was read.
        assert_eq!((conversation.room(), conversation.next_line()), (0, None));
        assert_eq!(conversation.output(), b"1\n");
        conversation.sent(1, later);
        assert_eq!(conversation.output(), b"\n");
        conversation.sent(1, later);
        assert!(!conversation.has_output() && conversation.has_line());
        assert_eq!(conversation.deadline(), later + PATIENCE);
        assert_eq!(conversation.next_line(), line("two"));
        conversation.answer(b"2", later);
        conversation.ended();
        assert!(!conversation.is_over());
        conversation.sent(2, later);
        // What is no line is no request.
        assert_eq!(conversation.next_line(), None);
        assert!(conversation.is_over());
    }

    #[test]
    fn bytes_that_trickle_in_give_no_more_time() {
        let start = Instant::now();
        let mut conversation = Conversation::new(start);
        for _ in 0..100 {
            conversation.receive(b"x");
        }
        assert_eq!(conversation.deadline(), start + PATIENCE);
        conversation.answer(&[b'x'; 100], start);
        conversation.sent(50, start + PATIENCE / 2);
        assert_eq!(conversation.deadline(), start + PATIENCE);
    }

    #[test]
    fn a_line_has_an_end() {
        let mut conversation = Conversation::new(Instant::now());
        conversation.receive(&vec![b'x'; MAX_LINE - 1]);
        assert_eq!(conversation.next_line(), None);
        conversation.receive(b"\nmore");
        let whole = conversation.next_line();
        assert!(matches!(whole, Some(Line::Whole(line)) if line.len() == MAX_LINE - 1));
        conversation.receive(&vec![b'x'; 2 * MAX_LINE]);
        assert_eq!(conversation.next_line(), Some(Line::TooLong));
        assert_eq!((conversation.room(), conversation.next_line()), (0, None));
        assert!(conversation.is_over());
    }
}
