//! Carries one connection of a link, or one visit of a secret service, in the messages of a WebSocket, the same at both
//! ends.
//!
//! ```text
//! data path ══ pair ══ pump ── binary messages ── pump ══ pair ══ data path
//! ```
//! Promises: each direction holds one message, of at most [`MESSAGE_BYTES_MAX`], and reads no more before that one is
//! written: whoever is slow is felt at the other end. The end of either side is the end of both, behind the last byte.
//! Bytes are copied, and masked one way: this is the road for where no other is open.

use futures_util::{SinkExt, StreamExt};
use ringspan_engine::kernel::Socket;
use std::fmt;
use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

/// What a WebSocket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A connection to the link port.
    Link,
    /// A connection to a listener of visiting agents: which one, its HELLO says.
    Visit,
}

impl Purpose {
    /// Both.
    pub(crate) const ALL: [Purpose; 2] = [Purpose::Link, Purpose::Visit];

    /// The subprotocol (RFC 6455 §1.9): who does not speak it is not meant.
    pub(crate) const fn protocol(self) -> &'static str {
        match self {
            Purpose::Link => "ringspan-link.1",
            Purpose::Visit => "ringspan-visit.1",
        }
    }
}

/// What one message of ours holds: a frame of the link, as it mostly comes.
const SENT_BYTES_MAX: usize = 64 << 10;
/// What one message of the other end may hold, whatever software that is.
pub(crate) const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// What is read at once.
const READ_BYTES: usize = 32 << 10;
/// An agent whose link says nothing sends a ping: what stands in between closes a connection that is silent for 60 s
/// (nginx' proxy_read_timeout), often less.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(20);
/// After one side's end the other has this long to take what was on the way.
const LINGER_MAX: Duration = Duration::from_secs(3);

/// The bounds of both ends.
pub(crate) fn config() -> WebSocketConfig {
    let mut config = WebSocketConfig::default();
    config.read_buffer_size = READ_BYTES;
    // Each message goes out at once.
    config.write_buffer_size = 0;
    // One message, its frame, and answers to pings.
    config.max_write_buffer_size = 2 * SENT_BYTES_MAX;
    config.max_message_size = Some(MESSAGE_BYTES_MAX);
    config.max_frame_size = Some(MESSAGE_BYTES_MAX);
    config
}

/// Our end of a pair. Needs a runtime.
pub(crate) fn end(socket: Socket) -> io::Result<UnixStream> {
    let stream = StdStream::from(socket.into_owned());
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Why a pump has stopped.
#[derive(Debug)]
pub(crate) enum End {
    /// The data path has closed.
    Here,
    /// The other end has closed.
    There,
    /// The other end sends what is no link's.
    Nonsense(&'static str),
    /// The connection broke, or a bound was passed.
    Broken(WsError),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Here => f.write_str("closed here"),
            End::There => f.write_str("closed there"),
            End::Nonsense(what) => f.write_str(what),
            End::Broken(error) => write!(f, "{error}"),
        }
    }
}

/// Carries until either side ends. `ping`: how often, while nothing else is sent.
pub(crate) async fn pump<S>(socket: WebSocketStream<S>, pair: UnixStream, ping: Option<Duration>) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, mut stream) = socket.split();
    let (mut read, mut write) = pair.into_split();
    let first = {
        let mut in_ = std::pin::pin!(inward(&mut stream, &mut write));
        let mut out = std::pin::pin!(outward(&mut read, &mut sink, ping));
        let (first, outward_is_over) = tokio::select! {
            end = &mut in_ => (end, false),
            end = &mut out => (end, true),
        };
        if outward_is_over && matches!(first, End::Here) {
            // The last word is out: the other end answers it, and what it said before still arrives.
            let _ = timeout(LINGER_MAX, &mut in_).await;
        }
        first
    };
    if let End::There = first {
        let _ = write.shutdown().await;
    }
    // Whatever holds this up is over, too.
    let _ = timeout(LINGER_MAX, sink.close()).await;
    first
}

async fn inward(
    stream: &mut (impl StreamExt<Item = Result<Message, WsError>> + Unpin),
    to: &mut OwnedWriteHalf,
) -> End {
    loop {
        match stream.next().await {
            Some(Ok(Message::Binary(bytes))) => {
                if to.write_all(&bytes).await.is_err() {
                    return End::Here;
                }
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_))) | None => return End::There,
            Some(Ok(Message::Text(_) | Message::Frame(_))) => return End::Nonsense("a text message came"),
            Some(Err(WsError::ConnectionClosed | WsError::AlreadyClosed)) => return End::There,
            Some(Err(error)) => return End::Broken(error),
        }
    }
}

async fn outward(
    from: &mut OwnedReadHalf,
    sink: &mut (impl SinkExt<Message, Error = WsError> + Unpin),
    ping: Option<Duration>,
) -> End {
    let mut buffer = vec![0; SENT_BYTES_MAX];
    loop {
        let read = from.read(&mut buffer);
        let message = match ping {
            None => Some(read.await),
            Some(every) => timeout(every, read).await.ok(),
        };
        let message = match message {
            None => Message::Ping(bytes::Bytes::new()),
            Some(Ok(0) | Err(_)) => {
                let _ = sink.send(Message::Close(None)).await;
                return End::Here;
            }
            Some(Ok(n)) => Message::Binary(bytes::Bytes::copy_from_slice(&buffer[..n])),
        };
        match sink.send(message).await {
            Ok(()) => {}
            Err(WsError::ConnectionClosed | WsError::AlreadyClosed) => return End::There,
            Err(error) => return End::Broken(error),
        }
    }
}
