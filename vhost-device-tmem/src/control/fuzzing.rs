// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an operator says, made up by a fuzzer.

use std::time::Instant;

use super::{
    protocol::{Reply, Stat, VERSION},
    server::{answer, encode, error, len_of_line, parse, Operated, LIMITS},
};
use crate::serving::{Conversation, Request};

/// Refuses everything, and has nothing.
pub(crate) struct Nothing;

impl Operated for Nothing {
    fn stat(&self) -> Stat {
        Stat {
            version: VERSION,
            worker_starts: 1,
            ..Stat::default()
        }
    }

    fn stop(&self, _force: bool) -> Result<String, String> {
        Err(String::new())
    }

    fn upgrade(&self) -> Result<String, String> {
        Ok(String::new())
    }
}

/// Takes bytes from an operator, in pieces of the length that the first byte says, and answers what
/// are requests.
///
/// # Panics
///
/// Where an answer is none, or the conversation grows without bounds.
pub fn control(data: &[u8]) {
    let Some((&piece, data)) = data.split_first() else {
        return;
    };
    let now = Instant::now();
    let mut conversation = Conversation::new(LIMITS, now);
    for mut bytes in data.chunks(usize::from(piece).max(1)) {
        while !bytes.is_empty() && !conversation.is_over() {
            let room = conversation.room().min(bytes.len());
            assert!(room > 0, "it takes nothing and says nothing");
            conversation.receive(&bytes[..room]);
            bytes = &bytes[room..];
            while let Some(line) = conversation.next_request(len_of_line) {
                let Request::Whole(mut line) = line else {
                    break;
                };
                line.pop();
                let reply = parse(&line).map_or_else(error, |request| answer(&Nothing, request));
                let reply = encode(&reply);
                let read = serde_json::from_slice::<Reply>(&reply);
                read.expect("an answer is one");
                conversation.answer(reply, now);
                let len = conversation.output().len();
                conversation.sent(len, now);
            }
        }
    }
}
