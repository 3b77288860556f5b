//! Owns the role of the application's API: who may ask, and where a first row comes from.

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::watch};
use tracing::info;

use super::open::in_step;
use crate::{
    api::{self, ASKED},
    clerk::{
        api::Api,
        token::{Keys, Verifier},
    },
    config::{Config, Tokens},
    failure::Failure,
    queue::{Absent, Queue},
    store::Store,
    sync::Sync,
};

/// What the application's listener needs.
///
/// # Errors
/// The keys of session tokens cannot be asked for, or Clerk's API cannot.
pub(super) fn settings(
    config: &Config,
    tokens: Tokens,
    store: &Arc<dyn Store>,
) -> Result<api::Settings, Failure> {
    let keys = Keys::new(&tokens.keys).map_err(|problem| {
        Failure::new(format!("the keys of session tokens: {problem}"))
            .hint("check CLERK_JWT_KEY and CLERK_JWKS_URL, and install the package ca-certificates")
    })?;
    let clerk = match config.clerk_api(ASKED) {
        Some(settings) => {
            let queue: Arc<dyn Queue> = Arc::new(Absent);
            let sync = in_step(config, Api::new(&settings)?, store, &queue, "api");
            Some(Sync { grace: Duration::ZERO, ..sync })
        }
        None => {
            info!("CLERK_SECRET_KEY is not set: a user's first request waits for the webhook");
            None
        }
    };
    let mut bounds = api::Settings::bounds();
    bounds.trusted_proxies = config.trusted_proxies.clone();
    Ok(api::Settings {
        store: Arc::clone(store),
        verifier: Verifier::new(tokens.terms, keys),
        cookie_suffix: tokens.cookie_suffix,
        clerk,
        keep_object: config.keep_clerk_object,
        sessions: config.sessions,
        anonymous_retention: config.anonymous_retention,
        pages: None,
        bounds,
    })
}

/// Answers applications until `stop` turns true.
pub(super) async fn serve(
    listener: TcpListener,
    settings: api::Settings,
    stop: watch::Receiver<bool>,
) -> Result<(), Failure> {
    api::serve(listener, settings, stop).await;
    Ok(())
}
