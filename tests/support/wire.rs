//! Owns a client that speaks HTTP/1.1 byte by byte, so that tests can break the protocol.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// The time limit of each step: whatever takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The `error` of a JSON error.
    pub fn code(&self) -> String {
        let json = self.json();
        assert!(json["message"].as_str().is_some_and(|message| !message.is_empty()), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        json["error"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("connects");
        stream.set_nodelay(true).expect("nodelay");
        Self { stream, unread: Vec::new() }
    }

    /// Connects with a small receive buffer.
    pub async fn connect_narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        let stream = socket.connect(address).await.expect("connects");
        Self { stream, unread: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("sends");
    }

    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await.expect("is read in time")
    }

    /// Closes the sending half; reading goes on.
    pub async fn half_close(&mut self) {
        self.stream.shutdown().await.expect("shuts down");
    }

    /// Resets the connection.
    pub fn reset(self) {
        self.stream.set_zero_linger().expect("no linger");
    }

    /// The next answer.
    pub async fn response(&mut self) -> Response {
        let end = loop {
            if let Some(end) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            assert!(
                self.read().await,
                "closed without an answer: {:?}",
                String::from_utf8_lossy(&self.unread)
            );
        };
        let head = String::from_utf8(self.unread.drain(..end).collect()).expect("a plain head");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status");
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
            .collect();
        let mut response =
            Response { status: status.parse().expect("a number"), headers, body: String::new() };
        let length = response.header("content-length").map_or(0, |length| length.parse().expect("a length"));
        while self.unread.len() < length {
            assert!(self.read().await, "closed within an answer");
        }
        response.body = String::from_utf8(self.unread.drain(..length).collect()).expect("text");
        response
    }

    /// Sends a request and waits for its answer.
    pub async fn ask(&mut self, request: impl AsRef<[u8]>) -> Response {
        self.send(request).await;
        self.response().await
    }

    /// The data of the next server-sent event of this name. What comes before it is dropped.
    pub async fn event(&mut self, name: &str) -> String {
        let mark = format!("event: {name}\ndata: ");
        loop {
            let text = String::from_utf8_lossy(&self.unread).into_owned();
            if let Some((before, rest)) = text.split_once(&mark)
                && let Some((data, _)) = rest.split_once("\n\n")
            {
                self.unread.drain(..before.len() + mark.len() + data.len() + 2);
                return data.to_owned();
            }
            assert!(self.read().await, "closed before {name}: {text}");
        }
    }

    /// Reads until the server closes: the body of an answer without a length.
    pub async fn rest(&mut self) -> String {
        while self.read().await {}
        String::from_utf8(std::mem::take(&mut self.unread)).expect("text")
    }

    /// Waits until the server has closed the connection; nothing else may come.
    pub async fn closed(&mut self) {
        assert!(!self.read().await, "something came: {:?}", String::from_utf8_lossy(&self.unread));
    }

    /// Whether no byte has arrived so far.
    pub fn silent(&self) -> bool {
        let mut byte = [0];
        self.unread.is_empty()
            && matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }

    async fn read(&mut self) -> bool {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.unread)).await.expect("answers in time");
        read.is_ok_and(|bytes| bytes > 0)
    }
}

/// A request without a body.
pub fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
}
