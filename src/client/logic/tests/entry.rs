// SPDX-License-Identifier: GPL-2.0

//! The 64 bits of an entry.

use proptest::prelude::*;
use virtio_tmem_logic::index::{
    Entry,
    VERSION_MAX, //
};

fn entries() -> impl Strategy<Value = Entry> {
    let version = prop_oneof![Just(0), Just(VERSION_MAX), 0..=VERSION_MAX];
    let rest = prop_oneof![Just(0), Just(u32::MAX), any::<u32>()];
    (0..3, version, rest).prop_map(|(state, version, rest)| match state {
        0 => Entry::Pending {
            version,
            slot: rest,
        },
        // Zero is no page's version.
        1 if version == 0 => Entry::Lost,
        1 => Entry::Remote { version, crc: rest },
        _ => Entry::Stale { version },
    })
}

proptest! {
    /// What has been packed is what is unpacked.
    #[test]
    fn there_and_back(entry in entries()) {
        prop_assert_eq!(Entry::unpack(entry.pack()), Some(entry));
    }

    /// No two entries have the same bits, and none those of a vacant place.
    #[test]
    fn distinct(a in entries(), b in entries()) {
        prop_assert_eq!(a == b, a.pack() == b.pack());
        prop_assert_ne!(a.pack(), 0);
    }

    /// Any bits can be unpacked.
    #[test]
    fn total(raw: u64) {
        if let Some(entry) = Entry::unpack(raw) {
            prop_assert!(entry.version() <= VERSION_MAX);
            prop_assert_eq!(raw >> 32, entry.pack() >> 32);
        }
    }
}

/// The layout is what the documentation says.
#[test]
fn layout() {
    let (version, rest) = (0x2aaa_aaab, 0xdead_beef);
    let pending = Entry::Pending {
        version,
        slot: rest,
    };
    let remote = Entry::Remote { version, crc: rest };
    assert_eq!(pending.pack(), 0x6aaa_aaab_dead_beef);
    assert_eq!(remote.pack(), 0xaaaa_aaab_dead_beef);
    assert_eq!(Entry::Stale { version }.pack(), 0xeaaa_aaab_0000_0000);
    assert_eq!(Entry::unpack(0), None);
    assert!(pending.is_live() && remote.is_live());
    assert!(!Entry::Stale { version }.is_live());
}

/// A version of too many bits does not reach those of the state.
#[test]
fn too_long_a_version() {
    let entry = Entry::Pending {
        version: u32::MAX,
        slot: 0,
    };
    assert_eq!(
        Entry::unpack(entry.pack()),
        Some(Entry::Pending {
            version: VERSION_MAX,
            slot: 0,
        })
    );
}
