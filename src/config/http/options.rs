//! `[listener.http]`: what holds for a whole listener. Its limits, times, pages.

use super::edits::{header_name, not_ours};
use super::{Document, Error, body_bytes_max, route_path, unit};
use crate::doors::proxy::allow::plain;
use ipnet::IpNet;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;

/// Largest page of the operator's own: it stays in memory and is sent whole.
const PAGE_BYTES_MAX: u64 = 256 << 10;
/// Statuses that have pages.
const PAGES: [&str; 8] = ["400", "401", "404", "413", "429", "502", "503", "504"];
/// What holds for a whole listener. Defaults: docs/configuration.md.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Visitors' connections at once; more wait in the kernel's queue.
    pub(crate) connections_max: u32,
    /// Request line and headers.
    pub(crate) head_bytes_max: u32,
    /// Headers of a request.
    pub(crate) headers_max: u32,
    /// From the connect, or the end of the answer before, to the end of a request's head; also for TLS' handshake.
    pub(crate) timeout_head: Duration,
    /// From the request to the head of the backend's answer.
    pub(crate) timeout_answer: Duration,
    /// Without a byte moving, either way.
    pub(crate) timeout_idle: Duration,
    /// From the request's head to the end of the answer.
    pub(crate) timeout_total: Option<Duration>,
    /// Whether connections to backends serve more than one request.
    pub(crate) reuse: bool,
    /// Connections kept for a service.
    pub(crate) idle_max: u32,
    /// How long each is kept unused.
    pub(crate) idle_time: Duration,
    /// Header with a number for each request.
    pub(crate) request_id: Option<String>,
    /// A line in the log for each request.
    pub(crate) access_log: bool,
    /// `Forwarded` (RFC 7239) besides X-Forwarded-*.
    pub(crate) forwarded: bool,
    /// Proxies before us, whose word about the visitor is taken.
    pub(crate) trusted: Vec<IpNet>,
    /// Every request is sent to https at this port.
    pub(crate) redirect_https: Option<u16>,
    /// Longest request body where the route does not say.
    pub(crate) body_bytes_max: Option<u64>,
    /// Own pages, by status.
    pub(crate) pages: BTreeMap<u16, PathBuf>,
    /// At this path, of whatever host, agents come in.
    pub(crate) agents: Option<String>,
    /// Agents may ask for hosts here, as far as their tokens allow.
    pub(crate) agent_hosts: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connections_max: 8192,
            head_bytes_max: 32 << 10,
            headers_max: 100,
            timeout_head: Duration::from_secs(30),
            timeout_answer: Duration::from_secs(60),
            timeout_idle: Duration::from_secs(300),
            timeout_total: None,
            reuse: true,
            idle_max: 64,
            idle_time: Duration::from_secs(30),
            request_id: None,
            access_log: false,
            forwarded: false,
            trusted: Vec::new(),
            redirect_https: None,
            body_bytes_max: None,
            pages: BTreeMap::new(),
            agents: None,
            agent_hosts: false,
        }
    }
}

/// `[listener.http]`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(in super::super) struct RawOptions {
    connections_max: Option<Spanned<i64>>,
    head_bytes_max: Option<Spanned<i64>>,
    headers_max: Option<Spanned<i64>>,
    timeout_head: Option<Spanned<String>>,
    timeout_answer: Option<Spanned<String>>,
    timeout_idle: Option<Spanned<String>>,
    timeout_total: Option<Spanned<String>>,
    reuse: Option<bool>,
    idle_max: Option<Spanned<i64>>,
    idle_time: Option<Spanned<String>>,
    request_id: Option<Spanned<String>>,
    access_log: bool,
    forwarded: bool,
    trusted: Vec<Spanned<String>>,
    pub(super) redirect_https: Option<Spanned<i64>>,
    body_bytes_max: Option<Spanned<i64>>,
    pages: BTreeMap<Spanned<String>, Spanned<String>>,
    agents: Option<Spanned<String>>,
    agent_hosts: bool,
}

