// SPDX-License-Identifier: GPL-2.0

//! Whether the device answers: requests that are slow, lost, not told of, and guests that stop.

use virtio_tmem_logic::watchdog::{
    InFlight,
    Verdict,
    Watchdog, //
};

const LIMIT: u64 = 3000;

const TOLD: InFlight = InFlight {
    serial: 1,
    told: true,
};

/// A device that is looked at as often as the watchdog wants to.
struct Bench {
    watchdog: Watchdog<4>,
    now: u64,
    flights: [Option<InFlight>; 4],
}

impl Bench {
    fn new(give_up: Option<u64>) -> Self {
        Self {
            watchdog: Watchdog::new(LIMIT, give_up),
            now: 1_000_000,
            flights: [None; 4],
        }
    }

    fn look(&mut self) -> Verdict {
        let flights = self.flights;
        self.watchdog.look(self.now, |place| flights[place]).0
    }

    /// Looks for so many milliseconds; returns what there was to be said, and after how many.
    fn run(&mut self, time: u64) -> Vec<(u64, Verdict)> {
        self.run_with(time, |_| ())
    }

    fn run_with(&mut self, time: u64, mut each: impl FnMut(&mut Self)) -> Vec<(u64, Verdict)> {
        let start = self.now;
        let mut said = Vec::new();
        while self.now - start < time {
            self.now += self.watchdog.period();
            each(self);
            match self.look() {
                Verdict::AsBefore => (),
                verdict => said.push((self.now - start, verdict)),
            }
        }
        said
    }
}

#[test]
fn an_idle_device_is_never_silent() {
    assert_eq!(Bench::new(None).run(3_600_000), []);
}

#[test]
fn a_device_that_does_not_answer_is_silent_once_and_never_given_up() {
    let mut bench = Bench::new(None);
    bench.flights[0] = Some(TOLD);
    let said = bench.run(3_600_000);
    let [(after, Verdict::Silent { .. })] = said[..] else {
        panic!("{said:?}");
    };
    assert!((LIMIT..2 * LIMIT).contains(&after), "{after}");
}

#[test]
fn it_is_said_when_the_device_answers_again() {
    let mut bench = Bench::new(None);
    bench.flights[0] = Some(TOLD);
    bench.run(60_000);
    assert!(bench.watchdog.is_silent());
    bench.flights[0] = None;
    let said = bench.run(60_000);
    let [(_, Verdict::Answers { after })] = said[..] else {
        panic!("{said:?}");
    };
    assert!((50_000..=61_000).contains(&after), "{after}");
    assert!(!bench.watchdog.is_silent());
}

#[test]
fn a_request_that_is_lost_is_seen_among_others_that_are_answered() {
    let mut bench = Bench::new(None);
    bench.flights[0] = Some(TOLD);
    let mut serial = 10;
    let said = bench.run_with(60_000, |bench| {
        serial += 1;
        bench.flights[1] = Some(InFlight { serial, told: true });
    });
    assert!(
        matches!(said[..], [(_, Verdict::Silent { .. })]),
        "{said:?}"
    );
}

#[test]
fn others_that_take_the_same_place_are_not_one_that_is_lost() {
    let mut bench = Bench::new(None);
    let mut serial = 10;
    let said = bench.run_with(600_000, |bench| {
        serial += 1;
        bench.flights[0] = Some(InFlight { serial, told: true });
    });
    assert_eq!(said, []);
}

#[test]
fn what_the_device_was_not_told_of_is_not_waited_for() {
    let mut bench = Bench::new(None);
    bench.flights[0] = Some(InFlight {
        serial: 1,
        told: false,
    });
    assert_eq!(bench.run(600_000), []);
    // From when it is told it is.
    bench.flights[0] = Some(TOLD);
    assert_eq!(bench.run(LIMIT / 2), []);
    assert!(matches!(
        bench.run(LIMIT)[..],
        [(_, Verdict::Silent { .. })]
    ));
}

#[test]
fn a_guest_that_did_not_run_is_not_the_devices_fault() {
    let mut bench = Bench::new(Some(LIMIT));
    bench.flights[0] = Some(TOLD);
    assert_eq!(bench.look(), Verdict::AsBefore);
    bench.now += 3_600_000;
    assert_eq!(bench.look(), Verdict::AsBefore);
    bench.flights[0] = None;
    assert_eq!(bench.run(60_000), []);
}

#[test]
fn the_device_is_given_up_only_where_somebody_said_so() {
    let mut bench = Bench::new(Some(20_000));
    bench.flights[0] = Some(TOLD);
    let said = bench.run(19_000);
    assert!(
        matches!(said[..], [(_, Verdict::Silent { .. })]),
        "{said:?}"
    );
    let said = bench.run(2_000);
    assert!(
        matches!(said.first(), Some((_, Verdict::GiveUp { waited })) if *waited >= 20_000),
        "{said:?}"
    );
}

#[test]
fn time_in_which_nothing_was_in_flight_does_not_count() {
    let mut bench = Bench::new(None);
    bench.look();
    bench.now += 3_600_000;
    bench.flights[0] = Some(TOLD);
    assert_eq!(bench.look(), Verdict::AsBefore);
    bench.now += bench.watchdog.period();
    assert_eq!(bench.look(), Verdict::AsBefore);
}
