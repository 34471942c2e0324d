// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What workers are told, whenever one takes over from another.

use proptest::prelude::*;

use super::*;

const GUEST: GuestId = GuestId(3);
const EPOCH: u64 = 77;
const RINGS: u16 = 4;
const FEATURES: u64 = (1 << 32) | (1 << 30);

const ADDRESS: RingAddress = RingAddress {
    desc: 0x1000,
    avail: 0x2000,
    used: 0x3000,
};

fn state() -> GuestState {
    GuestState::new(GUEST, "a", EPOCH, RINGS)
}

fn region(size: u64) -> MemoryRegion {
    MemoryRegion {
        guest_addr: 0,
        size,
        user_addr: 0x7000,
        offset: 0,
    }
}

/// All that a front-end says of a virtqueue before it runs.
fn set_up(state: &mut GuestState, ring: u32, base: u32) -> Vec<Order> {
    state.set_size(ring, 256).unwrap();
    state.set_base(ring, base).unwrap();
    let mut orders = state.set_address(ring, ADDRESS).unwrap();
    orders.extend(state.set_call(ring, true).unwrap());
    orders.extend(state.set_kick(ring, true).unwrap());
    orders.extend(state.enable(ring).unwrap());
    orders
}

fn running() -> GuestState {
    let mut state = state();
    state.set_features(FEATURES);
    state.set_memory(vec![region(1 << 20)], false);
    set_up(&mut state, 2, 5);
    state
}

fn start(base: Option<u16>) -> Order {
    Order {
        message: ToWorker::StartRing {
            guest: GUEST,
            ring: 2,
            layout: RingLayout {
                size: 256,
                desc: 0x1000,
                avail: 0x2000,
                used: 0x3000,
            },
            base,
            kick: true,
            call: true,
        },
        slots: vec![Slot::Kick(2), Slot::Call(2)],
    }
}

#[test]
fn a_virtqueue_starts_once_all_is_known_of_it() {
    let mut state = state();
    assert_eq!(state.set_features(FEATURES).len(), 1);
    assert_eq!(set_up(&mut state, 2, 5), [start(Some(5))]);
    assert!(state.runs(2) && !state.runs(1));
    assert_eq!(state.enable(2).unwrap(), []);
    // In another order.
    let mut state = running();
    state.stopped(2, 9);
    assert_eq!(state.end_ring(2), Ok(9));
    assert_eq!(state.enable(2).unwrap(), []);
    assert_eq!(state.set_kick(2, true).unwrap(), [start(Some(9))]);
    // Without the protocol's features none has to be enabled.
    let mut state = self::state();
    state.set_features(1 << 32);
    state.set_size(2, 256).unwrap();
    state.set_address(2, ADDRESS).unwrap();
    assert_eq!(state.set_kick(2, false).unwrap().len(), 1);
}

#[test]
fn a_new_worker_is_told_all_and_begins_where_the_ring_is() {
    let mut state = running();
    let add = Order::from(ToWorker::AddGuest {
        guest: GUEST,
        name: "a".to_owned(),
        epoch: EPOCH,
        renewed: false,
        features: FEATURES,
    });
    let memory = Order {
        message: ToWorker::SetMemory {
            guest: GUEST,
            regions: vec![region(1 << 20)],
        },
        slots: vec![Slot::Memory(0)],
    };
    // One that was never told where to begin is told by the next.
    let expected = [add.clone(), memory.clone(), start(Some(5))];
    assert_eq!(state.bring_up(), expected);
    state.sent(&start(Some(5)).message);
    assert_eq!(state.bring_up(), [add.clone(), memory.clone(), start(None)]);
    state.stopped(2, 6);
    assert_eq!(state.bring_up(), [add, memory]);
}

#[test]
fn another_process_begins_where_the_ring_is_whatever_was_said() {
    let mut state = running();
    // It does not know whether a worker heard of it.
    assert_eq!(state.bring_up().last(), Some(&start(Some(5))));
    assert_eq!(state.resumable().bring_up().last(), Some(&start(None)));
    // What does not run begins where it was stopped.
    state.stopped(2, 6);
    assert_eq!(state.resumable(), state);
}

#[test]
fn a_virtqueue_that_is_stopped_goes_on_where_it_was() {
    let mut state = running();
    state.sent(&start(Some(5)).message);
    state.stopped(2, 300);
    state.disable(2).unwrap();
    assert_eq!(state.enable(2).unwrap(), [start(Some(300))]);
    // A front-end asks for the base of one that never ran.
    assert_eq!(state.end_ring(0), Ok(0));
    state.set_base(1, 8).unwrap();
    assert_eq!(state.end_ring(1), Ok(8));
}

#[test]
fn what_does_not_fit_is_refused_with_what_to_do() {
    let mut state = state();
    let message = state.set_kick(4, true).unwrap_err().to_string();
    assert!(
        message.contains("virtqueue 4") && message.contains("num_vqs=4"),
        "{message}"
    );
    for size in [0, 3, 2048, 65536] {
        let message = state.set_size(1, size).unwrap_err().to_string();
        assert!(message.contains("vq_size=1024"), "{message}");
    }
    assert_eq!(
        state.set_base(1, 65536),
        Err(GuestError::RingBase {
            ring: 1,
            base: 65536
        })
    );
    assert_eq!(state, self::state());
}

#[test]
fn a_guest_that_cannot_be_served_may_try_again_and_one_to_blame_may_not() {
    let mut state = running();
    state.failed("memory".to_owned());
    assert!(!state.runs(2));
    assert_eq!(state.enable(2).unwrap(), []);
    // The worker keeps its pages nevertheless.
    assert_eq!(state.bring_up().len(), 2);
    let orders = state.set_memory(vec![region(1 << 20)], false);
    assert_eq!(orders.len(), 2);
    assert_eq!(orders[1], start(Some(5)));
    state.blamed();
    assert_eq!(state.set_memory(vec![region(1 << 20)], false).len(), 1);
    assert_eq!(set_up(&mut state, 1, 0), []);
    state.failed("memory".to_owned());
    assert_eq!(state.set_memory(vec![region(1 << 20)], false).len(), 1);
}

