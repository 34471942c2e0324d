// SPDX-License-Identifier: GPL-2.0

//! Reading: what the host has of a request is got from there, and the rest from the swap area.

use crate::{
    client::{
        NotNow,
        Pool, //
    },
    params,
};

use super::{
    builder::Builder,
    iocb::{
        span_of,
        Iocb, //
    },
    request::{
        Position,
        Request, //
    },
    Entered, //
};

/// How long a read waits until the host can be asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Not at all: it is done later, by work. Whoever wants the page waits for its lock, and can be
    /// killed meanwhile.
    None,
    /// For as long as it takes.
    Endless,
}

/// Reads a request from the host, or from the swap area.
///
/// The kernel merges what is next to each other in the area, so that some of it may be in the one
/// and some in the other: then it is taken apart. Sleeps.
pub(super) fn read(context: &Entered, request: Iocb, patience: Patience) {
    loop {
        // What is in the window is there without a look at what the host has.
        if read_here(context, request) {
            return request.complete();
        }
        let (here, end) = same(context, request);
        // There is always memory for a part: it is waited for.
        let Some(part) = end.and_then(|end| request.part(end)) else {
            return read_whole(context, request, here, patience);
        };

        if here && read_here(context, part) {
            part.complete();
        } else {
            read_whole(context, part, here, patience);
        }
    }
}

/// Returns whether the host has the first folio, and the first other one of which the opposite is
/// true.
fn same(context: &Entered, request: Iocb) -> (bool, Option<usize>) {
    if let Some(run) = request.only_run() {
        let pool = Pool::Frontswap;
        let present = context.client.present(pool, run.tag, run.index, run.len);

        if present == 0 || present == run.len {
            return (present > 0, None);
        }
    }
    // Where the host has a page of a folio, what it has not is nowhere.
    let mut here = request
        .folios()
        .map(|folio| span_of(folio).present(context) > 0)
        .enumerate();
    let first = here.next().is_some_and(|(_, here)| here);

    (
        first,
        here.find_map(|(place, here)| (here != first).then_some(place)),
    )
}

/// Reads a request of which the host has each place, or none.
pub(super) fn read_whole<R: Request>(
    context: &Entered,
    request: R,
    here: bool,
    patience: Patience,
) {
    let client = &context.client;

    // CAST: It is the length of a request.
    let pages = request.pages() as usize;
    let counters = client.counters(Pool::Frontswap);

    if !here {
        counters.misses.add(pages);
    } else if params::write_through() && !client.standing().answers() {
        // All that was put is in the area too.
        counters.from_area.add(pages);
    } else {
        let mut gets = client.gets();
        let first = match gets.begin(Pool::Frontswap) {
            Err(NotNow::Busy) if patience == Patience::None => {
                drop(gets);
                R::queues(context).wait_for_host(request);
                return context.read_later();
            }
            first => first.ok(),
        };
        let mut builder = Builder::new(context, request, Some(gets));

        builder.batch = first;
        return builder.run();
    }
    request.submit();
}

/// Reads a request from the window, if all of its pages are there. Any context.
pub(super) fn read_here<R: Request>(context: &Entered, request: R) -> bool {
    let client = &context.client;
    let mut from = Position::START;

    while let Some(run) = request.run(from) {
        let mut at = from;
        let key = (run.tag, run.index);
        // CAST: A run is not longer than an object.
        let here = client.get_here(Pool::Frontswap, key, run.len as usize, |_| {
            Some(request.next(&mut at)?.0)
        });

        if (here.got as u64) < run.len {
            return false;
        }
        from = run.next;
    }
    true
}
