//! Owns reaching a broker: connecting within bounds, saying what is wrong in words that help, and a connection's end.
//! Promises that a connection that has fallen silent leaves neither a thread nor a socket behind: the library stops
//! listening for heartbeats on a connection that it closes, so only one that answers is closed. Never prints a password.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use lapin::{
    Channel, Connection, ConnectionProperties, Error, ErrorKind,
    uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo},
};
use tokio::{runtime::Handle, time::timeout};

use super::greeting::{self, Greeting};
use crate::{
    address::{self, Amqp},
    queue::{Purpose, QueueError, topology::Topology},
    secret::Secret,
};

/// How long connecting and declaring may take together.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// Seconds; a dead peer shows after twice this.
const HEARTBEAT: u16 = 10;

/// How long a sign of life may take before a connection is left to its heartbeats.
const SIGN_LIMIT: Duration = Duration::from_secs(2);
/// How long the broker may take to say goodbye.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// How long heartbeats may take to end a silent connection: a little longer than twice their interval.
const HEARTBEATS_LIMIT: Duration = Duration::from_secs(25);

/// What a user of the broker needs.
pub(super) const PERMISSIONS: &str = "give the user of AMQP_URL configure, write and read on names that begin with HEADCOUNT_QUEUE_PREFIX: rabbitmqctl set_permissions";

/// Bytes. A connection of lapin's has buffers of 64 such frames, which fill in time: 2 MiB instead of the broker's 8.
/// A usual webhook is one frame.
const FRAME_MAX: u32 = 32 * 1024;

/// Where the broker is and what it has to hold.
#[derive(Clone)]
pub(super) struct Broker {
    uri: AMQPUri,
    pub(super) topology: Topology,
    pub(super) purpose: Purpose,
    /// The last attempt got no answer, or there was none. The broker is then greeted before the library connects, whose
    /// threads wait for an answer without an end.
    silent: Arc<AtomicBool>,
}

impl Broker {
    pub(super) fn new(url: &Secret, topology: Topology, purpose: Purpose) -> Result<Self, QueueError> {
        let address = address::amqp(url.expose()).map_err(|wrong| QueueError::Refused {
            message: format!("AMQP_URL {}", wrong.problem),
            hint: wrong.hint,
        })?;
        Ok(Self { uri: uri(address), topology, purpose, silent: Arc::new(AtomicBool::new(true)) })
    }

    /// Host and port, for people.
    pub(super) fn place(&self) -> String {
        let AMQPAuthority { host, port, .. } = &self.uri.authority;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Whether it has not answered yet, or not the last time.
    pub(super) fn is_silent(&self) -> bool {
        self.silent.load(Relaxed)
    }

    /// What the broker says of itself, where it can be asked.
    pub(super) async fn greeting(&self) -> Option<Greeting> {
        greeting::greet(&self.uri, &self.place()).await.ok().flatten()
    }

    /// A connection of its own, to a broker that has the topology. Bounded: a frozen broker is an error here.
    pub(super) async fn connect(&self, role: &str) -> Result<Link, QueueError> {
        self.within(async {
            let link = self.dial(role).await?;
            self.ensure(&link).await?;
            Ok(link)
        })
        .await
    }

    /// Bounds what is asked of the broker by the time that connecting and declaring may take.
    pub(super) async fn within<T>(
        &self,
        asked: impl Future<Output = Result<T, QueueError>>,
    ) -> Result<T, QueueError> {
        match timeout(CONNECT_LIMIT, asked).await {
            Ok(answer) => answer,
            Err(_) => {
                self.silent.store(true, Relaxed);
                Err(self.mute())
            }
        }
    }

    /// A broker that does not answer.
    pub(super) fn mute(&self) -> QueueError {
        QueueError::Unavailable(format!("the broker at {} does not answer", self.place()))
    }

    /// A broker whose alarm blocks what this connection publishes.
    pub(super) fn blocked(&self, reason: &str) -> QueueError {
        QueueError::Blocked(format!("the broker at {} blocks publishing: {reason}", self.place()))
    }

    /// A connection that declares nothing. Not bounded.
    pub(super) async fn dial(&self, role: &str) -> Result<Link, QueueError> {
        if self.is_silent() {
            greeting::greet(&self.uri, &self.place()).await?;
        }
        let name = format!("headcount {role} {}", std::process::id());
        let properties = ConnectionProperties::default().with_connection_name(name.as_str().into());
        let connected = Connection::connect_uri(self.uri.clone(), properties).await;
        self.silent.store(false, Relaxed);
        match connected {
            Ok(connection) => Ok(connection.into()),
            Err(error) => Err(self.why(&error).await),
        }
    }

    /// Why connecting failed: where the broker has not said it, the library's words do not tell.
    async fn why(&self, error: &Error) -> QueueError {
        let place = self.place();
        if code(error).is_some() {
            return self.explain(error);
        }
        if let Err(said) = greeting::greet(&self.uri, &place).await {
            return said;
        }
        if self.uri.scheme == AMQPScheme::AMQP {
            return self.explain(error);
        }
        if greeting::is_plain(&self.uri).await {
            return QueueError::Refused {
                message: format!("the broker at {place} speaks no TLS, and AMQP_URL begins with amqps://"),
                hint: "write amqp:// there, or name the broker's port for TLS, 5671 as a rule".into(),
            };
        }
        QueueError::Unavailable(format!("TLS with the broker at {place} failed: {}", text(error)))
    }

    pub(super) async fn channel(&self, connection: &Connection) -> Result<Channel, QueueError> {
        connection.create_channel().await.map_err(|error| self.explain(&error))
    }

    /// What an error of lapin's means for people.
    pub(super) fn explain(&self, error: &Error) -> QueueError {
        let place = self.place();
        match code(error) {
            Some(403) if text(error).contains("Login was refused") => QueueError::Refused {
                message: format!("the broker at {place} refuses the user or its password ({})", text(error)),
                hint:
                    "check user and password in AMQP_URL; guest may enter from the broker's own machine only"
                        .into(),
            },
            Some(403) => QueueError::Refused {
                message: format!("the broker at {place} refuses the user a permission ({})", text(error)),
                hint: PERMISSIONS.into(),
            },
            Some(530) => QueueError::Refused {
                message: format!("the broker at {place} does not allow this ({})", text(error)),
                hint: not_allowed(&text(error)).into(),
            },
            _ => QueueError::Unavailable(format!("broker at {place}: {}", text(error))),
        }
    }
}

/// What to do about a connection that RabbitMQ does not allow, by its words.
fn not_allowed(words: &str) -> &'static str {
    if words.contains("limit") {
        "raise the limit of connections (rabbitmqctl set_vhost_limits, set_user_limits), or run fewer processes"
    } else if words.contains("not found") {
        "check the virtual host at the end of AMQP_URL, or create it: rabbitmqctl add_vhost; %2f is the default one"
    } else {
        "give the user its permissions on the virtual host at the end of AMQP_URL: rabbitmqctl set_permissions"
    }
}

