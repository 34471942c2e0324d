// SPDX-License-Identifier: GPL-2.0

//! What can be done.

use std::collections::{
    HashMap,
    VecDeque, //
};

use virtio_tmem_logic::window::{
    chunk_of,
    first_slot,
    Order,
    Page,
    Slots,
    FIRST_CHUNK,
    SLOTS_PER_CHUNK, //
};

/// The first slot that there is.
pub(crate) const FIRST_SLOT: u32 = first_slot(FIRST_CHUNK);

/// Says which page goes first. It has to know whose page is in a slot; to find the slot of a page is
/// another's business.
pub(crate) trait Policy {
    /// A page has been put into a slot.
    fn put(&mut self, slot: u32, page: u64);
    /// The page in a slot has been got, and is not there any more.
    fn got(&mut self, slot: u32, page: u64);
    /// Returns the slot of the page that is to go; it is not there any more.
    fn victim(&mut self) -> u32;
    /// Returns the bytes that it takes for each slot.
    fn bytes(&self) -> usize;
}

type New = fn(u32) -> Box<dyn Policy>;

/// All policies.
pub(crate) const ALL: [(&str, New); 8] = [
    ("FIFO, and LRU of the window", |slots| {
        Box::new(Fifo::new(slots))
    }),
    ("CLOCK", |slots| Box::new(Sieve::new(slots, true, false))),
    ("SIEVE", |slots| Box::new(Sieve::new(slots, false, false))),
    ("SIEVE, knows who came back", |slots| {
        Box::new(Sieve::new(slots, false, true))
    }),
    ("S3-FIFO", |slots| Box::new(S3::new(slots, false))),
    ("S3-FIFO, knows who came back", |slots| {
        Box::new(S3::new(slots, true))
    }),
    ("random", |slots| Box::new(Random::new(slots))),
    ("the driver's", |slots| Box::new(Driver::new(slots))),
];

const NIL: usize = usize::MAX;

#[derive(Clone, Copy)]
struct Node {
    page: u64,
    newer: usize,
    older: usize,
    queue: u8,
    bit: bool,
}

/// Pages by their slots, in queues. A node takes 24 bytes with links of 32 bits.
struct Queues {
    nodes: Vec<Node>,
    ends: [(usize, usize, usize); 2],
}

/// What a node of these takes, with links of 32 bits, where there are a queue and a bit to know.
const NODE: usize = 24;

impl Queues {
    fn new(slots: u32) -> Self {
        let node = Node {
            page: 0,
            newer: NIL,
            older: NIL,
            queue: 0,
            bit: false,
        };
        Self {
            nodes: vec![node; slots as usize],
            ends: [(NIL, NIL, 0); 2],
        }
    }

    fn at(slot: u32) -> usize {
        (slot - FIRST_SLOT) as usize
    }

    fn push(&mut self, slot: u32, page: u64, queue: u8, bit: bool) {
        let at = Self::at(slot);
        let ends = &mut self.ends[usize::from(queue)];
        let older = std::mem::replace(&mut ends.0, at);
        if older == NIL {
            ends.1 = at;
        } else {
            self.nodes[older].newer = at;
        }
        ends.2 += 1;
        self.nodes[at] = Node {
            page,
            newer: NIL,
            older,
            queue,
            bit,
        };
    }

    fn remove(&mut self, slot: u32) -> Node {
        let node = self.nodes[Self::at(slot)];
        let ends = &mut self.ends[usize::from(node.queue)];
        ends.2 -= 1;
        match node.newer {
            NIL => ends.0 = node.older,
            newer => self.nodes[newer].older = node.older,
        }
        match node.older {
            NIL => ends.1 = node.newer,
            older => self.nodes[older].newer = node.newer,
        }
        node
    }

    fn oldest(&self, queue: u8) -> Option<u32> {
        let at = self.ends[usize::from(queue)].1;
        (at != NIL).then(|| at as u32 + FIRST_SLOT)
    }

    fn len(&self, queue: u8) -> usize {
        self.ends[usize::from(queue)].2
    }
}

/// Keys that were seen last.
struct Seen {
    order: VecDeque<(u64, u64)>,
    added: HashMap<u64, u64>,
    count: u64,
    most: usize,
}

impl Seen {
    fn new(most: u32) -> Self {
        Self {
            order: VecDeque::new(),
            added: HashMap::new(),
            count: 0,
            most: most as usize,
        }
    }

    fn add(&mut self, page: u64) {
        self.count += 1;
        self.order.push_back((page, self.count));
        self.added.insert(page, self.count);
        while self.added.len() > self.most {
            if let Some((page, count)) = self.order.pop_front() {
                if self.added.get(&page) == Some(&count) {
                    self.added.remove(&page);
                }
            }
        }
    }

    fn remove(&mut self, page: u64) -> bool {
        self.added.remove(&page).is_some()
    }
}

/// A key that is remembered as a fingerprint, in a table that is half full.
const SEEN: usize = 4;

/// Of how many pages it is remembered that they were got. They are in the page cache until they are
/// put again, so that it has to be at least as many as go there.
const REMEMBERED: u32 = 2 * crate::CACHE as u32;

struct Fifo(Queues);

impl Fifo {
    fn new(slots: u32) -> Self {
        Self(Queues::new(slots))
    }
}

impl Policy for Fifo {
    fn put(&mut self, slot: u32, page: u64) {
        self.0.push(slot, page, 0, false);
    }

    fn got(&mut self, slot: u32, _: u64) {
        self.0.remove(slot);
    }

