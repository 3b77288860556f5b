//! The contract of the dead letters, the rejections and the retention, tested on both stores, and cases that only one of
//! them has.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "so does a test fail"
)]

#[path = "../support/stores.rs"]
#[allow(dead_code, reason = "the tests of users use the rest")]
mod stores;

mod actions;
mod browsing;
mod capture;
mod crashes;
mod effect;
mod erasure;
mod retention;
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use headcount::{
    message::Rejected,
    rules::{
        Outcome::*,
        users::{OnDelete, Policy, Relink},
    },
    secret::Secret,
    store::{
        Backend, Class, Store, StoreConfig,
        housekeeping::{Pruned, Retention},
        letters::{Action, Actor, Captured, Claimed, Count, Filter, Letter, LetterDetail, Page, Status},
    },
    time::Millis,
};
use stores::{Home, apply, contract, created, deleted, other, updated};
use support::*;
use uuid::Uuid;

const ERASE: Policy = Policy { relink: Relink::Deleted, on_delete: OnDelete::Erase };

/// 2026-01-02T03:04:05.678Z
const T: Millis = 1_767_323_045_678;
const FAR: Millis = T * 10;
