//! `limits = { ... }` of a `[[listener]]` or a `[[service]]`: how many, how fast, how long, and who.

use super::{Document, Error, unit};
use crate::doors::proxy::allow::plain;
use ipnet::IpNet;
use ringspan_tunnel::limits::{Limiter, Limits, Lists, Rules};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use toml::Spanned;

/// More than any machine takes in a second, or at once.
const COUNT_MAX: i64 = 100_000_000;
/// A tebibyte a second.
const BYTES_MAX: u64 = 1 << 40;
/// Streams may be silent or old for this long at least and at most.
const TIMES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30 * 86_400));

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    connections: Option<Spanned<i64>>,
    rate: Option<Spanned<i64>>,
    burst: Option<Spanned<i64>>,
    up: Option<Spanned<String>>,
    down: Option<Spanned<String>>,
    idle: Option<Spanned<String>>,
    total: Option<Spanned<String>>,
    allow: Option<Spanned<Vec<Spanned<String>>>>,
    deny: Option<Vec<Spanned<String>>>,
    visitor: Option<Spanned<RawVisitor>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVisitor {
    connections: Option<Spanned<i64>>,
    rate: Option<Spanned<i64>>,
    burst: Option<Spanned<i64>>,
    up: Option<Spanned<String>>,
    down: Option<Spanned<String>>,
    ipv4_bits: Option<Spanned<i64>>,
    ipv6_bits: Option<Spanned<i64>>,
}

/// Checks them; `None`: nothing is limited.
pub(super) fn check_limits(doc: &Document, raw: Option<&RawLimits>) -> Result<Option<Arc<Limiter>>, Error> {
    let Some(raw) = raw else { return Ok(None) };
    let RawLimits { connections, rate, burst, up, down, .. } = raw;
    let mut rules = Rules { all: numbers(doc, (connections, rate, burst), (up, down))?, ..Rules::default() };
    if let Some(RawVisitor { connections, rate, burst, up, down, ipv4_bits, ipv6_bits }) =
        raw.visitor.as_ref().map(Spanned::get_ref)
    {
        rules.visitor = numbers(doc, (connections, rate, burst), (up, down))?;
        let bits = |raw: &Option<Spanned<i64>>, max: i64, default: u8| match raw {
            None => Ok(default),
            Some(raw) => doc.number(raw, 1..=max).map(|bits| bits as u8),
        };
        rules.visitor_bits = Some((bits(ipv4_bits, 32, 32)?, bits(ipv6_bits, 128, 64)?));
    }
    let time = |raw: &Option<Spanned<String>>| match raw {
        None => Ok(None),
        Some(raw) => doc.value(raw, |text| unit::duration_within(text, TIMES.0, TIMES.1), "\"5m\"").map(Some),
    };
    (rules.idle, rules.total) = (time(&raw.idle)?, time(&raw.total)?);
    let allow = raw.allow.as_ref().map(|allow| allow.get_ref().as_slice());
    if let (Some(raw), Some([])) = (&raw.allow, allow) {
        // What wrote the list had nobody to put on it: without a list everybody would come in.
        let remedy = "remove it to let everybody in; to keep all out, deny = [\"0.0.0.0/0\", \"::/0\"]";
        return Err(doc.wrong(raw.span(), "it allows nobody, and no list would be everybody", remedy));
    }
    rules.lists = Lists { allow: networks(doc, allow)?, deny: networks(doc, raw.deny.as_deref())? };
    Ok((rules != Rules::default()).then(|| Limiter::new(rules)))
}

/// The numbers alone: for whom no visitor's address, silence or age is known.
pub(super) fn check_numbers(doc: &Document, raw: &RawLimits) -> Result<Rules, Error> {
    let RawLimits { connections, rate, burst, up, down, idle, total, allow, deny, visitor } = raw;
    let first = |list: &Option<Vec<Spanned<String>>>| list.as_ref().and_then(|list| list.first()).map(Spanned::span);
    let time = |raw: &Option<Spanned<String>>| raw.as_ref().map(Spanned::span);
    let of_others = time(idle).or(time(total)).or(allow.as_ref().map(Spanned::span)).or(first(deny));
    if let Some(at) = of_others.or(visitor.as_ref().map(Spanned::span)) {
        let remedy = "limits of the [[service]] or [[listener]]";
        return Err(doc.wrong(at, "an agent has connections, rate, burst, up and down alone", remedy));
    }
    Ok(Rules { all: numbers(doc, (connections, rate, burst), (up, down))?, ..Rules::default() })
}

type Counts<'a> = (&'a Option<Spanned<i64>>, &'a Option<Spanned<i64>>, &'a Option<Spanned<i64>>);
type Bytes<'a> = (&'a Option<Spanned<String>>, &'a Option<Spanned<String>>);

fn numbers(doc: &Document, (connections, rate, burst): Counts<'_>, (up, down): Bytes<'_>) -> Result<Limits, Error> {
    let count = |raw: &Option<Spanned<i64>>| match raw {
        None => Ok(0),
        Some(raw) => doc.number(raw, 0..=COUNT_MAX).map(|n| n as u32),
    };
    let bytes = |raw: &Option<Spanned<String>>| match raw {
        None => Ok(0),
        Some(raw) => doc.value(raw, |text| unit::bytes_within(text, 0..=BYTES_MAX), "\"10MiB\", a second"),
    };
    if let (Some(burst), None) = (burst, rate) {
        return Err(doc.wrong(burst.span(), "a burst of what rate?", "rate = 100 beside it"));
    }
    Ok(Limits {
        connections_max: count(connections)?,
        rate: count(rate)?,
        burst: count(burst)?,
        up_bytes: bytes(up)?,
        down_bytes: bytes(down)?,
    })
}

/// Networks of addresses; one address is a network of one.
pub(super) fn networks(doc: &Document, raw: Option<&[Spanned<String>]>) -> Result<Vec<IpNet>, Error> {
    let read = |text: &str| {
        let one = text.parse::<std::net::IpAddr>().map(IpNet::from);
        let net = one.or_else(|_| text.parse::<IpNet>()).map_err(|_| "no address or network".to_owned());
        net.and_then(plain)
    };
    let one =
        |raw: &Spanned<String>| doc.value(raw, read, "\"192.0.2.0/24\" or \"2001:db8::1\"").map(|net| net.trunc());
    raw.unwrap_or_default().iter().map(one).collect()
}