/// Checks what holds for a whole listener.
pub(super) fn check_options(doc: &Document, raw: &RawOptions) -> Result<Options, Error> {
    const SECOND: Duration = Duration::from_secs(1);
    const DAY: Duration = Duration::from_secs(86_400);
    let mut options = Options::default();
    let number = |to: &mut u32, raw: &Option<Spanned<i64>>, range: std::ops::RangeInclusive<i64>| {
        if let Some(raw) = raw {
            *to = u32::try_from(doc.number(raw, range)?).expect("the ranges fit");
        }
        Ok::<(), Error>(())
    };
    number(&mut options.connections_max, &raw.connections_max, 1..=1_000_000)?;
    number(&mut options.head_bytes_max, &raw.head_bytes_max, 8192..=1 << 20)?;
    number(&mut options.headers_max, &raw.headers_max, 10..=10_000)?;
    number(&mut options.idle_max, &raw.idle_max, 0..=100_000)?;
    let time =
        |raw: &Spanned<String>| doc.value(raw, |text| unit::duration_within(text, SECOND, DAY), "\"1s\" to \"1d\"");
    for (to, raw) in [
        (&mut options.timeout_head, &raw.timeout_head),
        (&mut options.timeout_answer, &raw.timeout_answer),
        (&mut options.timeout_idle, &raw.timeout_idle),
        (&mut options.idle_time, &raw.idle_time),
    ] {
        if let Some(raw) = raw {
            *to = time(raw)?;
        }
    }
    options.timeout_total = raw.timeout_total.as_ref().map(time).transpose()?;
    options.reuse = raw.reuse.unwrap_or(true);
    if let Some(raw) = &raw.request_id {
        let name = doc.value(raw, header_name, "\"X-Request-Id\"")?;
        not_ours(&name).map_err(|(problem, remedy)| doc.wrong(raw.span(), problem, remedy))?;
        options.request_id = Some(name);
    }
    (options.access_log, options.forwarded) = (raw.access_log, raw.forwarded);
    options.agent_hosts = raw.agent_hosts;
    for raw in &raw.trusted {
        let read = |text: &str| match (text.parse::<IpNet>(), text.parse::<std::net::IpAddr>()) {
            (Ok(net), _) => Ok(net),
            (_, Ok(ip)) => Ok(ip.into()),
            _ => Err("it is neither an address nor a network".to_owned()),
        };
        let read = |text: &str| read(text).and_then(plain);
        options.trusted.push(doc.value(raw, read, "\"10.0.0.0/8\"")?);
    }
    if let Some(raw) = &raw.redirect_https {
        options.redirect_https = u16::try_from(doc.number(raw, 1..=65535)?).ok();
    }
    options.body_bytes_max = body_bytes_max(doc, raw.body_bytes_max.as_ref())?;
    options.agents = raw.agents.as_ref().map(|raw| doc.value(raw, route_path, "\"/link\"")).transpose()?;
    for (status, file) in &raw.pages {
        if !PAGES.contains(&status.get_ref().as_str()) {
            let remedy = format!("one of {}", PAGES.join(", "));
            return Err(doc.wrong(file.span(), format!("{} has no page", status.get_ref()), remedy));
        }
        let read = |text: &str| {
            let path = doc.path_of(text);
            match std::fs::metadata(&path) {
                Ok(m) if !m.is_file() => Err(format!("{}: it is no file", path.display())),
                Ok(m) if m.len() > PAGE_BYTES_MAX => {
                    Err(format!("{}: it is larger than {PAGE_BYTES_MAX} bytes", path.display()))
                }
                Ok(_) => Ok(path),
                Err(e) => Err(format!("{}: {e}", path.display())),
            }
        };
        let path = doc.value(file, read, "the path of an HTML file")?;
        options.pages.insert(status.get_ref().parse().expect("it is one of PAGES"), path);
    }
    Ok(options)
}
