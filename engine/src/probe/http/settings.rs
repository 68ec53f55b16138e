//! What an HTTP check asks and what it takes for an answer: [`HttpSettings`] as they are written, [`HttpCheck`] as they
//! have been checked, with the request's text built once.

use crate::check::CheckError;
use crate::io::SAY_MAX;
use crate::probe::pattern::{Pattern, PatternError};
use crate::probe::tls::{TlsClient, TlsSettings};
use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

const _: () = assert!(
    HttpSettings::REQUEST_MAX + HttpSettings::PATH_MAX + 512 <= SAY_MAX,
    "request, redirect, PROXY header and TLS record fit"
);

/// What is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Default.
    #[default]
    Get,
    /// The head alone; servers that do not know it answer 405 or 501.
    Head,
    /// HAProxy's default, for old servers.
    Options,
    /// With [`HttpSettings::body`].
    Post,
}

impl Method {
    /// As it stands in a request.
    pub const fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Options => "OPTIONS",
            Method::Post => "POST",
        }
    }
}

impl FromStr for Method {
    type Err = CheckError;
    fn from_str(text: &str) -> Result<Method, CheckError> {
        [Method::Get, Method::Head, Method::Options, Method::Post]
            .into_iter()
            .find(|method| method.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| CheckError::new("method", text, "must be GET, HEAD, OPTIONS or POST"))
    }
}

/// A set of status codes, written as `200`, `200-399` or `200,204,300-399`.
#[derive(Clone, PartialEq, Eq)]
pub struct Statuses(Vec<RangeInclusive<u16>>);

impl Statuses {
    /// Whether `status` is one of them.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }

    /// No status at all.
    pub const fn none() -> Statuses {
        Statuses(Vec::new())
    }
}

impl Default for Statuses {
    /// 200 to 399, as HAProxy has it.
    fn default() -> Statuses {
        Statuses(vec![200..=399])
    }
}

impl FromStr for Statuses {
    type Err = CheckError;
    fn from_str(text: &str) -> Result<Statuses, CheckError> {
        let one = |part: &str| -> Option<RangeInclusive<u16>> {
            let number = |text: &str| text.trim().parse().ok().filter(|status| (100..=999).contains(status));
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(first..=last)
        };
        let ranges = text.split(',').map(one).collect::<Option<Vec<_>>>().filter(|ranges| ranges.len() <= 64);
        let right = "must be statuses and ranges of them, such as 200 or 200,204,300-399, each from 100 to 999";
        ranges.map(Statuses).ok_or_else(|| CheckError::new("status", text, right))
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, range) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{comma}{first}")?,
                (first, last) => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What the body must be like. A body is looked at as it comes over the wire, without its chunks: none is ever asked to
/// be compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Holds these bytes. Found is found, even if the rest never comes.
    Contains(String),
    /// Does not hold these bytes.
    Lacks(String),
    /// Matches a regular expression ([`Pattern::regex`]), all of it at hand.
    Matches(String),
    /// Does not match a regular expression.
    Avoids(String),
}

/// What becomes of 301, 302, 303, 307 and 308.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Redirects {
    /// They are judged by their status like any other answer. Default.
    #[default]
    Judge,
    /// Followed, each over a new connection to the same address. Whoever sends on more often than `max` times fails
    /// with his last status (`L7STS`). One to another scheme is always judged by its status.
    Follow {
        /// 1 to [`HttpSettings::REDIRECTS_MAX`].
        max: u8,
        /// Whether another host's name or port is asked for as well, still at the same address. If not, a redirect to
        /// elsewhere is judged by its status.
        any_host: bool,
    },
}

