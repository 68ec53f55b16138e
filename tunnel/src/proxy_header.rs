//! The PROXY protocol: one header before a visitor's own bytes that says who it is. Both versions, read and written.
//! Source: HAProxy, doc/proxy-protocol.txt (2.1 the text form, 2.2 the binary form).
//! Promise: what [`write`] makes [`read`] takes; a header is at most [`BYTES_MAX`] long, a longer one is an error, not a
//! wait; nothing here trusts anybody: who may send a header is the caller's business. Pure.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Longest text header, its line end included (2.1).
pub const V1_BYTES_MAX: usize = 107;
/// Longest binary header that is read: addresses and as many TLVs as one small packet holds. The form allows 65,551.
pub const BYTES_MAX: usize = 1452;
/// How long a connection that is to bring a header may take: it follows the handshake at once; a lost packet is sent again after a
/// second, and after three.
pub const HEADER_MAX: Duration = Duration::from_secs(5);
/// Connections that may wait for their headers, of a worker or of a door's listener. Each holds a socket and what has come of
/// [`BYTES_MAX`].
pub const WAITING_MAX: usize = 1024;
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The binary header before its addresses.
const V2_FIXED: usize = 16;
const TLV_CRC32C: u8 = 3;

/// Which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// What carries the visitor's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A stream.
    Tcp,
    /// Datagrams; the text form has no word for them and says UNKNOWN.
    Udp,
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Who comes, and where to.
    From {
        /// The visitor.
        source: SocketAddr,
        /// The address it connected to.
        destination: SocketAddr,
    },
    /// Nobody in particular: a check of the proxy itself (LOCAL), or a family that is no IP. The connection's own
    /// addresses count.
    Nobody,
}

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No PROXY header begins like this.
    #[error("the connection does not begin with a PROXY header")]
    None,
    /// It begins like one and goes on wrongly.
    #[error("malformed PROXY header")]
    Malformed,
    /// Longer than allowed.
    #[error("the PROXY header is too long")]
    TooLong,
    /// Its checksum is of other bytes.
    #[error("the checksum of the PROXY header is wrong")]
    Checksum,
}

/// Reads a header at the start of `bytes`: it and its length, or `None` if more bytes are needed.
///
/// # Errors
/// [`Error`], as soon as no further byte can make it right.
pub fn read(bytes: &[u8]) -> Result<Option<(Header, usize)>, Error> {
    let n = bytes.len().min(SIGNATURE.len());
    if bytes[..n] == SIGNATURE[..n] {
        return if n < SIGNATURE.len() { Ok(None) } else { read_v2(bytes) };
    }
    let n = bytes.len().min(6);
    if bytes[..n] == b"PROXY "[..n] {
        return if n < 6 { Ok(None) } else { read_v1(bytes) };
    }
    Err(Error::None)
}

fn read_v1(bytes: &[u8]) -> Result<Option<(Header, usize)>, Error> {
    let window = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if window.len() == V1_BYTES_MAX { Err(Error::TooLong) } else { Ok(None) };
    };
    let line = std::str::from_utf8(&window[6..end]).map_err(|_| Error::Malformed)?;
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return Ok(Some((Header::Nobody, end + 2)));
    }
    let words: Vec<&str> = line.split(' ').collect();
    let [family, source, destination, source_port, destination_port] = words[..] else { return Err(Error::Malformed) };
    let ip = |text: &str| -> Result<IpAddr, Error> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().map(IpAddr::from).map_err(|_| Error::Malformed),
            "TCP6" => text.parse::<Ipv6Addr>().map(IpAddr::from).map_err(|_| Error::Malformed),
            _ => Err(Error::Malformed),
        }
    };
    let port = |text: &str| {
        let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        text.parse::<u16>().ok().filter(|_| plain).ok_or(Error::Malformed)
    };
    let source = SocketAddr::new(ip(source)?, port(source_port)?);
    let destination = SocketAddr::new(ip(destination)?, port(destination_port)?);
    Ok(Some((Header::From { source, destination }, end + 2)))
}

