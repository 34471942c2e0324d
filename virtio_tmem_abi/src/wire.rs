// SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0

//! How enumerations are written on the wire.

/// Declares an enumeration together with the integer that carries it on the wire.
///
/// The numbers are written once; `from_wire()` and `ALL` follow from them. No enumeration has a
/// member of value 0, so that memory nobody wrote is never taken for an answer.
macro_rules! wire_enum {
    (
        $(#[$meta:meta])*
        pub enum $name:ident: $repr:ty {
            $(
                $(#[$vmeta:meta])*
                $variant:ident = $value:literal,
            )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr($repr)]
        pub enum $name {
            $(
                $(#[$vmeta])*
                $variant = $value,
            )*
        }

        impl $name {
            /// Every member, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns the member that `value` stands for, or [`None`] if it stands for none.
            pub const fn from_wire(value: $repr) -> Option<Self> {
                match value {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// Returns the number that stands for this member on the wire.
            pub const fn to_wire(self) -> $repr {
                self as $repr
            }
        }

        $(static_assertions::const_assert!($value != 0);)*
    };
}

pub(crate) use wire_enum;
