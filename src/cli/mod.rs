//! Owns the command line: every command's name, arguments and help, and one file per command that has grown beyond a few
//! lines. Promises data on stdout, everything else on stderr, and the exit codes of [`Exit`]. A secret is never an
//! argument: others can read those in the list of processes.

mod exit;
pub mod output;
pub mod secret;

pub use exit::Exit;
