// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The little of HTTP that it takes to be asked for metrics: one GET or HEAD for each connection.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use httparse::{Status, EMPTY_HEADER};

use super::text::render;
use crate::{
    control::Operated,
    serving::{Answer, Limits, Listener, Protocol, Server, Stream},
    stop::Late,
};

/// The most header fields of a request.
const MAX_HEADERS: usize = 64;

/// For how long the same statistics are good enough: nobody makes the daemon count more often,
/// however many ask.
const FRESH: Duration = Duration::from_millis(250);

/// Where the metrics are.
const PATH: &str = "/metrics";

const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The socket on which metrics are served, by one thread. Dropping it ends the thread; the socket
/// itself belongs to somebody else.
#[derive(Debug)]
pub struct MetricsServer(Server);

impl MetricsServer {
    /// Serves metrics on a socket that is being listened on.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no thread or descriptor left.
    pub fn start(listener: Listener, operated: Arc<dyn Operated>) -> io::Result<Self> {
        Ok(Self(Server::start(listener, Http::new(operated))?))
    }

    /// Ends the thread.
    ///
    /// # Errors
    ///
    /// [`Late`], where it does not end by `deadline`.
    pub fn end(self, deadline: Instant) -> Result<(), Late> {
        self.0.end(deadline)
    }
}

pub(super) struct Http {
    operated: Arc<dyn Operated>,
    /// The last statistics, and when that was.
    last: Option<(Instant, Arc<str>)>,
}

impl Http {
    pub(super) fn new(operated: Arc<dyn Operated>) -> Self {
        Self {
            operated,
            last: None,
        }
    }

    /// Answers a request.
    pub(super) fn response_to(&mut self, request: &[u8], now: Instant) -> Vec<u8> {
        match asked(request) {
            Asked::Metrics { body } => response("200 OK", TYPE, &self.text(now), body),
            Asked::Nothing { why, more } => plain(why, more),
        }
    }

    fn text(&mut self, now: Instant) -> Arc<str> {
        match &self.last {
            Some((at, text)) if now.saturating_duration_since(*at) < FRESH => Arc::clone(text),
            _ => {
                let text: Arc<str> = render(self.operated.stat()).into();
                self.last = Some((now, Arc::clone(&text)));
                text
            }
        }
    }
}

impl Protocol for Http {
    const CLIENTS: &'static str = "those who ask for metrics";
    const THREAD: &'static str = "metrics";
    const MAX_CLIENTS: usize = 16;
    const LIMITS: Limits = Limits {
        request: 8 << 10,
        patience: Duration::from_secs(5),
    };

    fn len_of_request(input: &[u8]) -> Option<usize> {
        let mut headers = [EMPTY_HEADER; MAX_HEADERS];
        match httparse::Request::new(&mut headers).parse(input) {
            Ok(Status::Complete(len)) => Some(len),
            Ok(Status::Partial) => None,
            // It never will be a request: all of it is answered.
            Err(_) => Some(input.len()),
        }
    }

    fn refuse(&self, _stream: &Stream) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn answer(&mut self, request: &[u8], _client: &Stream, now: Instant) -> Answer {
        let bytes = self.response_to(request, now);
        Answer { bytes, last: true }
    }

    fn too_long(&self) -> Vec<u8> {
        plain("431 Request Header Fields Too Large", "")
    }
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// The metrics, or only what is said about them.
    Metrics { body: bool },
    /// Something that there is not: the status, and another header field.
    Nothing {
        why: &'static str,
        more: &'static str,
    },
}

fn asked(request: &[u8]) -> Asked {
    let nothing = |why| Asked::Nothing { why, more: "" };
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    if !matches!(parsed.parse(request), Ok(Status::Complete(_))) {
        return nothing("400 Bad Request");
    }
    let target = parsed.path.unwrap_or_default();
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    match (parsed.method, path) {
        (Some(method @ ("GET" | "HEAD")), PATH) => Asked::Metrics {
            body: method == "GET",
        },
        (Some("GET" | "HEAD"), _) => nothing("404 Not Found"),
        _ => Asked::Nothing {
            why: "405 Method Not Allowed",
            more: "Allow: GET, HEAD\r\n",
        },
    }
}

/// Returns a response that says no more than its status does.
fn plain(status: &str, more: &str) -> Vec<u8> {
    let body = format!("{status}: metrics are at {PATH}\n");
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n{more}\r\n",
        body.len()
    );
    bytes += &body;
    bytes.into_bytes()
}

fn response(status: &str, content: &str, text: &str, body: bool) -> Vec<u8> {
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        text.len()
    );
    if body {
        bytes += text;
    }
    bytes.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        let of = |text: &str| asked(text.as_bytes());
        let metrics = Asked::Metrics { body: true };
        assert_eq!(of("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), metrics);
        assert_eq!(of("GET /metrics?x=1 HTTP/1.0\r\n\r\n"), metrics);
        let head = of("HEAD /metrics HTTP/1.1\r\n\r\n");
        assert_eq!(head, Asked::Metrics { body: false });
        let statuses = [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("GET /metrics/x HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET /metrics\r\n\r\n", "400"),
            ("{\"version\":1,\"command\":\"stop\"}\n", "400"),
            ("", "400"),
        ];
        for (request, status) in statuses {
            let answer = of(request);
            let starts = matches!(answer, Asked::Nothing { why, .. } if why.starts_with(status));
            assert!(starts, "{request:?}: {answer:?}");
        }
    }

    #[test]
    fn requests_have_an_end() {
        let len = |text: &str| Http::len_of_request(text.as_bytes());
        assert_eq!(len(""), None);
        assert_eq!(len("GET /metrics HTTP/1.1\r\nHost: x\r\n"), None);
        let whole = "GET /metrics HTTP/1.1\r\n\r\n";
        assert_eq!(len(&format!("{whole}more")), Some(whole.len()));
        // What can never become one is not waited for.
        assert_eq!(len("\0\x01\x02"), Some(3));
        let many = format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(len(&many), Some(many.len()));
    }
}
