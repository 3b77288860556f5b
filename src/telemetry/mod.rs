//! Owns logs, metrics and rates. Never a body, an address or a secret in either.

pub mod logs;
pub mod metrics;
pub mod rates;
pub mod tally;
