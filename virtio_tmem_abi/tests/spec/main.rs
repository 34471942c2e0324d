// SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0

//! Keeps `SPEC.md` equal to the types, in both directions.
//!
//! The structure listings and the tables of numbers of the text are compared with what the
//! compiler says of the types, and what the text and these tests know is compared with what the
//! sources declare, so that nothing can be added to one alone.

mod text;
mod types;

use std::{
    collections::BTreeSet,
    fmt::Debug,
    fs,
    path::Path, //
};

use virtio_tmem_abi::{
    cap,
    Chunks,
    EventKind,
    Malformed,
    Opcode,
    PageResult,
    PoolStats,
    RequestHeader,
    ResponseHeader,
    Status,
    MAX_GRANT, //
};

use text::{
    code,
    number,
    structs_of_text,
    table,
    tables_of_text,
    SPEC, //
};
use types::{
    listing_name,
    numbers_of_types,
    structs_of_types,
    CONSTANT_TABLES, //
};

/// A structure, from the text or from the types.
#[derive(Debug, PartialEq)]
struct Struct {
    name: String,
    size: usize,
    fields: Vec<Field>,
}

#[derive(Debug, PartialEq)]
struct Field {
    offset: usize,
    ty: String,
    name: String,
}

/// What the sources declare.
#[derive(Default)]
struct Declared {
    structs: BTreeSet<String>,
    enums: BTreeSet<String>,
    /// With the module, which is empty for the crate itself.
    constants: BTreeSet<(String, String)>,
}

/// Returns what the sources declare, by their lines: rustfmt makes these regular.
fn declared() -> Declared {
    fn name(rest: &str) -> String {
        rest.chars()
            .take_while(|&c| c.is_alphanumeric() || c == '_')
            .collect()
    }

    let mut declared = Declared::default();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(sources).unwrap() {
        let source = fs::read_to_string(entry.unwrap().path()).unwrap();
        let mut module = String::new();
        for line in source.lines() {
            if line == "}" {
                module.clear();
            }
            if let Some(rest) = line.strip_prefix("pub mod ") {
                module = name(rest);
            }
            let inner = line.strip_prefix("    ").unwrap_or(line);
            if let Some(rest) = inner.strip_prefix("pub struct ") {
                declared.structs.insert(name(rest));
            }
            if let Some(rest) = inner.strip_prefix("pub enum ") {
                declared.enums.insert(name(rest));
            }
            let scope = if module.is_empty() { line } else { inner };
            if let Some(rest) = scope.strip_prefix("pub const ") {
                if !rest.starts_with("fn ") {
                    declared.constants.insert((module.clone(), name(rest)));
                }
            }
        }
    }
    declared
}

#[test]
fn structures_agree() {
    let text = structs_of_text(SPEC);
    let types = structs_of_types();
    for ours in &types {
        let theirs = text.iter().find(|theirs| theirs.name == ours.name);
        assert_eq!(theirs, Some(ours), "Text (left) and types (right) differ");
    }
    let names = |structs: &[Struct]| -> Vec<String> {
        structs.iter().map(|listed| listed.name.clone()).collect()
    };
    assert_eq!(names(&text), names(&types));
}

#[test]
fn structures_have_no_gaps() {
    let structs = structs_of_types();
    let size_of = |ty: &str| {
        let (element, length) = ty
            .strip_suffix(']')
            .and_then(|ty| ty.split_once('['))
            .map_or((ty, 1), |(element, length)| {
                (element, length.parse().unwrap())
            });
        length
            * match element {
                "u8" => 1,
                "le16" => 2,
                "le32" => 4,
                "le64" => 8,
                name => {
                    let name = name.strip_prefix("struct ").unwrap();
                    structs.iter().find(|s| s.name == name).unwrap().size
                }
            }
    };
    for listed in structs_of_text(SPEC) {
        let mut end = 0;
        for field in &listed.fields {
            assert_eq!(field.offset, end, "{}: {field:?}", listed.name);
            end += size_of(&field.ty);
        }
        assert_eq!(listed.size, end, "{}", listed.name);
    }
}

#[test]
fn numbers_agree() {
    let types = numbers_of_types();
    for (title, ours) in &types {
        let theirs: Vec<(String, u64)> = table(title)
            .rows
            .iter()
            .map(|row| (code(&row[0]).to_owned(), number(&row[1])))
            .collect();
        assert_eq!(
            &theirs, ours,
            "Text (left) and types (right) differ: {title}"
        );
    }
    let tables = tables_of_text(SPEC);
    let text: BTreeSet<&str> = tables.iter().map(|table| table.head[0].as_str()).collect();
    let types: BTreeSet<&str> = types.iter().map(|(title, _)| *title).collect();
    assert_eq!(text, types);
}

