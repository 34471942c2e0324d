// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The messages.

use serde::{Deserialize, Serialize};

use crate::{
    args::Args,
    config::{GuestEdit, SharedEdit},
    device::{GuestId, MemoryRegion, RingLayout},
    policy::Terms,
    store::{Dropped, SharedPool},
};

/// The version of the link. It changes with any message that the other side would misunderstand.
pub const LINK_VERSION: u32 = 6;

/// What the supervisor says. It is carried out in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker {
    /// The first message: what to serve, and how. Answered by [`FromWorker::Ready`].
    ///
    /// Descriptors: the page of [`super::BlamePage`], the operator's socket if `control`, the two of
    /// the store's memory, a file by whose lock workers have that memory one after the other, and
    /// the socket of metrics if `metrics`, and the spill file if `tier`.
    Start {
        /// What the daemon was told, but for guests.
        options: Box<Args>,
        /// Threads that serve virtqueues at most; 0: as many as are good.
        threads: u32,
        /// Whether there is an operator's socket.
        control: bool,
        /// Whether there is a socket of metrics.
        #[serde(default)]
        metrics: bool,
        /// Whether there is a spill file.
        #[serde(default)]
        tier: bool,
        /// Workers that were started, with this one.
        #[serde(default)]
        worker_starts: u64,
        /// The guests, in the order in which statistics have them.
        guests: Vec<(GuestId, String)>,
        /// The guests whose pages are still wanted. What a worker before kept for any other goes.
        known: Vec<GuestId>,
        /// What operators say of the guests' parts of the memory.
        terms: Vec<Terms>,
        /// The pools that guests may share.
        #[serde(default)]
        shared: Vec<SharedPool>,
    },
    /// Operators say something else of the guests' parts of the memory: this, of all of them.
    SetTerms {
        /// The terms.
        terms: Vec<Terms>,
    },
    /// Guests may share other pools than before: these, and no others.
    SetShared {
        /// The pools.
        pools: Vec<SharedPool>,
    },
    /// A guest has a window. It comes before anything else about the guest, connected or not.
    ///
    /// Descriptors: the window's file, and the one in which workers keep book of it.
    SetWindow {
        /// Whose it is.
        guest: GuestId,
        /// The epoch of its connection, if there is one.
        epoch: Option<u64>,
    },
    /// A front-end is connected.
    AddGuest {
        /// Whose it is.
        guest: GuestId,
        /// The guest's name.
        name: String,
        /// The epoch, new with each connection.
        epoch: u64,
        /// Whether the driver may know another one, and is to be told.
        #[serde(default)]
        renewed: bool,
        /// The virtio features that the driver accepted.
        features: u64,
    },
    /// The connection ended: the guest's pages go, also if the guest was not added. Answered by
    /// [`FromWorker::Removed`].
    RemoveGuest {
        /// Whose it was.
        guest: GuestId,
    },
    /// There is a guest of this number, or it has this name from now on.
    NameGuest {
        /// Its number.
        guest: GuestId,
        /// Its name.
        name: String,
    },
    /// Nothing more is taken of a guest, connected or not, or pages are taken again. It comes before
    /// the guest is added.
    FreezeGuest {
        /// Its number.
        guest: GuestId,
        /// Whether nothing more is taken.
        frozen: bool,
    },
    /// There is no such guest any more: all that there is of it goes, whether it is known or not.
    /// Answered by [`FromWorker::Forgotten`].
    ForgetGuest {
        /// Its number, which no other guest gets.
        guest: GuestId,
    },
    /// All of the guest's memory. Descriptors: a file for each region.
    SetMemory {
        /// The guest.
        guest: GuestId,
        /// Its memory.
        regions: Vec<MemoryRegion>,
    },
    /// The driver accepted virtio features.
    SetFeatures {
        /// The guest.
        guest: GuestId,
        /// The features.
        features: u64,
    },
    /// A virtqueue is to run. Descriptors: what it is notified by if `kick`, and what the driver is
    /// interrupted by if `call`.
    StartRing {
        /// The guest.
        guest: GuestId,
        /// The virtqueue.
        ring: u16,
        /// Where it is.
        layout: RingLayout,
        /// The available index to begin at; `None`: the index of the used ring, where a worker
        /// before was.
        base: Option<u16>,
        /// Whether it is notified by a descriptor; it is looked at all the time otherwise.
        kick: bool,
        /// Whether the driver is interrupted.
        call: bool,
    },
    /// The driver is to be interrupted in another way. Descriptors: one if `call`.
    SetCall {
        /// The guest.
        guest: GuestId,
        /// The virtqueue.
        ring: u16,
        /// Whether the driver is interrupted.
        call: bool,
    },
    /// A virtqueue is to stop. Answered by [`FromWorker::RingStopped`] once nothing of the guest's
    /// memory is touched any more on its behalf.
    StopRing {
        /// The guest.
        guest: GuestId,
        /// The virtqueue.
        ring: u16,
    },
    /// The device was reset: pools that a reset releases are freed.
    ResetGuest {
        /// The guest.
        guest: GuestId,
    },
    /// A guest of which no virtqueue runs was given the pages of another time, and goes on in the epoch
    /// of that.
    SetEpoch {
        /// The guest.
        guest: GuestId,
        /// The epoch.
        epoch: u64,
    },
    /// The guest has had no virtqueue for so long that it seems not to want its pages any more.
    /// Ephemeral pages go.
    AbandonGuest {
        /// The guest.
        guest: GuestId,
    },
    /// Are you there? Answered by [`FromWorker::Pong`], when all before it is done.
    Ping {
        /// Goes with the answer.
        token: u64,
    },
    /// Log what is of this level or worse.
    SetLogLevel {
        /// Its name.
        level: String,
    },
    /// Say in the log what there is.
    Summarise,
    /// Finish what is being copied, answer [`FromWorker::Stopped`], and exit.
    Stop,
}