/// An HTTP check as somebody writes it.
#[derive(Clone)]
pub struct HttpSettings {
    /// Default GET.
    pub method: Method,
    /// Path and query, sent as it is. Default `/`.
    pub path: String,
    /// The Host header. Default `None`: the target's address, without the port where it is the scheme's own.
    pub host: Option<String>,
    /// More headers, in order. `User-Agent`, `Accept` and `Connection` replace what is sent otherwise
    /// (`ringspan/VERSION`, `*/*`, `close`). A connection is never used twice, whatever `Connection` says.
    pub headers: Vec<(String, String)>,
    /// What POST sends; its Content-Length is added.
    pub body: Vec<u8>,
    /// Which statuses are well. Default 200-399.
    pub status: Statuses,
    /// Which statuses turn a target down at once if its policy says `refusal_is_final`. Default none. Nacos: everything
    /// but 200, 302 and 503.
    pub status_final: Statuses,
    /// What the body must be like. Default `None`: it is not looked at.
    pub content: Option<Content>,
    /// Default: judged.
    pub redirects: Redirects,
    /// Speak TLS first (https). Its `name` is the `host`'s unless given; its `alpn` is `http/1.1` unless given.
    /// Default `None`.
    pub tls: Option<TlsSettings>,
    /// Bytes a response's head may have, 256 to [`HttpSettings::HEAD_MAX`]. Default 16 KiB.
    pub head_max: usize,
    /// Bytes a body may have where it is looked at, 1 to [`HttpSettings::BODY_MAX`]. Default 64 KiB. They are held only while such a
    /// body arrives.
    pub body_max: usize,
}

impl HttpSettings {
    /// The longest request, body included. The rest of [`SAY_MAX`] is left to a PROXY header, a redirect's path and TLS.
    pub const REQUEST_MAX: usize = 12 * 1024;
    /// The longest path with its query; also of a redirect that is followed.
    pub const PATH_MAX: usize = 2048;
    /// The most a response's head may have, whatever the settings say.
    pub const HEAD_MAX: usize = 256 * 1024;
    /// The most a response's body may have where it is looked at, whatever the settings say.
    pub const BODY_MAX: usize = 4 * 1024 * 1024;
    /// The most redirects that are followed. Browsers stop at 20.
    pub const REDIRECTS_MAX: u8 = 20;
}

impl Default for HttpSettings {
    fn default() -> HttpSettings {
        HttpSettings {
            method: Method::Get,
            path: "/".into(),
            host: None,
            headers: Vec::new(),
            body: Vec::new(),
            status: Statuses::default(),
            status_final: Statuses::none(),
            content: None,
            redirects: Redirects::Judge,
            tls: None,
            head_max: 16 * 1024,
            body_max: 64 * 1024,
        }
    }
}

impl fmt::Debug for HttpSettings {
    /// Header values and the body may be secrets: they are not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| (name, "***")).collect();
        f.debug_struct("HttpSettings")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("host", &self.host)
            .field("headers", &headers)
            .field("body_bytes", &self.body.len())
            .field("status", &self.status)
            .field("status_final", &self.status_final)
            .field("content", &self.content)
            .field("redirects", &self.redirects)
            .field("tls", &self.tls)
            .field("head_max", &self.head_max)
            .field("body_max", &self.body_max)
            .finish()
    }
}

/// An HTTP check that has been checked.
pub struct HttpCheck {
    settings: HttpSettings,
    /// What follows the Host header's value.
    after_host: Vec<u8>,
    pub(super) condition: Option<Condition>,
    client: Option<TlsClient>,
}

/// [`Content`], ready to search.
pub(super) enum Condition {
    /// Found decides at once; `wanted`: in favour.
    Literal { pattern: Pattern, wanted: bool },
    /// Decides when the whole body is there.
    Regex { pattern: Pattern, wanted: bool },
}

impl fmt::Debug for HttpCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

impl Default for HttpCheck {
    fn default() -> HttpCheck {
        HttpCheck::new(HttpSettings::default()).expect("the defaults are valid: a test builds them")
    }
}

