//! Owns a stand-in for the part of Clerk's API that headcount reads: a server on this machine, for the demo and for tests.
//! It is not Clerk: it knows made-up users only, and as much of Clerk's rules as is documented.
//!
//! In a request's order: this file serves it, `answers` answers it, `listing` says which users a list holds, [`World`] knows
//! them, [`Faults`] spoil the answer. Promises that nothing outlives [`StandIn`]. Not for strangers: it bounds nothing.

use std::{convert::Infallible, io, time::Duration};

use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::JoinSet};

pub use self::{
    faults::{Cursor, Faults, Wrong},
    world::World,
};
use crate::secret::Secret;

mod answers;
mod listing;
mod world;
mod faults;
pub mod tokens;
#[cfg(test)]
mod tests;

/// Serves a [`World`] until it is dropped.
#[derive(Debug)]
pub struct StandIn {
    url: String,
    world: World,
    /// Dropping it ends the server and its connections.
    _serving: JoinSet<()>,
}

impl StandIn {
    /// Serves `world` on a free port of this machine's loopback.
    ///
    /// # Errors
    /// There is none.
    pub async fn start(world: World) -> io::Result<Self> {
        Self::on(TcpListener::bind("127.0.0.1:0").await?, world)
    }

    /// Serves `world` on `listener`.
    ///
    /// # Errors
    /// The listener has no address.
    pub fn on(listener: TcpListener, world: World) -> io::Result<Self> {
        let url = format!("http://{}", listener.local_addr()?);
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, world.clone()));
        Ok(Self { url, world, _serving: serving })
    }

    /// For `CLERK_API_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// For `CLERK_SECRET_KEY`.
    pub fn key(&self) -> Secret {
        self.world.key()
    }

    /// What it knows.
    pub fn world(&self) -> &World {
        &self.world
    }
}

async fn serve(listener: TcpListener, world: World) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, say: the error would come back at once.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let world = world.clone();
        connections.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let world = world.clone();
                async move {
                    Ok::<_, Infallible>(answers::answer(&world, request.uri(), request.headers()).await)
                }
            });
            let mut http = http1::Builder::new();
            // A cut answer and a client that leaves are errors, and both are meant.
            let _ = http.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
