// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What to do about workers that die or hang, and about guests that have gone quiet: decisions
//! alone. Times are since the supervisor began.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::link::{GuestId, Serving};

/// How a worker came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Somebody killed it, or the host had no memory left. No guest can do that.
    Killed,
    /// By something that it did itself: a fault, a panic, a call that the sandbox forbids.
    Faulted,
    /// It did nothing any more, and was killed for that.
    Hung,
}

/// Deaths that are counted at most: more would make no difference.
const DEATHS: usize = 64;

/// When to start the next worker.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    deaths: VecDeque<Duration>,
    /// Workers since the last one that could begin.
    failures: u32,
}

impl Restarts {
    /// For so long a death counts.
    const WINDOW: Duration = Duration::from_secs(10);
    /// So many in that time are replaced at once.
    const FREE: usize = 32;
    /// The pause after more.
    const PAUSE: Duration = Duration::from_secs(1);
    /// The pause after a worker that could not begin; it doubles.
    const FIRST: Duration = Duration::from_millis(100);
    /// The longest pause.
    const LONGEST: Duration = Duration::from_secs(5);

    /// A worker has begun.
    pub(super) fn began(&mut self) {
        self.failures = 0;
    }

    /// A worker is dead that had begun, or had not. Returns how long to wait before the next one.
    pub(super) fn died(&mut self, now: Duration, had_begun: bool) -> Duration {
        self.deaths.push_back(now);
        forget(&mut self.deaths, now, Self::WINDOW);
        if !had_begun {
            let doubled = Self::FIRST.saturating_mul(1 << self.failures.min(16));
            self.failures += 1;
            return doubled.min(Self::LONGEST);
        }
        if self.deaths.len() > Self::FREE {
            Self::PAUSE
        } else {
            Duration::ZERO
        }
    }
}

fn forget(times: &mut VecDeque<Duration>, now: Duration, window: Duration) {
    while times.len() > DEATHS || times.front().is_some_and(|at| *at + window <= now) {
        times.pop_front();
    }
}

/// Which guest kills workers.
///
/// A thread serves one guest at a time, so that a dead worker of several threads leaves several
/// suspects, unless the thread said in its last moment that it was it. Where it did not, the next
/// worker has one thread only, and whoever is at it again is found.
#[derive(Debug, Default)]
pub(super) struct Blame {
    deaths: BTreeMap<GuestId, VecDeque<Duration>>,
    unclear: VecDeque<Duration>,
}

impl Blame {
    /// For so long a death counts.
    pub(super) const WINDOW: Duration = Duration::from_secs(60);
    /// After so many a guest is out.
    pub(super) const DEATHS: usize = 3;
    /// After so many with several suspects, workers have one thread.
    const UNCLEAR: usize = 2;

    /// A worker is dead whose threads did this. Returns the guest that is to be served no more.
    pub(super) fn died(
        &mut self,
        now: Duration,
        end: End,
        threads: impl IntoIterator<Item = Serving>,
    ) -> Option<GuestId> {
        if end == End::Killed {
            return None;
        }
        let mut suspects = Vec::new();
        for thread in threads {
            match thread.guest {
                Some(guest) if thread.culprit => return self.count(now, guest),
                Some(guest) if !suspects.contains(&guest) => suspects.push(guest),
                _ => {}
            }
        }
        match suspects[..] {
            [] => None,
            [guest] => self.count(now, guest),
            _ => {
                self.unclear.push_back(now);
                forget(&mut self.unclear, now, Self::WINDOW);
                None
            }
        }
    }

    fn count(&mut self, now: Duration, guest: GuestId) -> Option<GuestId> {
        let deaths = self.deaths.entry(guest).or_default();
        deaths.push_back(now);
        forget(deaths, now, Self::WINDOW);
        (deaths.len() >= Self::DEATHS).then(|| {
            self.deaths.remove(&guest);
            guest
        })
    }

