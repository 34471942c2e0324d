// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest in a few figures.

use serde::Serialize;
use vhost_device_tmem::control::{GuestStat, Stat, Usage};

/// Whether a guest is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    Connected,
    Disconnected,
    NeverConnected,
}

impl State {
    pub(crate) fn of(guest: &GuestStat) -> Self {
        match (guest.connected, guest.epoch) {
            (true, _) => Self::Connected,
            (false, 0) => Self::NeverConnected,
            (false, _) => Self::Disconnected,
        }
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
            Self::NeverConnected => "never connected",
        }
    }
}

/// A guest, as it is listed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Listed<'s> {
    pub(crate) name: &'s str,
    pub(crate) state: State,
    /// Nothing more is taken of it.
    pub(crate) frozen: bool,
    #[serde(flatten)]
    pub(crate) usage: Usage,
    /// From 0 to 1, of the pages looked for.
    pub(crate) hit_rate: Option<f64>,
    /// From 0 to 1, of the pages put.
    pub(crate) refused_rate: Option<f64>,
}

impl<'s> Listed<'s> {
    pub(crate) fn of(guest: &'s GuestStat) -> Self {
        let usage = Usage::of(guest);
        Self {
            name: &guest.name,
            state: State::of(guest),
            frozen: guest.frozen,
            usage,
            hit_rate: usage.hit_rate(),
            refused_rate: usage.refused_rate(),
        }
    }

    pub(crate) fn all(stat: &'s Stat) -> Vec<Self> {
        stat.guests.iter().map(Self::of).collect()
    }
}
