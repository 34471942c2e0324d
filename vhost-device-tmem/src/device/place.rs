// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which thread serves a virtqueue.

/// How many virtqueues each thread serves.
#[derive(Debug)]
pub(super) struct Loads(Vec<usize>);

impl Loads {
    /// So many threads, at least one, that serve nothing.
    pub(super) fn new(threads: usize) -> Self {
        Self(vec![0; threads.max(1)])
    }

    /// Gives a virtqueue to one of the threads with the fewest: the first one from `from` on, so
    /// that neither a guest's virtqueues nor those of few guests are all on one.
    pub(super) fn place(&mut self, from: usize) -> usize {
        let count = self.0.len();
        let threads = (0..count).map(|n| from.wrapping_add(n) % count);
        let thread = threads.min_by_key(|thread| self.0[*thread]).unwrap_or(0);
        self.0[thread] += 1;
        thread
    }

    /// A thread serves one less.
    pub(super) fn remove(&mut self, thread: usize) {
        self.0[thread] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtqueues_are_spread_evenly() {
        let mut loads = Loads::new(3);
        for guest in 0..64 {
            let mut threads: Vec<_> = (0..3).map(|_| loads.place(guest)).collect();
            threads.sort_unstable();
            assert_eq!(threads, [0, 1, 2]);
        }
        loads.remove(1);
        assert_eq!(loads.place(0), 1);
        assert_eq!(loads.place(2), 2);
    }
}
