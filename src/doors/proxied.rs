//! The PROXY header before a door's visitor: who it is when a load balancer stands in front.
//! Promise: nothing behind the header is read, and only who is trusted is listened to; what the header may be, and how
//! long it may take, is what the data path's own listeners have.

use ipnet::IpNet;
use ringspan_tunnel::proxy_header::{self, BYTES_MAX, HEADER_MAX, Header};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// A visitor as the header has it, or its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    /// Who it is.
    pub(crate) visitor: SocketAddr,
    /// What it connected to; `None`: what its socket says.
    pub(crate) asked: Option<SocketAddr>,
}

impl From<SocketAddr> for Who {
    /// Nobody stands in front.
    fn from(visitor: SocketAddr) -> Who {
        Who { visitor, asked: None }
    }
}

/// Whether somebody from there is believed.
pub(super) fn is_trusted(from: &[IpNet], peer: SocketAddr) -> bool {
    from.iter().any(|net| net.contains(&peer.ip().to_canonical()))
}

/// Reads the header, and not a byte more.
///
/// # Errors
/// It is wrong, too long or late, or the connection ended before it did.
pub(super) async fn read(stream: &mut TcpStream, peer: SocketAddr) -> io::Result<Who> {
    within(HEADER_MAX, stream, peer).await
}

async fn within(patience: Duration, stream: &mut TcpStream, peer: SocketAddr) -> io::Result<Who> {
    let header = tokio::time::timeout(patience, header(stream)).await;
    Ok(match header.map_err(|_elapsed| io::Error::new(io::ErrorKind::TimedOut, "no PROXY header in time"))?? {
        Header::From { source, destination } => Who { visitor: source, asked: Some(destination) },
        Header::Nobody => peer.into(),
    })
}

async fn header(stream: &mut TcpStream) -> io::Result<Header> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; BYTES_MAX]);
    loop {
        let n = stream.peek(&mut buffer).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let before = bytes.len();
        bytes.extend_from_slice(&buffer[..n]);
        // What is no whole header yet is all of it header.
        let (len, found) =
            match proxy_header::read(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))? {
                Some((header, len)) => (len - before, Some(header)),
                None => (n, None),
            };
        stream.read_exact(&mut buffer[..len]).await?;
        if let Some(header) = found {
            return Ok(header);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_header::{Transport, Version, write};
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        let (far, peer) = listener.accept().await.expect("accepted");
        (near, far, peer)
    }

    /// Headers of both versions, cut at every byte, with bytes right behind them: the visitor is who they say, and those bytes
    /// are still there.
    #[tokio::test]
    async fn cut_anywhere() {
        let (source, destination) = ("203.0.113.9:1000".parse().unwrap(), "198.51.100.1:443".parse().unwrap());
        let headers =
            [Version::V1, Version::V2].map(|version| write(version, Transport::Tcp, Some(source), Some(destination)));
        let nobody = b"PROXY UNKNOWN\r\n".to_vec();
        for header in headers.into_iter().chain([nobody.clone()]) {
            for cut in 1..=header.len() {
                let (mut near, mut far, peer) = pair().await;
                near.set_nodelay(true).unwrap();
                near.write_all(&header[..cut]).await.unwrap();
                let reading = read(&mut far, peer);
                let rest = async {
                    tokio::task::yield_now().await;
                    near.write_all(&header[cut..]).await.unwrap();
                    near.write_all(b"GET").await.unwrap();
                };
                let (who, ()) = tokio::join!(reading, rest);
                let wanted = match header == nobody {
                    true => Who::from(peer),
                    false => Who { visitor: source, asked: Some(destination) },
                };
                assert_eq!(who.unwrap(), wanted);
                let mut behind = [0; 3];
                far.read_exact(&mut behind).await.unwrap();
                assert_eq!(&behind, b"GET");
            }
        }
    }

    /// What is no header is refused at its first wrong byte, what ends early at its end, and what never comes in time.
    #[tokio::test]
    async fn what_is_refused() {
        let long = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat();
        for (said, kind) in [
            (&b"GET / HTTP/1.1\r\n"[..], io::ErrorKind::InvalidData),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 66000\r\n", io::ErrorKind::InvalidData),
            (&long, io::ErrorKind::InvalidData),
            (b"PROXY TCP4 1.2.3", io::ErrorKind::UnexpectedEof),
            (b"", io::ErrorKind::UnexpectedEof),
        ] {
            let (mut near, mut far, peer) = pair().await;
            near.write_all(said).await.unwrap();
            near.shutdown().await.unwrap();
            assert_eq!(read(&mut far, peer).await.unwrap_err().kind(), kind, "{said:?}");
        }
        let (_near, mut far, peer) = pair().await;
        assert_eq!(within(Duration::ZERO, &mut far, peer).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
