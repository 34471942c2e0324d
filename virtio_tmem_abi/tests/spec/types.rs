// SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0

//! What the compiler says of the types.

use std::mem::offset_of;

use virtio_tmem_abi::{
    cap,
    pool_flags,
    request_flags,
    window_flags,
    Chunk,
    ChunkGrant,
    ChunkKind,
    ChunkReport,
    Chunks,
    Config,
    Event,
    EventKind,
    Key,
    Le16,
    Le32,
    Le64,
    Malformed,
    ObjectId,
    Opcode,
    PageResult,
    PoolCreate,
    PoolStats,
    Range,
    RequestHeader,
    ResponseHeader,
    SlotKey,
    Status,
    WindowHeader,
    WindowOpen,
    WindowReport,
    ABI_MAJOR,
    ABI_MINOR,
    CHUNK_REPORTS,
    CHUNK_SHIFT,
    CREDITS_UNLIMITED,
    DEVICE_ID,
    EPOCH_NONE,
    FIRST_CHUNK,
    FIRST_DATA_QUEUE,
    GENERATIONS,
    MAGIC,
    MAX_CHUNKS,
    MAX_GRANT,
    QUEUE_CONTROL,
    QUEUE_EVENT,
    WINDOW_MAGIC,
    WINDOW_VERSION, //
};

use crate::{
    Field,
    Struct, //
};

/// Writes a type as a listing of the text does: the element, and the length where it is an array.
trait ListingType {
    const ELEMENT: &'static str;
    const LENGTH: Option<usize> = None;
}

impl ListingType for u8 {
    const ELEMENT: &'static str = "u8";
}

impl ListingType for Le16 {
    const ELEMENT: &'static str = "le16";
}

impl ListingType for Le32 {
    const ELEMENT: &'static str = "le32";
}

impl ListingType for Le64 {
    const ELEMENT: &'static str = "le64";
}

impl ListingType for ObjectId {
    const ELEMENT: &'static str = "struct virtio_tmem_object_id";
}

impl ListingType for Key {
    const ELEMENT: &'static str = "struct virtio_tmem_key";
}

impl ListingType for Chunk {
    const ELEMENT: &'static str = "struct virtio_tmem_chunk";
}

impl<T: ListingType, const N: usize> ListingType for [T; N] {
    const ELEMENT: &'static str = T::ELEMENT;
    const LENGTH: Option<usize> = Some(N);
}

/// Returns the type of the field that `_get` reads.
fn type_of<T, F: ListingType>(_get: impl Fn(&T) -> &F) -> String {
    match F::LENGTH {
        Some(length) => format!("{}[{length}]", F::ELEMENT),
        None => F::ELEMENT.to_owned(),
    }
}

/// Describes a type as the text should.
macro_rules! describe {
    ($ty:ident { $($field:tt),* $(,)? }) => {{
        // No `..`: a field that is not named here does not compile.
        let _complete = |$ty { $($field: _,)* }: $ty| ();
        Struct {
            name: listing_name(stringify!($ty)),
            size: size_of::<$ty>(),
            fields: vec![$(
                Field {
                    offset: offset_of!($ty, $field),
                    ty: type_of(|value: &$ty| &value.$field),
                    name: stringify!($field).to_owned(),
                },
            )*],
        }
    }};
}

