// SPDX-License-Identifier: GPL-2.0

//! Memory: the one thing that is different inside and outside the kernel.
//!
//! Everything here allocates when it is created and never after that. Creating and dropping may
//! sleep, and must happen outside of spin locks; all else may happen anywhere.

#[cfg(not(CONFIG_RUST))]
extern crate alloc;

#[cfg(CONFIG_RUST)]
use core::convert::Infallible;

#[cfg(CONFIG_RUST)]
use kernel::{
    alloc::{
        flags::__GFP_NOWARN,
        KVBox,
        KVVec, //
    },
    prelude::*, //
};

#[cfg(not(CONFIG_RUST))]
use alloc::{
    boxed::Box,
    vec,
    vec::Vec, //
};

/// There was no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

/// A fixed number of values in one piece of memory.
pub struct Block<T, const N: usize> {
    #[cfg(CONFIG_RUST)]
    items: KVBox<[T; N]>,
    #[cfg(not(CONFIG_RUST))]
    items: Box<[T; N]>,
}

impl<T: Copy, const N: usize> Block<T, N> {
    /// Allocates a block full of `value`.
    ///
    /// May sleep, and may enter reclaim: whoever calls must not be someone that reclaim waits for.
    #[cfg(CONFIG_RUST)]
    pub fn new(value: T) -> Result<Self, NoMemory> {
        let init = pin_init::init_array_from_fn::<_, N, T, Infallible>(|_| value);
        match KVBox::init(init, GFP_KERNEL | __GFP_NOWARN) {
            Ok(items) => Ok(Self { items }),
            Err(_) => Err(NoMemory),
        }
    }

    /// Allocates a block full of `value`.
    #[cfg(not(CONFIG_RUST))]
    pub fn new(value: T) -> Result<Self, NoMemory> {
        // By way of a vector, since an array would go by way of the stack.
        match vec![value; N].into_boxed_slice().try_into() {
            Ok(items) => Ok(Self { items }),
            Err(_) => Err(NoMemory),
        }
    }
}

impl<T, const N: usize> Block<T, N> {
    /// Returns the value at `i`.
    #[inline]
    pub fn get(&self, i: usize) -> Option<&T> {
        self.items.get(i)
    }

    /// Returns the value at `i`.
    #[inline]
    pub fn get_mut(&mut self, i: usize) -> Option<&mut T> {
        self.items.get_mut(i)
    }
}

/// A vector that never holds more than what it was created for.
///
/// # Invariants
///
/// `items` has been allocated for at least `capacity` values, and holds at most as many.
pub struct Table<T> {
    #[cfg(CONFIG_RUST)]
    items: KVVec<T>,
    #[cfg(not(CONFIG_RUST))]
    items: Vec<T>,
    capacity: usize,
}

impl<T> Table<T> {
    /// Allocates an empty table for `capacity` values.
    ///
    /// May sleep, and may enter reclaim: whoever calls must not be someone that reclaim waits for.
    pub fn with_capacity(capacity: usize) -> Result<Self, NoMemory> {
        #[cfg(CONFIG_RUST)]
        let items = KVVec::with_capacity(capacity, GFP_KERNEL | __GFP_NOWARN);
        #[cfg(not(CONFIG_RUST))]
        let items = {
            let mut items = Vec::new();
            items.try_reserve_exact(capacity).map(|()| items)
        };
        match items {
            // INVARIANT: The allocation above is of that size, and empty.
            Ok(items) => Ok(Self { items, capacity }),
            Err(_) => Err(NoMemory),
        }
    }

    /// Appends a value, or gives it back if the table is full.
    pub fn push(&mut self, value: T) -> Result<(), T> {
        if self.items.len() >= self.capacity {
            return Err(value);
        }
        // INVARIANT: There was room for one more.
        #[cfg(CONFIG_RUST)]
        return self.items.push_within_capacity(value).map_err(|e| e.0);
        #[cfg(not(CONFIG_RUST))]
        {
            self.items.push(value);
            Ok(())
        }
    }

    /// Returns the value at `i`.
    #[inline]
    pub fn get(&self, i: usize) -> Option<&T> {
        self.items.get(i)
    }

    /// Returns the value at `i`.
    #[inline]
    pub fn get_mut(&mut self, i: usize) -> Option<&mut T> {
        self.items.get_mut(i)
    }

    /// Returns the number of values.
    #[inline]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Returns whether there are no values.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.items.len() == 0
    }

    /// Returns the number of values that there is room for.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

impl<T: Copy> Table<T> {
    /// Allocates a table for `capacity` values and fills it with `value`.
    ///
    /// May sleep, and may enter reclaim: whoever calls must not be someone that reclaim waits for.
    pub fn filled(value: T, capacity: usize) -> Result<Self, NoMemory> {
        let mut table = Self::with_capacity(capacity)?;
        for _ in 0..capacity {
            table.push(value).map_err(|_| NoMemory)?;
        }
        Ok(table)
    }
}
