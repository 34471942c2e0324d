// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests that break a rule.

use virtio_tmem_abi::{
    Key, Malformed, Opcode, PageResult, Range, RequestHeader, Status, FIRST_DATA_QUEUE,
};
use zerocopy::IntoBytes;

use crate::session::{
    demand, equal, key, object, Outcome, Session, Target, CONTROL, DATA, HEADER, UNWRITTEN,
};

/// A request, and the lengths of its two parts beside what they have to be.
struct Broken {
    header: RequestHeader,
    table: Vec<u8>,
    queue: usize,
    writable: usize,
}

type Refusal = (Status, Option<Malformed>);
/// Which check it is for, what answers it, and what it does to a request.
type Breach = (&'static str, Refusal, fn(&mut Broken));

/// The ways to break a `FlushRange` of one entry, in the order of the checks.
const BREACHES: [Breach; 9] = [
    ("3: opcode", (Status::Unsupported, None), |request| {
        request.header.opcode = 0x7fff.into();
    }),
    ("4: reserved", malformed(Malformed::Reserved), |request| {
        request.header.reserved1 = 1.into();
    }),
    ("5: flags", malformed(Malformed::Flags), |request| {
        request.header.flags = 0x8000.into();
    }),
    ("6: count", malformed(Malformed::Count), |request| {
        request.header.count = 0.into();
    }),
    ("7: pool", malformed(Malformed::Pool), |request| {
        request.header.pool = u32::MAX.into();
    }),
    ("8: table", malformed(Malformed::Short), |request| {
        request.table.truncate(39);
    }),
    (
        "9: answer",
        malformed(Malformed::WritableLength),
        |request| {
            request.writable += 1;
        },
    ),
    ("10: epoch", (Status::StaleEpoch, None), |request| {
        let epoch = request.header.epoch.get();
        request.header.epoch = (epoch ^ 1).into();
    }),
    ("11: pool", (Status::NoPool, None), |request| {
        // The one that is broken above has precedence.
        let pool = request.header.pool.get().max(1);
        request.header.pool = pool.into();
    }),
];

const fn malformed(detail: Malformed) -> Refusal {
    (Status::Malformed, Some(detail))
}

/// A range that ends before it begins, and in all else a request that follows the rules.
fn backwards(session: &Session) -> Broken {
    let range = Range {
        object: object(1),
        first: 2.into(),
        last: 1.into(),
    };
    Broken {
        header: session.header(Opcode::FlushRange, 0, 1),
        table: range.as_bytes().to_vec(),
        queue: usize::from(FIRST_DATA_QUEUE),
        writable: HEADER + 1,
    }
}

fn refused(session: &mut Session, what: &str, request: &Broken, wanted: Refusal) -> Outcome {
    let bytes = [request.header.as_bytes(), &*request.table].concat();
    let answer = session.send(request.queue, &bytes, request.writable)?;
    let found = (answer.status(), answer.detail());
    equal(what, found, (Some(wanted.0), wanted.1))?;
    equal(what, answer.header.count.get(), 0)?;
    equal("used length", answer.used, HEADER)
}

/// Each breach alone, and with all that come after it.
pub(crate) fn checks_in_order(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    session.pool(0, 0)?;
    let last = backwards(&session);
    refused(&mut session, "check 12", &last, malformed(Malformed::Range))?;
    for (n, (what, wanted, _)) in BREACHES.iter().enumerate() {
        let mut request = backwards(&session);
        for (_, _, breach) in BREACHES[n..].iter().rev() {
            breach(&mut request);
        }
        refused(&mut session, &format!("check {what}"), &request, *wanted)?;
    }
    // Where there is no whole header there is nothing else to check.
    let answer = session.send(DATA, &[0xff; 31], HEADER)?;
    equal("check 2", answer.detail(), Some(Malformed::Short))?;
    // No answer fits.
    let header = session.header(Opcode::FlushPage, 0, 1);
    let bytes = [header.as_bytes(), key(0, 1).as_bytes()].concat();
    session.submit(DATA, crate::session::BUFFERS, &bytes, HEADER - 1);
    let used = session.wait(DATA)?;
    equal("check 1: used length", used, 0)?;
    // A table that is too long, on its own.
    let bytes = [&bytes[..], &[0]].concat();
    let answer = session.send(DATA, &bytes, HEADER + 1)?;
    equal("check 8", answer.detail(), Some(Malformed::ReadableLength))?;
    // An operation of the other kind of virtqueue.
    let header = session.header(Opcode::PoolStats, 0, 0);
    let answer = session.send(DATA, header.as_bytes(), HEADER + 128)?;
    equal("check 3", answer.status(), Some(Status::Unsupported))
}

/// Nothing of a request is carried out that one check refuses.
pub(crate) fn first_check_answers(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    session.persistent()?;
    session.store(0, key(0, 1), 1)?;
    for (what, wanted, breach) in BREACHES {
        let mut request = Broken {
            header: session.header(Opcode::FlushPage, 0, 1),
            table: key(0, 1).as_bytes().to_vec(),
            queue: DATA,
            writable: HEADER + 1,
        };
        breach(&mut request);
        refused(&mut session, &format!("check {what}"), &request, wanted)?;
        session.hit(0, key(0, 1), 1)?;
    }
    // The first of two entries follows the rules.
    let [good, bad] = [(0, 9), (2, 1)].map(|(first, last)| Range {
        object: object(1),
        first: u64::into(first),
        last: u64::into(last),
    });
    let request = Broken {
        header: session.header(Opcode::FlushRange, 0, 2),
        table: [good, bad].as_bytes().to_vec(),
        queue: DATA,
        writable: HEADER + 2,
    };
    let range = malformed(Malformed::Range);
    refused(&mut session, "one of two entries", &request, range)?;
    session.hit(0, key(0, 1), 1)
}

pub(crate) fn keeps_serving(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    session.persistent()?;
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..500 {
        let bytes: Vec<u8> = (0..size_of::<RequestHeader>() + size_of::<Key>())
            .map(|_| rng.u8(..))
            .collect();
        for queue in [CONTROL, DATA] {
            let answer = session.send(queue, &bytes, HEADER + 1)?;
            let why = format!("{:?} answers nonsense", answer.status());
            let refused = !matches!(answer.status(), None | Some(Status::Ok));
            demand(refused, why)?;
        }
    }
    let result = session.put_fill(0, key(0, 1), UNWRITTEN)?;
    if result == PageResult::Stored {
        session.hit(0, key(0, 1), UNWRITTEN)?;
    }
    Ok(())
}
