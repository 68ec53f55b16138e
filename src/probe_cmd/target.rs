//! One target as people write it: "host:port", or a URL whose scheme says what to ask.
//! Promise: whatever the text, a target or an error that quotes it (passwords as `***`) and says what would be right;
//! what is shown of a target can be read again and means the same place. Pure: no look-up, no file.
//!
//! | scheme | default port | query |
//! |---|---|---|
//! | (none), tcp | none | send, expect |
//! | http, https | 80, 443 | the request's own |
//! | mysql | 3306 | query, expect, mode, tls, server_key |
//! | tls | 443 | |
//! | udp | none | send, expect, silence |
//! | icmp | | |

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use url::Url;

/// Where a target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// A literal.
    Address(IpAddr),
    /// A name, to be looked up; again and again in a long run.
    Name(String),
}

/// A text that is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How a MySQL connection is protected; whose certificates are accepted, the settings beside the URL say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum MysqlTls {
    /// In the clear. Default.
    #[default]
    Off,
    /// With TLS where the server offers it.
    Prefer,
    /// With TLS.
    Require,
}

/// What to ask a MySQL server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mysql {
    /// Empty: nobody in particular, who is refused by a living server.
    pub(crate) user: String,
    /// Of the user.
    pub(crate) password: Secret,
    /// A question in the server's language.
    pub(crate) query: Option<String>,
    /// What the first field of the answer has to be.
    pub(crate) expect: Option<String>,
    /// `mode=primary`: only a server that takes writes is well.
    pub(crate) is_primary: bool,
    /// `server_key=ok`: the password may be encrypted with a key that the server sends in the clear.
    pub(crate) takes_server_key: bool,
    /// `tls=off|prefer|require`.
    pub(crate) tls: MysqlTls,
    /// The URL's path; empty for none.
    pub(crate) database: String,
}

/// What to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A handshake.
    Tcp,
    /// Bytes to send, bytes that must come.
    Expect { send: Vec<u8>, expect: Vec<u8> },
    /// A request.
    Http {
        /// https.
        is_tls: bool,
        /// Path and query, from the `/` on.
        path: String,
        /// `Authorization: Basic`, if the URL has a user.
        login: Option<(String, Secret)>,
    },
    /// A login or a question.
    Mysql(Mysql),
    /// A TLS handshake.
    Tls,
    /// A datagram, and its answer.
    Udp { send: Vec<u8>, expect: Vec<u8>, is_silence_good: bool },
    /// Echo.
    Icmp,
}

/// A target read, not yet looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// As its author wrote it: without `tcp://` where nothing follows the port, without passwords.
    pub(crate) text: String,
    /// Where.
    pub(crate) host: Host,
    /// 0 for icmp.
    pub(crate) port: u16,
    /// What.
    pub(crate) kind: Kind,
}

impl Written {
    /// Where to knock, if no name has to be looked up first.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Address(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }
}

/// Reads one target.
pub(crate) fn parse(text: &str) -> Result<Written, Wrong> {
    let read = match text.split_once("://") {
        None => plain(text),
        Some(("tcp", rest)) if !rest.contains('?') => plain(rest),
        Some((scheme, rest)) => url(&scheme.to_ascii_lowercase(), rest, text),
    };
    read.map_err(|Wrong { problem, remedy }| Wrong { problem, remedy: masked(&remedy) })
}

/// The text with `***` in place of a password: between the first `:` and the last `@` of what comes before the path.
pub(crate) fn masked(text: &str) -> String {
    let start = text.find("://").map_or(0, |n| n + 3);
    let end = text[start..].find(['/', '?', '#']).map_or(text.len(), |n| start + n);
    // A password may hold a `/` that its author forgot to escape: then the `@` comes after it, and all of it is hidden.
    let Some(at) = text[start..end].rfind('@').or_else(|| text[start..].rfind('@')).map(|n| start + n) else {
        return text.to_owned();
    };
    match text[start..at].find(':') {
        Some(colon) => format!("{}:***{}", &text[..start + colon], &text[at..]),
        None => text.to_owned(),
    }
}

/// What is wrong, and what would be right. Holds no password.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Half a sentence.
    pub(crate) problem: String,
    /// An example; empty if the problem says it.
    pub(crate) remedy: String,
}

impl Wrong {
    /// The whole sentence, about this text.
    pub(crate) fn of(&self, text: &str) -> String {
        let remedy = if self.remedy.is_empty() { String::new() } else { format!(". Try: {}", self.remedy) };
        format!("target {:?}: {}{remedy}", masked(text), self.problem)
    }
}

fn wrong<T>(problem: impl Into<String>, remedy: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { problem: problem.into(), remedy: remedy.into() })
}

