//! Owns worlds: what people do at Clerk, which webhooks are delivered, when and how often, and what the table must show.
//!
//! - [`history`]: deeds of people, in the order in which they happened, and the webhooks that Clerk makes of them.
//! - [`plan`]: which webhooks arrive in which batches, and whether their patience is over by then.
//! - [`generate`]: worlds from a seed. [`shrink`]: the smallest world that still fails.
//! - [`reference`]: what must come out, worked out slowly and without the code under test.
//! - [`clerk`]: worlds in which Clerk's API is read as well, and what is published depends on what the table says by then.
//! - [`memory`]: a store for the fold alone. [`check`]: the properties. [`small`]: every history of a few events.
//!
//! Nothing but [`memory`] calls the fold; to run worlds against a database, hand it [`plan::World::batches`] and
//! compare with [`reference::mirror`].

// Each test binary that includes this module uses a part of it.
#![allow(dead_code)]

pub(crate) mod check;
pub(crate) mod clerk;
pub(crate) mod generate;
pub(crate) mod history;
pub(crate) mod memory;
pub(crate) mod plan;
pub(crate) mod reference;
pub(crate) mod shrink;
pub(crate) mod small;
