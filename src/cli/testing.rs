//! Owns the front door that the tests of `send` and the demo knock at: it verifies, remembers and answers as told.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// One request that came.
#[derive(Clone, Debug)]
pub(super) struct Came {
    pub(super) id: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) verified: bool,
    pub(super) answered: StatusCode,
}

#[derive(Debug)]
pub(super) struct Door {
    pub(super) url: String,
    pub(super) connections: AtomicUsize,
    came: Mutex<Vec<Came>>,
}

impl Door {
    /// Opens on a port of its own. `answer` gets each request with its number, from 0.
    pub(super) async fn open(
        secret: &str,
        answer: impl Fn(&Came, usize) -> StatusCode + Send + Sync + 'static,
    ) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/webhooks/clerk", listener.local_addr().unwrap());
        let door = Arc::new(Self { url, connections: AtomicUsize::new(0), came: Mutex::new(Vec::new()) });
        let webhook = Arc::new(svix::webhooks::Webhook::new(secret).unwrap());
        let (serving, answer) = (door.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.connections.fetch_add(1, Ordering::SeqCst);
                let (door, webhook, answer) = (serving.clone(), webhook.clone(), answer.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (door, webhook, answer) = (door.clone(), webhook.clone(), answer.clone());
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let mut came = Came {
                            id: parts.headers["svix-id"].to_str().unwrap().to_owned(),
                            verified: webhook.verify(&body, &parts.headers).is_ok(),
                            headers: parts.headers,
                            body,
                            answered: StatusCode::ACCEPTED,
                        };
                        let mut all = door.came.lock().unwrap();
                        came.answered = answer(&came, all.len());
                        let response =
                            Response::builder().status(came.answered).header("location", "/elsewhere");
                        all.push(came);
                        Ok::<_, Infallible>(response.body(Full::<Bytes>::default()).unwrap())
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        door
    }

    pub(super) fn came(&self) -> Vec<Came> {
        self.came.lock().unwrap().clone()
    }
}
