// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lines for the journal of systemd, which takes them from standard error.
//!
//! Each begins with its priority as `<N>` (`sd-daemon(3)`), and has neither time nor level, which the
//! journal has of its own. The journal's native protocol would take fields as well, but it is a
//! datagram to a socket of the journal's: whoever says a line would wait for the journal, or open a
//! file for a long one, and in the sandbox a worker may do neither. Lines on standard error go through
//! the queue for which nobody waits.

use std::{env, fmt, io};

use rustix::fs::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{
        format::{DefaultFields, Format, Full, Writer},
        FmtContext, FormatEvent,
    },
    registry::LookupSpan,
};

/// Returns whether standard error is a stream of the journal: it is the file that `JOURNAL_STREAM`
/// names.
pub(super) fn is_read() -> bool {
    match (env::var("JOURNAL_STREAM"), fstat(io::stderr())) {
        (Ok(stream), Ok(about)) => stream == format!("{}:{}", about.st_dev, about.st_ino),
        _ => false,
    }
}

/// The priority of what is said at a level: that of `syslog(3)`.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// Puts the priority before each line of a text.
pub(super) fn prefix(level: Level, text: &str) -> String {
    let priority = priority(level);
    let lines = text.lines().map(|line| format!("<{priority}>{line}\n"));
    lines.collect()
}

/// Writes what is said as lines for the journal.
#[derive(Debug)]
pub(super) struct Lines(Format<Full, ()>);

impl Default for Lines {
    fn default() -> Self {
        let format = tracing_subscriber::fmt::format();
        Self(format.without_time().with_level(false).with_ansi(false))
    }
}

impl<S: Subscriber + for<'s> LookupSpan<'s>> FormatEvent<S, DefaultFields> for Lines {
    fn format_event(
        &self,
        context: &FmtContext<'_, S, DefaultFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        self.0
            .format_event(context, Writer::new(&mut text), event)?;
        writer.write_str(&prefix(*event.metadata().level(), &text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_its_priority() {
        assert_eq!(prefix(Level::INFO, "one\n"), "<6>one\n");
        assert_eq!(prefix(Level::ERROR, "one\ntwo"), "<3>one\n<3>two\n");
        assert_eq!(prefix(Level::WARN, "a"), "<4>a\n");
        for level in [Level::DEBUG, Level::TRACE] {
            assert_eq!(prefix(level, "a"), "<7>a\n");
        }
    }
}
