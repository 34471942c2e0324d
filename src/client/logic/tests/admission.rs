// SPDX-License-Identifier: GPL-2.0

//! What is put and what is not, in the patterns that the policy is made for.

use std::collections::{HashMap, HashSet, VecDeque};

use proptest::prelude::*;
use virtio_tmem_logic::admission::{
    is_sample,
    place,
    File,
    Policy,
    GAIN,
    RANGE,
    SAMPLE, //
};

const MEMORY: u64 = 1 << 13;
const PLACES: usize = 1024;

/// A guest that evicts pages in the order in which they were read, and a host that does so, too.
struct Guest {
    policy: Policy,
    files: Vec<u64>,
    all: u32,
    cache: VecDeque<(u64, u64)>,
    cached: HashSet<(u64, u64)>,
    // In the order in which they were put; some of them have been got since.
    host: VecDeque<((u64, u64), u64)>,
    hosted: HashMap<(u64, u64), u64>,
    capacity: usize,
    puts: u64,
    hits: u64,
}

impl Guest {
    fn new(capacity: u64) -> Self {
        let policy = Policy::new(MEMORY);
        Self {
            policy,
            files: vec![0; PLACES],
            all: policy.at_first(),
            cache: VecDeque::new(),
            cached: HashSet::new(),
            host: VecDeque::new(),
            hosted: HashMap::new(),
            capacity: capacity as usize,
            puts: 0,
            hits: 0,
        }
    }

    fn file(&self, tag: u64) -> File {
        self.policy.file(tag, self.files[place(tag, PLACES)])
    }

    fn set(&mut self, tag: u64, (file, all): (File, u32)) {
        self.files[place(tag, PLACES)] = file.to_word();
        self.all = all;
    }

    fn evict(&mut self) {
        let page = self.cache.pop_front().unwrap();
        self.cached.remove(&page);
        let (tag, index) = page;
        if !is_sample(tag, index) {
            let Some(left) = self.policy.put(self.file(tag), self.all, 1) else {
                return;
            };
            self.set(tag, left);
        }
        self.puts += 1;
        self.host.push_back((page, self.puts));
        self.hosted.insert(page, self.puts);
        while self.hosted.len() > self.capacity {
            let (oldest, put) = self.host.pop_front().unwrap();
            if self.hosted.get(&oldest) == Some(&put) {
                self.hosted.remove(&oldest);
            }
        }
    }

    fn read(&mut self, tag: u64, index: u64) {
        let page = (tag, index);
        if self.cached.contains(&page) {
            return;
        }
        if self.hosted.remove(&page).is_some() {
            self.hits += 1;
            self.set(tag, self.policy.came_back(self.file(tag), self.all, 1));
        }
        if self.cache.len() as u64 == MEMORY {
            self.evict();
        }
        self.cache.push_back(page);
        self.cached.insert(page);
    }

    /// Reads a file from its beginning to its end; returns the puts and the hits of that.
    fn read_all(&mut self, tag: u64, pages: u64) -> (u64, u64) {
        let before = (self.puts, self.hits);
        for index in 0..pages {
            self.read(tag, index);
        }
        (self.puts - before.0, self.hits - before.1)
    }

    fn read_set(&mut self, files: u64, pages: u64) -> (u64, u64) {
        let before = (self.puts, self.hits);
        for tag in 1..=files {
            self.read_all(tag * 0x400, pages);
        }
        (self.puts - before.0, self.hits - before.1)
    }
}

/// What the host has room for, where that is enough.
const ROOM: u64 = 2 * MEMORY;

#[test]
fn a_long_stream_is_hardly_put() {
    let mut guest = Guest::new(ROOM);
    let pages = 8 * MEMORY;
    let (puts, hits) = guest.read_all(0xffff_8880_0000_1000, pages);
    assert_eq!(hits, 0);
    let most = MEMORY / 2 + pages / SAMPLE * 5 / 4;
    assert!((pages / SAMPLE / 2..most).contains(&puts), "{puts}");
}