/// "host:port".
fn plain(rest: &str) -> Result<Written, Wrong> {
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(|c: char| matches!(c, '/' | '@' | ' ') || c.is_control()) {
        return wrong("it is more than a host and a port", "tcp://host:port");
    }
    let Some((host, port)) = rest.rsplit_once(':') else {
        return wrong("it has no port", format!("{rest}:80"));
    };
    let Some(port) = port.parse::<u16>().ok().filter(|p| *p > 0) else {
        return match rest.parse::<std::net::Ipv6Addr>() {
            Ok(_) => wrong("it has no port", format!("[{rest}]:80")),
            Err(_) => wrong("its port is not a number from 1 to 65535", format!("{host}:80")),
        };
    };
    let host = if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        match inner.parse::<std::net::Ipv6Addr>() {
            Ok(ip) => Host::Address(ip.into()),
            Err(_) => return wrong("what stands in brackets is no IPv6 address", "[::1]:80"),
        }
    } else if host.contains(':') {
        return wrong("an IPv6 address stands in brackets", format!("[{host}]:{port}"));
    } else if host.is_empty() {
        return wrong("it has no host", format!("127.0.0.1:{port}"));
    } else {
        match host.parse::<IpAddr>() {
            Ok(ip) => Host::Address(ip),
            Err(_) => Host::Name(host.to_owned()),
        }
    };
    Ok(Written { text: rest.to_owned(), host, port, kind: Kind::Tcp })
}

const SCHEMES: &str = "tcp, http, https, mysql, tls, udp, icmp";

fn url(scheme: &str, rest: &str, text: &str) -> Result<Written, Wrong> {
    let (default_port, example) = match scheme {
        "tcp" => (0, "tcp://10.0.0.7:25?expect=220"),
        "http" => (80, "http://10.0.0.7:8080/health"),
        "https" => (443, "https://example.com/health"),
        "mysql" => (3306, "mysql://monitor:password@10.0.0.7:3306/?mode=primary"),
        "tls" => (443, "tls://10.0.0.7:443"),
        "udp" => (0, "udp://10.0.0.7:53?send=ping&expect=pong"),
        "icmp" => (0, "icmp://10.0.0.7"),
        _ => {
            return wrong(format!("no such kind of probe as {scheme:?}"), format!("tcp://{rest}, or one of {SCHEMES}"));
        }
    };
    if text.contains(|c: char| c.is_control() || c == ' ') {
        return wrong("it has a space or a control character in it", "%20 for a space, %0d%0a for a new line");
    }
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(url::ParseError::InvalidPort) => return wrong("its port is not a number from 1 to 65535", example),
        Err(url::ParseError::EmptyHost) => return wrong("it has no host", example),
        Err(error) => return wrong(format!("it is no URL: {error}"), example),
    };
    let host = match url.host() {
        Some(url::Host::Ipv4(ip)) => Host::Address(ip.into()),
        Some(url::Host::Ipv6(ip)) => Host::Address(ip.into()),
        // Schemes that the URL standard does not know keep their host as it is written.
        Some(url::Host::Domain(name)) if !name.is_empty() => match name.parse::<IpAddr>() {
            Ok(ip) => Host::Address(ip),
            Err(_) => Host::Name(unescaped_text(name)?),
        },
        _ => return wrong("it has no host", example),
    };
    let port = match url.port() {
        Some(0) => return wrong("its port is not a number from 1 to 65535", example),
        Some(_) if scheme == "icmp" => return wrong("icmp has no ports", example),
        Some(port) => port,
        None if default_port == 0 && scheme != "icmp" => return wrong("it has no port", example),
        None => default_port,
    };
    let login = || -> Result<Option<(String, Secret)>, Wrong> {
        let password = unescaped_text(url.password().unwrap_or_default())?;
        let user = unescaped_text(url.username())?;
        Ok((!user.is_empty() || !password.is_empty()).then_some((user, Secret(password))))
    };
    if login()?.is_some() && !matches!(scheme, "http" | "https" | "mysql") {
        return wrong(format!("{scheme} has no users"), example);
    }
    let has_path = !matches!(url.path(), "" | "/");
    if has_path && !matches!(scheme, "http" | "https" | "mysql") {
        return wrong(format!("{scheme} has no paths"), example);
    }
    let kind = match scheme {
        "http" | "https" => Kind::Http {
            is_tls: scheme == "https",
            path: url[url::Position::BeforePath..url::Position::AfterQuery].to_owned(),
            login: login()?,
        },
        "mysql" => Kind::Mysql(mysql(&url, login()?.unwrap_or_default())?),
        "tls" => {
            Query::of(&url, &[])?;
            Kind::Tls
        }
        "icmp" => {
            Query::of(&url, &[])?;
            Kind::Icmp
        }
        "udp" => {
            let query = Query::of(&url, &["send", "expect", "silence"])?;
            let is_silence_good = query.word("silence", &["ok", "bad"])? == Some("ok");
            Kind::Udp { send: query.bytes("send")?, expect: query.bytes("expect")?, is_silence_good }
        }
        _ => {
            let query = Query::of(&url, &["send", "expect"])?;
            let (send, expect) = (query.bytes("send")?, query.bytes("expect")?);
            if send.is_empty() && expect.is_empty() { Kind::Tcp } else { Kind::Expect { send, expect } }
        }
    };
    Ok(Written { text: shown(text, url), host, port, kind })
}

