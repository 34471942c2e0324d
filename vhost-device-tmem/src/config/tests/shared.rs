// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is said of shared pools.

use super::*;
use crate::policy::Bounds;

const IMAGE: &str = "6a1e3b7c-52d4-4c1f-9a3e-8f0b1c2d3e4f";
const OTHER: &str = "00000000-0000-4000-8000-000000000001";

/// Three guests, and what is said of pools.
fn of(shared: &str) -> Sources {
    let text = format!(
        "capacity = \"1GiB\"\nguests.a.socket = \"/a\"\nguests.b.socket = \"/b\"\n\
         guests.c.socket = \"/c\"\n{shared}"
    );
    sources(&[], Some(&text))
}

fn image(guests: &str) -> Sources {
    of(&format!("[shared.\"{IMAGE}\"]\nguests = {guests}\n"))
}

/// The pools, each with its guests and its limit.
fn pools(sources: &Sources) -> Result<Vec<(String, String, Option<u64>)>, String> {
    let config = sources.config(&memory());
    let config = config.map_err(|problems| problems.to_string())?;
    let pools = config.shared.into_iter().map(|pool| {
        let guests: Vec<_> = pool.guests.into_iter().collect();
        (pool.uuid.to_string(), guests.concat(), pool.max)
    });
    Ok(pools.collect())
}

fn one(guests: &str, max: Option<u64>) -> Result<Vec<(String, String, Option<u64>)>, String> {
    Ok(vec![(IMAGE.to_owned(), guests.to_owned(), max)])
}

fn names(guests: &[&str]) -> Vec<String> {
    guests.iter().map(|name| (*name).to_owned()).collect()
}

fn add(
    sources: &mut Sources,
    uuid: &str,
    guests: &[&str],
    max: Option<&str>,
) -> Result<(), String> {
    let edit = SharedEdit::Add {
        uuid: uuid.to_owned(),
        guests: names(guests),
        max: max.map(str::to_owned),
    };
    let edited = sources.edit_shared(&edit, &sources.config(&memory()).unwrap());
    edited.map_err(|problems| problems.to_string())
}

fn remove(sources: &mut Sources, guests: &[&str]) -> Result<(), String> {
    let edit = SharedEdit::Remove {
        uuid: IMAGE.to_owned(),
        guests: names(guests),
    };
    let edited = sources.edit_shared(&edit, &sources.config(&memory()).unwrap());
    edited.map_err(|problems| problems.to_string())
}

#[test]
fn a_pool_is_as_the_file_says() {
    let text = format!(
        "[shared.\"{IMAGE}\"]\nguests = [\"b\", \"a\"]\nmax = \"1MiB\"\nweight = 7\n\
         [shared.\"{OTHER}\"]\nguests = []\n"
    );
    let sources = of(&text);
    // One that nobody shares is none.
    assert_eq!(pools(&sources), one("ab", Some(1 << 20)));
    let terms = sources.config(&memory()).unwrap().shared[0].terms(9);
    assert_eq!((terms.guest, terms.weight, &*terms.name), (9, 7, IMAGE));
    assert_eq!(terms.persistent, Bounds { min: 0, cap: 0 });
    let cap = 1 << 20;
    assert_eq!(terms.ephemeral, Bounds { min: 0, cap });
    // Workers, and those who look at options alone, are told of it in another way.
    assert!(sources.options().shared.is_empty());
}

#[test]
fn problems_are_told_with_their_lines() {
    let wrong = |shared: &str| pools(&of(shared)).unwrap_err();
    let table = |rest: &str| format!("[shared.\"{IMAGE}\"]\n{rest}\n");
    let at =
        |line: u32, key: &str, what: &str| format!("t.toml:{line}: shared.{IMAGE}.{key} {what}");
    assert_eq!(
        wrong(&table("guests = [\"a\", \"a\"]")),
        at(6, "guests", "names guest \"a\" twice")
    );
    assert_eq!(
        wrong(&table("guests = [\"a\", \"z\"]")),
        at(
            6,
            "guests",
            "names guest \"z\", which there is not; the guests are: a, b, c"
        )
    );
    assert_eq!(
        wrong(&table("guests = []\nmax = \"1KiB\"")),
        at(7, "max", "\"1KiB\" is too small; give at least 1MiB")
    );
    let nil = table("guests = []").replace(IMAGE, "00000000-0000-0000-0000-000000000000");
    assert!(wrong(&nil).contains("is of no shared pool: the UUID of zeros"));
    for name in ["x", "1234-ABCD", &IMAGE[1..], &format!("{{{IMAGE}}}")] {
        let problem = wrong(&table("guests = []").replace(IMAGE, name));
        assert!(problem.contains("is no UUID"), "{problem}");
    }
    let many: Vec<_> = (1..=129)
        .map(|n| format!("[shared.\"{n:08}{}\"]\nguests = [\"a\"]\n", &IMAGE[8..]))
        .collect();
    assert!(wrong(&many.concat()).contains("one too many: there may be 128"));
    assert!(pools(&of(&many[1..].concat())).is_ok());
}

