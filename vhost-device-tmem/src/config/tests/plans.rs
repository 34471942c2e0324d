// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{guest, of_file};
use crate::{
    args::{Config, GuestConfig},
    config::{plan, Circumstances, Key, Step},
};

/// A configuration with these guests, in these places.
fn with(guests: &[(&str, &str)]) -> Config {
    let args = ["-c", "1GiB", "--socket-dir", "/run"];
    let mut config = of_file(&args, "").unwrap();
    config.guests = guests
        .iter()
        .map(|(name, path)| guest(name, path, None))
        .collect();
    config
}

fn connected(names: &[&str]) -> Circumstances {
    Circumstances {
        connected: names.iter().map(|name| (*name).to_owned()).collect(),
        dirs: ["/run".into()].into(),
        ..Circumstances::default()
    }
}

#[test]
fn guests_come_go_and_move() {
    let old = with(&[("a", "/run/a"), ("b", "/run/b"), ("c", "/run/c")]);
    let new = with(&[("a", "/run/a"), ("c", "/run/b"), ("d", "/run/c")]);
    let steps = plan(&old, &new, &connected(&["a", "c"])).unwrap();
    assert_eq!(
        steps,
        [
            Step::Remove("b".into()),
            Step::Move(guest("c", "/run/b", None)),
            Step::Add(guest("d", "/run/c", None)),
        ]
    );
    assert_eq!(plan(&old, &old, &connected(&["a"])), Ok(vec![]));
}

#[test]
fn who_is_connected_is_taken_off_by_force_only() {
    let (old, new) = (with(&[("a", "/run/a")]), with(&[]));
    let problems = plan(&old, &new, &connected(&["a"])).unwrap_err();
    assert_eq!(problems[0].0, Key::socket("a"));
    assert!(problems[0].1.contains("--force"));
    let force = Circumstances {
        force: true,
        ..connected(&["a"])
    };
    let steps = Ok(vec![Step::Remove("a".into())]);
    assert_eq!(plan(&old, &new, &force), steps);
    assert_eq!(plan(&old, &new, &connected(&["b"])), steps);
    let mut new = new;
    new.remove_connected = true;
    let steps = plan(&old, &new, &connected(&["a"])).unwrap();
    assert_eq!(
        steps,
        [
            Step::Remove("a".into()),
            Step::Set(vec!["remove-connected"])
        ]
    );
}

#[test]
fn what_cannot_change_is_named_all_of_it() {
    let old = with(&[("a", "/run/a")]);
    let mut new = with(&[("a", "/run/a"), ("b", "/elsewhere/b")]);
    new.capacity += 1;
    new.threads = 7;
    new.guests[0].window = Some(8 << 20);
    let problems = plan(&old, &new, &connected(&[])).unwrap_err();
    let keys: Vec<_> = problems.iter().map(|(key, _)| key.clone()).collect();
    assert_eq!(
        keys,
        [
            Key::Option("capacity"),
            Key::Option("threads"),
            Key::window("a"),
            Key::socket("b"),
        ]
    );
    assert!(problems[3].1.contains("(/run)"), "{}", problems[3].1);
}

#[test]
fn a_guest_with_another_name_is_the_same() {
    let old = with(&[("a", "/run/a")]);
    let new = with(&[("b", "/run/a")]);
    let renamed = Circumstances {
        renamed: Some(("a".into(), "b".into())),
        ..connected(&["a"])
    };
    let to = guest("b", "/run/a", None);
    let from = "a".to_owned();
    assert_eq!(
        plan(&old, &new, &renamed),
        Ok(vec![Step::Rename { from, to }])
    );
}

/// Does what steps say, to a list of guests.
fn follow(guests: &[GuestConfig], steps: &[Step]) -> Vec<GuestConfig> {
    let mut guests = guests.to_vec();
    for step in steps {
        match step {
            Step::Remove(name) => guests.retain(|guest| guest.name != *name),
            Step::Add(guest) => guests.push(guest.clone()),
            Step::Move(to) => {
                let moved = guests.iter_mut().find(|guest| guest.name == to.name);
                moved.unwrap().path = to.path.clone();
            }
            Step::Rename { .. }
            | Step::Terms(_)
            | Step::Share(_)
            | Step::Unshare(_)
            | Step::Set(_) => {}
        }
    }
    guests.sort_by(|one, other| one.name.cmp(&other.name));
    guests
}

fn guests() -> impl Strategy<Value = Vec<GuestConfig>> {
    prop::collection::btree_map("[a-d]", "/(run|else)/[a-d]", 0..4).prop_map(|guests| {
        let guests = guests.into_iter();
        guests
            .map(|(name, path)| guest(&name, &path, None))
            .collect()
    })
}

proptest! {
    /// Where nothing stands against it, the steps lead to what is to be; otherwise something is
    /// named that does.
    #[test]
    fn steps_lead_to_the_new_configuration(
        old in guests(),
        new in guests(),
        there in prop::collection::btree_set("[a-d]", 0..4),
        force: bool,
    ) {
        let (mut from, mut to) = (with(&[]), with(&[]));
        (from.guests, to.guests) = (old, new);
        let circumstances = Circumstances {
            connected: there.clone(),
            dirs: ["/run".into()].into(),
            force,
            renamed: None,
        };
        match plan(&from, &to, &circumstances) {
            Ok(steps) => prop_assert_eq!(follow(&from.guests, &steps), to.guests),
            Err(problems) => {
                let names: BTreeSet<_> = to.guests.iter().map(|guest| &guest.name).collect();
                let gone = from.guests.iter().any(|guest| {
                    !force && there.contains(&guest.name) && !names.contains(&guest.name)
                });
                let outside = to.guests.iter().any(|guest| guest.path.starts_with("/else"));
                prop_assert!(!problems.is_empty() && (gone || outside));
            }
        }
    }
}