    /// There is no such guest any more.
    pub(super) fn forget(&mut self, guest: GuestId) {
        self.deaths.remove(&guest);
    }

    /// Returns whether the next worker is to have one thread only.
    pub(super) fn one_thread(&mut self, now: Duration) -> bool {
        forget(&mut self.unclear, now, Self::WINDOW);
        self.unclear.len() >= Self::UNCLEAR
    }
}

/// Sees that a worker hangs.
///
/// It counts looks, not time: where the whole machine stood still for a while, the worker had no
/// more of it than the supervisor.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// What each thread did at the last look, and for how many looks it has done so.
    threads: Vec<(Serving, u32)>,
    question: Question,
    /// Looks since the last question was answered.
    quiet: u32,
}

/// Whether the worker was asked if it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Question {
    #[default]
    None,
    /// So many looks ago, and it did not answer.
    Open(u32),
    /// It answered since the last look.
    Answered,
}

/// What a look showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// All is well.
    Well,
    /// All is well, and it is time to ask the worker whether it is there.
    Ask,
    /// A thread does not get on with what it does for this guest.
    ThreadHangs(GuestId),
    /// The worker does not answer.
    WorkerHangs,
}

impl Watch {
    /// The time between two looks.
    pub(super) const INTERVAL: Duration = Duration::from_secs(2);
    /// Looks at which a thread does the same, or a question is not answered, before it hangs.
    pub(super) const LOOKS: u32 = 3;
    /// Looks between two questions.
    pub(super) const QUIET: u32 = 2;

    /// Looks at what the threads do. The last one of them is the one that answers questions.
    pub(super) fn look(&mut self, threads: impl IntoIterator<Item = Serving>) -> Look {
        let (mut hangs, mut last_hangs) = (None, None);
        for (n, now) in threads.into_iter().enumerate() {
            let Some((before, looks)) = self.threads.get_mut(n) else {
                self.threads.push((now, 0));
                last_hangs = None;
                continue;
            };
            if *before == now && now.guest.is_some() {
                *looks += 1;
            } else {
                (*before, *looks) = (now, 0);
            }
            last_hangs = now.guest.filter(|_| *looks >= Self::LOOKS);
            hangs = hangs.or(last_hangs);
        }
        // It hangs by itself: if the process stood still, it would most likely do nothing.
        if let Some(guest) = last_hangs {
            return Look::ThreadHangs(guest);
        }
        match self.question {
            Question::Open(looks) if looks >= Self::LOOKS => return Look::WorkerHangs,
            Question::Open(looks) => self.question = Question::Open(looks + 1),
            // One thread, or all of them? The answer tells.
            Question::Answered => {
                self.question = Question::None;
                if let Some(guest) = hangs {
                    return Look::ThreadHangs(guest);
                }
            }
            Question::None => {
                self.quiet += 1;
                if self.quiet >= Self::QUIET || hangs.is_some() {
                    self.quiet = 0;
                    self.question = Question::Open(1);
                    return Look::Ask;
                }
            }
        }
        Look::Well
    }

    /// The worker answered.
    pub(super) fn answered(&mut self) {
        if self.question != Question::None {
            self.question = Question::Answered;
        }
    }
}

/// When the ephemeral pages of a guest go that has stopped its virtqueues and does not start them
/// again. A machine that is paused looks the same, so nothing else may go.
#[derive(Debug)]
pub(super) struct Abandonment {
    after: Duration,
    quiet: BTreeMap<GuestId, Duration>,
}

impl Abandonment {
    /// Pages go after so long; never, if that is zero.
    pub(super) fn new(after: Duration) -> Self {
        Self {
            after,
            quiet: BTreeMap::new(),
        }
    }

    /// Pages go after so long from now on; never, if that is zero.
    pub(super) fn set_after(&mut self, after: Duration) {
        self.after = after;
    }

