// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is said of guests' parts of the memory.

use super::*;
use crate::policy::Bounds;

const TWO: &str = "
capacity = \"1GiB\"
weight = 50
persistent-max = \"512MiB\"
[guests.a]
socket = \"/a\"
[guests.b]
socket = \"/b\"
weight = 200
ephemeral-min = \"64MiB\"
";

fn set(key: &str, value: &str) -> GuestEdit {
    GuestEdit::Set {
        name: "b".to_owned(),
        terms: [(key.to_owned(), value.to_owned())].into(),
    }
}

/// Does so, and returns the weights of the guests.
fn weights(sources: &mut Sources, edit: &GuestEdit) -> Result<Vec<(String, u32)>, String> {
    let guests = sources.config(&memory()).unwrap().guests;
    let edited = sources.edit(edit, &guests);
    edited.map_err(|problems| problems.to_string())?;
    let config = sources.config(&memory());
    let config = config.map_err(|problems| problems.to_string())?;
    let weight = |guest| config.terms(guest, 0).weight;
    let guests = config.guests.iter();
    Ok(guests
        .map(|guest| (guest.name.clone(), weight(guest)))
        .collect())
}

fn of(weights: &[(&str, u32)]) -> Result<Vec<(String, u32)>, String> {
    let weights = weights.iter();
    Ok(weights
        .map(|(name, weight)| ((*name).to_owned(), *weight))
        .collect())
}

#[test]
fn a_guest_has_its_own_terms_or_those_of_all() {
    let config = of_file(&[], TWO).unwrap();
    let [a, b] = [0, 1].map(|n| config.terms(&config.guests[n], 7));
    assert_eq!((a.guest, a.weight, a.ephemeral), (7, 50, Bounds::NONE));
    let cap = 512 << 20;
    assert_eq!(a.persistent, Bounds { min: 0, cap });
    assert_eq!((b.weight, b.persistent), (200, a.persistent));
    assert_eq!(b.ephemeral.min, 64 << 20);
    let plain = of_file(&[], "capacity = \"1G\"\nguests.a.socket = \"/a\"").unwrap();
    let terms = plain.terms(&plain.guests[0], 0);
    assert_eq!((terms.weight, terms.persistent), (100, Bounds::NONE));
}

#[test]
fn what_operators_set_comes_first_and_can_be_taken_back() {
    let mut it = sources(&[], Some(TWO));
    let set_weight = |value| set("weight", value);
    let of_b = |weight| of(&[("a", 50), ("b", weight)]);
    assert_eq!(weights(&mut it, &set_weight("300")), of_b(300));
    // It survives a restart, which reads it again.
    let kept = serde_json::to_string(&it.edits).unwrap();
    it.edits = serde_json::from_str(&kept).unwrap();
    assert_eq!(weights(&mut it, &set("ephemeral-min", "1M")), of_b(300));
    assert_eq!(weights(&mut it, &set_weight("default")), of_b(200));
    weights(&mut it, &set("ephemeral-min", "default")).unwrap();
    assert!(it.edits.is_empty());
    // With another name it is the same guest.
    weights(&mut it, &set_weight("300")).unwrap();
    let rename = GuestEdit::Rename {
        name: "b".to_owned(),
        to: "c".to_owned(),
    };
    assert_eq!(weights(&mut it, &rename), of(&[("a", 50), ("c", 300)]));
}

#[test]
fn an_added_guest_has_the_terms_that_it_was_added_with() {
    let mut it = sources(&[], Some(TWO));
    let add = GuestEdit::Add {
        name: "b2".to_owned(),
        socket: "/b2".into(),
        window_size: None,
        terms: [("weight".to_owned(), "9".to_owned())].into(),
    };
    let of_b2 = |weight| of(&[("a", 50), ("b", 200), ("b2", weight)]);
    assert_eq!(weights(&mut it, &add), of_b2(9));
    let GuestEdit::Set { terms, .. } = set("weight", "default") else {
        unreachable!()
    };
    let name = "b2".to_owned();
    let back = GuestEdit::Set { name, terms };
    assert_eq!(weights(&mut it, &back), of_b2(50));
}

#[test]
fn terms_that_cannot_be_are_refused() {
    for (key, value, words) in [
        (
            "weight",
            "heavy",
            "guest \"b\": weight \"heavy\" is no whole",
        ),
        (
            "weight",
            "0",
            "guest \"b\": cannot be so: guest \"b\" has weight 0",
        ),
        ("weight", "10001", "give one from 1 to 10000"),
        ("wait", "1", "\"wait\" is no key; the keys are weight, "),
        ("persistent-min", "x", "persistent-min \"x\" is no size"),
        (
            "persistent-min",
            "513M",
            "and may have no more than 512 MiB",
        ),
        (
            "ephemeral-min",
            "2G",
            "guests are guaranteed 2.00 GiB in all",
        ),
    ] {
        let mut it = sources(&[], Some(TWO));
        let problem = weights(&mut it, &set(key, value)).unwrap_err();
        assert!(problem.contains(words), "{problem}");
    }
    let guest = "capacity = \"1G\"\n[guests.a]\nsocket = \"/a\"\n";
    for (text, words) in [
        (
            "weight = 0",
            "t.toml:4: guests.a.weight cannot be so: guest",
        ),
        ("weight = -1", "t.toml:4: guests.a.weight cannot be so: "),
        (
            "persistent-max = \"much\"",
            "t.toml:4: guests.a.persistent-max \"much\" is no size",
        ),
        (
            "ephemeral-max = \"1M\"\nephemeral-min = \"2M\"",
            "t.toml:5: guests.a.ephemeral-min cannot be so: guest \"a\" is guaranteed",
        ),
        (
            "persistent-min = \"600M\"\n[guests.b]\nsocket = \"/b\"\nephemeral-min = \"500M\"",
            "t.toml:4: guests.a.persistent-min cannot be so: guests are guaranteed",
        ),
    ] {
        let problem = wrong(&format!("{guest}{text}"));
        assert!(problem.starts_with(words), "{problem}");
    }
    // What is said of all is wrong where that is said.
    let problem = wrong(&format!("ephemeral-min = \"2G\"\n{guest}"));
    let words = "t.toml:1: ephemeral-min cannot be so: guests are guaranteed";
    assert!(problem.starts_with(words), "{problem}");
}
