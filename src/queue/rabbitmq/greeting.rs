//! Owns a broker's first words: whether it answers at all, whether it is a broker and speaks as AMQP_URL says, its product
//! and its version. Asks over a socket of its own, which ends with the question.

use std::time::Duration;

use lapin::uri::{AMQPScheme, AMQPUri};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{address::unreached, queue::QueueError, text::clean};

/// How long a broker may take to greet.
const GREET_LIMIT: Duration = Duration::from_secs(5);
/// The longest greeting that is read, in bytes.
const GREETING_MAX: usize = 64 * 1024;
/// Of `connection.start`, before its table: class, method, and the version of the protocol.
const START: &[u8] = &[0, 10, 0, 10];

/// What a broker says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) product: String,
    pub(super) version: String,
}

/// The first byte of a TLS alert, and of a handshake.
const TLS: [u8; 2] = [0x15, 0x16];

/// Asks the broker at `place` for its greeting. `Ok(None)`: over TLS only the connection is tried.
///
/// # Errors
/// In words why it cannot be reached, or that it is no broker.
pub(super) async fn greet(uri: &AMQPUri, place: &str) -> Result<Option<Greeting>, QueueError> {
    let asked = async {
        let mut stream = connect(uri).await.map_err(|error| away(place, &unreached(&error)))?;
        if uri.scheme == AMQPScheme::AMQPS {
            return Ok(None);
        }
        match ask(&mut stream).await {
            Ok(Answer::Greeting(greeting)) => Ok(greeting),
            Ok(Answer::Tls) => Err(QueueError::Refused {
                message: format!("the server at {place} speaks TLS, and AMQP_URL begins with amqp://"),
                hint: "write amqps:// there, or name the broker's port without TLS, 5672 as a rule".into(),
            }),
            Ok(Answer::Other) => Err(QueueError::Refused {
                message: format!("the server at {place} does not speak AMQP 0-9-1"),
                hint: "mend host and port in AMQP_URL: 5672 as a rule, 15672 is the management page's".into(),
            }),
            Err(error) => Err(away(place, &unreached(&error))),
        }
    };
    timeout(GREET_LIMIT, asked).await.unwrap_or_else(|_| Err(away(place, "does not answer")))
}

/// Whether what should be TLS is a broker without.
pub(super) async fn is_plain(uri: &AMQPUri) -> bool {
    let asked = async { ask(&mut connect(uri).await?).await };
    matches!(timeout(GREET_LIMIT, asked).await, Ok(Ok(Answer::Greeting(_))))
}

fn away(place: &str, why: &str) -> QueueError {
    QueueError::Unavailable(format!("the broker at {place} {why}"))
}

enum Answer {
    Greeting(Option<Greeting>),
    Tls,
    Other,
}

async fn connect(uri: &AMQPUri) -> std::io::Result<TcpStream> {
    TcpStream::connect((uri.authority.host.as_str(), uri.authority.port)).await
}

async fn ask(stream: &mut TcpStream) -> std::io::Result<Answer> {
    stream.write_all(b"AMQP\0\0\x09\x01").await?;
    // A frame: type, channel, size, payload, end. Of a method the type is 1.
    let kind = stream.read_u8().await?;
    if TLS.contains(&kind) {
        return Ok(Answer::Tls);
    }
    if kind != 1 {
        return Ok(Answer::Other);
    }
    let mut head = [0; 6];
    stream.read_exact(&mut head).await?;
    let size = u32::from_be_bytes([head[2], head[3], head[4], head[5]]) as usize;
    let mut payload = vec![0; size.min(GREETING_MAX)];
    stream.read_exact(&mut payload).await?;
    Ok(Answer::Greeting(read(&payload)))
}

/// Reads `connection.start` (AMQP 0-9-1, 4.2.5.5 and 1.4.2.1), as far as the two properties.
fn read(payload: &[u8]) -> Option<Greeting> {
    let table = payload.strip_prefix(START)?.get(2..)?;
    let (mut table, _) = long(table)?;
    let (mut product, mut version) = (None, None);
    while let Some((length, rest)) = table.split_first() {
        let (name, rest) = rest.split_at_checked(usize::from(*length))?;
        let (kind, rest) = rest.split_first()?;
        let (value, rest) = match kind {
            b't' => rest.split_at_checked(1)?,
            b'S' | b'F' | b'A' => long(rest)?,
            _ => return None,
        };
        let text = || clean(&String::from_utf8_lossy(value), 50);
        match name {
            b"product" => product = Some(text()),
            b"version" => version = Some(text()),
            _ => {}
        }
        table = rest;
    }
    Some(Greeting { product: product?, version: version? })
}

/// A value after its length, and what follows it.
fn long(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read_and_whatever_is_none_is_not() {
        let mut table = Vec::new();
        let mut put = |name: &str, kind: u8, value: &[u8]| {
            table.push(u8::try_from(name.len()).unwrap());
            table.extend(name.as_bytes());
            table.push(kind);
            if kind != b't' {
                table.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
            }
            table.extend(value);
        };
        put("capabilities", b'F', b"\x01xt\x01");
        put("flag", b't', &[1]);
        put("product", b'S', b"RabbitMQ");
        put("version", b'S', b"3.10.8");
        let mut payload = [START, &[0, 9]].concat();
        payload.extend(u32::try_from(table.len()).unwrap().to_be_bytes());
        payload.extend(table);
        payload.extend(b"\0\0\0\x05PLAIN");
        let greeting = Greeting { product: "RabbitMQ".into(), version: "3.10.8".into() };
        assert_eq!(read(&payload), Some(greeting));
        for end in 0..payload.len() - 9 {
            assert_eq!(read(&payload[..end]), None, "{end}");
        }
    }
}