    /// Takes note of the guests that [may be abandoned](super::guest::GuestState::may_be_abandoned)
    /// now. Returns those whose pages go, and when to ask again.
    pub(super) fn due(
        &mut self,
        now: Duration,
        quiet: &[GuestId],
    ) -> (Vec<GuestId>, Option<Duration>) {
        self.quiet.retain(|guest, _| quiet.contains(guest));
        if self.after.is_zero() {
            return (Vec::new(), None);
        }
        let mut due = Vec::new();
        let mut next = None;
        for guest in quiet {
            let at = *self.quiet.entry(*guest).or_insert(now) + self.after;
            if at <= now {
                due.push(*guest);
                self.quiet.remove(guest);
            } else {
                next = Some(next.map_or(at, |next: Duration| next.min(at)));
            }
        }
        (due, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn at(guest: u32) -> Serving {
        Serving {
            guest: Some(GuestId(guest)),
            turn: 1,
            culprit: false,
        }
    }

    const IDLE: Serving = Serving {
        guest: None,
        turn: 1,
        culprit: false,
    };

    #[test]
    fn a_worker_is_replaced_at_once_but_not_for_ever() {
        let mut restarts = Restarts::default();
        for n in 0..Restarts::FREE as u64 {
            let now = Duration::from_millis(n);
            assert_eq!(restarts.died(now, true), Duration::ZERO);
        }
        assert_eq!(restarts.died(secs(1), true), Restarts::PAUSE);
        assert_eq!(restarts.died(secs(20), true), Duration::ZERO);
    }

    #[test]
    fn workers_that_cannot_begin_are_tried_less_and_less_often() {
        let mut restarts = Restarts::default();
        let pauses = [100, 200, 400, 800, 1600, 3200, 5000, 5000];
        for (n, pause) in pauses.into_iter().enumerate() {
            let died = restarts.died(secs(10 * n as u64), false);
            assert_eq!(died, Duration::from_millis(pause));
        }
        restarts.began();
        assert_eq!(restarts.died(secs(100), true), Duration::ZERO);
        assert_eq!(restarts.died(secs(200), false), Restarts::FIRST);
    }

    #[test]
    fn a_guest_that_kills_workers_is_out_and_no_other() {
        let mut blame = Blame::default();
        let mut died = |at_second, end, threads: &[Serving]| {
            blame.died(secs(at_second), end, threads.iter().copied())
        };
        assert_eq!(died(0, End::Faulted, &[at(1), IDLE]), None);
        assert_eq!(died(1, End::Hung, &[at(1)]), None);
        assert_eq!(died(2, End::Faulted, &[at(2)]), None);
        assert_eq!(died(3, End::Faulted, &[at(1), at(1)]), Some(GuestId(1)));
        // It begins anew with its next connection.
        assert_eq!(died(4, End::Faulted, &[at(1)]), None);
        // Too long ago.
        assert_eq!(died(61, End::Faulted, &[at(2)]), None);
        assert_eq!(died(63, End::Faulted, &[at(2)]), None);
        assert_eq!(died(64, End::Faulted, &[at(2)]), Some(GuestId(2)));
    }

    #[test]
    fn who_kills_the_process_from_outside_blames_nobody() {
        let mut blame = Blame::default();
        for n in 0..100 {
            assert_eq!(blame.died(secs(n), End::Killed, [at(1)]), None);
            assert_eq!(blame.died(secs(n), End::Faulted, [IDLE]), None);
        }
        assert!(!blame.one_thread(secs(100)));
    }

    #[test]
    fn one_thread_finds_out_where_there_are_several_suspects() {
        let mut blame = Blame::default();
        let (victim, evil) = (at(1), at(2));
        assert_eq!(blame.died(secs(0), End::Faulted, [victim, evil]), None);
        assert!(!blame.one_thread(secs(0)));
        assert_eq!(blame.died(secs(1), End::Faulted, [victim, evil]), None);
        assert!(blame.one_thread(secs(1)));
        for n in 2..4 {
            assert_eq!(blame.died(secs(n), End::Faulted, [evil]), None);
        }
        assert_eq!(blame.died(secs(4), End::Faulted, [evil]), Some(GuestId(2)));
        assert!(!blame.one_thread(secs(61)));
        // A thread that says that it was it saves the trouble.
        let culprit = Serving {
            culprit: true,
            ..evil
        };
        let mut blame = Blame::default();
        assert_eq!(blame.died(secs(0), End::Faulted, [victim, culprit]), None);
        assert_eq!(blame.died(secs(0), End::Faulted, [culprit, victim]), None);
        let out = blame.died(secs(0), End::Faulted, [victim, culprit]);
        assert_eq!(out, Some(GuestId(2)));
    }

    /// Looks at the same for so often, and answers questions or not.
    fn look(watch: &mut Watch, threads: &[Serving], times: u32, answers: bool) -> Vec<Look> {
        let mut looks = Vec::new();
        for _ in 0..times {
            let look = watch.look(threads.iter().copied());
            if look == Look::Ask && answers {
                watch.answered();
            }
            looks.push(look);
        }
        looks
    }

    #[test]
    fn a_thread_that_does_the_same_for_long_hangs() {
        let mut watch = Watch::default();
        let next = Serving { turn: 2, ..at(5) };
        let hangs = Look::ThreadHangs(GuestId(5));
        for _ in 0..10 {
            // It does the same, and then something else.
            let looks = look(&mut watch, &[at(5), IDLE], Watch::LOOKS, true);
            assert!(!looks.contains(&hangs), "{looks:?}");
            let looks = look(&mut watch, &[next, IDLE], Watch::LOOKS, true);
            assert!(!looks.contains(&hangs), "{looks:?}");
        }
        // That it answers a question shows that it is this thread alone.
        let looks = look(&mut watch, &[next, IDLE], 2 * Watch::LOOKS, true);
        assert!(looks.contains(&hangs), "{looks:?}");
        // The thread that answers cannot be asked.
        let mut watch = Watch::default();
        let looks = look(&mut watch, &[IDLE, at(5)], Watch::LOOKS + 1, false);
        assert_eq!(looks.last(), Some(&hangs));
    }

    #[test]
    fn a_worker_that_does_not_answer_hangs_and_no_guest_is_blamed() {
        for threads in [[IDLE, IDLE], [at(1), IDLE]] {
            let mut watch = Watch::default();
            let looks = look(&mut watch, &threads, Watch::QUIET + Watch::LOOKS, false);
            assert_eq!(looks.last(), Some(&Look::WorkerHangs), "{looks:?}");
            assert!(!looks.contains(&Look::ThreadHangs(GuestId(1))));
            let looks = look(&mut Watch::default(), &[IDLE, IDLE], 100, true);
            assert!(!looks.contains(&Look::WorkerHangs));
            let asked = looks.iter().filter(|look| **look == Look::Ask).count();
            assert_eq!(asked, 100 / (Watch::QUIET as usize + 1));
        }
    }

    #[test]
    fn pages_of_a_guest_that_does_not_come_back_go_once() {
        let (a, b) = (GuestId(1), GuestId(2));
        let mut abandonment = Abandonment::new(secs(600));
        assert_eq!(abandonment.due(secs(0), &[a]), (vec![], Some(secs(600))));
        assert_eq!(
            abandonment.due(secs(100), &[a, b]),
            (vec![], Some(secs(600)))
        );
        assert_eq!(
            abandonment.due(secs(600), &[a, b]),
            (vec![a], Some(secs(700)))
        );
        // It came back in time, and went again.
        assert_eq!(abandonment.due(secs(650), &[]), (vec![], None));
        assert_eq!(abandonment.due(secs(700), &[b]), (vec![], Some(secs(1300))));
        let mut never = Abandonment::new(Duration::ZERO);
        assert_eq!(never.due(secs(100_000), &[a]), (vec![], None));
    }
}