#[test]
fn a_guest_that_is_not_there_shares_nothing_until_it_comes() {
    let mut sources = image("[\"a\", \"late\"]");
    let known = |sources: &Sources| {
        let (config, missing) = sources.config_of_known(&memory()).unwrap();
        let guests = config.shared[0].guests.iter().cloned();
        (guests.collect::<Vec<_>>(), missing.len())
    };
    assert_eq!(known(&sources), (names(&["a"]), 1));
    let problem = pools(&sources).unwrap_err();
    assert!(problem.contains("names guest \"late\""), "{problem}");
    let late = GuestEdit::Add {
        name: "late".to_owned(),
        socket: "/late".into(),
        window_size: None,
        terms: Default::default(),
    };
    sources.edit(&late, &[]).unwrap();
    assert_eq!(known(&sources), (names(&["a", "late"]), 0));
}

#[test]
fn operators_add_guests_and_take_them_off() {
    let mut sources = image("[\"a\"]");
    add(&mut sources, &IMAGE.to_uppercase(), &["b"], Some("2MiB")).unwrap();
    assert_eq!(pools(&sources), one("ab", Some(2 << 20)));
    remove(&mut sources, &["a"]).unwrap();
    assert_eq!(pools(&sources), one("b", Some(2 << 20)));
    // What the file says was taken back in the same way.
    add(&mut sources, IMAGE, &["a"], Some("default")).unwrap();
    remove(&mut sources, &["b"]).unwrap();
    assert_eq!(pools(&sources), one("a", None));
    assert!(sources.edits.is_empty());
    remove(&mut sources, &[]).unwrap();
    assert_eq!(pools(&sources), Ok(vec![]));
    assert!(!sources.edits.is_empty());
    // What cannot be changes nothing.
    let before = sources.edits.clone();
    for (guests, words) in [
        (&["a", "a"][..], "names guest \"a\" twice"),
        (&["z"][..], "which there is not; the guests are: a, b, c"),
        (&[][..], "has no guests"),
    ] {
        let problem = add(&mut sources, OTHER, guests, None).unwrap_err();
        assert!(problem.contains(words), "{problem}");
    }
    let problem = remove(&mut sources, &["a"]).unwrap_err();
    assert_eq!(
        problem,
        format!("shared pool {IMAGE}: is shared with nobody")
    );
    assert_eq!(sources.edits, before);
}

#[test]
fn access_follows_the_guest_and_not_its_name() {
    let mut sources = image("[\"a\", \"b\"]");
    let shared = |sources: &Sources| sources.config(&memory()).unwrap().shared;
    // As the guests' own part of it does.
    let edit = |sources: &mut Sources, edit: GuestEdit, to: Option<&str>| {
        let config = sources.config(&memory()).unwrap();
        sources.edit(&edit, &config.guests).unwrap();
        sources.rename_shared("a", to, &config.shared);
    };
    let (name, to) = ("a".to_owned(), "new".to_owned());
    let rename = GuestEdit::Rename { name, to };
    edit(&mut sources, rename, Some("new"));
    assert_eq!(pools(&sources), one("bnew", None));
    // Who gets the name that it had gets nothing else.
    let socket = "/later".into();
    let later = GuestEdit::Add {
        name: "a".to_owned(),
        socket,
        window_size: None,
        terms: Default::default(),
    };
    let guests = sources.config(&memory()).unwrap().guests;
    sources.edit(&later, &guests).unwrap();
    assert_eq!(pools(&sources), one("bnew", None));
    assert_eq!(shared(&sources).len(), 1);
    let mut sources = image("[\"a\"]");
    let (name, force) = ("a".to_owned(), false);
    edit(&mut sources, GuestEdit::Remove { name, force }, None);
    assert_eq!(pools(&sources), Ok(vec![]));
}
