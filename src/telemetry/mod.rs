//! Owns logs and metrics. Never a body, an address or a secret in either.

pub mod logs;
pub mod metrics;
pub mod tally;
