//! What a `[[listener]]` of bridge.toml speaks, beyond plain TCP: its keys, ranges and defaults.

use super::{Document, Error, unit};
use crate::doors::proxy::allow::{Allow, RULES_MAX, Rule};
use crate::doors::proxy::users::Users;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;

/// What a listener speaks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Door {
    /// Whatever it is, over TCP: visitors go to the workers as they come.
    #[default]
    Tcp,
    /// Datagrams.
    Udp(UdpListener),
    /// Whoever comes says where to.
    Proxy(ProxyListener),
    /// Agents that visit a secret service.
    Visit,
    /// As `Tcp`, at a path of this machine.
    Unix(UnixListener),
    /// HTTP, or TLS whose greeting is read.
    Http(Box<super::http::HttpListener>),
}

/// How a visitor of a proxy says where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// SOCKS 5.
    Socks5,
    /// HTTP CONNECT.
    Connect,
}

/// Whoever comes says where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProxyListener {
    /// In which language.
    pub(crate) greeting: Greeting,
    /// Who may; `None`: everybody, because the file says so.
    pub(crate) users: Option<Users>,
    /// Where to; `None`: the agent decides alone.
    pub(crate) allow: Option<Allow>,
    /// UDP associations at once (SOCKS 5), 0 to 10,000. Default 256: a socket each, and up to 64 streams. 0: none.
    pub(crate) associations_max: usize,
}

/// A socket in the file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnixListener {
    /// Where.
    pub(crate) path: PathBuf,
    /// Who may connect, as chmod(1) says it: it takes the right to write. Default 0660.
    pub(crate) mode: u32,
}

/// Conversations of one UDP listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UdpListener {
    /// One that is silent for this long is over. Default 60 s, 1 s to 1 h: NATs on the way forget a UDP mapping after 30 s
    /// to 5 min (RFC 4787, REQ-5 asks for 2), so keep-alives are mostly closer than that; DNS needs a few seconds.
    pub(crate) idle_timeout: Duration,
    /// At once, 1 to 65,000. Default 10,000: two descriptors and about 10 KiB each. More are not served, and counted.
    pub(crate) sessions_max: usize,
    /// Bytes of datagrams that wait for the link, per conversation. More are dropped and counted.
    pub(crate) queue_bytes: usize,
}

impl Default for UdpListener {
    fn default() -> UdpListener {
        UdpListener {
            idle_timeout: Duration::from_secs(60),
            sessions_max: 10_000,
            queue_bytes: super::expose::UDP_QUEUE_BYTES,
        }
    }
}

/// The keys of all types, as they stand in the file.
#[derive(Clone, Copy, Default)]
pub(super) struct Keys<'a> {
    pub(super) idle_timeout: Option<&'a Spanned<String>>,
    pub(super) sessions_max: Option<&'a Spanned<i64>>,
    pub(super) auth: Option<&'a Spanned<String>>,
    pub(super) users: Option<&'a Spanned<Vec<Spanned<String>>>>,
    pub(super) allow: Option<&'a Spanned<Vec<Spanned<String>>>>,
    pub(super) associations_max: Option<&'a Spanned<i64>>,
    pub(super) mode: Option<&'a Spanned<String>>,
}

/// The types there are.
const TYPES: &str = "\"tcp\", \"udp\", \"http\", \"https\", \"socks5\", \"connect\" or \"visit\"";

/// As many visitors' UDP associations as a listener takes without a word.
const ASSOCIATIONS_DEFAULT: usize = 256;
/// What a Unix path begins with.
const UNIX: &str = "unix:";
/// Longest path of a Unix socket, with the few bytes that its first name is longer: 108 bytes and a 0 (unix(7)).
const PATH_BYTES_MAX: usize = 100;

/// The path, if a listener's or a backend's address is one.
pub(super) fn unix_path(doc: &Document, raw: &Spanned<String>) -> Result<Option<PathBuf>, Error> {
    let Some(text) = raw.get_ref().strip_prefix(UNIX) else { return Ok(None) };
    let read = |_: &str| match text.len() {
        0 => Err("there is no path".to_owned()),
        n if n > PATH_BYTES_MAX => Err(format!("a path of a socket has at most {PATH_BYTES_MAX} bytes")),
        _ => Ok(doc.path_of(text)),
    };
    doc.value(raw, read, "\"unix:/run/app.sock\"").map(Some)
}

/// Checks what a listener of this type says.
pub(super) fn check_door(
    doc: &Document,
    kind: &Spanned<String>,
    path: Option<PathBuf>,
    keys: Keys<'_>,
) -> Result<Door, Error> {
    let word = kind.get_ref().as_str();
    fits(doc, kind, path.is_some(), &keys)?;
    Ok(match (word, path) {
        ("tcp", None) => Door::Tcp,
        ("tcp", Some(path)) => Door::Unix(UnixListener { path, mode: mode(doc, keys.mode)? }),
        ("udp", None) => Door::Udp(udp(doc, &keys)?),
        ("socks5", None) => Door::Proxy(proxy(doc, kind, Greeting::Socks5, &keys)?),
        ("connect", None) => Door::Proxy(proxy(doc, kind, Greeting::Connect, &keys)?),
        ("visit", None) => Door::Visit,
        ("udp" | "socks5" | "connect" | "visit", Some(_)) => {
            return Err(doc.wrong(kind.span(), "a listener at a path is of type \"tcp\"", "\"tcp\""));
        }
        _ => return doc.value(kind, |_| Err("no such type of listener".into()), TYPES),
    })
}

