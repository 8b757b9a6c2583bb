//! The cases, each written once, and the list of them: every lane runs all of it.

pub(crate) mod audiences;
pub(crate) mod audit;
pub(crate) mod clients;
pub(crate) mod counters;
pub(crate) mod families;
pub(crate) mod keys;
pub(crate) mod lifecycle;
pub(crate) mod proofs;
pub(crate) mod revocations;

/// Runs every case over a kind of store, as a test of its own.
macro_rules! lane {
    ($lane:ident, $store:expr $(, ignore = $why:literal)?) => {
        $crate::store::suite::lane! { @cases $lane, $store, ($($why)?);
            clients {
                a_client_reads_back_as_it_was_written
                an_unknown_client_is_absent
                an_id_is_registered_once
                of_fifty_that_register_one_id_one_succeeds
                ids_that_differ_only_in_case_are_two_clients
                operators_are_plain_text
                pages_follow_the_bytes_of_the_ids
                pages_stand_while_clients_come_and_go
                pages_of_one_tenant_hold_nothing_of_another
                a_change_needs_the_revision_it_was_made_from
                a_change_reaches_no_later_client_of_the_same_id
                of_fifty_that_change_one_revision_one_succeeds
                a_deleted_client_leaves_no_uses_to_a_successor
                a_deleted_id_is_taken_for_every_other_tenant
                a_deletion_leaves_no_moment_to_another_tenant
                families_of_a_deleted_client_go_with_the_sweep
                uses_of_secrets_add_up_and_never_go_back
                uses_outlive_a_change_and_end_with_their_secret
                uses_of_what_is_not_there_are_dropped
                a_change_of_a_client_is_heard
                ending_a_client_writes_it_and_raises_its_epoch_at_once
            }
            audiences {
                a_record_of_an_audience_reads_back_as_it_was_written
                an_audience_is_claimed_once
                of_fifty_that_claim_one_audience_one_succeeds
                a_change_of_a_record_needs_the_one_it_was_made_from
                pages_of_audiences_follow_their_bytes
            }
            families {
                a_family_reads_back_as_it_was_opened
                an_id_opens_one_family
                expired_families_are_absent_even_before_the_sweep
                a_rotation_goes_one_generation_on
                of_fifty_that_present_one_token_one_rotates
                of_fifty_after_the_grace_one_rotates_and_the_family_ends
                a_spent_token_repeats_only_within_the_grace
                a_spent_token_repeats_three_times_and_no_more
                a_family_that_two_go_on_with_is_ended
                a_quiet_generation_begins_the_count_anew
                a_repetition_from_another_site_is_named
                a_spent_token_does_not_repeat_once_its_successor_was_used
                a_family_that_cannot_be_remembered_is_not_ended
                rotations_within_one_millisecond_are_told_apart
                a_clock_that_went_back_closes_the_grace
                a_generation_that_was_never_given_out_ends_the_family
                another_client_can_neither_use_nor_end_a_family
                refreshing_never_passes_the_absolute_bound
                reuse_ends_the_family_for_good
                an_ended_family_is_ended_again_without_harm
                every_verdict_leaves_its_record
                rotation_and_end_race_to_one_outcome
                spent_tokens_stay_spent_after_a_restart
            }
            revocations {
                a_revocation_is_heard_before_it_is_answered
                what_was_revoked_stands_in_the_snapshot_until_its_time
                revoking_again_remembers_the_longer_time
                a_token_and_a_family_of_one_id_are_two_things
                epochs_rise_by_one_each_on_its_own
                fifty_raises_make_fifty_values
                a_follower_misses_nothing
                changes_are_heard_in_the_order_of_their_commits
                the_sweep_forgets_only_what_nothing_depends_on
                the_sweep_keeps_to_its_limit
                a_refreshed_family_outlives_the_sweep
            }
            audit {
                an_event_reads_back_as_it_was_appended
                odd_text_is_kept_as_it_is
                newest_come_first_and_pages_stand
                events_follow_their_times_where_the_chain_does_not
                a_chain_is_named_and_others_are_not_there
                filters_admit_what_they_say
                filters_name_clients_secrets_and_families
                the_chain_verifies_against_the_sealed_head
                concurrent_appends_leave_no_gap
                an_empty_trail_has_no_head
                records_that_nobody_waits_for_arrive_soon
                the_tail_hears_every_record_in_order
                a_slow_reader_misses_nothing
                a_listener_that_lags_is_told
                the_newest_time_never_goes_back
                the_newest_time_covers_what_was_swept
                the_newest_time_covers_what_was_read
                a_refused_change_leaves_no_record
            }
            keys {
                the_keyset_reads_back_as_it_was_written
                a_keyset_needs_the_revision_it_was_made_from
                of_fifty_that_write_a_keyset_one_succeeds
            }
            counters {
                counters_add_up
                no_hit_is_lost_among_many
                windows_count_apart
                counters_outlive_a_restart
            }
            proofs {
                a_change_is_made_while_its_proof_holds
                a_change_without_its_proof_is_not_made
                a_proven_removal_raises_the_epoch
            }
            lifecycle {
                a_store_is_ready
                everything_outlives_a_restart
                a_closed_store_answers_unavailable
            }
        }
    };
    (@cases $lane:ident, $store:expr, $why:tt; $($group:ident { $($case:ident)* })*) => {
        mod $lane {
            $(mod $group {
                use crate::store::{backend::StoreCase, suite::$group};

                $($crate::store::suite::lane! { @case $case, $group, $store, $why })*
            })*
        }
    };
    (@case $case:ident, $group:ident, $store:expr, ()) => {
        #[tokio::test]
        async fn $case() {
            $group::$case(&$store).await;
        }
    };
    (@case $case:ident, $group:ident, $store:expr, ($why:literal)) => {
        #[tokio::test]
        #[ignore = $why]
        async fn $case() {
            $group::$case(&$store).await;
        }
    };
}
pub(crate) use lane;
