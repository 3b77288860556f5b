//! Owns the rules that turn events into rows: pure code, no I/O, no clock. One module per family of events.

pub mod users;
