// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which ephemeral chunks are taken back first.

use virtio_tmem_abi::ChunkKind;

use super::entry::Entry;

/// What the driver tells of a chunk. Nothing of it is believed: who lies loses the chunks that are
/// of most use to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hint {
    /// Pages that were got from it.
    pub(super) hits: u32,
    /// Slots in use.
    pub(super) used: u16,
}

/// Returns up to `count` ephemeral chunks to take back: those with the fewest hits, and of these the
/// ones with the fewest pages.
pub(super) fn coldest(
    entries: impl Iterator<Item = (u32, Entry)>,
    hint: impl Fn(u32) -> Hint,
    count: usize,
) -> Vec<u32> {
    let ephemeral = entries.filter(|(_, entry)| entry.granted() == Some(ChunkKind::Ephemeral));
    let mut chunks: Vec<_> = ephemeral
        .map(|(number, _)| (hint(number), number))
        .collect();
    let count = count.min(chunks.len());
    if count == 0 {
        return Vec::new();
    }
    chunks.select_nth_unstable(count - 1);
    chunks.truncate(count);
    chunks.into_iter().map(|(_, number)| number).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{super::entry::State, *};

    fn entry(kind: ChunkKind, generation: u32) -> Entry {
        Entry {
            state: State::Granted(kind),
            generation,
            fresh: false,
        }
    }

    #[test]
    fn the_coldest_go_first_and_no_others() {
        let (ephemeral, persistent) = (ChunkKind::Ephemeral, ChunkKind::Persistent);
        let entries = [
            (2, entry(ephemeral, 0)),
            (3, entry(persistent, 0)),
            (4, entry(ephemeral, 1)),
            (5, entry(ephemeral, 2)),
            (6, Entry::UNUSED),
            (7, entry(ephemeral, 0)),
            (8, Entry::GONE),
        ];
        let hints = HashMap::from([
            (2, Hint { hits: 5, used: 0 }),
            (5, Hint { hits: 0, used: 9 }),
            (7, Hint { hits: 0, used: 3 }),
        ]);
        let choose = |count| {
            let hint = |number| hints.get(&number).copied().unwrap_or_default();
            let mut chosen = coldest(entries.into_iter(), hint, count);
            chosen.sort_unstable();
            chosen
        };
        assert_eq!(choose(0), [0u32; 0]);
        assert_eq!(choose(1), [7]);
        assert_eq!(choose(2), [5, 7]);
        assert_eq!(choose(3), [2, 5, 7]);
        assert_eq!(choose(100), [2, 5, 7]);
    }
}
