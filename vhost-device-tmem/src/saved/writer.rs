// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writing a stream.

use std::io::{self, Write};

use super::{
    check,
    record::{Record, Totals},
    MAGIC, VERSION,
};

/// Writes a stream.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    check: u32,
    totals: Totals,
}

impl<W: Write> Writer<W> {
    /// Begins.
    ///
    /// # Errors
    ///
    /// Those of the output.
    pub fn new(mut output: W) -> io::Result<Self> {
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend([0; 4]);
        output.write_all(&head)?;
        Ok(Self {
            output,
            check: 0,
            totals: Totals::default(),
        })
    }

    /// Writes a record.
    ///
    /// # Errors
    ///
    /// Those of the output.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let (kind, payload) = (record.kind(), record.payload());
        self.check = check(self.check, kind, &payload);
        self.totals.add(record);
        let mut bytes = Vec::with_capacity(12 + payload.len());
        bytes.extend(kind.to_le_bytes());
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(self.check.to_le_bytes());
        bytes.extend(payload);
        self.output.write_all(&bytes)
    }

    /// Has all that was written sent.
    ///
    /// # Errors
    ///
    /// Those of the output.
    pub fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }

    /// Returns how much was written.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Writes that this was all, and returns how much it was.
    ///
    /// # Errors
    ///
    /// Those of the output.
    pub fn end(mut self) -> io::Result<Totals> {
        let totals = self.totals;
        self.write(&Record::End(totals))?;
        self.output.flush()?;
        Ok(totals)
    }
}
