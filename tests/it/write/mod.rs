//! Writing: no reader is given what was there before an acknowledged write, whatever happens.
//!
//! The processes of a test are caches that share a [`ledger`] (a database in memory, hand-written on the seam that
//! `larder-sqlx` joins by) and a store; each has its own way to both, which can be cut, held or slowed. A schedule that a
//! mechanism is for is played twice: with it, nobody reads what is old; without it (feature `switches`), somebody does.
//!
//! | Mechanism | Without it | Test |
//! | --- | --- | --- |
//! | `FlushAfterCommit` | a reader fills again between flush and commit | `commits::the_flush_follows_the_commit` |
//! | `BothImages` | a user who moved is found under the old address | `commits::both_images_are_flushed` |
//! | `Before` by `Tx::lock` (off: `update_unlocked`) | of two moves, the address in between stays | `commits::an_image_read_under_the_lock_flushes_the_address_in_between` |
//! | `OwnKeys` | what was found under another spelling is flushed by nobody | `commits::a_value_is_filled_only_under_keys_of_its_own_plan` |
//! | `JoinCutoff` | a fill's answer under way is shared past a write | `commits::a_load_is_joined_until_its_fill_is_handed_over` |
//! | `Outbox` | a writer killed before its flush; an unknown commit that lands | `outbox::another_process_flushes_for_one_that_was_killed`, `outbox::an_unknown_commit_is_flushed_when_it_lands` |
//! | `EveryGeneration` | another version's entries; rows from before it; another pool's | `versions::a_writer_flushes_a_type_that_it_does_not_have`, `outbox::a_row_is_delivered_to_the_generations_of_its_delivery`, `versions::another_pool_is_flushed_too`, `outbox::a_relay_leaves_rows_for_pools_that_it_does_not_reach` |
//! | `QueryAfterCommit` | who joined a stream while it was renamed | `outbox::a_query_for_keys_is_asked_after_the_commit` |
//! | `BaseFirst` | a derived value built from its base just before that is deleted | `outbox::a_base_is_flushed_before_what_is_derived_from_it`, `outbox::a_row_keeps_what_is_derived_until_its_base_is_confirmed` |
//! | claims in the order in which rows became due (off: [`claim_by_insertion`](ledger::Database::claim_by_insertion), with `RowBackoff`) | rows of a dead server keep all others waiting | `outbox::rows_of_a_dead_server_hold_up_no_others` |
//! | `ManifestRule` | other keys; a data set of one version alone; more watched fields; one that was dropped | `versions::a_data_set_with_other_keys_…`, `…_that_only_one_version_has_…`, `…_that_watches_more_…`, `versions::what_the_new_version_dropped_is_not_read_by_the_old_one` |
//! | `PurgeAtEnd` | what a version that is gone couldn't flush | `versions::what_a_version_that_is_gone_could_not_flush_is_given_up` |
//! | `RegisterAfterCommit` | a writer with an old copy of the register | `versions::a_writer_asks_who_is_live_after_its_commit` |
//! | `Activation` | a writer whose copy is 2 s old, or who doesn't know of a purge; a slow look; a reader who still reads what the new version can't flush, or what a rotation has ended | `versions::a_new_generation_waits_before_its_first_fill`, `versions::a_purged_data_set_waits_before_its_next_fill`, `versions::a_slow_look_at_the_register_does_not_shorten_the_wait`, `versions::what_the_new_version_dropped_is_not_read_by_the_old_one`, `versions::what_a_rotation_has_ended_is_flushed_while_it_may_be_read` |
//! | `Registration` | a process that slept, or was cut off, past its registration, or past what it knows of others | `registration::a_reader_past_its_registration_reads_past_the_store`, `registration::an_answer_that_comes_after_the_registration_is_not_used`, `versions::a_reader_who_knows_nothing_of_the_new_version_reads_past_the_store` |
//! | the outbox's foreign key (off: [`drop_foreign_key`](ledger::Database::drop_foreign_key)) | a writer who slept until its generation was gone | `registration::a_writer_whose_generation_is_gone_cannot_commit`, `registration::a_commit_under_way_holds_its_generation`, `registration::a_writer_with_nothing_to_flush_cannot_commit_too_late_either` |
//! | `PendingBypass` | the process reads what it couldn't flush | `pending::a_process_does_not_read_what_it_could_not_flush`, `pending::without_an_outbox_a_flush_is_tried_again_from_memory` |
//! | `AskAfterOutage` | a server that is back has what others couldn't flush; a process that starts reads what it left | `pending::a_server_that_was_away_is_not_read_before_the_outbox_was_asked`, `outbox::a_process_that_starts_does_not_read_what_waits_in_the_outbox` |

mod commits;
mod ledger;
mod ledger_conforms;
mod log;
mod office;
mod outages;
mod outbox;
mod pending;
mod plans;
mod registration;
mod requests;
mod servers;
mod versions;
