// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shared pools, and which guests may have access.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Changes;
use crate::{
    args::SharedConfig,
    config::SharedEdit,
    device::random_epoch,
    policy::Terms,
    size::Bytes,
    store::{SharedPool, FIRST_SHARED},
};

/// The numbers of shared pools. None is used twice, so that what is left of one is never taken for
/// another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::supervisor) struct SharedNumbers {
    /// The number of the next pool, less [`FIRST_SHARED`].
    next: u32,
    numbers: BTreeMap<Uuid, u32>,
}

impl Default for SharedNumbers {
    /// Begins at random: where it is not known which numbers a daemon before this one has used, none
    /// of them is used again.
    fn default() -> Self {
        Self {
            next: random_epoch() as u32 % (FIRST_SHARED / 2),
            numbers: BTreeMap::new(),
        }
    }
}

impl SharedNumbers {
    /// Gives these pools, and no others, their numbers.
    fn number(&mut self, pools: &[SharedConfig]) {
        let stays = |uuid: &Uuid| pools.iter().any(|pool| pool.uuid == *uuid);
        self.numbers.retain(|uuid, _| stays(uuid));
        for pool in pools {
            let next = &mut self.next;
            self.numbers.entry(pool.uuid).or_insert_with(|| {
                let number = FIRST_SHARED + *next;
                // Nobody shares so many that they begin anew.
                *next = (*next + 1) % FIRST_SHARED;
                number
            });
        }
    }
}

impl Changes {
    pub(super) fn number_shared(&mut self) {
        self.shared.number(&self.settings.config.shared);
    }

    /// Returns the shared pools with their numbers.
    fn numbered(&self) -> impl Iterator<Item = (u32, &SharedConfig)> {
        let pools = self.settings.config.shared.iter();
        pools.filter_map(|pool| Some((*self.shared.numbers.get(&pool.uuid)?, pool)))
    }

    /// Returns the shared pools, as workers are told of them.
    pub(in crate::supervisor) fn shared_pools(&self) -> Vec<SharedPool> {
        let pools = self.numbered().map(|(number, pool)| {
            let may = self
                .guests
                .iter()
                .filter(|it| pool.guests.contains(&it.name));
            SharedPool {
                number,
                uuid: pool.uuid,
                guests: may.map(|it| it.guest.0).collect(),
                max: pool.max,
            }
        });
        pools.collect()
    }

    pub(super) fn shared_terms(&self) -> impl Iterator<Item = Terms> + use<'_> {
        self.numbered().map(|(number, pool)| pool.terms(number))
    }

    /// Has guests share a pool, or takes them off. Returns what was done.
    ///
    /// # Errors
    ///
    /// What is wrong; nothing has changed then.
    pub(in crate::supervisor) fn share(&mut self, edit: &SharedEdit) -> Result<String, String> {
        let mut sources = self.settings.sources.clone();
        let edited = sources.edit_shared(edit, &self.settings.config);
        edited.map_err(|problems| problems.to_string())?;
        self.change(sources, self.start.clone())
    }
}

/// Says how a pool is shared.
pub(super) fn said(pool: &SharedConfig) -> String {
    let guests: Vec<_> = pool.guests.iter().map(|name| format!("{name:?}")).collect();
    let max = pool.max.map(|max| format!(", with at most {}", Bytes(max)));
    format!(
        "pool {} is shared by {}{}",
        pool.uuid,
        guests.join(", "),
        max.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn pool(n: u128) -> SharedConfig {
        SharedConfig {
            uuid: Uuid::from_u128(n),
            guests: BTreeSet::from(["web".to_owned()]),
            max: None,
            weight: 100,
        }
    }

    #[test]
    fn no_number_is_used_twice() {
        let mut numbers = SharedNumbers::default();
        numbers.number(&[pool(1), pool(2)]);
        let first = numbers.clone();
        numbers.number(&[pool(2)]);
        numbers.number(&[pool(1), pool(2), pool(3)]);
        let of = |numbers: &SharedNumbers, n| numbers.numbers[&Uuid::from_u128(n)];
        assert_eq!(of(&numbers, 2), of(&first, 2));
        let mut all: Vec<_> = numbers.numbers.values().copied().collect();
        all.push(of(&first, 1));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 4);
        assert!(all.iter().all(|number| *number >= FIRST_SHARED));
        // What is kept is read again.
        let kept = serde_json::to_string(&numbers).unwrap();
        assert_eq!(
            serde_json::from_str::<SharedNumbers>(&kept).unwrap(),
            numbers
        );
    }
}
