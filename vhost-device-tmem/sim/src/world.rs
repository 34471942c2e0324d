// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that share memory in some way, second by second.

use rand::{rngs::SmallRng, SeedableRng};
use vhost_device_tmem::{balance, policy::TermsError};

use crate::{
    balloons::Balloons,
    guest::{Guest, Likeness, PAGE},
    sharing::{Sharing, Way},
};

/// What there is, and who has it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The bytes that guests share.
    pub capacity: u64,
    /// The guests.
    pub guests: Vec<Likeness>,
    /// What chance follows from.
    pub seed: u64,
}

/// What was seen in a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Pages that all guests asked for and their page caches did not have.
    pub reads: f64,
    /// Of these, found.
    pub hits: f64,
    /// The same, by guest.
    pub hits_by_guest: Vec<f64>,
    /// Bytes that moved from one guest to another.
    pub moved: u64,
    /// Bytes that each guest may have afterwards.
    pub shares: Vec<u64>,
    /// Bytes that each guest has of its own.
    pub own: Vec<u64>,
}

/// Guests, and what shares memory among them.
#[derive(Debug)]
pub struct World {
    guests: Vec<Guest>,
    sharing: Sharing,
    balloons: Option<Balloons>,
    capacity: u64,
    random: SmallRng,
    second: usize,
}

impl World {
    /// Of guests that have put nothing yet.
    ///
    /// # Errors
    ///
    /// As the policy has, of weights.
    pub fn new(scenario: &Scenario, way: Way) -> Result<Self, TermsError> {
        let guests: Vec<_> = scenario.guests.iter().cloned().map(Guest::new).collect();
        Ok(Self {
            sharing: Sharing::new(way, &guests, scenario.capacity)?,
            guests,
            balloons: None,
            capacity: scenario.capacity,
            random: SmallRng::seed_from_u64(scenario.seed),
            second: 0,
        })
    }

    /// The same, with balloons that move guests' own memory each so many seconds.
    ///
    /// # Errors
    ///
    /// As [`Balloons::new`].
    pub fn with_balloons(mut self, every: usize) -> Result<Self, balance::TermsError> {
        self.balloons = Some(Balloons::new(&self.guests, every)?);
        Ok(self)
    }

    /// Lets a second go by.
    pub fn step(&mut self) -> Seen {
        let second = self.second;
        self.second += 1;
        let random = &mut self.random;
        let seen = self
            .guests
            .iter_mut()
            .map(|guest| guest.run(second, random));
        let seen: Vec<_> = seen.collect();
        let (shares, moved) = self
            .sharing
            .settle(second, &mut self.guests, &seen, self.capacity);
        if let Some(balloons) = &mut self.balloons {
            balloons.settle(second, &mut self.guests, &seen);
        }
        let own = self.guests.iter().map(|guest| guest.likeness().cache);
        Seen {
            reads: seen.iter().map(|seen| seen.reads).sum(),
            hits: seen.iter().map(|seen| seen.hits).sum(),
            hits_by_guest: seen.iter().map(|seen| seen.hits).collect(),
            moved,
            shares,
            own: own.map(|pages| (pages * PAGE) as u64).collect(),
        }
    }

    /// Returns the guests.
    #[must_use]
    pub fn guests(&self) -> &[Guest] {
        &self.guests
    }

    /// Returns the seconds that are over.
    #[must_use]
    pub fn second(&self) -> usize {
        self.second
    }
}
