//! Asking a SOCKS 5 proxy for a connection, the client's half (RFC 1928, RFC 1929). Names are sent as names: where a proxy
//! is needed, the name is often known on its side alone.
//! Promise: reads exactly what the answers are long.

use super::{Login, RoadError};
use ringspan_tunnel::address::Address;
use std::io;
use std::net::IpAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const VERSION: u8 = 5;
const LOGIN_VERSION: u8 = 1;
const METHOD_NONE: u8 = 0;
const METHOD_LOGIN: u8 = 2;
const CONNECT: u8 = 1;
const ADDRESS_V4: u8 = 1;
const ADDRESS_NAME: u8 = 3;
const ADDRESS_V6: u8 = 4;

/// Asks for `to`; the same stream, which is then a connection to it.
pub(super) async fn ask(
    mut stream: TcpStream,
    to: &Address,
    login: Option<&Login>,
    who: &str,
) -> Result<TcpStream, RoadError> {
    let greet = |error: io::Error| RoadError::io(&who, "SOCKS greeting", &error);
    let methods: &[u8] = if login.is_some() { &[METHOD_NONE, METHOD_LOGIN] } else { &[METHOD_NONE] };
    stream.write_all(&[&[VERSION, methods.len() as u8], methods].concat()).await.map_err(greet)?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await.map_err(greet)?;
    let wrong = |what: &str| RoadError::answered(&who, "SOCKS greeting", what);
    match (answer, login) {
        ([VERSION, METHOD_NONE], _) => {}
        ([VERSION, METHOD_LOGIN], Some(login)) => log_in(&mut stream, login, who).await?,
        ([VERSION, 0xff], None) => return Err(wrong("it wants a user and a password")),
        ([VERSION, 0xff], Some(_)) => return Err(wrong("it takes no user and password, and nobody without")),
        ([VERSION, method], _) => return Err(wrong(&format!("it wants login method {method}, which was not offered"))),
        _ => return Err(wrong("its answer is no SOCKS 5")),
    }
    request(&mut stream, to, who).await?;
    Ok(stream)
}

async fn log_in(stream: &mut TcpStream, login: &Login, who: &str) -> Result<(), RoadError> {
    let io = |error: io::Error| RoadError::io(&who, "SOCKS login", &error);
    let (user, password) = (login.user.as_bytes(), login.password.0.as_bytes());
    let fields = [&[LOGIN_VERSION, user.len() as u8], user, &[password.len() as u8], password].concat();
    stream.write_all(&fields).await.map_err(io)?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await.map_err(io)?;
    match answer {
        [_, 0] => Ok(()),
        _ => Err(RoadError::answered(&who, "SOCKS login", "it does not take this user and password")),
    }
}

async fn request(stream: &mut TcpStream, to: &Address, who: &str) -> Result<(), RoadError> {
    let step = format!("SOCKS connect {to}");
    let io = |error: io::Error| RoadError::io(&who, &step, &error);
    let wrong = |what: &str| RoadError::answered(&who, &step, what);
    let mut ask = vec![VERSION, CONNECT, 0];
    match to.ip().map(|address| address.ip()) {
        Some(IpAddr::V4(ip)) => {
            ask.push(ADDRESS_V4);
            ask.extend_from_slice(&ip.octets());
        }
        Some(IpAddr::V6(ip)) => {
            ask.push(ADDRESS_V6);
            ask.extend_from_slice(&ip.octets());
        }
        None => {
            let name = to.host();
            let len = u8::try_from(name.len()).map_err(|_| wrong("the name is longer than 255 bytes"))?;
            ask.extend_from_slice(&[ADDRESS_NAME, len]);
            ask.extend_from_slice(name.as_bytes());
        }
    }
    ask.extend_from_slice(&to.port().to_be_bytes());
    stream.write_all(&ask).await.map_err(io)?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.map_err(io)?;
    let [VERSION, code, _, kind] = head else { return Err(wrong("its answer is no SOCKS 5")) };
    if code != 0 {
        return Err(wrong(&format!("it answered {code}, {}", words(code))));
    }
    let address_bytes = match kind {
        ADDRESS_V4 => 4,
        ADDRESS_V6 => 16,
        ADDRESS_NAME => stream.read_u8().await.map_err(io)?.into(),
        _ => return Err(wrong("its answer is no SOCKS 5")),
    };
    stream.read_exact(&mut [0; 257][..address_bytes + 2]).await.map_err(io)?;
    Ok(())
}

/// RFC 1928 §6.
fn words(code: u8) -> &'static str {
    match code {
        1 => "general failure",
        2 => "not allowed by its rules",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "TTL expired",
        7 => "it does not do CONNECT",
        8 => "it does not take this kind of address",
        _ => "which has no meaning",
    }
}
