// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Virtqueues, feature bits and the configuration space.

use virtio_tmem_abi::{Config, Opcode, PageResult, Status, EPOCH_NONE, MAGIC};
use zerocopy::{FromBytes, IntoBytes};

use crate::session::{demand, equal, fail, key, Outcome, Session, Target, DATA, HEADER};

/// Sends a flush to a pool that is not there by a virtqueue.
fn answers(session: &mut Session, queue: usize) -> Outcome {
    let header = session.header(Opcode::FlushPage, 0, 1);
    let bytes = [header.as_bytes(), key(0, 1).as_bytes()].concat();
    let answer = session.send(queue, &bytes, HEADER + 1)?;
    equal("flush of no pool", answer.status(), Some(Status::NoPool))
}

pub(crate) fn all_data_queues(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    for queue in DATA..session.device.queues.len() {
        answers(&mut session, queue)?;
    }
    Ok(())
}

pub(crate) fn any_data_queue(target: &Target) -> Outcome {
    let count = target.connect()?.device.queues.len();
    for only in [DATA, count - 1] {
        let mut session = target.connect_with(|queue| queue == only)?;
        answers(&mut session, only)?;
    }
    Ok(())
}

pub(crate) fn version_1(target: &Target) -> Outcome {
    let offered = target.bare(&target.socket)?.offered();
    let why = format!("features {offered:#x} are without bit 32");
    demand(offered & (1 << 32) != 0, why)
}

pub(crate) fn no_bit_of_the_type(target: &Target) -> Outcome {
    let offered = target.bare(&target.socket)?.offered();
    // Bits 0 to 23, and 50 to 63; 64 to 127 cannot be told over vhost-user here.
    let of_the_type = offered & (0x00ff_ffff | (u64::MAX << 50));
    demand(
        of_the_type == 0,
        format!("it offers {of_the_type:#x} as well"),
    )
}

pub(crate) fn whole_config(target: &Target) -> Outcome {
    let mut connection = target.bare(&target.socket)?;
    let whole = connection.read_config(0, 64)?;
    equal("length", whole.len(), 64)?;
    for at in 0..64 {
        let one = connection.read_config(at, 1)?;
        equal("a byte that is read alone", one[0], whole[at as usize])?;
    }
    // What is cut short may read as zeros.
    let config = Config::read_from_bytes(&whole).expect("it has that length");
    equal("magic", config.magic.get(), MAGIC)?;
    let limits = [config.max_pages, config.max_flushes, config.max_pools];
    let why = format!("a limit is zero: {limits:?}");
    demand(limits.iter().all(|limit| limit.get() > 0), why)
}

pub(crate) fn reserved_config(target: &Target) -> Outcome {
    let config = target.connect()?.device.config;
    equal("reserved0", config.reserved0, 0)?;
    equal("reserved1", config.reserved1, [0; 7])?;
    equal("end", config.end, 0)
}

pub(crate) fn epoch_is_one(target: &Target) -> Outcome {
    let epoch = target.connect()?.device.epoch();
    demand(epoch != EPOCH_NONE, "the epoch is EPOCH_NONE")
}

pub(crate) fn config_stays(target: &Target) -> Outcome {
    let mut session = target.connect()?;
    let mut before = *session.config();
    if session.pool(0, 0).is_ok() {
        let result = session.put_fill(0, key(0, 1), 1)?;
        if result != PageResult::Stored && !result.is_refusal() {
            return fail(format_args!("{result:?} answers a put"));
        }
    }
    let after = session.device.connection.read_config(0, 64)?;
    before.epoch.as_mut_bytes().copy_from_slice(&after[32..40]);
    demand(before.as_bytes() == after, "a field has changed")
}
