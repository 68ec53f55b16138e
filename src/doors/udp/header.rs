//! PROXY protocol version 2 before datagrams: at the agent, in front of what a backend hears; at the bridge, taken from
//! what a proxy before us sends. Source: HAProxy, doc/proxy-protocol.txt 2.2 (DGRAM); where the header stands the text
//! leaves open, and peers differ: docs/limits.md.
//! Promise: a datagram that is too long with its header is dropped whole. Pure: no socket.

use super::frames::{self, DATAGRAM_BYTES_MAX, TooLong};
use crate::config::expose::Heading;
use ringspan_tunnel::proxy_header::{self, Header};
use std::net::SocketAddr;

/// What the agent does with a conversation's bytes when its backend wants to hear a header: the stream begins with the
/// header, unframed, and goes on with datagrams.
#[derive(Debug)]
pub(super) struct Headed {
    heading: Heading,
    /// `None`: it has not come yet.
    header: Option<Vec<u8>>,
    was_sent: bool,
}

/// The stream does not begin with a header.
#[derive(Debug)]
pub(super) struct NoHeader;

impl Headed {
    /// Waits for the header.
    pub(super) fn new(heading: Heading) -> Headed {
        Headed { heading, header: None, was_sent: false }
    }

    /// Moves whole datagrams from `inbox` behind `ready`, with the header where it belongs; how many did not fit with it.
    pub(super) fn advance(&mut self, inbox: &mut Vec<u8>, ready: &mut Vec<u8>) -> Result<u64, NoHeader> {
        let header = match &self.header {
            Some(header) => header,
            None => match proxy_header::read(inbox) {
                Ok(None) => return Ok(0),
                Ok(Some((_, n))) => &*self.header.insert(inbox.drain(..n).collect()),
                Err(_) => return Err(NoHeader),
            },
        };
        let (mut at, mut lost) = (0, 0);
        while let Some((datagram, taken)) = frames::first(&inbox[at..]).map_err(|TooLong(_)| NoHeader)? {
            at += taken;
            let before: &[u8] = if self.heading == Heading::Each || !self.was_sent { header } else { &[] };
            let bytes = before.len() + datagram.len();
            if bytes > DATAGRAM_BYTES_MAX {
                lost += 1;
                continue;
            }
            self.was_sent = true;
            ready.extend_from_slice(&(bytes as u16).to_le_bytes());
            ready.extend_from_slice(before);
            ready.extend_from_slice(datagram);
        }
        inbox.drain(..at);
        Ok(lost)
    }
}

/// What a datagram of a proxy before us says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said<'a> {
    /// Who sent it, to whom, and the visitor's own bytes. Nobody in particular: the proxy itself.
    From(Option<(SocketAddr, SocketAddr)>, &'a [u8]),
    /// It has no header: it goes on with what the one before has begun.
    Bare,
}

/// Reads one. `None`: its header is broken.
pub(super) fn read(datagram: &[u8]) -> Option<Said<'_>> {
    match proxy_header::read(datagram) {
        Ok(Some((Header::From { source, destination }, n))) => {
            Some(Said::From(Some((source, destination)), &datagram[n..]))
        }
        Ok(Some((Header::Nobody, n))) => Some(Said::From(None, &datagram[n..])),
        Err(proxy_header::Error::None) => Some(Said::Bare),
        // Cut short, an empty one or a few bytes of the signature: a datagram does not go on.
        Ok(None) if datagram.len() < 12 => Some(Said::Bare),
        Ok(None) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_header::{Transport, Version, write};

    fn addresses() -> (SocketAddr, SocketAddr) {
        (([203, 0, 113, 9], 1000).into(), ([198, 51, 100, 1], 53).into())
    }

    fn header() -> Vec<u8> {
        let (from, to) = addresses();
        write(Version::V2, Transport::Udp, Some(from), Some(to))
    }

    fn frame(datagram: &[u8]) -> Vec<u8> {
        [&(datagram.len() as u16).to_le_bytes(), datagram].concat()
    }

    /// However the stream is cut: the header before the first datagram or before each, empty ones too; one that is too
    /// long with it is dropped.
    #[test]
    fn headers_stand_where_they_belong() {
        let largest = vec![7; DATAGRAM_BYTES_MAX];
        for (heading, count) in [(Heading::First, 1), (Heading::Each, 3)] {
            for cut in [1, 7, 40, 100_000] {
                let stream = [header(), frame(b"one"), frame(b""), frame(b"three"), frame(&largest)].concat();
                let (mut headed, mut inbox, mut ready, mut lost) = (Headed::new(heading), Vec::new(), Vec::new(), 0);
                for piece in stream.chunks(cut) {
                    inbox.extend_from_slice(piece);
                    lost += headed.advance(&mut inbox, &mut ready).expect("it begins with a header");
                }
                let (mut wanted, mut headers) = (Vec::new(), 0);
                for datagram in [&b"one"[..], b"", b"three"] {
                    let before = if heading == Heading::Each || headers == 0 { header() } else { Vec::new() };
                    headers += usize::from(!before.is_empty());
                    wanted.extend(frame(&[&before, datagram].concat()));
                }
                if heading == Heading::First {
                    wanted.extend(frame(&largest));
                }
                assert!(ready == wanted && headers == count, "{heading:?} cut {cut}");
                assert_eq!(lost, u64::from(heading == Heading::Each));
            }
        }
        assert!(Headed::new(Heading::First).advance(&mut frame(b"no header at all"), &mut Vec::new()).is_err());
    }

    /// A proxy's datagram says who sent it; one without a header says nothing new; a broken header is neither.
    #[test]
    fn what_a_proxy_says() {
        let with = [&header()[..], b"query"].concat();
        assert_eq!(read(&with), Some(Said::From(Some(addresses()), b"query")));
        assert_eq!(read(&header()), Some(Said::From(Some(addresses()), b"")));
        let local = write(Version::V2, Transport::Udp, None, None);
        assert_eq!(read(&[&local[..], b"query"].concat()), Some(Said::From(None, b"query")));
        assert_eq!((read(b"a datagram of some length"), read(b"")), (Some(Said::Bare), Some(Said::Bare)));
        assert_eq!(read(&with[..20]), None);
    }
}
