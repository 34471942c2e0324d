// SPDX-License-Identifier: GPL-2.0

//! What a virtqueue carries.

use core::ptr::NonNull;

use kernel::prelude::*;

use super::{
    buffers::Buffers,
    watchers::{
        Kind,
        KINDS, //
    },
};

/// What a virtqueue carries: something with memory for the device to read and write.
pub(crate) trait Token: Send + 'static {
    /// Lists the memory that the device is given: first what it may read, then what it may write.
    ///
    /// What is listed is borrowed from the token for as long as the whole token is borrowed, and
    /// then the virtqueue owns the token's box: that is why nothing has to be promised here.
    ///
    /// Called with interrupts off and a lock of the virtqueue held: may not sleep, nor use the
    /// virtqueue. There is room for so many pieces as the [`Spec`](super::Spec) said; pages that
    /// follow each other are one.
    fn buffers<'a>(&'a mut self, list: &mut Buffers<'a>);
}

/// Returns what a virtqueue remembers of a token: its address, and who waits for it in the bits
/// that are zero in an address.
pub(super) fn into_data<T: Token>(token: KBox<T>, kind: Kind) -> NonNull<c_void> {
    const { assert!(align_of::<T>() >= KINDS && size_of::<T>() > 0) };

    let token = NonNull::from(KBox::leak(token)).cast::<u8>();
    // SAFETY: The token is a multiple of its alignment in size, and so at least `KINDS` bytes: this
    // is within it.
    unsafe { token.add(kind.number()) }.cast()
}

/// Returns the token, and who waits for it.
///
/// # Safety
///
/// `data` must be what [`into_data`] returned for a token of this type, and not be used again.
pub(super) unsafe fn from_data<T: Token>(data: NonNull<c_void>) -> (KBox<T>, Kind) {
    let number = data.addr().get() % KINDS;
    // SAFETY: By the safety requirements so much was added.
    let token = unsafe { data.cast::<u8>().sub(number) }.cast::<T>();

    // SAFETY: By the safety requirements it comes from a box, which nobody else has.
    let token = unsafe { KBox::from_raw(token.as_ptr()) };
    (token, Kind::from_number(number))
}
