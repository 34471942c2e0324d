// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The checks. Each begins with a connection of its own, and says what it wants in its name.

mod config;
mod epoch;
mod events;
mod flush;
mod framing;
mod malformed;
mod order;
mod others;
mod pages;
mod pools;
mod reach;
mod reset;
mod window;

use crate::session::{Outcome, Target};

/// A check.
#[derive(Debug)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    pub(crate) run: fn(&Target) -> Outcome,
}

macro_rules! checks {
    ($($module:ident: $($name:ident),+;)+) => {
        /// All checks.
        pub const CHECKS: &[Check] = &[
            $($(Check { name: stringify!($name), run: $module::$name },)+)+
        ];
    };
}

checks! {
    config: all_data_queues, any_data_queue, version_1, no_bit_of_the_type, whole_config,
        reserved_config, epoch_is_one, config_stays;
    reset: reset_keeps_pools, reset_keeps_pages, pools_end_with_connection, freed_pool_is_empty,
        no_part_is_freed, kept_pool_stays, keep_is_answered;
    events: event_length, event_reserved, event_waits_for_a_buffer, short_event_buffer,
        credits_follow_puts, credits_of_no_pools, credits_event, credits_event_when_all_is_free,
        refused_put_lets_others_be, refused_put_forgets, flush_while_full;
    epoch: connection_has_new_epoch, epochs_differ, stale_epoch, no_page_of_another_epoch;
    framing: any_descriptors, lengths_do_not_overflow, used_length, nothing_of_other_pages,
        reserved_response, epoch_and_credits_always;
    malformed: checks_in_order, first_check_answers, keeps_serving;
    reach: request_out_of_reach, rest_is_carried_out, page_that_cannot_be_read,
        nothing_of_what_was_read, place_that_cannot_be_written, page_stays_for_a_better_place,
        better_place_is_a_hit;
    order: entries_in_order, requests_in_order, returned_in_order;
    pages: versions_are_equal_or_not, copied_before_stored, memory_is_the_drivers_again,
        persistent_pages_stay, hit_of_the_version, whole_page_is_written, otherwise_a_miss,
        contents_are_those_put, get_keeps, take_removes, take_removes_after_writing,
        take_of_another_version, miss_stays_a_miss;
    flush: flushed_is_gone;
    pools: pool_checks_in_order, shared_pool_is_authorised, uuid_zero_is_not_authorised,
        destroyed_is_gone, reserved_stats;
    others: numbers_are_apart, nobody_elses_pool;
    window: open_checks, open_is_ready, grant_checks, ticket_again, return_checks,
        chunk_is_granted_once, put_slot_of_no_chunk;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::CHECKS;
    use crate::clauses::{clauses, Tested};

    #[test]
    fn each_check_is_for_a_clause_and_each_clauses_check_is_there() {
        let there: BTreeSet<_> = CHECKS.iter().map(|check| check.name.to_owned()).collect();
        assert_eq!(there.len(), CHECKS.len(), "two checks have one name");
        let named = clauses()
            .into_iter()
            .filter_map(|clause| match clause.tested {
                Tested::Check(name) => Some(name),
                _ => None,
            });
        assert_eq!(there, named.collect());
    }
}
