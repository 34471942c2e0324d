// SPDX-License-Identifier: GPL-2.0

//! Who waits for a virtqueue's tokens. The virtqueues know nothing of the client, nor do they need
//! the kernel for this.

#[path = "../../../virtio/queue/watchers.rs"]
mod watchers;

use proptest::prelude::*;
use watchers::{
    Kind,
    Watchers,
    KINDS, //
};

/// Somebody who looks, and how many tokens of his are out.
struct Looker {
    kind: Kind,
    out: u32,
}

#[derive(Clone, Debug)]
enum Step {
    Look,
    /// Somebody who looks does not any more.
    Leave(usize),
    /// A token of somebody who looks, or else sleeps.
    Add(Option<usize>),
    /// One of those comes back, or else one of somebody who sleeps.
    Use(Option<usize>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = prop::option::weighted(0.7, 0usize..10);
    prop::collection::vec(
        prop_oneof![
            Just(Step::Look),
            (0usize..10).prop_map(Step::Leave),
            who.clone().prop_map(Step::Add),
            who.prop_map(Step::Use),
        ],
        0..200,
    )
}

proptest! {
    /// The device interrupts if nobody looks, or somebody sleeps; and who looks knows how many of
    /// his own tokens are out.
    #[test]
    fn whoever_sleeps_is_woken(steps in steps()) {
        let mut watchers = Watchers::new();
        let mut looking: Vec<Looker> = Vec::new();
        // Tokens by their kind for which somebody sleeps.
        let mut asleep: Vec<Kind> = Vec::new();

        for step in steps {
            let before = watchers.want_interrupt();
            match step {
                Step::Look => match watchers.poll() {
                    Some(kind) => {
                        prop_assert!(kind != Kind::SLEEPER);
                        prop_assert!(looking.iter().all(|looker| looker.kind != kind));
                        prop_assert!(asleep.iter().all(|&other| other != kind));
                        looking.push(Looker { kind, out: 0 });
                    }
                    // All kinds are in use.
                    None => {
                        let used = |kind| {
                            looking.iter().any(|looker| looker.kind == kind)
                                || asleep.contains(&kind)
                        };
                        prop_assert!((1..KINDS).map(Kind::from_number).all(used));
                    }
                },
                Step::Leave(n) if n < looking.len() => {
                    let looker = looking.swap_remove(n);
                    watchers.leave(looker.kind);
                    asleep.extend((0..looker.out).map(|_| looker.kind));
                }
                Step::Leave(_) => (),
                Step::Add(n) => {
                    let turned_on = match n.and_then(|n| looking.get_mut(n)) {
                        Some(looker) => {
                            looker.out += 1;
                            watchers.added(looker.kind)
                        }
                        None => {
                            asleep.push(Kind::SLEEPER);
                            watchers.added(Kind::SLEEPER)
                        }
                    };
                    prop_assert_eq!(turned_on, !before && watchers.want_interrupt());
                }
                Step::Use(Some(n)) => {
                    if let Some(looker) = looking.get_mut(n).filter(|looker| looker.out > 0) {
                        looker.out -= 1;
                        watchers.used(looker.kind);
                    }
                }
                Step::Use(None) => {
                    if let Some(kind) = asleep.pop() {
                        watchers.used(kind);
                    }
                }
            }

            prop_assert_eq!(
                watchers.want_interrupt(),
                looking.is_empty() || !asleep.is_empty()
            );
            for looker in &looking {
                prop_assert_eq!(watchers.out(looker.kind), looker.out);
            }
        }
    }
}
