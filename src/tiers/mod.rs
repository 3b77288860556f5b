//! Owns what changes a user's tier though no event comes: people who grant and revoke ([`grant`]), and the time that passes
//! ([`follow`]). Which tier follows from what is decided in [`crate::rules::subscriptions::tiers`].

pub mod follow;
pub mod grant;
