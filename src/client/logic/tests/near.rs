// SPDX-License-Identifier: GPL-2.0

//! Misses of pages that made room for others of late.

use virtio_tmem_logic::window::near::{
    places,
    remembered,
    Digest, //
};

/// A table as the driver has it, without other processors.
struct Table {
    marks: Vec<u32>,
    turns: u32,
}

impl Table {
    fn new(slots: u32) -> Self {
        Self {
            marks: vec![0; places(slots)],
            turns: 0,
        }
    }

    fn replace(&mut self, index: u64) {
        self.turns = self.turns.wrapping_add(1);
        let digest = Digest::of(7, index);
        let place = digest.place(self.marks.len());
        self.marks[place] = digest.mark(self.turns);
    }

    fn is_near(&self, index: u64, used: u32) -> bool {
        let digest = Digest::of(7, index);
        let mark = self.marks[digest.place(self.marks.len())];
        digest.is_near(mark, self.turns, remembered(used))
    }
}

#[test]
fn a_quarter_of_what_is_in_use_is_remembered_within_bounds() {
    for (used, pages) in [
        (0, 64),
        (256, 64),
        (4096, 1024),
        (1 << 17, 1 << 15),
        (u32::MAX, 1 << 15),
    ] {
        assert_eq!(remembered(used), pages, "of {used}");
    }
    assert_eq!(
        (places(0), places(5000), places(u32::MAX)),
        (64, 2048, 1 << 15)
    );
}

#[test]
fn nothing_is_near_where_nothing_made_room() {
    let table = Table::new(1 << 15);
    assert!((0..100_000).all(|index| !table.is_near(index, 1 << 15)));
}

#[test]
fn pages_that_made_room_last_are_near_and_no_others() {
    let mut table = Table::new(1 << 15);
    let used = 1 << 14;
    let pages = u64::from(remembered(used));
    for index in 0..pages {
        table.replace(index);
    }
    // Some have lost their place to another one.
    let near = (0..pages)
        .filter(|&index| table.is_near(index, used))
        .count() as u64;
    assert!(near > pages / 2 && near <= pages, "{near} of {pages}");
    let others = (pages..100 * pages).filter(|&index| table.is_near(index, used));
    assert!(others.count() < 20);
    // A smaller window remembers fewer.
    let fewer = (0..pages)
        .filter(|&index| table.is_near(index, used / 4))
        .count() as u64;
    assert!(
        fewer <= pages / 4 && fewer > pages / 8,
        "{fewer} of {pages}"
    );
}

#[test]
fn what_made_room_long_ago_is_not_near() {
    let mut table = Table::new(1 << 15);
    let used = 1 << 14;
    table.replace(0);
    // Nobody takes its place.
    let place = |index| Digest::of(7, index).place(places(1 << 15));
    let mut others = (1..).filter(|&index| place(index) != place(0));
    for index in others.by_ref().take(remembered(used) as usize - 1) {
        table.replace(index);
    }
    assert!(table.is_near(0, used));
    table.replace(others.next().unwrap());
    assert!(!table.is_near(0, used));
    // Nor when the turns have come to the same number again.
    for index in 0..(1 << 16) {
        table.replace(2_000_000 + index);
    }
    assert!(!table.is_near(0, used));
}

#[test]
fn turns_may_wrap() {
    let mut table = Table::new(1 << 15);
    table.turns = u32::MAX - 1;
    for index in 0..4 {
        table.replace(index);
    }
    assert!((0..4).all(|index| table.is_near(index, 1 << 14)));
}
