// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One way each in which a page kept elsewhere becomes stale.
//!
//! A case makes two files, reads and evicts them often enough that their pages are wherever an
//! evicted page may be kept, then changes the first file in its one way, and reads both. The
//! other file is the witness: if its pages did not come back from there, the case has shown
//! nothing, which the caller can tell by the counters.

mod direct;
mod exchange;
mod holes;
mod names;
mod partial;
mod scene;
mod space;
mod write;

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::report::Findings;

use scene::Scene;

/// A case.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    run: fn(&mut Scene) -> Result<()>,
}

/// Every case.
pub const CASES: &[Case] = &[
    case("untouched", |_| Ok(())),
    case("overwrite-buffered", write::buffered),
    case("overwrite-part", write::part),
    case("overwrite-mmap", write::mapped),
    case("overwrite-direct", write::direct),
    case("overwrite-direct-async", write::direct_async),
    case("partial-block", partial::partial_block),
    case("truncate", space::truncate),
    case("truncate-partial-page", space::truncate_partial_page),
    case("punch", space::punch),
    case("punch-partial-page", space::punch_partial_page),
    case("zero-range", space::zero_range),
    case("collapse", space::collapse),
    case("insert", space::insert),
    case("reflink", space::reflink),
    case("reflink-cached", exchange::reflink_cached),
    case("move-extents", exchange::move_extents),
    case("exchange", exchange::exchange),
    case("punch-race", holes::punch),
    case("zero-range-race", holes::zero_range),
    case("truncate-race", holes::truncate),
    case("many-direct", direct::many),
    case("unlink-recreate", names::unlink_recreate),
    case("rename-over", names::rename_over),
    case("link-nameless", names::link_nameless),
];

const fn case(name: &'static str, run: fn(&mut Scene) -> Result<()>) -> Case {
    Case { name, run }
}

/// What a case did and found.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The case's name.
    pub case: &'static str,
    /// Whether the filesystem has what it takes.
    pub supported: bool,
    /// Pages of the witness, read back once after the change.
    pub witness_pages: usize,
    /// What was not as expected.
    #[serde(flatten)]
    pub findings: Findings,
}

impl Case {
    /// Finds a case by its name.
    pub fn named(name: &str) -> Option<Self> {
        CASES.iter().find(|case| case.name == name).copied()
    }

    /// Runs the case in `dir`.
    ///
    /// With `inject`, old content is put back behind the case's back, so that it has to fail.
    pub fn run(&self, dir: &Path, inject: bool) -> Result<Outcome> {
        let mut scene = Scene::new(dir, inject)?;
        (self.run)(&mut scene)?;
        scene.finish(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(case: &Case, inject: bool) -> Outcome {
        let dir = tempfile::tempdir_in(".").unwrap();
        case.run(dir.path(), inject).unwrap()
    }

    #[test]
    fn every_case_passes_on_a_filesystem_that_keeps_its_word() {
        for case in CASES {
            let outcome = run(case, false);
            assert!(outcome.findings.is_empty(), "{outcome:#?}");
        }
    }

    #[test]
    fn every_case_that_changes_something_notices_old_content() {
        for case in CASES.iter().filter(|case| case.name != "untouched") {
            let outcome = run(case, true);
            assert!(
                !outcome.supported || !outcome.findings.is_empty(),
                "{outcome:#?}"
            );
        }
    }

    #[test]
    fn cases_are_found_by_name() {
        for case in CASES {
            assert_eq!(Case::named(case.name).unwrap().name, case.name);
        }
        assert!(Case::named("nothing").is_none());
    }
}
