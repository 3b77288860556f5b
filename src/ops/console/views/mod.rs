//! Owns what belongs on each page, in the order of the way around.

pub(super) mod dead;
pub(super) mod flow;
pub(super) mod home;
pub(super) mod keys;
pub(super) mod letter;
pub(super) mod operations;
pub(super) mod processes;
pub(super) mod rejected;
pub(super) mod search;
pub(super) mod settle;
pub(super) mod sign_in;
pub(super) mod sync;
pub(super) mod users;