    fn victim(&mut self) -> u32 {
        let slot = self.0.oldest(0).expect("a page");
        self.0.remove(slot);
        slot
    }

    fn bytes(&self) -> usize {
        NODE
    }
}

/// SIEVE, or CLOCK. A page that was got is gone, so that only one that came back has its bit.
struct Sieve {
    queue: Queues,
    hand: usize,
    clock: bool,
    came_back: Option<Seen>,
}

impl Sieve {
    fn new(slots: u32, clock: bool, knows: bool) -> Self {
        Self {
            queue: Queues::new(slots),
            hand: NIL,
            clock,
            came_back: knows.then(|| Seen::new(REMEMBERED)),
        }
    }

    fn remove(&mut self, slot: u32) {
        let node = self.queue.remove(slot);
        if self.hand == Queues::at(slot) {
            self.hand = node.newer;
        }
    }
}

impl Policy for Sieve {
    fn put(&mut self, slot: u32, page: u64) {
        let bit = self
            .came_back
            .as_mut()
            .is_some_and(|seen| seen.remove(page));
        self.queue.push(slot, page, 0, bit);
    }

    fn got(&mut self, slot: u32, page: u64) {
        self.remove(slot);
        if let Some(seen) = &mut self.came_back {
            seen.add(page);
        }
    }

    fn victim(&mut self) -> u32 {
        loop {
            let at = match self.hand {
                NIL => self.queue.ends[0].1,
                hand => hand,
            };
            let slot = at as u32 + FIRST_SLOT;
            let node = self.queue.nodes[at];
            if !node.bit {
                self.hand = at;
                self.remove(slot);
                return slot;
            }
            if self.clock {
                self.remove(slot);
                self.queue.push(slot, node.page, 0, false);
            } else {
                self.queue.nodes[at].bit = false;
                self.hand = node.newer;
            }
        }
    }

    fn bytes(&self) -> usize {
        NODE + self.came_back.as_ref().map_or(0, |_| SEEN)
    }
}

/// S3-FIFO. A tenth of the pages is in the small queue; what goes from there is remembered for a
/// while, and comes back to the main one.
struct S3 {
    queues: Queues,
    slots: usize,
    gone: Seen,
    came_back: Option<Seen>,
}

impl S3 {
    fn new(slots: u32, knows: bool) -> Self {
        Self {
            queues: Queues::new(slots),
            slots: slots as usize,
            gone: Seen::new(slots),
            came_back: knows.then(|| Seen::new(REMEMBERED)),
        }
    }
}

impl Policy for S3 {
    fn put(&mut self, slot: u32, page: u64) {
        let came_back = self
            .came_back
            .as_mut()
            .is_some_and(|seen| seen.remove(page));
        let main = self.gone.remove(page) || came_back;
        self.queues.push(slot, page, u8::from(main), false);
    }

    fn got(&mut self, slot: u32, page: u64) {
        self.queues.remove(slot);
        if let Some(seen) = &mut self.came_back {
            seen.add(page);
        }
    }

    fn victim(&mut self) -> u32 {
        let small = self.queues.len(0) > self.slots / 10 || self.queues.len(1) == 0;
        let slot = self.queues.oldest(u8::from(!small)).expect("a page");
        let node = self.queues.remove(slot);
        if small {
            self.gone.add(node.page);
        }
        slot
    }

    fn bytes(&self) -> usize {
        NODE + SEEN + self.came_back.as_ref().map_or(0, |_| SEEN)
    }
}

struct Random {
    slots: Vec<u32>,
    places: Vec<usize>,
    state: u32,
}

impl Random {
    fn new(slots: u32) -> Self {
        Self {
            slots: Vec::new(),
            places: vec![NIL; slots as usize],
            state: 1,
        }
    }

    fn remove(&mut self, place: usize) -> u32 {
        let slot = self.slots.swap_remove(place);
        if let Some(moved) = self.slots.get(place) {
            self.places[Queues::at(*moved)] = place;
        }
        slot
    }
}

impl Policy for Random {
    fn put(&mut self, slot: u32, _: u64) {
        self.places[Queues::at(slot)] = self.slots.len();
        self.slots.push(slot);
    }

    fn got(&mut self, slot: u32, _: u64) {
        self.remove(self.places[Queues::at(slot)]);
    }

    fn victim(&mut self) -> u32 {
        self.state = self
            .state
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        let place = (self.state >> 8) as usize % self.slots.len();
        self.remove(place)
    }

    fn bytes(&self) -> usize {
        // The page, and two numbers of 32 bits.
        16 + 8
    }
}

/// What the driver does.
struct Driver(Order);

impl Driver {
    fn new(slots: u32) -> Self {
        let end = chunk_of(FIRST_SLOT + slots - 1) + 1;
        let mut order = Order::ephemeral(end, REMEMBERED).expect("memory");
        for chunk in FIRST_CHUNK..end {
            let slots = Slots::new().expect("memory");
            assert!(order.add(chunk, slots).is_ok());
        }
        Self(order)
    }
}

impl Policy for Driver {
    fn put(&mut self, slot: u32, page: u64) {
        let page = Page {
            tag: page >> 20,
            index: page & 0xf_ffff,
            ..Page::default()
        };
        self.0.insert(slot, page);
    }

    fn got(&mut self, slot: u32, _: u64) {
        assert!(self.0.got(slot).is_some());
    }

    fn victim(&mut self) -> u32 {
        self.0.pop().expect("a page").0
    }

    fn bytes(&self) -> usize {
        size_of::<Slots>().max(32 * SLOTS_PER_CHUNK as usize) / SLOTS_PER_CHUNK as usize + 2
    }
}