/// As written; with a password, as the standard writes it, with `***` in its place.
fn shown(text: &str, mut url: Url) -> String {
    if url.password().is_none() {
        return text.to_owned();
    }
    match url.set_password(Some("***")) {
        Ok(()) => url.into(),
        Err(()) => masked(text),
    }
}

fn mysql(url: &Url, (user, password): (String, Secret)) -> Result<Mysql, Wrong> {
    let query = Query::of(url, &["query", "expect", "mode", "tls", "server_key"])?;
    let text = |key| -> Result<Option<String>, Wrong> {
        match query.raw(key) {
            None => Ok(None),
            Some(raw) => unescaped_text(&raw.replace('+', " ")).map(Some),
        }
    };
    let is_primary = query.word("mode", &["liveness", "primary"])? == Some("primary");
    let tls = match query.word("tls", &["off", "prefer", "require"])? {
        Some("prefer") => MysqlTls::Prefer,
        Some("require") => MysqlTls::Require,
        _ => MysqlTls::Off,
    };
    let takes_server_key = query.word("server_key", &["ok", "no"])? == Some("ok");
    let database = unescaped_text(url.path().trim_start_matches('/'))?;
    let (question, expect) = (text("query")?, text("expect")?);
    let mysql = Mysql { user, password, query: question, expect, is_primary, takes_server_key, tls, database };
    if mysql.query.is_some() && mysql.is_primary {
        return wrong("mode=primary has a question of its own", "query=..., or mode=primary");
    }
    if mysql.expect.is_some() && mysql.query.is_none() {
        return wrong("expect= has no query= to answer", "query=select+1&expect=1");
    }
    if mysql.user.is_empty() && (mysql.query.is_some() || mysql.is_primary) {
        return wrong("a question needs a user", "mysql://user:password@host/?mode=primary");
    }
    Ok(mysql)
}

/// The pairs of a query, as written.
struct Query<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Query<'a> {
    fn of(url: &'a Url, known: &[&str]) -> Result<Query<'a>, Wrong> {
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for pair in url.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&key) {
                let remedy = if known.is_empty() { "nothing after the host and port".into() } else { known.join(", ") };
                return wrong(format!("it has no {key:?} to set"), remedy);
            }
            if pairs.iter().any(|(other, _)| *other == key) {
                return wrong(format!("{key:?} is there twice"), "one of the two");
            }
            pairs.push((key, value));
        }
        Ok(Query(pairs))
    }

    fn raw(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, value)| *value)
    }

    fn bytes(&self, key: &str) -> Result<Vec<u8>, Wrong> {
        let raw = self.raw(key).unwrap_or_default();
        unescaped(&percent_encoding::percent_decode_str(raw).collect::<Vec<u8>>())
    }

    fn word(&self, key: &str, known: &[&'static str]) -> Result<Option<&'a str>, Wrong> {
        match self.raw(key) {
            Some(word) if !known.contains(&word) => {
                let known: Vec<String> = known.iter().map(|word| format!("{key}={word}")).collect();
                wrong(format!("{key}={word} is not known"), known.join(" or "))
            }
            word => Ok(word),
        }
    }
}

/// `\r`, `\n`, `\t`, `\0`, `\\` and `\xHH` as the bytes they mean.
fn unescaped(text: &[u8]) -> Result<Vec<u8>, Wrong> {
    const KNOWN: &str = "\\r \\n \\t \\0 \\\\ or \\xHH";
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        let Some((escape, after)) = rest.split_first() else { return wrong("a \\ stands at the end", KNOWN) };
        rest = after;
        out.push(match escape {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'0' => 0,
            b'\\' => b'\\',
            b'x' => {
                let digits = rest.get(..2).and_then(|d| std::str::from_utf8(d).ok());
                let byte = digits.and_then(|d| u8::from_str_radix(d, 16).ok());
                let Some(byte) = byte else { return wrong("\\x needs two hexadecimal digits", KNOWN) };
                rest = &rest[2..];
                byte
            }
            other => return wrong(format!("no such escape as \\{}", other.escape_ascii()), KNOWN),
        });
    }
    Ok(out)
}

/// Percent-decoded, and text.
fn unescaped_text(raw: &str) -> Result<String, Wrong> {
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(raw).collect();
    match String::from_utf8(bytes) {
        Ok(text) if text.contains(char::is_control) => wrong("it has a control character in it", "text"),
        Ok(text) => Ok(text),
        Err(_) => wrong("what is percent-encoded is no UTF-8", "%C3%A9 for é"),
    }
}

#[cfg(test)]
mod tests;
