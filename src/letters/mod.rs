//! Owns what people and the process do with dead letters, the same for the command line and the API. In the order of a
//! letter's life: [`capture`] moves it from the dead queue into the table, [`select`] says which letters are meant,
//! [`replay`] and [`edit`] publish it again
//! ([`operations`] are replays that survive their process, [`ramp`] says how many letters such a replay dares, [`conduct`] runs it), [`outcomes`] tells what became of it, and [`export`] writes it out whole.
//!
//! Promises that each step may be cut off anywhere: a delivery that was not settled comes again, a claim that was not
//! stamped is published again, and the inbox makes a repeat change nothing. Never touches SQL or AMQP; never logs a body.

pub mod capture;
pub mod conduct;
pub(crate) mod consume;
pub mod count;
pub mod diff;
pub mod edit;
pub mod export;
mod group;
pub mod operations;
pub mod outcomes;
pub mod ramp;
pub mod replay;
pub mod select;

pub use group::group;
