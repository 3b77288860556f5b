//! The queue's contract, tested on both backends by one suite, and promises of the embedded queue alone.
//!
//! The RabbitMQ half needs a broker at `TEST_AMQP_URL` and fails without one. Each test has a queue of its own.

#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "queue/contract.rs"]
mod contract;
#[path = "queue/embedded.rs"]
mod embedded;
#[path = "queue/rabbitmq.rs"]
mod rabbitmq;
#[path = "queue/support.rs"]
mod support;

/// Every case of the contract, as a test of one backend.
macro_rules! holds_the_contract {
    ($backend:ident, $harness:ty) => {
        holds_the_contract! { $backend, $harness,
            a_confirmed_publish_outlives_a_handle_that_was_never_closed
            messages_come_in_about_the_order_of_arrival
            no_more_than_prefetch_are_unsettled
            a_subscription_is_widened_with_what_it_holds
            a_delivery_is_held_as_long_as_it_can_be_settled
            what_is_done_is_gone
            what_a_dead_consumer_left_unsettled_comes_back
            a_retry_comes_after_its_delay_and_not_before
            a_message_survives_a_retry_with_its_new_counters
            what_is_buried_is_dead_and_not_delivered
            settlements_out_of_order_never_settle_another
            a_batch_of_mixed_actions_settles_each_as_asked
            a_cancelled_subscription_drains_and_loses_nothing
            after_a_cancel_a_settlement_brings_nothing_more
            two_subscriptions_share_without_overlap
            abandoned_calls_of_next_lose_nothing
            abandoned_settlements_go_on
            any_body_travels_untouched
            depths_count_each_queue
            a_closed_queue_refuses_and_gives_back
            what_is_buried_comes_out_of_the_dead_queue
            the_dead_come_back_until_they_are_settled_however_often
            a_replay_that_dies_again_carries_its_round_and_its_own_reason
            the_dead_carry_our_headers_and_none_of_the_ways_they_went
            the_dead_can_be_sent_back_or_buried_anew
            samples_come_out_of_rejections
            of_more_than_a_thousand_samples_the_newest_are_kept
            a_closed_queue_drops_samples_at_once
        }
    };
    ($backend:ident, $harness:ty, $($case:ident)*) => {
        mod $backend {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    crate::support::run(<$harness>::new(), crate::contract::$case).await;
                }
            )*
        }
    };
}

holds_the_contract!(embedded_backend, crate::embedded::Embedded);
holds_the_contract!(rabbitmq_backend, crate::rabbitmq::Rabbit);