#[test]
fn a_reset_leaves_the_memory_and_nothing_else() {
    let mut state = running();
    state.stopped(2, 6);
    let orders = state.reset();
    assert_eq!(orders, [ToWorker::ResetGuest { guest: GUEST }.into()]);
    assert_eq!(state.enable(2).unwrap(), []);
    assert_eq!(state.slots(), [Slot::Memory(0)]);
}

#[test]
fn only_who_had_virtqueues_can_abandon_them_and_once() {
    let mut state = state();
    assert!(!state.may_be_abandoned());
    state = running();
    assert!(!state.may_be_abandoned());
    state.stopped(2, 6);
    assert!(state.may_be_abandoned());
    assert_eq!(
        state.abandon(),
        ToWorker::AbandonGuest { guest: GUEST }.into()
    );
    assert!(!state.may_be_abandoned());
    state.enable(2).unwrap();
    state.stopped(2, 6);
    assert!(state.may_be_abandoned());
}

/// What a front-end may say.
#[derive(Clone, Copy, Debug)]
enum Said {
    Size(u32, u32),
    Base(u32, u32),
    Address(u32, u64),
    Kick(u32, bool),
    Call(u32, bool),
    Enable(u32),
    Disable(u32),
    GetBase(u32),
    Memory,
    Features(u64),
    Reset,
}

fn said() -> impl Strategy<Value = Said> {
    let ring = 0..5u32;
    prop_oneof![
        (ring.clone(), prop_oneof![Just(256u32), Just(5)]).prop_map(|(r, s)| Said::Size(r, s)),
        (ring.clone(), 0..70_000u32).prop_map(|(r, b)| Said::Base(r, b)),
        (ring.clone(), 1..3u64).prop_map(|(r, a)| Said::Address(r, a)),
        (ring.clone(), any::<bool>()).prop_map(|(r, k)| Said::Kick(r, k)),
        (ring.clone(), any::<bool>()).prop_map(|(r, c)| Said::Call(r, c)),
        ring.clone().prop_map(Said::Enable),
        ring.clone().prop_map(Said::Disable),
        ring.prop_map(Said::GetBase),
        Just(Said::Memory),
        prop_oneof![Just(FEATURES), Just(1 << 32)].prop_map(Said::Features),
        Just(Said::Reset),
    ]
}

/// A worker, as far as it knows of virtqueues: what each was started with last.
#[derive(Debug, Default, PartialEq, Eq)]
struct Worker(std::collections::BTreeMap<u16, (RingLayout, bool, bool)>);

impl Worker {
    fn hear(&mut self, message: &ToWorker) {
        match message {
            ToWorker::StartRing {
                ring,
                layout,
                kick,
                call,
                ..
            } => {
                self.0.insert(*ring, (*layout, *kick, *call));
            }
            ToWorker::SetCall { ring, call, .. } => {
                let known = self.0.get_mut(ring).expect("it runs");
                known.2 = *call;
            }
            ToWorker::StopRing { ring, .. } => {
                self.0.remove(ring).expect("it runs");
            }
            ToWorker::ResetGuest { .. } => assert!(self.0.is_empty()),
            _ => {}
        }
    }
}

proptest! {
    /// A worker that heard of every change, and one that is told of the result, know the same.
    #[test]
    fn a_worker_that_takes_over_knows_what_the_one_before_knew(
        said in prop::collection::vec(said(), 0..60),
    ) {
        let mut state = state();
        let mut old = Worker::default();
        let stop = |state: &mut GuestState, old: &mut Worker, ring: u32| {
            let Ok(ring) = state.ring(ring) else { return };
            if state.runs(ring) {
                old.hear(&ToWorker::StopRing { guest: GUEST, ring });
                state.stopped(ring, 1);
            }
        };
        for said in said {
            let orders = match said {
                Said::Size(ring, size) => state.set_size(ring, size).map(|()| vec![]),
                Said::Base(ring, base) => state.set_base(ring, base).map(|()| vec![]),
                Said::Address(ring, desc) => {
                    state.set_address(ring, RingAddress { desc, ..ADDRESS })
                }
                Said::Kick(ring, kick) => state.set_kick(ring, kick),
                Said::Call(ring, call) => state.set_call(ring, call),
                Said::Enable(ring) => state.enable(ring),
                Said::Disable(ring) => {
                    stop(&mut state, &mut old, ring);
                    state.disable(ring).map(|()| vec![])
                }
                Said::GetBase(ring) => {
                    stop(&mut state, &mut old, ring);
                    state.end_ring(ring).map(|_| vec![])
                }
                Said::Memory => Ok(state.set_memory(vec![region(1 << 20)], false)),
                Said::Features(features) => Ok(state.set_features(features)),
                Said::Reset => {
                    for ring in 0..u32::from(RINGS) {
                        stop(&mut state, &mut old, ring);
                    }
                    Ok(state.reset())
                }
            };
            for order in orders.unwrap_or_default() {
                old.hear(&order.message);
                state.sent(&order.message);
            }
            let mut new = Worker::default();
            let read = serde_json::to_string(&state).unwrap();
            let read: GuestState = serde_json::from_str(&read).unwrap();
            for order in read.bring_up() {
                new.hear(&order.message);
            }
            prop_assert_eq!(&new, &old);
            prop_assert_eq!(&read, &state);
        }
    }
}