/// A key that is not of this type is a mistake.
pub(super) fn fits(doc: &Document, kind: &Spanned<String>, is_unix: bool, keys: &Keys<'_>) -> Result<(), Error> {
    let word = kind.get_ref().as_str();
    let proxy = ["socks5", "connect"].contains(&word);
    let rows = [
        ("idle_timeout", keys.idle_timeout.map(Spanned::span), word == "udp", "type = \"udp\""),
        ("sessions_max", keys.sessions_max.map(Spanned::span), word == "udp", "type = \"udp\""),
        ("auth", keys.auth.map(Spanned::span), proxy, "type = \"socks5\" or \"connect\""),
        ("users", keys.users.map(Spanned::span), proxy, "type = \"socks5\" or \"connect\""),
        ("allow", keys.allow.map(Spanned::span), proxy, "type = \"socks5\" or \"connect\""),
        ("associations_max", keys.associations_max.map(Spanned::span), word == "socks5", "type = \"socks5\""),
        ("mode", keys.mode.map(Spanned::span), is_unix, "listen = \"unix:...\""),
    ];
    for (key, span, is_its, of) in rows {
        if let (Some(span), false) = (span, is_its) {
            let (problem, remedy) = (format!("{key} is not of this listener"), format!("remove it, or {of}"));
            return Err(match key {
                "users" => doc.wrong_secret(span, problem, &remedy),
                _ => doc.wrong(span, problem, remedy),
            });
        }
    }
    Ok(())
}

fn udp(doc: &Document, keys: &Keys<'_>) -> Result<UdpListener, Error> {
    let mut udp = UdpListener::default();
    if let Some(raw) = keys.idle_timeout {
        let read = |text: &str| unit::duration_within(text, Duration::from_secs(1), Duration::from_secs(3600));
        udp.idle_timeout = doc.value(raw, read, "\"1s\" to \"1h\"")?;
    }
    if let Some(raw) = keys.sessions_max {
        udp.sessions_max = doc.number(raw, 1..=65_000)? as usize;
    }
    Ok(udp)
}

fn mode(doc: &Document, raw: Option<&Spanned<String>>) -> Result<u32, Error> {
    let read = |text: &str| match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("it is no mode of a file".to_owned()),
    };
    raw.map_or(Ok(0o660), |raw| doc.value(raw, read, "\"0660\""))
}

fn proxy(doc: &Document, kind: &Spanned<String>, greeting: Greeting, keys: &Keys<'_>) -> Result<ProxyListener, Error> {
    let is_open = match keys.auth {
        None => false,
        Some(raw) => {
            let read = |text: &str| match text {
                "none" => Ok(true),
                "users" => Ok(false),
                _ => Err("no such way".to_owned()),
            };
            doc.value(raw, read, "\"users\" or \"none\"")?
        }
    };
    let users = match (keys.users.filter(|raw| !raw.get_ref().is_empty()), is_open) {
        (None, true) => None,
        (Some(raw), false) => {
            let pairs = raw.get_ref().iter().map(|raw| {
                let text = doc.secret(raw)?;
                let pair = text
                    .split_once(':')
                    .filter(|(user, password)| (1..=255).contains(&user.len()) && (1..=255).contains(&password.len()));
                let pair = pair.map(|(user, password)| (user.to_owned(), password.to_owned()));
                pair.ok_or_else(|| {
                    let problem = "it is no user and password of 1 to 255 bytes";
                    doc.wrong_secret(raw.span(), problem, "\"alice:${ALICE_PASSWORD}\"")
                })
            });
            Some(Users::new(pairs.collect::<Result<_, _>>()?))
        }
        (Some(raw), true) => {
            return Err(doc.wrong_secret(raw.span(), "auth = \"none\" is there, too", "one of the two"));
        }
        (None, false) => {
            let problem = "a proxy that everybody may use is a way in for everybody";
            return Err(doc.wrong(
                kind.span(),
                problem,
                "users = [\"alice:${PASSWORD}\"]; or auth = \"none\" if it is meant",
            ));
        }
    };
    let allow = keys.allow.map(|raw| check_allow(doc, raw)).transpose()?;
    let associations_max = match keys.associations_max {
        Some(raw) => doc.number(raw, 0..=10_000)? as usize,
        None => ASSOCIATIONS_DEFAULT,
    };
    Ok(ProxyListener { greeting, users, allow, associations_max })
}

/// Reads an allow-list.
pub(super) fn check_allow(doc: &Document, raw: &Spanned<Vec<Spanned<String>>>) -> Result<Allow, Error> {
    if raw.get_ref().len() > RULES_MAX {
        return Err(doc.wrong(raw.span(), format!("more than {RULES_MAX} rules"), "fewer, wider ones"));
    }
    let example = "\"10.0.0.0/8:80,443\", \"db.lan:5432\", \"*.lan:8000-8999\", \"10.0.0.53:53/udp\" or \"*:443\"";
    let rules = raw.get_ref().iter().map(|raw| doc.value(raw, |text| text.parse::<Rule>(), example));
    Ok(Allow::new(rules.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests;
