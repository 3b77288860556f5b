//! A way to a server that can fall silent: a TCP proxy on 127.0.0.1. It runs on a thread of its own, so that a test that
//! blocks does not stop it. It never closes or resets what it silences, and loses no byte: once healed, what waited arrives.
//!
//! A real network would leave bytes unacknowledged. Here the kernel acknowledges them until its buffers are full. So TCP
//! keepalive and TCP_USER_TIMEOUT notice nothing; only a caller that waits for an answer with a time limit does.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{oneshot, watch},
};
use url::Url;

/// A proxy in front of one server. Dropping it closes everything that runs through it.
pub struct Proxy {
    url: Url,
    air: watch::Sender<Air>,
    counts: Arc<Counts>,
    _running: oneshot::Sender<()>,
}

/// Which connections carry nothing.
#[derive(Clone, Copy, Default)]
struct Air {
    /// The connections numbered below this are silent.
    silent_below: u64,
    /// All connections are silent, also new ones.
    silent: bool,
}

#[derive(Default)]
struct Counts {
    accepted: AtomicU64,
    open: AtomicUsize,
}

impl Proxy {
    /// A proxy in front of the server that an AMQP or PostgreSQL URL names.
    pub fn new(server: &str) -> Self {
        Self::on("127.0.0.1", server)
    }

    /// The same on this machine's IPv6 address.
    pub fn on_ipv6(server: &str) -> Self {
        Self::on("[::1]", server)
    }

    fn on(host: &str, server: &str) -> Self {
        let mut url = Url::parse(server).unwrap();
        let usual = if url.scheme().starts_with("amqp") { 5672 } else { 5432 };
        let target = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(usual));
        let listener = std::net::TcpListener::bind(format!("{host}:0")).unwrap();
        listener.set_nonblocking(true).unwrap();
        url.set_host(Some(host)).unwrap();
        url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
        let (air, listening) = watch::channel(Air::default());
        let (running, ended) = oneshot::channel::<()>();
        let counts = Arc::new(Counts::default());
        let counting = counts.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    _ = ended => {}
                    () = accept(listener, target, listening, counting) => {}
                }
            });
        });
        Self { url, air, counts, _running: running }
    }

    /// The server's URL, by way of the proxy.
    pub fn url(&self) -> String {
        self.url.to_string()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.url.port().unwrap()))
    }

    /// Silences the connections that are open now: they carry nothing in either direction, without FIN or RST. New ones work.
    pub fn silence(&self) {
        self.air.send_modify(|air| air.silent_below = self.counts.accepted.load(SeqCst));
    }

    /// Silences all connections. New ones are accepted, and are silent too.
    pub fn silence_all(&self) {
        self.air.send_modify(|air| air.silent = true);
    }

    /// Ends the silence. Every connection first delivers the bytes that waited.
    pub fn heal(&self) {
        self.air.send_replace(Air::default());
    }

    /// How many connections were made through it so far.
    pub fn accepted(&self) -> u64 {
        self.counts.accepted.load(SeqCst)
    }

    /// How many connections it holds at present, silent ones among them.
    pub fn open(&self) -> usize {
        self.counts.open.load(SeqCst)
    }
}

async fn accept(listener: TcpListener, target: String, air: watch::Receiver<Air>, counts: Arc<Counts>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let way = Way { number: counts.accepted.fetch_add(1, SeqCst), air: air.clone() };
        let (target, counts) = (target.clone(), counts.clone());
        counts.open.fetch_add(1, SeqCst);
        tokio::spawn(async move {
            // A server that is away, or an end that breaks: the other end is closed too.
            let _ = carry(client, &target, way).await;
            counts.open.fetch_sub(1, SeqCst);
        });
    }
}

async fn carry(client: TcpStream, target: &str, mut way: Way) -> io::Result<()> {
    way.clear().await;
    let server = TcpStream::connect(target.to_owned()).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = pump(&mut from_client, &mut to_server, way.clone());
    let back = pump(&mut from_server, &mut to_client, way);
    tokio::try_join!(there, back).map(|_| ())
}

/// Copies one direction until its end, and passes that on. Reads and writes are broken off when the connection falls
/// silent; neither loses a byte by that.
async fn pump(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, mut way: Way) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        way.clear().await;
        let read = tokio::select! {
            biased;
            () = way.changed() => continue,
            read = from.read(&mut buffer) => read?,
        };
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            way.clear().await;
            tokio::select! {
                biased;
                () = way.changed() => {}
                written = to.write(rest) => rest = &rest[written?..],
            }
        }
        if read == 0 {
            way.clear().await;
            return to.shutdown().await;
        }
    }
}

/// The state of the proxy as one connection sees it.
#[derive(Clone)]
struct Way {
    number: u64,
    air: watch::Receiver<Air>,
}

impl Way {
    /// Waits until the connection may carry.
    async fn clear(&mut self) {
        let number = self.number;
        let carries = |air: &Air| !air.silent && number >= air.silent_below;
        if self.air.wait_for(carries).await.is_err() {
            std::future::pending::<()>().await; // The proxy is being dropped.
        }
    }

    /// Waits until that may have changed.
    async fn changed(&mut self) {
        if self.air.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
