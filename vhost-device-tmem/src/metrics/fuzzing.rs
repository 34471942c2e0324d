// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What somebody sends who seems to ask for metrics, made up by a fuzzer.

use std::{sync::Arc, time::Instant};

use super::http::Http;
use crate::{
    control::fuzzing::Nothing,
    serving::{Conversation, Protocol, Request},
};

/// Takes bytes of a request, in pieces of the length that the first byte says, and answers it.
///
/// # Panics
///
/// Where an answer is none, or there is more than one, or none is found necessary though there is no
/// room for more.
pub fn metrics(data: &[u8]) {
    let Some((&piece, data)) = data.split_first() else {
        return;
    };
    let now = Instant::now();
    let mut http = Http::new(Arc::new(Nothing));
    let mut conversation = Conversation::new(Http::LIMITS, now);
    for bytes in data.chunks(usize::from(piece).max(1)) {
        conversation.receive(bytes);
        let bytes = match conversation.next_request(Http::len_of_request) {
            Some(Request::Whole(request)) => http.response_to(&request, now),
            Some(Request::TooLong) => http.too_long(),
            None => {
                assert!(conversation.room() > 0, "it takes nothing and says nothing");
                continue;
            }
        };
        let mut headers = [httparse::EMPTY_HEADER; 8];
        let parsed = httparse::Response::new(&mut headers).parse(&bytes);
        assert!(parsed.expect("an answer is one").is_complete());
        conversation.dismiss(bytes, now);
        let next = conversation.next_request(Http::len_of_request);
        assert!(next.is_none() && conversation.room() == 0, "it reads on");
        return;
    }
}