impl HttpCheck {
    /// Checks the settings and builds the request.
    ///
    /// # Errors
    /// Names the setting that is wrong and what would be right.
    pub fn new(settings: HttpSettings) -> Result<HttpCheck, CheckError> {
        check_path(&settings.path)?;
        if let Some(host) = &settings.host {
            check_host(host)?;
        }
        if settings.method != Method::Post && !settings.body.is_empty() {
            return Err(CheckError::new("body", settings.method.as_str(), "only POST has a body"));
        }
        check_range("head_max", settings.head_max, 256..=HttpSettings::HEAD_MAX)?;
        check_range("body_max", settings.body_max, 1..=HttpSettings::BODY_MAX)?;
        if settings.status == Statuses::none() {
            return Err(CheckError::new("status", "", "must name at least one status, such as 200-399"));
        }
        if let Redirects::Follow { max, .. } = settings.redirects {
            check_range("redirects", usize::from(max), 1..=usize::from(HttpSettings::REDIRECTS_MAX))?;
        }
        if settings.method == Method::Head && settings.content.is_some() {
            return Err(CheckError::new("method", "HEAD", "an answer to HEAD has no body to look at; use GET"));
        }
        let after_host = after_host(&settings)?;
        let condition = settings.content.as_ref().map(condition).transpose()?;
        let client = settings.tls.clone().map(|tls| tls_client(tls, settings.host.as_deref())).transpose()?;
        let check = HttpCheck { settings, after_host, condition, client };
        let mut request = Vec::new();
        check.request(&Asked::first(&check), "[::]:0".parse().expect("an address"), &mut request);
        if request.len() > HttpSettings::REQUEST_MAX {
            let right = format!("path, headers and body may have {} bytes together", HttpSettings::REQUEST_MAX);
            return Err(CheckError::new("headers", &format!("{} bytes", request.len()), &right));
        }
        Ok(check)
    }

    /// What Nacos asks: GET, and nothing but 200 is well; 302 and 503 are failures that count, any other status one that
    /// is final. `headers` are `Name:value` separated by `|`, as in its `healthChecker`; what is not of that form is
    /// left out there, and is an error here.
    ///
    /// # Errors
    /// As [`HttpCheck::new`].
    pub fn nacos(path: &str, headers: &str) -> Result<HttpCheck, CheckError> {
        let slash = if path.starts_with('/') { "" } else { "/" };
        let headers = headers.split('|').map(str::trim).filter(|pair| !pair.is_empty()).map(|pair| {
            let right = "must be Name:value pairs separated by |";
            let (name, value) = pair.split_once(':').ok_or_else(|| CheckError::new("headers", "***", right))?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        });
        HttpCheck::new(HttpSettings {
            path: format!("{slash}{path}"),
            headers: headers.collect::<Result<_, CheckError>>()?,
            status: "200".parse()?,
            status_final: "100-199,201-301,303-502,504-999".parse()?,
            ..HttpSettings::default()
        })
    }

    /// What it was made of.
    pub fn settings(&self) -> &HttpSettings {
        &self.settings
    }

    /// Writes the request.
    pub(super) fn request(&self, asked: &Asked<'_>, address: SocketAddr, say: &mut Vec<u8>) {
        let put = |say: &mut Vec<u8>, parts: &[&[u8]]| parts.iter().for_each(|part| say.extend_from_slice(part));
        put(say, &[asked.method.as_str().as_bytes(), b" ", asked.path.as_bytes(), b" HTTP/1.1\r\nHost: "]);
        match asked.host {
            Some(host) => say.extend_from_slice(host.as_bytes()),
            None => put_address(address, self.default_port(), say),
        }
        put(say, &[&self.after_host]);
        if asked.method == Method::Post {
            write!(say, "Content-Length: {}\r\n\r\n", self.settings.body.len()).expect("a Vec takes everything");
            say.extend_from_slice(&self.settings.body);
        } else {
            say.extend_from_slice(b"\r\n");
        }
    }

    /// How it speaks TLS, if it does.
    pub(crate) fn tls(&self) -> Option<&TlsClient> {
        self.client.as_ref()
    }

    /// The scheme's own port.
    pub(super) fn default_port(&self) -> u16 {
        if self.client.is_some() { 443 } else { 80 }
    }
}

/// What differs between the first request and one that a redirect led to.
pub(super) struct Asked<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) host: Option<&'a str>,
}

