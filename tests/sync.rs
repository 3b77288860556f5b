//! `headcount sync` as real processes against a stand-in for Clerk's API: what it repairs, what it counts, what it survives, and
//! when it deletes nobody.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

/// Runs each test on the embedded default, and on RabbitMQ with PostgreSQL.
macro_rules! on_both {
    ($($test:ident)+) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::support::process::Backends::Embedded).await;
            })+
        }
        mod servers {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::support::process::Backends::RabbitPostgres).await;
            })+
        }
    };
}

#[path = "sync/scene.rs"]
mod scene;
#[path = "sync/whole.rs"]
mod whole;
#[path = "sync/looking.rs"]
mod looking;
#[path = "sync/single.rs"]
mod single;
#[path = "sync/gone.rs"]
mod gone;
#[path = "sync/owner.rs"]
mod owner;
#[path = "sync/wrong.rs"]
mod wrong;
#[path = "sync/waiting.rs"]
mod waiting;
#[path = "sync/killed.rs"]
mod killed;
#[path = "sync/letters.rs"]
mod letters;
#[path = "sync/billing.rs"]
mod billing;