#[test]
fn everything_declared_is_compared() {
    let declared = declared();

    let structs: BTreeSet<String> = structs_of_types().into_iter().map(|s| s.name).collect();
    let sources = declared.structs.iter().map(|name| listing_name(name));
    assert_eq!(structs, sources.collect());

    let mut enums = BTreeSet::new();
    let mut constants = BTreeSet::new();
    for (title, rows) in numbers_of_types() {
        match CONSTANT_TABLES.iter().find(|(table, _)| *table == title) {
            Some((_, module)) => {
                constants.extend(rows.into_iter().map(|(name, _)| (module.to_string(), name)));
            }
            None => {
                enums.insert(title.to_owned());
            }
        }
    }
    assert_eq!(enums, declared.enums);

    // It follows from the others; see below.
    constants.insert(("cap".to_owned(), "ALL".to_owned()));
    assert_eq!(constants, declared.constants);
}

#[test]
fn bits_are_single_and_distinct() {
    for title in ["Capability", "Request flag", "Pool flag", "Window flag"] {
        let table = table(title);
        let mut all = 0;
        for cell in table.column("Value") {
            let bit = number(cell);
            assert!(bit.is_power_of_two(), "{title}: {cell}");
            assert_eq!(all & bit, 0, "{title}: {cell}");
            all |= bit;
        }
        if title == "Capability" {
            assert_eq!(all, cap::ALL);
        }
    }
}

#[test]
fn lengths_agree() {
    let table = table("Opcode");
    let structs = structs_of_types();
    let request = size_of::<RequestHeader>();
    let response = size_of::<ResponseHeader>();
    for row in &table.rows {
        let [opcode, _, virtqueue, count, entry, readable, writable] = &row[..] else {
            panic!("{row:?}");
        };
        let entry_size = (entry != "none").then(|| {
            let entry = structs.iter().find(|s| s.name == code(entry));
            entry.expect("A structure").size
        });
        let (expected_readable, expected_writable) = match (entry_size, count.as_str()) {
            (None, "0") if code(opcode) == "PoolStats" => (
                request.to_string(),
                (response + size_of::<PoolStats>()).to_string(),
            ),
            (None, "0") => (request.to_string(), response.to_string()),
            (Some(size), "1") if code(opcode) == "ChunkGrant" => (
                (request + size).to_string(),
                (response + size_of::<Chunks>()).to_string(),
            ),
            (Some(size), bounds) if code(opcode) == "ChunkReturn" => {
                assert_eq!(bounds, format!("1 to {MAX_GRANT}"));
                (format!("{request} + {size} *n*"), response.to_string())
            }
            (Some(size), "1") => ((request + size).to_string(), response.to_string()),
            (Some(size), _) => {
                let readable = format!("{request} + {size} *n*");
                let writable = format!("{response} + *n*");
                match code(opcode) {
                    "Put" => (readable + " + *P* *n*", writable),
                    "Get" => (readable, writable + " + *P* *n*"),
                    _ => (readable, writable),
                }
            }
            _ => panic!("{row:?}"),
        };
        assert_eq!(readable, &expected_readable, "{opcode}");
        assert_eq!(writable, &expected_writable, "{opcode}");
        // Results are for the data virtqueues alone.
        assert_eq!(virtqueue == "data", writable.contains("*n*"), "{opcode}");
    }
}

#[test]
fn refusals_agree() {
    let table = table("PageResult");
    let refused: Vec<bool> = table
        .column("Meaning")
        .iter()
        .map(|meaning| meaning.starts_with("Refused"))
        .collect();
    let types: Vec<bool> = PageResult::ALL.iter().map(|r| r.is_refusal()).collect();
    assert_eq!(refused, types);
}

/// Checks that the text says when each member is the answer, and gives no answer that is none.
#[test]
fn every_answer_is_explained() {
    fn names<T: Debug>(all: &[T]) -> BTreeSet<String> {
        all.iter().map(|member| format!("{member:?}")).collect()
    }

    let explained: BTreeSet<String> = SPEC
        .split("`Malformed`/`")
        .skip(1)
        .map(|rest| rest.split('`').next().unwrap().to_owned())
        .collect();
    assert_eq!(explained, names(Malformed::ALL));

    // Outside the tables, as code or as a word of a heading.
    let prose: Vec<&str> = SPEC.lines().filter(|line| !line.starts_with('|')).collect();
    let members = names(Status::ALL)
        .into_iter()
        .chain(names(PageResult::ALL))
        .chain(names(Opcode::ALL))
        .chain(names(EventKind::ALL));
    for member in members {
        let code = format!("`{member}`");
        assert!(
            prose.iter().any(|line| line.contains(&code)
                || line.starts_with('#') && line.split([' ', ',']).any(|word| word == member)),
            "{member}"
        );
    }
}

/// Checks that references within the text lead somewhere.
#[test]
fn references_resolve() {
    let anchors: BTreeSet<String> = SPEC
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || " -".contains(*c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect();
    let mut references = 0;
    for rest in SPEC.split("](#").skip(1) {
        let anchor = rest.split(')').next().unwrap();
        assert!(anchors.contains(anchor), "{anchor}");
        references += 1;
    }
    assert!(references > 0);
}
