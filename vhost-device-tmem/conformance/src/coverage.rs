// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table of clauses, for people and for programs.

use std::fmt::Write;

use crate::clauses::{section_title, Binds, Clause, Tested};

const HEAD: &str = "\
<!-- SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0 -->

# What of the specification is tested

Each MUST of [SPEC.md](SPEC.md), by its section and its place there, and how it is tested. `tmem-conformance --list --markdown` writes this file from `vhost-device-tmem/conformance/clauses.toml`.

- **`check`**: `tmem-conformance --socket PATH` tests it with any device that a vhost-user socket leads to, by the check of that name.
- **A file**: a test of this repository's driver, or of its logic, in which a breach would show; the driver was not broken on purpose to see it for each. Another driver needs tests of its own.
- **Not from outside**, of the device: what comes out of the socket does not tell, or it cannot be arranged for there. **Not tested**, of the driver: no test of ours would notice. The reason is given.

Testing shows that a clause is broken, never that it is kept. What a test is known to leave out is said.
";

fn how(clause: &Clause) -> String {
    let how = match &clause.tested {
        Tested::Check(name) => format!("check `{name}`"),
        Tested::Driver(file) => format!("[{file}](../{file})"),
        Tested::Not(why) if clause.binds == Binds::Driver => format!("not tested: {why}"),
        Tested::Not(why) => format!("not from outside: {why}"),
    };
    match &*clause.leaves {
        "" => how,
        leaves => format!("{how}; leaves out {leaves}"),
    }
}

/// Counts clauses that bind somebody: those with a check, those with a test of the driver, others.
fn count(clauses: &[Clause], binds: Binds) -> (usize, usize, usize) {
    let mine = clauses.iter().filter(|clause| clause.binds == binds);
    mine.fold((0, 0, 0), |(check, driver, not), clause| {
        match clause.tested {
            Tested::Check(_) => (check + 1, driver, not),
            Tested::Driver(_) => (check, driver + 1, not),
            Tested::Not(_) => (check, driver, not + 1),
        }
    })
}

/// Returns the table as Markdown.
pub fn markdown(clauses: &[Clause]) -> String {
    let mut out = String::from(HEAD);
    let device = count(clauses, Binds::Device);
    let driver = count(clauses, Binds::Driver);
    let _ = write!(
        out,
        "\n| Binds | MUSTs | by a check | by a test of our driver | neither |\n\
         |---|---|---|---|---|\n\
         | device | {} | {} | {} | {} |\n\
         | driver | {} | {} | {} | {} |\n",
        device.0 + device.1 + device.2,
        device.0,
        device.1,
        device.2,
        driver.0 + driver.1 + driver.2,
        driver.0,
        driver.1,
        driver.2,
    );
    let mut section = "";
    for clause in clauses {
        if clause.section() != section {
            section = clause.section();
            let title = section_title(section).unwrap_or("");
            let _ = write!(
                out,
                "\n## {section} {title}\n\n| Clause | Binds | Words | Tested |\n|---|---|---|---|\n"
            );
        }
        let binds = binds(clause);
        // Its links lead somewhere in the specification.
        let words = clause.words.replace("](#", "](SPEC.md#");
        let _ = writeln!(
            out,
            "| {} | {binds} | {words} | {} |",
            clause.id,
            how(clause)
        );
    }
    out
}

/// Returns the table as lines.
pub fn text(clauses: &[Clause]) -> String {
    let lines = clauses.iter().map(|clause| {
        let (id, how) = (&clause.id, how(clause));
        format!(
            "{id:<10} {}  {how}\n           {}\n",
            binds(clause),
            clause.words
        )
    });
    lines.collect()
}

/// Returns the table as JSON.
pub fn json(clauses: &[Clause]) -> serde_json::Value {
    let rows = clauses.iter().map(|clause| {
        let (kind, value) = match &clause.tested {
            Tested::Check(name) => ("check", name),
            Tested::Driver(file) => ("test", file),
            Tested::Not(why) => ("not", why),
        };
        serde_json::json!({
            "id": clause.id,
            "section": clause.section(),
            "binds": binds(clause),
            "words": clause.words,
            kind: value,
            "leaves": clause.leaves,
        })
    });
    rows.collect()
}

fn binds(clause: &Clause) -> &'static str {
    match clause.binds {
        Binds::Device => "device",
        Binds::Driver => "driver",
    }
}