/// Returns every structure, as the types have them.
pub(crate) fn structs_of_types() -> Vec<Struct> {
    let mut object_id = describe!(ObjectId { 0 });
    // C has no name for it.
    object_id.fields[0].name = "id".to_owned();
    vec![
        describe!(Config {
            magic,
            abi_major,
            abi_minor,
            capabilities,
            page_shift,
            reserved0,
            data_queues,
            max_pages,
            max_flushes,
            max_pools,
            epoch,
            window,
            reserved1,
            end,
        }),
        describe!(Event {
            kind,
            reserved,
            persistent_credits,
            ephemeral_credits,
            epoch,
            pages,
        }),
        describe!(RequestHeader {
            opcode,
            flags,
            pool,
            count,
            reserved,
            epoch,
            reserved1,
        }),
        describe!(ResponseHeader {
            status,
            detail,
            count,
            persistent_credits,
            ephemeral_credits,
            reserved,
            epoch,
        }),
        object_id,
        describe!(Key {
            object,
            index,
            version,
        }),
        describe!(Range {
            object,
            first,
            last,
        }),
        describe!(PoolCreate {
            flags,
            page_shift,
            reserved,
            uuid,
        }),
        describe!(PoolStats {
            pages,
            bytes,
            puts,
            puts_stored,
            gets,
            gets_hit,
            flushes,
            pages_flushed,
            pages_evicted,
            reserved,
        }),
        describe!(WindowHeader {
            magic,
            version,
            page_shift,
            chunk_shift,
            chunks,
            identity,
            epoch,
            reserved,
        }),
        describe!(WindowOpen { flags, reserved }),
        describe!(ChunkGrant {
            kind,
            count,
            ticket,
        }),
        describe!(Chunk { number, generation }),
        describe!(Chunks {
            count,
            reserved,
            chunks,
        }),
        describe!(SlotKey {
            key,
            slot,
            generation,
        }),
        describe!(WindowReport {
            puts,
            refused,
            gets,
            hits,
            replaced,
            moved,
            ephemeral_free,
            persistent_free,
            near_misses,
            near_reach,
            reserved,
            hits_by_age,
        }),
        describe!(ChunkReport {
            used,
            reserved,
            hits,
        }),
    ]
}

/// The name of a table of numbers, and its rows of name and number, as the types have them.
pub(crate) type Numbers = (&'static str, Vec<(String, u64)>);

macro_rules! constants {
    ($title:literal, $($path:path),* $(,)?) => {
        ($title, vec![$((last_segment(stringify!($path)), u64::from($path)),)*])
    };
}

macro_rules! members {
    ($ty:ident) => {
        (
            stringify!($ty),
            $ty::ALL
                .iter()
                .map(|member| (format!("{member:?}"), u64::from(member.to_wire())))
                .collect(),
        )
    };
}

/// The titles of the tables of constants, each with the module whose constants they are.
pub(crate) const CONSTANT_TABLES: [(&str, &str); 8] = [
    ("Virtqueue", ""),
    ("Constant", ""),
    ("Credits", ""),
    ("Capability", "cap"),
    ("Request flag", "request_flags"),
    ("Pool flag", "pool_flags"),
    ("Window constant", ""),
    ("Window flag", "window_flags"),
];

/// Returns every table of numbers, as the types have them.
pub(crate) fn numbers_of_types() -> Vec<Numbers> {
    vec![
        constants!("Virtqueue", QUEUE_CONTROL, QUEUE_EVENT, FIRST_DATA_QUEUE),
        constants!("Constant", DEVICE_ID, MAGIC, ABI_MAJOR, ABI_MINOR, EPOCH_NONE),
        constants!(
            "Capability",
            cap::EPHEMERAL,
            cap::PERSISTENT,
            cap::SHARED,
            cap::DURABLE,
            cap::KEEP,
            cap::WINDOW
        ),
        members!(EventKind),
        constants!("Credits", CREDITS_UNLIMITED),
        constants!("Request flag", request_flags::TAKE),
        members!(Opcode),
        members!(Status),
        members!(Malformed),
        members!(PageResult),
        constants!(
            "Pool flag",
            pool_flags::PERSISTENT,
            pool_flags::SHARED,
            pool_flags::RELEASED_BY_RESET
        ),
        constants!(
            "Window constant",
            WINDOW_MAGIC,
            WINDOW_VERSION,
            CHUNK_SHIFT,
            FIRST_CHUNK,
            MAX_CHUNKS,
            MAX_GRANT,
            GENERATIONS,
            CHUNK_REPORTS
        ),
        constants!("Window flag", window_flags::RESUME),
        members!(ChunkKind),
    ]
}

fn last_segment(path: &str) -> String {
    path.rsplit("::").next().unwrap().trim().to_owned()
}

/// Returns the name that the type `name` has in a listing.
pub(crate) fn listing_name(name: &str) -> String {
    let mut listing = String::from("virtio_tmem");
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            listing.push('_');
        }
        listing.push(c.to_ascii_lowercase());
    }
    listing
}
