// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a run found, as one JSON object.

use serde::Serialize;

/// Findings that are kept in full; the others are only counted.
const KEPT: usize = 16;

/// Something that should not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Where: a file, or a job's memory.
    pub place: String,
    /// The byte at which it begins.
    pub offset: u64,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
    /// The last operations before it was noticed, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<String>,
}

/// The findings of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Findings {
    /// How many there are.
    pub wrong: u64,
    /// The first of them.
    pub findings: Vec<Finding>,
}

impl Findings {
    /// Adds one, which is made only if it is to be kept.
    pub fn add(&mut self, finding: impl FnOnce() -> Finding) {
        self.wrong += 1;
        if self.findings.len() < KEPT {
            self.findings.push(finding());
        }
    }

    /// Adds all of another run's.
    pub fn merge(&mut self, other: Self) {
        self.wrong += other.wrong;
        let room = KEPT.saturating_sub(self.findings.len());
        self.findings.extend(other.findings.into_iter().take(room));
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.wrong == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_and_the_first_are_kept() {
        let mut findings = Findings::default();
        for offset in 0..100 {
            findings.add(|| Finding {
                place: "here".into(),
                offset,
                expected: "a".into(),
                found: "b".into(),
                history: Vec::new(),
            });
        }
        let mut all = Findings::default();
        all.merge(findings.clone());
        all.merge(findings);
        assert_eq!(all.wrong, 200);
        assert_eq!(all.findings.len(), KEPT);
        assert_eq!(all.findings[3].offset, 3);
    }
}
