//! headcount keeps an application's `users` table in step with Clerk.
//!
//! A message's life, in the order of the modules. The process reads its [`config`] and starts the [`app`]. Clerk posts a
//! webhook: [`net`] bounds the request, [`clerk`] checks its signature, and [`ingress`] turns it into a [`message`]. The
//! [`queue`] keeps the message on disk. The [`worker`] takes messages in batches, the [`rules`] fold them into users, and
//! the [`store`] saves them in one transaction. Only then is the message acknowledged.

// What commands print goes through `cli::output`, which makes it safe for a terminal.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod config;
pub mod app;
pub mod net;
pub mod clerk;
pub mod ingress;
pub mod queue;
pub mod worker;
pub mod rules;
pub mod store;

// Beside the path.
pub mod api;
pub mod letters;
pub mod processes;
pub mod rejections;
pub mod sync;
pub mod retention;
pub mod tiers;
pub mod ops;
pub mod cli;
pub mod telemetry;

// Used by all, using none of the above.
pub mod address;
pub mod datafile;
pub(crate) mod digest;
pub mod failure;
pub mod message;
pub mod pause;
pub mod secret;
pub mod stop;
pub mod terminal;
pub mod text;
pub mod time;
