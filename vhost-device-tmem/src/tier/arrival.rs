// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Waiting for what a tier reads, without a thread that waits.

use std::{
    collections::VecDeque,
    fmt, io, mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

use super::TierError;

/// Wakes who left a request until its pages arrive. It may be called by any thread, and does not wait.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Records that are waited for together.
pub struct Gate {
    waiting: Mutex<usize>,
    none: Condvar,
    wake: Option<Wake>,
}

impl Gate {
    /// Makes one at which nobody waits yet. `wake` is called whenever the last of all has arrived.
    pub fn new(wake: Option<Wake>) -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::new(0),
            none: Condvar::new(),
            wake,
        })
    }

    /// Returns whether all have arrived.
    pub fn is_open(&self) -> bool {
        *lock(&self.waiting) == 0
    }

    /// Waits until all have arrived.
    pub fn wait(&self) {
        let waiting = lock(&self.waiting);
        let waited = self.none.wait_while(waiting, |waiting| *waiting > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn arrived(&self) {
        let mut waiting = lock(&self.waiting);
        *waiting -= 1;
        let open = *waiting == 0;
        drop(waiting);
        if open {
            self.none.notify_all();
            if let Some(wake) = &self.wake {
                wake();
            }
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gate").field(&*lock(&self.waiting)).finish()
    }
}

/// What becomes of a record that is read.
#[derive(Debug, Default)]
enum Outcome {
    #[default]
    Waiting,
    Known(Result<Vec<u8>, TierError>),
    Taken,
}

/// A record that is read.
#[derive(Debug)]
pub struct Arrival {
    outcome: Mutex<Outcome>,
    gate: Arc<Gate>,
}

impl Arrival {
    /// One more record is waited for at a gate.
    pub fn at(gate: &Arc<Gate>) -> Arc<Self> {
        *lock(&gate.waiting) += 1;
        Arc::new(Self {
            outcome: Mutex::default(),
            gate: Arc::clone(gate),
        })
    }

    /// Says what became of it, unless that was said before. Returns whether it was not.
    pub fn arrive(&self, result: Result<Vec<u8>, TierError>) -> bool {
        let mut outcome = lock(&self.outcome);
        let first = matches!(*outcome, Outcome::Waiting);
        if first {
            *outcome = Outcome::Known(result);
            drop(outcome);
            self.gate.arrived();
        }
        first
    }

    /// Returns whether nobody said yet what became of it.
    pub fn is_waiting(&self) -> bool {
        matches!(*lock(&self.outcome), Outcome::Waiting)
    }

    /// Returns what became of it. To be called once, when the gate is open.
    ///
    /// # Errors
    ///
    /// [`TierError`].
    pub fn take(&self) -> Result<Vec<u8>, TierError> {
        match mem::replace(&mut *lock(&self.outcome), Outcome::Taken) {
            Outcome::Known(result) => result,
            Outcome::Waiting | Outcome::Taken => Err(TierError::Late),
        }
    }
}

/// Whom a clock calls, and when.
type Due = (Instant, Weak<Arrival>);

#[derive(Debug, Default)]
struct Dues {
    /// In the order of time: all have the same budget.
    queue: Mutex<VecDeque<Due>>,
    more: Condvar,
}

/// Says of records that are not there in time that they are late.
#[derive(Debug)]
pub struct Clock {
    budget: Duration,
    dues: Arc<Dues>,
}

impl Clock {
    /// Starts a thread, which runs until the process ends. Records may take so long.
    ///
    /// # Errors
    ///
    /// The operating system's, where there is no thread left.
    pub fn start(budget: Duration) -> io::Result<Self> {
        let dues = Arc::new(Dues::default());
        let copy = Arc::clone(&dues);
        let run = move || loop {
            copy.call_next();
        };
        thread::Builder::new().name("late".to_owned()).spawn(run)?;
        Ok(Self { budget, dues })
    }

    /// A record is waited for, from now on, for as long as it may take.
    pub fn watch(&self, arrival: &Arc<Arrival>) {
        let due = (Instant::now() + self.budget, Arc::downgrade(arrival));
        lock(&self.dues.queue).push_back(due);
        self.dues.more.notify_one();
    }
}

impl Dues {
    fn call_next(&self) {
        let queue = lock(&self.queue);
        let waited = self.more.wait_while(queue, |queue| queue.is_empty());
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner);
        let Some((due, arrival)) = queue.pop_front() else {
            return;
        };
        drop(queue);
        // What was there in time, as nearly all is, is not waited for.
        let waiting = || arrival.upgrade().filter(|arrival| arrival.is_waiting());
        if waiting().is_some() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        if let Some(arrival) = waiting() {
            arrival.arrive(Err(TierError::Late));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_gate_opens_when_the_last_has_arrived() {
        let woken = Arc::new(AtomicUsize::new(0));
        let copy = Arc::clone(&woken);
        let wake: Wake = Arc::new(move || {
            copy.fetch_add(1, Ordering::SeqCst);
        });
        let gate = Gate::new(Some(wake));
        assert!(gate.is_open());
        let [one, other] = [0; 2].map(|_| Arrival::at(&gate));
        assert!(one.arrive(Ok(vec![1])));
        assert!(!gate.is_open());
        // The first word counts.
        assert!(!one.arrive(Err(TierError::Late)));
        assert_eq!(woken.load(Ordering::SeqCst), 0);
        assert!(other.arrive(Err(TierError::Full)));
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        gate.wait();
        assert_eq!(one.take().unwrap(), [1]);
        assert!(matches!(other.take(), Err(TierError::Full)));
        assert!(matches!(one.take(), Err(TierError::Late)));
    }

    #[test]
    fn who_does_not_come_is_late() {
        let clock = Clock::start(Duration::from_millis(1)).unwrap();
        let gate = Gate::new(None);
        let [there, missing] = [0; 2].map(|_| Arrival::at(&gate));
        there.arrive(Ok(Vec::new()));
        clock.watch(&there);
        clock.watch(&missing);
        gate.wait();
        assert!(there.take().is_ok());
        assert!(matches!(missing.take(), Err(TierError::Late)));
        // Nor does a late one do any harm.
        assert!(!missing.arrive(Ok(vec![1])));
    }
}
