// SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0

//! What the text says: its structure listings and its tables.

use crate::{
    Field,
    Struct, //
};

pub(crate) const SPEC: &str = include_str!("../../SPEC.md");

/// A table of the text.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// Returns the structures of the text, in its order.
pub(crate) fn structs_of_text(text: &str) -> Vec<Struct> {
    let mut structs = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line
            .strip_prefix("struct ")
            .and_then(|line| line.strip_suffix(" {"))
        else {
            continue;
        };
        let mut fields = Vec::new();
        let size = loop {
            let line = lines.next().expect("The end of a listing");
            if let Some(size) = line.strip_prefix("}; /* ") {
                break size.strip_suffix(" bytes */").expect(line);
            }
            let line = line.trim().strip_prefix("/*").expect(line);
            let (offset, declaration) = line.split_once("*/").expect(line);
            let declaration = declaration.strip_suffix(';').expect(line).trim();
            let (mut ty, mut name) = declaration.rsplit_once(' ').expect(line);
            let array;
            if let Some((element, length)) = name.split_once('[') {
                name = element;
                array = format!("{ty}[{length}");
                ty = &array;
            }
            fields.push(Field {
                offset: offset.trim().parse().expect(line),
                ty: ty.to_owned(),
                name: name.to_owned(),
            });
        };
        structs.push(Struct {
            name: name.to_owned(),
            size: size.parse().expect(size),
            fields,
        });
    }
    structs
}

/// Returns the tables of the text, in its order.
pub(crate) fn tables_of_text(text: &str) -> Vec<Table> {
    fn cells(line: &str) -> Option<Vec<String>> {
        let line = line.strip_prefix('|')?.strip_suffix('|')?;
        Some(line.split('|').map(|cell| cell.trim().into()).collect())
    }

    let mut tables = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(head) = cells(line) else { continue };
        let rule = lines.next().and_then(cells).expect("A rule");
        assert!(rule.iter().all(|cell| cell == "---"), "{line}");
        let rows: Vec<Vec<String>> = lines.by_ref().map_while(cells).collect();
        for row in [&rule].into_iter().chain(&rows) {
            assert_eq!(row.len(), head.len(), "{row:?}");
        }
        tables.push(Table { head, rows });
    }
    tables
}

/// Returns the table of the text whose first column is `title`.
pub(crate) fn table(title: &str) -> Table {
    let mut tables = tables_of_text(SPEC);
    tables.retain(|table| table.head[0] == title);
    assert_eq!(tables.len(), 1, "{title}");
    tables.remove(0)
}

impl Table {
    /// Returns the cells of the column `title`.
    pub(crate) fn column(&self, title: &str) -> Vec<&str> {
        let column = self.head.iter().position(|cell| cell == title);
        let column = column.expect(title);
        self.rows.iter().map(|row| row[column].as_str()).collect()
    }
}

/// Returns what is between the backquotes of `cell`.
pub(crate) fn code(cell: &str) -> &str {
    cell.strip_prefix('`')
        .and_then(|cell| cell.strip_suffix('`'))
        .expect(cell)
}

pub(crate) fn number(cell: &str) -> u64 {
    match cell.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => cell.parse(),
    }
    .expect(cell)
}
