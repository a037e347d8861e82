//! The suite can fail: a backend that keeps the contract passes every case, and each way to break it is caught by the
//! case that says so.

mod reference;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use larder_core::conformance::{CASES, Case};

use reference::{Flaw, Reference};

larder_core::conformance! {
    #[tokio::test(start_paused = true)]
    one_server => Reference::servers(1), except [dead_server_fails_only_its_keys];

    #[tokio::test(start_paused = true)]
    three_servers => Reference::servers(3);
}

/// Each flaw, and the case that must catch it.
const FLAWS: &[(Flaw, &str)] = &[
    (
        Flaw::AnswersReversed,
        "look_ups_answer_in_order_with_duplicates",
    ),
    (
        Flaw::DuplicatesDropped,
        "look_ups_answer_in_order_with_duplicates",
    ),
    (
        Flaw::DuplicatesWinAgain,
        "leases_and_fills_answer_in_order_with_duplicates",
    ),
    (
        Flaw::DeletesFirstOfBatchOnly,
        "deletes_answer_in_order_with_duplicates",
    ),
    (
        Flaw::ReleasesFirstOfBatchOnly,
        "releases_answer_in_order_with_duplicates",
    ),
    (
        Flaw::StoresReversed,
        "stores_answer_in_order_with_duplicates",
    ),
    (Flaw::EmptyBatchTakesATrip, "empty_batch_does_no_io"),
    (Flaw::TripsUncounted, "trips_are_one_per_server_and_batch"),
    (Flaw::TripPerKey, "trips_are_one_per_server_and_batch"),
    (Flaw::StatisticsForgotten, "statistics_count_trips_and_keys"),
    (
        Flaw::FillsAtTheSecondPoll,
        "first_poll_hands_the_fills_over",
    ),
    (Flaw::ServesAfterClose, "closed_handle_refuses_calls"),
    (Flaw::CloseAbandonsWork, "close_waits_for_what_is_under_way"),
    (
        Flaw::ChecksFirstServerOnly,
        "check_answers_for_every_server",
    ),
    (
        Flaw::ShowsPassword,
        "display_shows_the_store_without_credentials",
    ),
    (
        Flaw::PoolPerHandle,
        "handles_of_one_store_describe_one_pool",
    ),
    (Flaw::ValuesEndAtLineEnd, "any_bytes_are_a_value"),
    (Flaw::LargeValuesCut, "large_value_is_kept_whole"),
    (Flaw::EmptyAccepted, "empty_value_is_refused"),
    (Flaw::RefusedFillKeepsLease, "empty_value_is_refused"),
    (Flaw::OversizedAccepted, "oversized_value_fails_alone"),
    (Flaw::OversizedFailsItsBatch, "oversized_value_fails_alone"),
    (Flaw::LongKeysCut, "longest_key_is_a_key"),
    (Flaw::KeysFoldCase, "similar_keys_are_different"),
    (
        Flaw::DeleteOfAbsentFails,
        "deleting_what_is_absent_succeeds",
    ),
    (Flaw::DeleteLeavesTombstone, "repeated_delete_only_removes"),
    (Flaw::SetNeverOverwrites, "set_immutable_overwrites"),
    (Flaw::StorePerHandle, "handles_see_each_others_entries"),
    (Flaw::ValuesDecorated, "store_holds_exactly_what_was_stored"),
    (Flaw::LookWins, "plain_look_wins_nothing"),
    (Flaw::EverybodyWins, "one_of_many_contenders_wins"),
    (Flaw::BusyNamesNobody, "loser_learns_the_lease_and_its_age"),
    (Flaw::BusyIsAlwaysNew, "loser_learns_the_lease_and_its_age"),
    (
        Flaw::LeaseAtMostIgnored,
        "lease_at_most_covers_the_first_keys_only",
    ),
    (Flaw::FillKeepsToken, "lease_fills_once"),
    (Flaw::LeaseFillsAnyKey, "lease_fills_only_its_own_key"),
    (Flaw::DeleteKeepsLease, "delete_voids_lease"),
    (Flaw::FillAddsWhatIsAbsent, "delete_voids_lease"),
    (Flaw::TokenUnchecked, "second_lease_beats_the_first_filler"),
    (Flaw::SetKeepsToken, "set_immutable_voids_lease"),
    (Flaw::ReleaseKeepsLease, "release_frees_at_once"),
    (Flaw::FillAddsWhatIsAbsent, "released_lease_cannot_fill"),
    (
        Flaw::ReleaseUnchecked,
        "release_of_a_lost_lease_harms_nobody",
    ),
    (
        Flaw::TokensFromKeys,
        "take_over_replaces_exactly_what_was_read",
    ),
    (Flaw::TokenUnchecked, "take_over_is_voided_by_a_delete"),
    (Flaw::FillInTwoSteps, "take_over_is_won_by_one"),
    (
        Flaw::BusyNamesNobody,
        "take_over_of_a_busy_lease_beats_its_holder",
    ),
    (
        Flaw::ReleaseOfPlaceholdersOnly,
        "release_of_a_take_over_frees_the_key",
    ),
    (
        Flaw::LostFillLeavesPlaceholder,
        "lost_fill_leaves_nothing_in_the_store",
    ),
    (Flaw::TtlIgnored, "short_ttl_is_kept_and_ends"),
    (Flaw::TtlRoundedDown, "short_ttl_is_kept_and_ends"),
    (Flaw::FillKeepsExpiry, "ttl_of_a_fill_is_its_own"),
    (Flaw::TtlAbove30DaysIsADate, "long_ttl_is_kept"),
    (Flaw::NoTtlIsADay, "entry_without_ttl_stays"),
    (Flaw::LeaseHalved, "lease_stands_for_its_time"),
    (Flaw::LeaseForEver, "expired_lease_is_free_and_cannot_fill"),
    (
        Flaw::ExpiredSaysVoided,
        "expired_lease_is_free_and_cannot_fill",
    ),
    (Flaw::RepliesCross, "dropped_calls_cross_no_replies"),
    (
        Flaw::RepliesCross,
        "dropped_batches_leave_the_handle_usable",
    ),
    (Flaw::OriginUnchecked, "lease_from_before_a_kill_is_lost"),
    (
        Flaw::FillsWaitForTheNextServer,
        "fill_queued_before_the_reconnect_is_lost",
    ),
    (
        Flaw::DeadServerMisses,
        "killed_server_is_reported_and_used_again",
    ),
    (Flaw::DeadServerFailsAll, "dead_server_fails_only_its_keys"),
    (
        Flaw::HangsWithItsServer,
        "hung_server_costs_a_call_its_deadline",
    ),
    (
        Flaw::DeleteKeepsLease,
        "random_commands_agree_with_the_model",
    ),
    (
        Flaw::ReleaseUnchecked,
        "random_commands_agree_with_the_model",
    ),
    (Flaw::TokensFromKeys, "random_commands_agree_with_the_model"),
];