fn read_v2(bytes: &[u8]) -> Result<Option<(Header, usize)>, Error> {
    let Some(fixed) = bytes.get(12..V2_FIXED) else { return Ok(None) };
    if fixed[0] >> 4 != 2 || fixed[0] & 15 > 1 {
        return Err(Error::Malformed);
    }
    let (is_local, family, protocol) = (fixed[0] & 15 == 0, fixed[1] >> 4, fixed[1] & 15);
    // Reserved: "must be rejected as invalid by receivers" (2.2); of LOCAL the byte is ignored.
    if !is_local && (family > 3 || protocol > 2) {
        return Err(Error::Malformed);
    }
    let len = V2_FIXED + usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if len > BYTES_MAX {
        return Err(Error::TooLong);
    }
    let Some(all) = bytes.get(..len) else { return Ok(None) };
    let body = &all[V2_FIXED..];
    // The family decides how long the addresses are; those of none must be skipped (2.2).
    let (header, addresses) = match family {
        1 if body.len() >= 12 => (from(v4(&body[0..4]), v4(&body[4..8]), &body[8..12]), 12),
        2 if body.len() >= 36 => (from(v6(&body[0..16]), v6(&body[16..32]), &body[32..36]), 36),
        1 | 2 if !is_local => return Err(Error::Malformed),
        3 => (Header::Nobody, 216.min(body.len())),
        _ => (Header::Nobody, body.len()),
    };
    check_tlvs(all, V2_FIXED + addresses)?;
    // LOCAL: whatever the addresses say.
    Ok(Some((if is_local { Header::Nobody } else { header }, len)))
}

fn from(source: IpAddr, destination: IpAddr, ports: &[u8]) -> Header {
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Header::From { source: SocketAddr::new(source, port(0)), destination: SocketAddr::new(destination, port(2)) }
}

fn v4(bytes: &[u8]) -> IpAddr {
    <[u8; 4]>::try_from(bytes).expect("four bytes").into()
}

fn v6(bytes: &[u8]) -> IpAddr {
    <[u8; 16]>::try_from(bytes).expect("sixteen bytes").into()
}

/// Skips the TLVs, and checks the one that is a checksum (2.2.4).
fn check_tlvs(all: &[u8], mut at: usize) -> Result<(), Error> {
    while at < all.len() {
        let Some(head) = all.get(at..at + 3) else { return Err(Error::Malformed) };
        let value = at + 3;
        let end = value + usize::from(u16::from_be_bytes([head[1], head[2]]));
        let Some(bytes) = all.get(value..end) else { return Err(Error::Malformed) };
        if head[0] == TLV_CRC32C {
            let said = u32::from_be_bytes(bytes.try_into().map_err(|_| Error::Malformed)?);
            let mut zeroed = all.to_vec();
            zeroed[value..end].fill(0);
            if crc32c(&zeroed) != said {
                return Err(Error::Checksum);
            }
        }
        at = end;
    }
    Ok(())
}

/// CRC-32C (RFC 3720, appendix B.4), bit by bit: a header is short and rarely has one.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0x82F6_3B78 } else { c >> 1 })
    })
}

/// The header of a visitor. Unknown addresses: the form for nobody in particular. An IPv4 address in IPv6 dress is
/// written as what it is; beside an IPv6 address an IPv4 one wears that dress, since a header has one family.
pub fn write(version: Version, transport: Transport, source: Option<SocketAddr>, to: Option<SocketAddr>) -> Vec<u8> {
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let dressed = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    let pair = source.map(plain).zip(to.map(plain));
    let pair = pair.map(|(a, b)| if a.is_ipv4() == b.is_ipv4() { (a, b) } else { (dressed(a), dressed(b)) });
    match (version, pair, transport) {
        (Version::V1, Some((a, b)), Transport::Tcp) => {
            let family = if a.is_ipv4() { "TCP4" } else { "TCP6" };
            // The form has no dots in IPv6 (2.1), where Rust shows a mapped address with them.
            let shown = |address: SocketAddr| match address.ip() {
                IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
                    format!("::ffff:{:x}:{:x}", ip.segments()[6], ip.segments()[7])
                }
                ip => ip.to_string(),
            };
            format!("PROXY {family} {} {} {} {}\r\n", shown(a), shown(b), a.port(), b.port()).into_bytes()
        }
        (Version::V1, ..) => b"PROXY UNKNOWN\r\n".to_vec(),
        (Version::V2, pair, transport) => {
            let mut out = SIGNATURE.to_vec();
            let kind = match transport {
                Transport::Tcp => 1,
                Transport::Udp => 2,
            };
            match pair {
                None => out.extend([0x21, 0x00, 0, 0]),
                Some((SocketAddr::V4(a), SocketAddr::V4(b))) => {
                    out.extend([0x21, 0x10 | kind, 0, 12]);
                    out.extend(a.ip().octets().into_iter().chain(b.ip().octets()));
                    out.extend(a.port().to_be_bytes().into_iter().chain(b.port().to_be_bytes()));
                }
                Some((a, b)) => {
                    let octets = |address: SocketAddr| match address.ip() {
                        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                        IpAddr::V6(ip) => ip.octets(),
                    };
                    out.extend([0x21, 0x20 | kind, 0, 36]);
                    out.extend(octets(a).into_iter().chain(octets(b)));
                    out.extend(a.port().to_be_bytes().into_iter().chain(b.port().to_be_bytes()));
                }
            }
            out
        }
    }
}

#[cfg(test)]
mod tests;