/// What the worker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromWorker {
    /// The first message, before it was told anything.
    Hello {
        /// Its [`LINK_VERSION`].
        version: u32,
        /// The version of the program, for the log.
        program: String,
    },
    /// It has begun: the store is as the worker before left it.
    Ready {
        /// Descriptions of pages that were damaged. Whose they were nobody knows: if there are
        /// some, no guest may believe any more in what it has stored.
        lost: u64,
    },
    /// It cannot begin, and exits.
    Failed {
        /// Why, and what to do.
        why: String,
    },
    /// To [`ToWorker::StopRing`].
    RingStopped {
        /// The guest.
        guest: GuestId,
        /// The virtqueue.
        ring: u16,
        /// The available index of the first chain that was not carried out.
        base: u16,
    },
    /// To [`ToWorker::RemoveGuest`].
    Removed {
        /// The guest.
        guest: GuestId,
        /// Its pages.
        dropped: Dropped,
    },
    /// To [`ToWorker::ForgetGuest`].
    Forgotten {
        /// The guest.
        guest: GuestId,
        /// Its pages.
        dropped: Dropped,
    },
    /// To [`ToWorker::Ping`].
    Pong {
        /// As it came.
        token: u64,
        /// Persistent pages that it holds, of all guests.
        persistent: u64,
    },
    /// To [`ToWorker::Stop`].
    Stopped,
    /// The worker serves a guest no more: its memory is not what it was said to be, or the like.
    /// The others go on.
    GuestFailed {
        /// The guest.
        guest: GuestId,
        /// Why, for the log.
        why: String,
    },
    /// An operator asked for something that only the supervisor can do.
    ///
    /// Descriptors: the operator's connection, if an answer is to be given there.
    Operator(OperatorRequest),
}

/// What an operator can ask the supervisor for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperatorRequest {
    /// Replace the worker by one of the program that is now where this one was started from.
    Upgrade,
    /// Stop the daemon, whatever is lost by it: the operator knows.
    Stop,
    /// Read the configuration again. Guests go though they are connected if `force`. Answered.
    Reload {
        /// See above.
        force: bool,
    },
    /// Add, remove or rename a guest, or give it other terms. Answered.
    Guest(GuestEdit),
    /// Have guests share a pool, or take them off. Answered.
    Shared(SharedEdit),
    /// Take nothing more of a guest, or of all of them; or take pages again. Answered.
    Freeze {
        /// The guest's name.
        guest: Option<String>,
        /// Whether nothing more is taken.
        frozen: bool,
    },
    /// What a guest has stored is of a former life: drop it, and begin another epoch. A guest that is
    /// connected loses persistent pages by that only with `force`. Answered.
    Epoch {
        /// The guest's name.
        guest: String,
        /// See above.
        force: bool,
    },
    /// A guest was given pages that were saved: it goes on in the epoch that they are of. Answered.
    Resume {
        /// The guest's name.
        guest: String,
        /// The epoch.
        epoch: u64,
        /// What was done, for the answer.
        done: String,
    },
}
