// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Streams of saved pages: what is written is read again, and nothing else is.

use proptest::{collection::vec, prelude::*};
use vhost_device_tmem::{
    saved::{
        Contents, GuestHead, Page, PoolHead, Reader, Record, StreamError, Writer, MAX_PAGES,
        VERSION,
    },
    store::{Hold, PAGE_SIZE},
};
use virtio_tmem_abi::{Key, ObjectId};

const HEAD: usize = 16;

fn key() -> impl Strategy<Value = Key> {
    any::<([u64; 3], u64, u64)>().prop_map(|(object, index, version)| Key {
        object: ObjectId(object.map(Into::into)),
        index: index.into(),
        version: version.into(),
    })
}

fn page() -> impl Strategy<Value = Page> {
    let contents = prop_oneof![
        any::<u64>().prop_map(Contents::Same),
        (any::<u64>(), 0..PAGE_SIZE).prop_map(|(word, at)| {
            let mut page = [0; PAGE_SIZE];
            Contents::Same(word).fill(&mut page);
            page[at] ^= 1;
            Contents::of(&page)
        }),
    ];
    (key(), contents).prop_map(|(key, contents)| Page { key, contents })
}

/// Records of pools 0 to `pools`, without the last one.
fn body(pools: u32) -> impl Strategy<Value = Vec<Record>> {
    let pages = (0..pools, vec(page(), 1..=MAX_PAGES))
        .prop_map(|(pool, pages)| Record::Pages { pool, pages });
    let gone =
        (0..pools, vec(key(), 1..=MAX_PAGES)).prop_map(|(pool, keys)| Record::Gone { pool, keys });
    vec(prop_oneof![3 => pages, 1 => gone], 0..6)
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let holds = prop_oneof![Just(Hold::Stays), Just(Hold::Held), Just(Hold::Kept)];
    let rest = vec(holds, 1..4).prop_flat_map(|holds| {
        let pools = holds.len() as u32;
        (Just(holds), body(pools))
    });
    (any::<u64>(), ".{0,30}", rest).prop_map(|(epoch, name, (holds, body))| {
        let page_shift = 12;
        let mut records = vec![Record::Guest(GuestHead {
            epoch,
            page_shift,
            name,
        })];
        let pools = (0..).zip(holds);
        records.extend(pools.map(|(number, hold)| Record::Pool(PoolHead { number, hold })));
        records.extend(body);
        records
    })
}

fn written(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes).unwrap();
    for record in records {
        writer.write(record).unwrap();
    }
    writer.end().unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<Vec<Record>, StreamError> {
    let mut reader = Reader::new(bytes)?;
    let mut records = Vec::new();
    loop {
        match reader.read_record()? {
            Record::End(_) => break,
            record => records.push(record),
        }
    }
    assert_eq!(reader.into_inner(), b"", "it reads up to the end");
    Ok(records)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_written_is_read(records in records()) {
        prop_assert_eq!(read(&written(&records)).unwrap(), records);
    }

    #[test]
    fn what_is_cut_off_or_changed_is_refused(
        records in records(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let bytes = written(&records);
        let at = at.index(bytes.len());
        let cut = read(&bytes[..at]).unwrap_err();
        let (cut_off, foreign) = (
            matches!(cut, StreamError::CutOff(_)),
            matches!(cut, StreamError::Foreign),
        );
        prop_assert!(if at < HEAD { foreign } else { cut_off }, "{:?}", cut);
        let mut changed = bytes;
        changed[at] ^= 1_u8 << bit;
        let refused = read(&changed);
        prop_assert!(refused.is_err(), "byte {} may be another", at);
    }

    #[test]
    fn records_are_in_their_places(records in records(), one in any::<prop::sample::Index>()) {
        // One that is left out is missed by the check of the next.
        let whole = written(&records);
        let mut ends = vec![HEAD];
        while *ends.last().unwrap() < whole.len() {
            let at = *ends.last().unwrap();
            let len = u32::from_le_bytes(whole[at + 4..at + 8].try_into().unwrap());
            ends.push(at + 12 + len as usize);
        }
        let one = one.index(ends.len() - 1);
        let less = [&whole[..ends[one]], &whole[ends[one + 1]..]].concat();
        prop_assert!(read(&less).is_err());
        let twice = [&whole[..ends[one + 1]], &whole[ends[one]..]].concat();
        // Behind the end there is nothing to be read.
        prop_assert!(one + 2 == ends.len() || read(&twice).is_err());
    }
}

fn head() -> Record {
    Record::Guest(GuestHead {
        epoch: 1,
        page_shift: 12,
        name: "web".to_owned(),
    })
}

#[test]
fn something_else_is_told_apart() {
    let said = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
    assert_eq!(said(b""), "this is no saved guest");
    assert_eq!(said(&[0; 100]), "this is no saved guest");
    let mut newer = written(&[head()]);
    newer[8] += 1;
    let words = format!("it is of version {}", VERSION + 1);
    assert!(said(&newer).contains(&words), "{}", said(&newer));
    let failed = written(&[head(), Record::Failed("the disk is full".to_owned())]);
    assert_eq!(
        said(&failed),
        "it was not saved to its end: the disk is full"
    );
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let pool = |number| {
        let hold = Hold::Stays;
        Record::Pool(PoolHead { number, hold })
    };
    let gone = |pool| Record::Gone {
        pool,
        keys: vec![Key {
            object: ObjectId([0.into(); 3]),
            index: 0.into(),
            version: 0.into(),
        }],
    };
    let live = |pages| Record::Live { pages };
    let damaged = |pages| Record::Damaged { pages };
    assert!(read(&written(&[head(), pool(1), gone(1), live(0), damaged(2)])).is_ok());
    let wrong: [&[Record]; 11] = [
        &[],
        &[pool(1)],
        &[head(), head()],
        &[head(), pool(1), pool(1)],
        &[head(), pool(1), gone(2)],
        &[head(), pool(1), gone(1), pool(2)],
        &[head(), pool(1), live(7)],
        &[head(), pool(1), live(0), live(0)],
        &[damaged(1)],
        &[head(), pool(1), damaged(0)],
        &[head(), pool(1), damaged(1), damaged(1)],
    ];
    for records in wrong {
        let refused = read(&written(records)).unwrap_err().to_string();
        assert!(
            refused.contains("does not belong there"),
            "{records:?}: {refused}"
        );
    }
}
