// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table of clauses says what the specification says, and the document what the table says.

#![allow(missing_docs, reason = "tests")]

use std::{collections::BTreeMap, fs, path::Path};

use tmem_conformance::{clauses, markdown, section_title, Binds, Tested, SPEC};

/// Returns how many times MUST is among the words, MUST NOT included.
fn musts(text: &str) -> usize {
    let words = text.split(|c: char| !c.is_alphanumeric());
    words.filter(|word| *word == "MUST").count()
}

/// Returns the text of each section that has a number, by that number, in order.
fn sections() -> Vec<(&'static str, String)> {
    let mut sections: Vec<(&str, String)> = Vec::new();
    let mut code = false;
    for line in SPEC.lines() {
        code ^= line.starts_with("```");
        if line.starts_with('#') && !code {
            let number = line.trim_start_matches(['#', ' ']).split(' ').next();
            sections.push((number.unwrap(), String::new()));
        } else if let Some((_, text)) = sections.last_mut() {
            *text += line;
            *text += "\n";
        }
    }
    // What comes before the first number only says what the words mean.
    sections.retain(|(number, _)| number.starts_with(|c: char| c.is_ascii_digit()));
    sections
}

#[test]
fn each_must_is_in_the_table_with_its_words_and_in_its_order() {
    let clauses = clauses();
    let mut listed = clauses.iter().peekable();
    for (number, text) in sections() {
        let (mut at, mut seen) = (0, 0);
        while let Some(clause) = listed.next_if(|clause| clause.section() == number) {
            seen += 1;
            assert_eq!(clause.id, format!("{number}-{seen}"));
            assert_eq!(musts(&clause.words), 1, "{}: {}", clause.id, clause.words);
            let found = text[at..].find(&clause.words);
            let found = found.unwrap_or_else(|| {
                panic!(
                    "{}: SPEC.md has not these words there: {}",
                    clause.id, clause.words
                )
            });
            let skipped = &text[at..at + found];
            assert_eq!(musts(skipped), 0, "before {}: {skipped}", clause.id);
            at += found + clause.words.len();
        }
        let left = &text[at..];
        assert_eq!(musts(left), 0, "section {number}, not in the table: {left}");
    }
    assert!(listed.next().is_none(), "in the table, and in no section");
}

#[test]
fn clauses_bind_whom_their_section_says() {
    for clause in clauses() {
        let title = section_title(clause.section()).unwrap();
        let wanted = match title.split_once(' ').unwrap().0 {
            "Driver" => Binds::Driver,
            "Device" if title.contains("Requirements") => Binds::Device,
            // Its clauses name whom they mean.
            _ => continue,
        };
        assert_eq!(clause.binds, wanted, "{}", clause.id);
    }
}

#[test]
fn only_what_can_be_is_tested_so_and_the_tests_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut missing = BTreeMap::new();
    for clause in clauses() {
        match &clause.tested {
            Tested::Check(_) => assert_eq!(clause.binds, Binds::Device, "{}", clause.id),
            Tested::Driver(file) => {
                assert_eq!(clause.binds, Binds::Driver, "{}", clause.id);
                if !root.join(file).is_file() {
                    missing.insert(clause.id.clone(), file.clone());
                }
            }
            Tested::Not(why) => assert!(!why.is_empty(), "{}", clause.id),
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_document_is_what_the_program_writes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../virtio_tmem_abi/CONFORMANCE.md");
    let document = fs::read_to_string(path).unwrap();
    assert!(
        document == markdown(&clauses()),
        "write it anew: tmem-conformance --list --markdown"
    );
}
