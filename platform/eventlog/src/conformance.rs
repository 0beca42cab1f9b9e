//! What every implementation of [`EventLog`] must do. Each case is a function of a [`Subject`];
//! `conformance!(maker)` turns all of them into tests, where `maker` is an async function that makes a subject.
//!
//! The cases hold for Kafka too: they wait for effects, take topic names from the subject, and assume neither that
//! offsets of transactions are dense nor that compaction has run.

mod consuming;
mod producing;
mod support;
mod transactions;

use std::sync::Arc;

use async_trait::async_trait;

pub use consuming::*;
pub use producing::*;
pub use transactions::*;

use crate::EventLog;

/// A log under test.
#[async_trait]
pub trait Subject: Send + Sync {
    /// The log.
    fn log(&self) -> Arc<dyn EventLog>;

    /// Ends the log as a crash would, and opens it again. Everything made from the old one is gone.
    async fn crash(&mut self);

    /// Put before names of topics, groups and producers: where a broker is shared, they must be this subject's own.
    fn prefix(&self) -> String {
        String::new()
    }
}

/// Makes one test of each case, with `$make` to make the subject.
#[macro_export]
macro_rules! conformance {
    ($make:path) => {
        $crate::conformance! { $make:
            records_are_read_as_they_were_produced,
            offsets_are_dense_and_a_key_keeps_its_partition_and_order,
            topics_are_created_once_and_listed,
            bad_requests_are_refused_by_name,
            a_compacted_topic_shows_the_latest_value_of_each_key,
            a_deleted_topic_is_gone_and_can_be_made_anew,
            a_follower_catches_up_and_then_follows,
            what_was_acknowledged_survives_a_crash,
            members_share_the_partitions_of_a_group,
            a_revoked_partition_is_handed_over_with_its_commit,
            a_closed_member_leaves_its_partitions_to_the_others,
            only_the_owner_of_a_partition_commits_it,
            a_pattern_picks_up_new_topics,
            a_paused_partition_waits_for_resume,
            a_dropped_poll_loses_nothing,
            latest_starts_after_what_is_there,
            groups_are_independent_and_can_be_deleted,
            a_transaction_writes_records_and_offsets_together,
            a_refused_transaction_leaves_nothing,
            an_older_transactional_producer_is_fenced,
            a_transaction_of_a_member_that_lost_the_partition_is_refused,
            after_a_transactional_burst_the_lag_is_zero,
        }
    };
    ($make:path: $($case:ident,)*) => {
        $(
            #[tokio::test]
            async fn $case() {
                let mut subject = $make().await;
                $crate::conformance::$case(&mut subject).await;
            }
        )*
    };
}
