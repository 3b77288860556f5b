//! headcount keeps an application's `users` table in step with Clerk.
//!
//! A message's life, in the order of the modules: the process reads its [`config`] and each [`address`] in it, Clerk posts a webhook, [`http`]
//! bounds the request, [`ingress`] verifies it and makes it a [`message`], the [`queue`] holds it durably, a worker takes
//! it in batches, [`roster`] folds it into users, the [`store`] saves them in one transaction, and only then is it
//! settled.

// What commands print goes through `cli::output`, which makes it safe for a terminal.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod address;
pub mod app;
pub mod config;
pub mod datafile;
pub mod http;
pub mod clerk;
pub mod ingress;
pub mod message;
pub mod queue;
pub mod worker;
pub mod roster;
pub mod store;
pub mod dead;

// Beside the path.
pub mod cli;
pub mod ops;
pub mod pause;
pub mod shutdown;
pub mod telemetry;
pub mod terminal;
