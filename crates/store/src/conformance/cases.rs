//! The table of all cases, and the macro that makes tests of them.

use super::fixture::Flavour;
use super::{CaseFn, fixture, model};
use super::{
    atomicity, copying, data, durability, keys, pools, rollback, snapshots, trimming, visibility, watches,
};

/// Makes one `#[test]` per conformance case, in one module per group. The argument is an expression, evaluated anew for
/// each case inside a tokio runtime (it may `.await`), that gives a [`Harness`](crate::conformance::Harness).
///
/// ```ignore
/// ferry_store::conformance_tests! { MyHarness::new() }
/// ```
#[macro_export]
macro_rules! conformance_tests {
    ($harness:expr) => {
        $crate::__conformance_table! { tests ($harness) }
    };
}

/// The table: hands all groups to another arm. Private.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_table {
    ($use:ident $argument:tt) => {
        $crate::__conformance_table! {
            @groups $use $argument
            plain_data(data, Plain) plain_atomicity(atomicity, Plain) plain_keys(keys, Plain)
            plain_snapshots(snapshots, Plain) plain_trimming(trimming, Plain) plain_rollback(rollback, Plain) plain_visibility(visibility, Plain)
            plain_durability(durability, Plain) plain_copying(copying, Plain)
            bulk_data(data, Bulk) bulk_atomicity(atomicity, Bulk) bulk_keys(keys, Bulk)
            bulk_snapshots(snapshots, Bulk) bulk_trimming(trimming, Bulk) bulk_rollback(rollback, Bulk) bulk_visibility(visibility, Bulk)
            bulk_durability(durability, Bulk) bulk_copying(copying, Bulk)
            pools(pools, Plain) watches(watches, Plain) random(model, Plain)
        }
    };
    (@groups $use:ident $argument:tt $($group:ident($module:ident, $flavour:ident))*) => {
        $( $crate::__conformance_table! { @$module $use $argument $group $flavour } )*
    };

    (@data $use:ident $argument:tt $group:ident $flavour:ident) => {
        $crate::__conformance_table! { @$use $argument $group data $flavour [
            a_write_is_read_back_by_every_client
            buffered_writes_are_visible_to_everyone_at_once
            a_write_past_the_end_leaves_zeros_between
            a_first_write_at_an_offset_makes_the_bytes_before_zero
            an_empty_write_at_zero_creates_an_empty_object
            unaligned_overwrites_keep_their_neighbours
            an_object_of_full_size_keeps_all_its_bytes
            write_full_replaces_the_whole_content
            zero_clears_a_range_and_never_grows_the_object
            truncate_cuts_and_grows_with_zeros
            zero_and_truncate_leave_a_missing_object_missing
            remove_takes_all_away_and_a_new_object_starts_empty
            removing_a_missing_object_is_enoent
            an_operation_may_remove_and_make_again
            steps_of_a_write_take_effect_in_order
            reads_are_short_at_the_end
            a_read_longer_than_memory_is_short_not_fatal
            a_write_that_ends_behind_every_offset_fails_without_effect
            a_sparse_read_agrees_with_a_plain_one_in_every_window
            steps_of_a_read_all_see_one_moment
            stat_tells_size_and_time
            a_missing_object_reads_as_enoent
            versions_grow_with_every_change_and_not_with_reads
            a_write_that_fails_changes_no_version
            a_hint_changes_no_content
            names_may_be_long_and_odd
            concurrent_writers_of_one_object_lose_nothing
        ] }
    };
    (@atomicity $use:ident $argument:tt $group:ident $flavour:ident) => {
        $crate::__conformance_table! { @$use $argument $group atomicity $flavour [
            create_makes_an_empty_object_and_exclusive_refuses_an_old_one
            exclusive_create_has_one_winner
            existence_seen_by_create_includes_earlier_steps
            a_failing_step_undoes_the_steps_before_it
            a_failed_removal_keeps_the_object
            assert_exists_needs_the_object_and_makes_none
            assert_version_tells_newer_from_older
            compare_extent_guards_a_write
            compare_extent_takes_bytes_past_the_end_for_zero
            comparisons_see_the_object_as_it_was_before_the_operation
            of_racing_compare_and_writes_one_wins
            operations_that_only_assert_change_nothing
            errors_name_the_object
        ] }
    };
    (@keys $use:ident $argument:tt $group:ident $flavour:ident) => {
        $crate::__conformance_table! { @$use $argument $group keys $flavour [
            omap_keys_are_set_replaced_and_removed
            omap_keys_and_values_may_be_any_bytes
            omap_listing_pages_in_byte_order_and_tells_of_more
            omap_listing_honours_start_and_prefix
            omap_values_by_key_leave_missing_ones_out
            omap_compare_takes_a_missing_key_for_empty
            removing_omap_keys_of_a_missing_object_is_enoent
            xattrs_are_set_read_listed_and_removed
            missing_xattrs_are_enodata
            keys_xattrs_and_data_change_together_and_go_together
            ten_thousand_keys_are_no_burden
        ] }
    };
    (@snapshots $use:ident $argument:tt $group:ident $flavour:ident) => {
        $crate::__conformance_table! { @$use $argument $group snapshots $flavour [
            the_first_write_after_a_snapshot_keeps_the_old_bytes
            buffered_writes_keep_the_old_bytes_too
            an_unwritten_object_serves_later_snapshots_from_its_head
            one_clone_serves_all_snapshots_since_the_last_write
            the_clone_is_named_by_the_sequence_of_the_context
            a_newer_sequence_without_newer_snapshots_makes_no_clone
            the_first_write_of_a_missing_object_makes_no_clone
            a_write_with_an_older_context_goes_to_the_head_under_the_newer
            overlap_shrinks_by_what_the_next_version_changes
            an_older_clones_overlap_stays_when_the_head_changes
            a_change_of_keys_alone_keeps_the_whole_overlap
            removing_the_head_keeps_its_clones
            an_object_that_was_away_at_a_snapshot_is_enoent_there
            a_long_history_reads_right_at_every_snapshot
            equal_versions_at_two_snapshots_mean_equal_contents
            reading_steps_all_work_at_a_snapshot
            the_sequence_that_an_object_has_reached_is_exact
            list_snaps_of_a_missing_object_is_enoent
            a_failing_write_makes_no_clone
        ] }
    };
    (@trimming $use:ident $argument:tt $group:ident $flavour:ident) => {
        $crate::__conformance_table! { @$use $argument $group trimming $flavour [
            snapshot_ids_grow_and_are_never_given_twice
            removing_the_only_snapshot_of_a_clone_takes_the_clone_away
            a_clone_lives_until_its_last_snapshot_is_removed
            trimming_a_middle_clone_joins_the_overlaps
            a_stale_context_makes_no_clone_for_a_removed_snapshot
        ] }
    };
    (@rollback $use:ident $argument:tt $group:ident $flavour:ident) => {
        $crate::__conformance_table! { @$use $argument $group rollback $flavour [
            rollback_brings_back_data_keys_and_xattrs
            rollback_keeps_what_newer_snapshots_hold
            rollback_to_a_time_without_the_object_removes_it
            rollback_where_nothing_was_and_nothing_is_does_nothing
            rollback_revives_a_removed_head
            rollback_to_what_the_head_still_is_changes_nothing
            overlaps_after_a_rollback_hold_only_equal_bytes
        ] }
    };
    (@visibility $use:ident $argument:tt $group:ident $flavour:ident) => {
        $crate::__conformance_table! { @$use $argument $group visibility $flavour [
            outputs_come_back_by_step
            unknown_classes_and_methods_are_not_supported
            writing_methods_are_refused_in_reads
            reading_methods_may_run_in_writes
            a_methods_errno_is_the_operations
            methods_see_a_missing_object_as_missing
            methods_read_data_keys_and_xattrs
            methods_know_who_calls
            methods_see_contents_before_the_operation_but_existence_and_size_after_earlier_steps
            methods_see_an_object_that_earlier_steps_made
            methods_see_existence_and_size_that_earlier_methods_made
            equal_calls_in_one_operation_do_not_see_each_other
            methods_that_write_make_the_object_and_others_do_not
            methods_change_everything_that_steps_can
            methods_write_under_the_snapshot_context
            racing_calls_are_one_after_the_other
        ] }
    };
    (@durability $use:ident $argument:tt $group:ident $flavour:ident) => {
        $crate::__conformance_table! { @$use $argument $group durability $flavour [
            flush_and_sync_all_return_when_nothing_is_to_do
            flush_and_sync_all_keep_every_content
            full_writes_survive_power_loss_whole
            flushed_writes_survive_power_loss
            sync_all_makes_the_writes_of_others_durable
            unflushed_bytes_are_old_or_new_after_power_loss
            snapshots_survive_buffered_writes_and_power_loss
            what_follows_an_ordered_write_is_never_kept_without_it
        ] }
    };
    (@copying $use:ident $argument:tt $group:ident $flavour:ident) => {
        $crate::__conformance_table! { @$use $argument $group copying $flavour [
            a_copy_holds_exactly_the_bytes_of_its_ranges
            a_copy_is_a_thing_of_its_own
            holes_stay_holes_in_a_copy
            copies_read_snapshots_as_they_were
            copies_go_to_other_pools_and_namespaces
            a_copy_that_may_not_be_changes_nothing
            of_racing_copies_one_makes_the_object
            a_copy_is_a_write_under_its_context
            a_buffered_copy_is_whole_or_absent_after_power_loss
        ] }
    };
    (@pools $use:ident $argument:tt $group:ident $flavour:ident) => {
        $crate::__conformance_table! { @$use $argument $group pools $flavour [
            pools_are_made_listed_and_removed
            a_pool_name_is_taken_once
            bad_pool_names_are_refused
            everything_in_a_pool_that_is_not_there_is_enoent
            pools_and_namespaces_do_not_share_objects
            listing_pages_in_byte_order
            listing_honours_prefix_and_start
            usage_counts_objects_and_bytes
            instances_differ
            after_shutdown_every_operation_fails_and_data_stay
            a_killed_client_leaves_what_it_wrote
            settings_are_kept_for_each_section_until_they_are_given_up
            settings_of_unknown_sections_are_refused
        ] }
    };
    (@watches $use:ident $argument:tt $group:ident $flavour:ident) => {
        $crate::__conformance_table! { @$use $argument $group watches $flavour [
            a_notify_reaches_every_watcher_and_brings_back_the_answers
            a_notify_without_watchers_returns_empty
            watching_and_notifying_a_missing_object_is_enoent
            notifies_of_one_watch_come_one_by_one_in_order
            a_watcher_that_does_not_answer_in_time_is_named
            one_client_may_watch_twice
            watches_are_of_one_object_in_one_place
            watchers_are_listed
            unwatch_ends_the_calls_and_forgets_the_cookie
            unwatch_waits_for_the_call_that_runs
            a_watcher_that_shut_down_is_gone
            a_killed_watcher_is_not_waited_for
            a_blocklisted_client_can_do_nothing
            a_blocklisted_watcher_is_told_and_not_waited_for
            blocklisting_someone_unknown_harms_nobody
            handlers_may_use_the_store
        ] }
    };
    (@model $use:ident $argument:tt $group:ident $flavour:ident) => {
        $crate::__conformance_table! { @$use $argument $group model $flavour [
            random_histories_agree_with_the_reference
            random_histories_survive_power_loss
        ] }
    };

    (@tests ($harness:expr) $group:ident $module:ident $flavour:ident [$($case:ident)*]) => {
        mod $group {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[test]
                fn $case() {
                    $crate::conformance::run_case(
                        concat!(stringify!($group), "::", stringify!($case)),
                        async { $harness },
                    );
                }
            )*
        }
    };
    (@push ($list:ident) $group:ident $module:ident $flavour:ident [$($case:ident)*]) => {
        $(
            $list.push((
                concat!(stringify!($group), "::", stringify!($case)),
                |harness| {
                    Box::pin(async move {
                        if stringify!($module) == "visibility" && harness.is_osd() {
                            eprintln!("not checked: this engine does not know the test class");
                            return Ok(());
                        }
                        let fixture = fixture::Fixture::new(harness, Flavour::$flavour).await.map_err(|failure| failure.0)?;
                        $module::$case(fixture).await.map_err(|failure| failure.0)
                    })
                },
            ));
        )*
    };
}

/// All cases by name (`group::case`).
pub fn all() -> Vec<(&'static str, CaseFn)> {
    let mut list: Vec<(&'static str, CaseFn)> = Vec::new();
    crate::__conformance_table! { push (list) }
    list
}
