//! `[dns]` of a bridge.toml: services as names. Without the section there is no DNS.

use super::limits::networks;
use super::{Document, Error, unit};
use ringspan_registry::dns::{Options, ZoneName};
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use toml::Spanned;

/// Where DNS listens if the section does not say: the port that Consul's users know.
const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8600);
/// More addresses than a machine has for this.
const LISTEN_MAX: usize = 16;
/// Longer, and an answer has little to do with health.
const TTL_MAX: Duration = Duration::from_secs(3600);

/// Services as names, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dns {
    /// Where it listens, over UDP and TCP.
    pub(crate) listen: Vec<SocketAddr>,
    /// What it says.
    pub(crate) options: Options,
}

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDns {
    listen: Option<Spanned<Listen>>,
    zone: Option<Spanned<String>>,
    ttl: Option<Spanned<String>>,
    answers_max: Option<Spanned<i64>>,
    rate_limit: Option<Spanned<i64>>,
    connections_max: Option<Spanned<i64>>,
    allow: Option<Vec<Spanned<String>>>,
    namespaces: Option<Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected \"127.0.0.1:8600\" or [\"127.0.0.1:8600\", \"[::1]:8600\"]")]
enum Listen {
    One(String),
    Several(Vec<String>),
}

/// Checks it; `take` is asked for each address, with where it stands.
pub(super) fn check_dns(
    doc: &Document,
    raw: Option<&Spanned<RawDns>>,
    mut take: impl FnMut(SocketAddr, Option<&Spanned<String>>) -> Result<(), Error>,
) -> Result<Option<Dns>, Error> {
    let Some(spanned) = raw else { return Ok(None) };
    let raw = spanned.get_ref();
    let mut listen = Vec::new();
    match &raw.listen {
        None => {
            take(LISTEN_DEFAULT, None)?;
            listen.push(LISTEN_DEFAULT);
        }
        Some(asked) => {
            let all = match asked.get_ref() {
                Listen::One(one) => std::slice::from_ref(one),
                Listen::Several(several) => several,
            };
            if all.is_empty() || all.len() > LISTEN_MAX {
                let problem = format!("listen names 1 to {LISTEN_MAX} addresses");
                return Err(doc.wrong_table(spanned.span(), problem, "[\"127.0.0.1:8600\", \"[::1]:8600\"]"));
            }
            for text in all {
                let raw = Spanned::new(asked.span(), text.clone());
                let address = doc.value(&raw, unit::address, "\"127.0.0.1:8600\"")?;
                take(address, Some(&raw))?;
                listen.push(address);
            }
        }
    }
    let mut options = Options::default();
    if let Some(zone) = doc.parsed::<ZoneName>(raw.zone.as_ref(), "\"ringspan.internal\"")? {
        options.zone = zone;
    }
    if let Some(ttl) = &raw.ttl {
        let read = |text: &str| {
            let ttl = unit::duration_within(text, Duration::ZERO, TTL_MAX)?;
            if ttl.subsec_nanos() == 0 { Ok(ttl) } else { Err("DNS counts whole seconds".into()) }
        };
        options.ttl = doc.value(ttl, read, "\"2s\"")?;
    }
    let number = |raw: &Option<Spanned<i64>>, range, default: u32| match raw {
        None => Ok(default),
        Some(raw) => doc.number(raw, range).map(|n| u32::try_from(n).unwrap_or(default)),
    };
    let answers = number(&raw.answers_max, 1..=64, options.answers_max.into())?;
    options.answers_max = u8::try_from(answers).unwrap_or(options.answers_max);
    options.rate = number(&raw.rate_limit, 0..=1_000_000, options.rate)?;
    let connections = number(&raw.connections_max, 1..=10_000, options.connections_max.into())?;
    options.connections_max = u16::try_from(connections).unwrap_or(options.connections_max);
    options.allow = raw.allow.as_ref().map(|all| networks(doc, Some(all))).transpose()?;
    if let Some(namespaces) = &raw.namespaces {
        let read = |text: &str| match ringspan_registry::model::ServiceKey::new(text, "", "any") {
            Ok(key) => Ok(key.namespace().to_string()),
            Err(invalid) => Err(invalid.problem),
        };
        let all = namespaces.iter().map(|raw| doc.value(raw, read, "\"public\""));
        options.namespaces = Some(all.collect::<Result<_, _>>()?);
    }
    Ok(Some(Dns { listen, options }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::bridge;

    fn read(text: &str) -> Result<Option<Dns>, String> {
        bridge::check(&Document::of("bridge.toml", text)).map(|b| b.dns).map_err(|e| e.to_string())
    }

    /// What is taken, and what is said of what is not: table.
    #[test]
    fn the_section_is_read() {
        assert_eq!(read("").unwrap(), None);
        let dns = read("[dns]").unwrap().expect("it is on");
        assert_eq!((dns.listen, dns.options), (vec![LISTEN_DEFAULT], Options::default()));
        let text = "[dns]\nlisten = [\"127.0.0.1:53\", \"[::1]:53\"]\nzone = \"Svc.Example\"\nttl = \"5s\"\nanswers_max = 1\n\
                    rate_limit = 0\nconnections_max = 8\nallow = [\"10.0.0.0/8\"]\nnamespaces = [\"public\", \"dev\"]";
        let dns = read(text).unwrap().expect("it is on");
        assert_eq!(dns.listen.len(), 2);
        assert_eq!(dns.options.zone.to_string(), "svc.example.");
        assert_eq!((dns.options.ttl, dns.options.answers_max), (Duration::from_secs(5), 1));
        assert_eq!((dns.options.rate, dns.options.connections_max), (0, 8));
        assert_eq!(dns.options.allow.map(|a| a.len()), Some(1));
        assert_eq!(dns.options.namespaces.as_deref(), Some(&["public".to_owned(), "dev".into()][..]));
        let bad = [
            ("listen = \"localhost:53\"", "127.0.0.1:8600"),
            ("listen = []", "1 to 16 addresses"),
            ("listen = [\"127.0.0.1:5353\", \"0.0.0.0:5353\"]", "has this address already"),
            ("listen = \"127.0.0.1:8848\"", "[http] listen has this address already"),
            ("zone = \".\"", "ringspan.internal"),
            ("zone = \"a b\"", "letters, digits"),
            ("ttl = \"1500ms\"", "whole seconds"),
            ("ttl = \"2h\"", "1h"),
            ("answers_max = 0", "minimum of 1"),
            ("rate_limit = -1", "minimum of 0"),
            ("allow = [\"ten\"]", "no address or network"),
            ("namespaces = [\"a b\"]", "illegal characters"),
            ("port = 53", "unknown key"),
        ];
        for (line, says) in bad {
            let refused = read(&format!("[dns]\n{line}")).expect_err(line);
            assert!(refused.contains(says) && refused.contains("dns"), "{line}: {refused}");
        }
    }
}
