//! Owns a connection and its end. Promises that a connection that has fallen silent leaves neither a thread nor a socket
//! behind: the library stops listening for heartbeats on a connection that it closes, so only one that answers is closed.

use std::{ops::Deref, sync::Arc, time::Duration};

use lapin::Connection;
use tokio::{runtime::Handle, time::timeout};

/// How long a sign of life may take before a connection is left to its heartbeats.
const SIGN_LIMIT: Duration = Duration::from_secs(2);
/// How long the broker may take to say goodbye.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// How long heartbeats may take to end a silent connection: a little longer than twice their interval.
const HEARTBEATS_LIMIT: Duration = Duration::from_secs(25);

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