#[test]
fn many_files_that_do_not_come_back_are_not_put_for_ever() {
    let mut guest = Guest::new(ROOM);
    let files = 256;
    let pages = 64 * MEMORY / files;
    let (puts, _) = guest.read_set(files, pages);
    assert!(puts < 4 * MEMORY + 64 * MEMORY / SAMPLE * 5 / 4, "{puts}");
}

#[test]
fn a_set_of_files_is_found_at_the_second_reading() {
    let mut guest = Guest::new(ROOM);
    let (files, pages) = (12, MEMORY / 8);
    guest.read_set(files, pages);
    let (_, hits) = guest.read_set(files, pages);
    assert!(hits > files * pages * 9 / 10, "{hits}");
}

#[test]
fn a_single_large_file_is_found_at_the_third_reading() {
    let mut guest = Guest::new(ROOM);
    let pages = 2 * MEMORY;
    guest.read_all(1, pages);
    guest.read_all(1, pages);
    let (_, hits) = guest.read_all(1, pages);
    assert!(hits > pages * 9 / 10, "{hits}");
}

#[test]
fn trust_that_was_lost_comes_back() {
    let mut guest = Guest::new(ROOM);
    // A backup of everything.
    guest.read_set(256, 64 * MEMORY / 256);
    // A set of files, again and again.
    let pages = MEMORY / 8;
    let read = |guest: &mut Guest| {
        (0..12)
            .map(|tag| guest.read_all((1 << 40) | (tag << 12), pages).1)
            .sum::<u64>()
    };
    for _ in 0..3 {
        read(&mut guest);
    }
    let hits = read(&mut guest);
    assert!(hits > 12 * pages * 9 / 10, "{hits}");
}

#[test]
fn what_is_too_large_for_the_host_is_found_in_part() {
    let mut guest = Guest::new(MEMORY / 4);
    let pages = 2 * MEMORY;
    for _ in 0..8 {
        guest.read_all(1, pages);
    }
    let (puts, hits) = guest.read_all(1, pages);
    // If all of it were put, none of it would be found.
    assert!(hits > 0 && puts < pages, "{puts} {hits}");
}

#[test]
fn the_sample_is_of_whole_ranges() {
    let ranges = 1 << 16;
    let samples = (0..ranges)
        .filter(|range| {
            let sample = is_sample(7, range * RANGE);
            assert!((0..RANGE).all(|page| is_sample(7, range * RANGE + page) == sample));
            sample
        })
        .count() as u64;
    let expected = ranges / SAMPLE;
    assert!((expected * 9 / 10..expected * 11 / 10).contains(&samples));
}

#[test]
fn nothing_is_known_of_a_file_that_was_forgotten() {
    let policy = Policy::new(MEMORY);
    let new = policy.file(1, 0);
    for pages in [0, 1000] {
        let (file, _) = policy.came_back(new, policy.at_first(), pages);
        assert_eq!(policy.forget(file), new);
    }
}

#[test]
fn a_file_takes_the_place_of_another() {
    let policy = Policy::new(MEMORY);
    let spent = policy.put(policy.file(1, 0), policy.at_first(), u32::MAX);
    let (file, _) = spent.unwrap();
    assert_eq!(policy.put(policy.file(1, file.to_word()), 1, 1), None);
    assert!(policy.put(policy.file(2, file.to_word()), 1, 1).is_some());
    assert_eq!(policy.put(policy.file(2, 0), 0, 1), None);
}

proptest! {
    #[test]
    fn trust_never_exceeds_what_it_may(
        memory: u64,
        word: u64,
        tag: u64,
        all: u32,
        pages: u32,
    ) {
        let policy = Policy::new(memory);
        let all = all.min(policy.at_first());
        let file = policy.file(tag, word);
        prop_assert_eq!(policy.file(tag, file.to_word()), file);
        if let Some((file, left)) = policy.put(file, all, pages) {
            prop_assert!(left <= all);
            prop_assert_eq!(policy.file(tag, file.to_word()), file);
        }
        let (file, earned) = policy.came_back(file, all, pages);
        prop_assert!(earned <= policy.at_first() && earned >= all);
        if pages > 0 {
            prop_assert!(earned >= GAIN.min(policy.at_first()));
            prop_assert!(policy.put(file, earned, 1).is_some());
        }
    }
}
