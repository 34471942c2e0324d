// SPDX-License-Identifier: GPL-2.0

//! Which epoch is in force, whatever comes late.

use virtio_tmem_logic::{
    epoch::{
        Epoch,
        Told,
        NONE, //
    },
    standing::{
        Access,
        Standing,
        FRESH,
        GONE,
        LEAVING,
        OUTDATED,
        SILENT,
        SUSPENDED,
        UNTRUSTED, //
    },
};

#[test]
fn a_new_epoch_is_told_by_answers_and_events() {
    let epoch = Epoch::new(1);
    assert_eq!(epoch.told(1, Some(1)), Told::Same);
    assert_eq!(epoch.told(1, None), Told::Same);
    assert_eq!(epoch.told(2, Some(1)), Told::New);
    assert_eq!(epoch.told(2, None), Told::New);
}

#[test]
fn what_is_late_does_not_set_it_back() {
    let mut epoch = Epoch::new(1);
    epoch.change(2);
    assert_eq!(epoch.current(), 2);
    assert_eq!(epoch.told(1, Some(1)), Told::Late);
    assert_eq!(epoch.told(1, None), Told::Late);
    assert_eq!(epoch.told(3, Some(1)), Told::Late);
}

#[test]
fn a_device_that_goes_back_lies() {
    let mut epoch = Epoch::new(1);
    epoch.change(2);
    assert_eq!(epoch.told(1, Some(2)), Told::Lie);
    assert_eq!(epoch.told(NONE, Some(2)), Told::Lie);
    assert_eq!(epoch.told(NONE, None), Told::Lie);
}

#[test]
fn a_device_whose_epoch_flaps_lies_in_the_end() {
    let mut epoch = Epoch::new(0);
    let changes = (1..1000)
        .take_while(|&next| {
            let new = epoch.told(next, None) == Told::New;
            if new {
                epoch.change(next);
            }
            new
        })
        .count();
    assert!((2..100).contains(&changes), "{changes}");
    assert_eq!(epoch.told(2000, None), Told::Lie);
    assert_eq!(epoch.told(2000, Some(epoch.current())), Told::Lie);
}

#[test]
fn any_reason_keeps_pages_from_being_put() {
    assert!(Standing::from_word(0).may_put());
    for reason in [FRESH, LEAVING, SILENT, SUSPENDED, OUTDATED, GONE, UNTRUSTED] {
        let standing = Standing::from_word(reason);
        assert!(!standing.may_put());
        assert_eq!(standing.ephemeral(), Access::Never);
    }
}

#[test]
fn a_persistent_page_is_waited_for_until_the_device_is_gone() {
    for word in 0..1u32 << 7 {
        let standing = Standing::from_word(word);
        let wanted = match word {
            _ if word & GONE != 0 => Access::Never,
            _ if word & (SUSPENDED | OUTDATED | FRESH) != 0 => Access::Wait,
            _ => Access::Ask,
        };
        assert_eq!(standing.persistent(), wanted, "{word:#b}");
    }
}