impl<'a> Asked<'a> {
    pub(super) fn first(check: &'a HttpCheck) -> Asked<'a> {
        let HttpSettings { method, path, host, .. } = &check.settings;
        Asked { method: *method, path, host: host.as_deref() }
    }
}

/// An address as a Host header has it (RFC 3986, 3.2.2: IPv6 in brackets; a zone is the sender's own matter).
pub(super) fn put_address(address: SocketAddr, default_port: u16, say: &mut Vec<u8>) {
    let done = match address {
        SocketAddr::V4(v4) => write!(say, "{}", v4.ip()),
        SocketAddr::V6(v6) => write!(say, "[{}]", v6.ip()),
    };
    done.expect("a Vec takes everything");
    if address.port() != default_port {
        write!(say, ":{}", address.port()).expect("a Vec takes everything");
    }
}

fn check_range(key: &'static str, value: usize, range: RangeInclusive<usize>) -> Result<(), CheckError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(CheckError::new(key, &value.to_string(), &format!("must be from {} to {}", range.start(), range.end())))
}

fn check_path(path: &str) -> Result<(), CheckError> {
    match is_path(path) {
        true => Ok(()),
        false => {
            let right = format!(
                "must begin with / and have at most {} visible ASCII characters, no #; write others as %XX",
                HttpSettings::PATH_MAX
            );
            Err(CheckError::new("path", path, &right))
        }
    }
}

/// Whether a text can stand in a request line: no spaces or control characters to break out of it with.
pub(super) fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= HttpSettings::PATH_MAX
        && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

/// Whether a text can stand in a Host header: a name or an address, with or without a port.
pub(super) fn is_host(host: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:[]%".contains(&byte);
    (1..=255).contains(&host.len()) && host.bytes().all(fits)
}

fn check_host(host: &str) -> Result<(), CheckError> {
    match is_host(host) {
        true => Ok(()),
        false => Err(CheckError::new("host", host, "must be a host name or an address, with or without :port")),
    }
}

fn tls_client(mut tls: TlsSettings, host: Option<&str>) -> Result<TlsClient, CheckError> {
    if tls.name.is_none()
        && let Some(host) = host
    {
        // Without its port and the brackets of an IPv6 address.
        let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _port)) => address,
            None => host.split_once(':').map_or(host, |(name, _port)| name),
        };
        tls.name = Some(name.to_owned());
    }
    if tls.alpn.is_empty() {
        tls.alpn = vec!["http/1.1".to_owned()];
    }
    TlsClient::new(tls)
}

/// RFC 9110, 5.6.2.
fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn after_host(settings: &HttpSettings) -> Result<Vec<u8>, CheckError> {
    let given = |name: &str| settings.headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
    let mut text = String::from("\r\n");
    let own =
        [("User-Agent", concat!("ringspan/", env!("CARGO_PKG_VERSION"))), ("Accept", "*/*"), ("Connection", "close")];
    for (name, value) in own.iter().filter(|(name, _)| !given(name)) {
        text.extend([name, ": ", value, "\r\n"]);
    }
    for (name, value) in &settings.headers {
        if !is_token(name) {
            return Err(CheckError::new("headers", name, "a header's name must be letters, digits, - or _"));
        }
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(CheckError::new("headers", name, "its value must have no line break or control character"));
        }
        let taken = [("Host", "`host`"), ("Content-Length", "`body`"), ("Transfer-Encoding", "`body`")];
        if let Some((_, instead)) = taken.iter().find(|(taken, _)| taken.eq_ignore_ascii_case(name)) {
            return Err(CheckError::new("headers", name, &format!("is made from {instead}; leave it out")));
        }
        text.extend([name, ": ", value, "\r\n"]);
    }
    Ok(text.into_bytes())
}

fn condition(content: &Content) -> Result<Condition, CheckError> {
    let right = |text: &String| {
        let text = text.clone();
        move |error: PatternError| CheckError::new("content", &text, &error.to_string())
    };
    let literal = |text: &String, wanted| {
        Ok(Condition::Literal { pattern: Pattern::bytes(text.as_bytes()).map_err(right(text))?, wanted })
    };
    let regex =
        |text: &String, wanted| Ok(Condition::Regex { pattern: Pattern::regex(text).map_err(right(text))?, wanted });
    match content {
        Content::Contains(text) => literal(text, true),
        Content::Lacks(text) => literal(text, false),
        Content::Matches(text) => regex(text, true),
        Content::Avoids(text) => regex(text, false),
    }
}
