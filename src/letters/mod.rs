//! Owns what people and the process do with dead letters, for the command line, the API and the page alike: from the
//! dead queue into the table ([`capture`]), which of them are meant ([`select`]), back into the queue ([`replay`],
//! [`edit`]) and on to their outcome ([`outcomes`]), and out of the house ([`export`]).
//!
//! Promises that each step may be cut off anywhere: what is not settled comes back, what is claimed and not stamped is
//! published again, and the inbox makes a repeat of nothing. Never touches SQL or AMQP; a body is never logged.

pub mod capture;
pub(crate) mod consume;
pub mod count;
pub mod diff;
pub mod edit;
pub mod export;
mod group;
pub mod outcomes;
pub mod replay;
pub mod select;

pub use group::{GROUP_MAX, group};