/// The address as the library takes it. Its own reading of a URL knows no IPv6 address and no empty virtual host.
fn uri(address: Amqp) -> AMQPUri {
    AMQPUri {
        scheme: if address.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username: address.user, password: address.password },
            host: address.host,
            port: address.port,
        },
        vhost: address.vhost,
        query: AMQPQueryString {
            frame_max: address.frame_max.or(Some(FRAME_MAX)),
            channel_max: address.channel_max,
            heartbeat: address.heartbeat.or(Some(HEARTBEAT)),
            ..AMQPQueryString::default()
        },
    }
}

/// The AMQP reply code, where the broker gave one.
pub(super) fn code(error: &Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// The error's text, without what could hold a URL.
pub(super) fn text(error: &Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => crate::text::clean(error.get_message().as_str(), 200),
        ErrorKind::IOError(error) => error.to_string(),
        ErrorKind::MissingHeartbeatError => "it stopped answering heartbeats".into(),
        _ => crate::text::clean(&error.to_string(), 200),
    }
}

/// A connection that closes when it is dropped.
pub(super) struct Link {
    connection: Arc<Connection>,
    left: bool,
}

impl From<Connection> for Link {
    fn from(connection: Connection) -> Self {
        Self { connection: Arc::new(connection), left: false }
    }
}

impl Deref for Link {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Link {
    /// Closes it. Takes a few seconds at most; a silent one goes on ending by itself.
    pub(super) async fn close(mut self) {
        self.left = true;
        if !leave(&self.connection).await {
            outlive(Arc::clone(&self.connection));
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.left || !self.connection.status().connected() {
            return;
        }
        let connection = Arc::clone(&self.connection);
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                if !leave(&connection).await {
                    outlive(connection);
                }
            });
        }
    }
}

/// `false`: it does not answer.
async fn leave(connection: &Connection) -> bool {
    if !connection.status().connected() {
        return true;
    }
    if !matches!(timeout(SIGN_LIMIT, connection.create_channel()).await, Ok(Ok(_))) {
        return !connection.status().connected();
    }
    // The broker has confirmed all that was answered; nothing depends on a clean goodbye.
    let _ = timeout(CLOSE_LIMIT, connection.close(200, "bye".into())).await;
    true
}

fn outlive(connection: Arc<Connection>) {
    tokio::spawn(async move {
        let ended = async {
            while connection.status().connected() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let _ = timeout(HEARTBEATS_LIMIT, ended).await;
    });
}
