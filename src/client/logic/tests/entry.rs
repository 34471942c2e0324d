// SPDX-License-Identifier: GPL-2.0

//! The 64 bits of an entry.

use proptest::prelude::*;
use virtio_tmem_logic::index::{
    Entry,
    Older,
    VERSION_BITS,
    VERSION_MAX, //
};

fn entries() -> impl Strategy<Value = Entry> {
    let version = prop_oneof![Just(0), Just(VERSION_MAX), 0..=VERSION_MAX];
    let rest = prop_oneof![Just(0), Just(u32::MAX), any::<u32>()];
    (0..6, version, rest).prop_map(|(state, version, rest)| match state {
        0 => Entry::Pending {
            version,
            slot: rest,
        },
        1 => Entry::Moving {
            version,
            slot: rest,
        },
        // Zero is no page's version.
        2 if version == 0 => Entry::Lost,
        2 => Entry::Remote { version, crc: rest },
        3 => Entry::Window {
            older: if version == 0 {
                Older::NOTHING
            } else {
                Older::version(version)
            },
            slot: rest,
        },
        4 => Entry::Window {
            older: Older::ANY,
            slot: rest,
        },
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
            prop_assert!(entry.version() < 1 << VERSION_BITS);
            prop_assert_eq!(raw >> 32, entry.pack() >> 32);
        }
    }
}

/// The layout is what the documentation says.
#[test]
fn layout() {
    let (version, rest) = (0x0aaa_aaab, 0xdead_beef);
    let older = Older::version(version);
    let slot = rest;
    let pending = Entry::Pending { version, slot };
    let moving = Entry::Moving { version, slot };
    let remote = Entry::Remote { version, crc: rest };
    let window = Entry::Window { older, slot };
    assert_eq!(pending.pack(), 0x4aaa_aaab_dead_beef);
    assert_eq!(moving.pack(), 0x6aaa_aaab_dead_beef);
    assert_eq!(remote.pack(), 0x8aaa_aaab_dead_beef);
    assert_eq!(window.pack(), 0xaaaa_aaab_dead_beef);
    assert_eq!(Entry::Stale { version }.pack(), 0xcaaa_aaab_0000_0000);
    assert_eq!(Entry::unpack(0), None);
    for live in [pending, moving, remote, window] {
        assert!(live.is_live());
        // Nobody but a page that rests in the window leaves a slot behind.
        assert_eq!(live.slot().is_some(), live == window);
    }
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
            version: (1 << VERSION_BITS) - 1,
            slot: 0,
        })
    );
}