/// Whether the case panics on a backend with this flaw.
fn is_caught(flaw: Flaw, case: Case) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be built");
    catch_unwind(AssertUnwindSafe(|| {
        // A verdict other than a panic, also "not applicable", is a flaw that went unnoticed.
        let _ = runtime.block_on(async { case.run(Reference::flawed(3, flaw)).await });
    }))
    .is_err()
}

#[test]
fn each_flaw_is_caught_by_its_case() {
    let missed: Vec<_> = FLAWS
        .iter()
        .filter(|(flaw, case)| !is_caught(*flaw, Case::named(case)))
        .collect();
    assert!(missed.is_empty(), "not caught: {missed:#?}");
}

#[test]
fn each_case_catches_a_flaw() {
    let catching: BTreeSet<_> = FLAWS.iter().map(|(_, case)| *case).collect();
    let all: BTreeSet<_> = CASES.iter().map(Case::name).collect();
    let idle: Vec<_> = all.difference(&catching).collect();
    assert!(idle.is_empty(), "cases that never failed: {idle:?}");
}

#[test]
#[should_panic(expected = "no case `delete_voids_leases`")]
fn unknown_case_is_refused() {
    let _ = Case::named("delete_voids_leases");
}

#[test]
#[should_panic(expected = "those that the subject can't do")]
fn exceptions_that_apply_are_refused() {
    let subject = Reference::servers(3);
    larder_core::conformance::check_exceptions(&subject, &["delete_voids_lease"]);
}
