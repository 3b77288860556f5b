//! What `yardsticks` and `sync` are made of: the load and its webhooks, headcount's processes, the servers, the bare loops
//! that it is compared with, the scenarios, the drift that a sync has to find, and the report.

pub mod bare;
pub mod broker;
pub mod database;
pub mod drift;
pub mod load;
pub mod process;
pub mod report;
pub mod scenarios;
pub mod table;
pub mod trickle;
pub mod webhooks;

/// A measurement either succeeds or ends the run.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
