//! `check = { ... }` of an `[[expose]]`: what a backend is asked, how often, and when it is believed.
//! Its words are those of probe.toml; what does not fit the type of check is an error that names the key.

use super::expose::Backend;
use super::{Document, Error, unit};
use crate::probe_cmd::checks::{self, Settings};
use crate::probe_cmd::target::{Host, Kind, Mysql, MysqlTls, Secret, Written};
use ringspan_engine::check::{Check as EngineCheck, Content, Trust};
use ringspan_engine::health::Thresholds;
use ringspan_engine::io::Mode;
use ringspan_engine::target::{INTERVAL_MAX, INTERVAL_MIN, Policy, TIMEOUT_MAX, TIMEOUT_MIN};
use serde::Deserialize;
use std::num::NonZeroU8;
use std::time::Duration;
use toml::Spanned;

/// A backend's check without a word in the file. An agent sits beside its backends: it can ask often and expect an
/// answer soon. A refused backend is out after 3 s, a black-holed one after 4.5 s.
pub(crate) const CHECK_DEFAULT: Check = Check {
    ask: EngineCheck::Tcp(Mode::HalfOpen),
    policy: Policy {
        interval: Duration::from_secs(1),
        timeout: Duration::from_millis(500),
        thresholds: Thresholds {
            rise: NonZeroU8::new(2).expect("2 is not 0"),
            fall: NonZeroU8::new(3).expect("3 is not 0"),
        },
        ..Policy::DEFAULT
    },
};

/// How a backend is checked.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    /// What is asked. `None` of the engine's: nothing, the backend is up as long as its agent is.
    pub(crate) ask: EngineCheck,
    /// How often, how long, how many.
    pub(crate) policy: Policy,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCheck {
    r#type: Option<Spanned<String>>,
    mode: Option<Spanned<String>>,
    interval: Option<Spanned<String>>,
    timeout: Option<Spanned<String>>,
    rise: Option<Spanned<i64>>,
    fall: Option<Spanned<i64>>,
    path: Option<Spanned<String>>,
    host: Option<Spanned<String>>,
    method: Option<Spanned<String>>,
    status: Option<Spanned<String>>,
    headers: Option<Spanned<Vec<Spanned<String>>>>,
    body: Option<Spanned<String>>,
    body_regex: Option<Spanned<String>>,
    sni: Option<Spanned<String>>,
    ca: Option<Spanned<String>>,
    pin: Option<Spanned<String>>,
    insecure: Option<Spanned<bool>>,
    cert_days: Option<Spanned<i64>>,
    user: Option<Spanned<String>>,
    password: Option<Spanned<String>>,
    database: Option<Spanned<String>>,
    query: Option<Spanned<String>>,
    tls: Option<Spanned<String>>,
    primary: Option<Spanned<bool>>,
    server_key: Option<Spanned<bool>>,
    send: Option<Spanned<String>>,
    expect: Option<Spanned<String>>,
    silence_good: Option<Spanned<bool>>,
}

/// What a check can be.
const TYPES: &str = "\"tcp\", \"http\", \"https\", \"tls\", \"mysql\", \"expect\", \"udp\" or \"none\"";

/// Checks it, with what a backend of this kind has by default.
pub(super) fn check_check(doc: &Document, raw: Option<&RawCheck>, backend: &Backend) -> Result<Check, Error> {
    let nothing = RawCheck::default();
    let raw = raw.unwrap_or(&nothing);
    let kind = match (&raw.r#type, backend) {
        (Some(kind), _) => kind.get_ref().as_str(),
        (None, Backend::Tcp(_) | Backend::Secret { .. }) => "tcp",
        (None, Backend::Unix(_)) => "tcp",
        (None, Backend::Udp(_) | Backend::Proxy(_)) => "none",
    };
    if let Some(at) = &raw.r#type {
        let known = ["tcp", "http", "https", "tls", "mysql", "expect", "udp", "none"].contains(&kind);
        if !known {
            return Err(doc.wrong(at.span(), "no such type of check", TYPES));
        }
        if let (Backend::Udp(_), true) = (backend, !matches!(kind, "udp" | "none")) {
            let problem = "the backend is no TCP server";
            return Err(doc.wrong(at.span(), problem, "\"udp\", with what to send and what to expect, or \"none\""));
        }
        if let (Backend::Unix(_), false) = (backend, matches!(kind, "tcp" | "none")) {
            let problem = "a socket at a path is only connected to";
            return Err(doc.wrong(at.span(), problem, "\"tcp\" or \"none\""));
        }
        if let (Backend::Proxy(_), true) = (backend, kind != "none") {
            return Err(doc.wrong(at.span(), "a proxy is nothing that can be asked", "\"none\""));
        }
    }
    fits(doc, raw, kind)?;
    let policy = policy(doc, raw)?;
    let ask = ask(doc, raw, kind, backend)?;
    Ok(Check { ask, policy })
}

/// Every key that is not of every check, and which checks it is of.
fn fits(doc: &Document, raw: &RawCheck, kind: &str) -> Result<(), Error> {
    fn at<T>(raw: &Option<Spanned<T>>) -> Option<std::ops::Range<usize>> {
        raw.as_ref().map(Spanned::span)
    }
    const WEB: &[&str] = &["http", "https"];
    const TLS: &[&str] = &["https", "tls", "mysql"];
    const MYSQL: &[&str] = &["mysql"];
    const TALK: &[&str] = &["expect", "udp"];
    let rows = [
        ("mode", at(&raw.mode), &["tcp"] as &[&str]),
        ("path", at(&raw.path), WEB),
        ("host", at(&raw.host), WEB),
        ("method", at(&raw.method), WEB),
        ("status", at(&raw.status), WEB),
        ("headers", at(&raw.headers), WEB),
        ("body", at(&raw.body), WEB),
        ("body_regex", at(&raw.body_regex), WEB),
        ("sni", at(&raw.sni), TLS),
        ("ca", at(&raw.ca), TLS),
        ("pin", at(&raw.pin), TLS),
        ("insecure", at(&raw.insecure), TLS),
        ("cert_days", at(&raw.cert_days), TLS),
        ("user", at(&raw.user), &["http", "https", "mysql"]),
        ("password", at(&raw.password), &["http", "https", "mysql"]),
        ("database", at(&raw.database), MYSQL),
        ("query", at(&raw.query), MYSQL),
        ("tls", at(&raw.tls), MYSQL),
        ("primary", at(&raw.primary), MYSQL),
        ("server_key", at(&raw.server_key), MYSQL),
        ("send", at(&raw.send), TALK),
        ("expect", at(&raw.expect), &["expect", "udp", "mysql"]),
        ("silence_good", at(&raw.silence_good), &["udp"]),
    ];
    for (key, at, of) in rows {
        if let Some(span) = at
            && !of.contains(&kind)
        {
            let problem = format!("{key} is not of a check of type {kind:?}");
            return Err(doc.wrong_secret(span, problem, &format!("a type that has it: {}", of.join(", "))));
        }
    }
    Ok(())
}

fn policy(doc: &Document, raw: &RawCheck) -> Result<Policy, Error> {
    let mut policy = CHECK_DEFAULT.policy;
    if let Some(interval) = &raw.interval {
        let read = |text: &str| unit::duration_within(text, INTERVAL_MIN, INTERVAL_MAX);
        policy.interval = doc.value(interval, read, "\"100ms\" to \"1h\"")?;
    }
    if let Some(timeout) = &raw.timeout {
        let read = |text: &str| unit::duration_within(text, TIMEOUT_MIN, TIMEOUT_MAX);
        policy.timeout = doc.value(timeout, read, "\"1ms\" to \"60s\"")?;
    }
    let count = |raw: &Spanned<i64>| -> Result<NonZeroU8, Error> {
        let n = doc.number(raw, 1..=255)?;
        Ok(u8::try_from(n).ok().and_then(NonZeroU8::new).expect("n is from 1 to 255"))
    };
    if let Some(rise) = &raw.rise {
        policy.thresholds.rise = count(rise)?;
    }
    if let Some(fall) = &raw.fall {
        policy.thresholds.fall = count(fall)?;
    }
    Ok(policy)
}

fn ask(doc: &Document, raw: &RawCheck, kind: &str, backend: &Backend) -> Result<EngineCheck, Error> {
    let secret = |raw: &Option<Spanned<String>>| -> Result<Option<Secret>, Error> {
        Ok(raw.as_ref().map(|raw| doc.secret(raw)).transpose()?.map(Secret))
    };
    let is = |raw: &Option<Spanned<bool>>| raw.as_ref().is_some_and(|raw| *raw.get_ref());
    let (user, password) = (doc.text(raw.user.as_ref(), "\"monitor\"")?, secret(&raw.password)?);
    let said = || -> Result<(Vec<u8>, Vec<u8>), Error> {
        let bytes = |raw: &Option<Spanned<String>>| {
            Ok::<_, Error>(doc.text(raw.as_ref(), "\"PING\\r\\n\"")?.unwrap_or_default().into_bytes())
        };
        Ok((bytes(&raw.send)?, bytes(&raw.expect)?))
    };
    let asked = match kind {
        "none" => return Ok(EngineCheck::None),
        "http" | "https" => Kind::Http {
            is_tls: kind == "https",
            path: match &raw.path {
                None => "/".into(),
                Some(raw) => {
                    let read = |text: &str| match text.strip_prefix('/') {
                        Some(_) => Ok(text.to_owned()),
                        None => Err("a path starts with /".to_owned()),
                    };
                    doc.value(raw, read, "\"/health\"")?
                }
            },
            login: user.map(|user| (user, password.unwrap_or_default())),
        },
        "tls" => Kind::Tls,
        "mysql" => Kind::Mysql(Mysql {
            user: user.unwrap_or_default(),
            password: password.unwrap_or_default(),
            query: doc.text(raw.query.as_ref(), "\"SELECT 1\"")?,
            expect: doc.text(raw.expect.as_ref(), "\"1\"")?,
            is_primary: is(&raw.primary),
            takes_server_key: is(&raw.server_key),
            tls: match &raw.tls {
                None => MysqlTls::Off,
                Some(raw) => {
                    let read = |text: &str| match text {
                        "off" => Ok(MysqlTls::Off),
                        "prefer" => Ok(MysqlTls::Prefer),
                        "require" => Ok(MysqlTls::Require),
                        _ => Err("no such way".to_owned()),
                    };
                    doc.value(raw, read, "\"off\", \"prefer\" or \"require\"")?
                }
            },
            database: doc.text(raw.database.as_ref(), "\"app\"")?.unwrap_or_default(),
        }),
        "expect" => said().map(|(send, expect)| Kind::Expect { send, expect })?,
        "udp" => said().map(|(send, expect)| Kind::Udp { send, expect, is_silence_good: is(&raw.silence_good) })?,
        _ => Kind::Tcp,
    };
    // The engine knows no paths: who exposes one checks it.
    let Some(address) = backend.address() else { return Ok(EngineCheck::Tcp(Mode::Graceful)) };
    let written =
        Written { text: backend.to_string(), host: Host::Address(address.ip()), port: address.port(), kind: asked };
    let made = checks::check(&written, &settings(doc, raw)?);
    made.map_err(|e| doc.wrong(raw.r#type.as_ref().map_or(0..0, Spanned::span), e, "docs/probing.md"))
}

/// What comes beside the kind.
fn settings(doc: &Document, raw: &RawCheck) -> Result<Settings, Error> {
    let mode = match &raw.mode {
        None => Mode::HalfOpen,
        Some(raw) => {
            let read = |text: &str| match text {
                "half-open" => Ok(Mode::HalfOpen),
                "full" => Ok(Mode::Full),
                "graceful" => Ok(Mode::Graceful),
                _ => Err("no such mode".to_owned()),
            };
            doc.value(raw, read, "\"half-open\", \"full\" or \"graceful\"")?
        }
    };
    let headers = raw.headers.iter().flat_map(|all| all.get_ref()).map(|raw| {
        let line = doc.secret(raw)?;
        unit::header(&line).map_err(|e| doc.wrong_secret(raw.span(), e, "\"X-Probe: 1\""))
    });
    if let (Some(_), Some(regex)) = (&raw.body, &raw.body_regex) {
        return Err(doc.wrong(regex.span(), "body is there, too", "one of the two"));
    }
    let contains = doc.text(raw.body.as_ref(), "\"ok\"")?.map(Content::Contains);
    let matches = doc.text(raw.body_regex.as_ref(), "\"ok|well\"")?.map(Content::Matches);
    let pin = doc.parsed(raw.pin.as_ref(), "\"cert:<64 hex digits>\" or \"key:<64 hex digits>\"")?;
    let ca = doc.text(raw.ca.as_ref(), "\"ca.pem\"")?.map(|path| doc.path_of(&path));
    let insecure = raw.insecure.as_ref().is_some_and(|raw| *raw.get_ref());
    let Some(trust) = checks::trust(insecure, ca, pin) else {
        let span = raw.pin.as_ref().or(raw.ca.as_ref()).map_or(0..0, Spanned::span);
        return Err(doc.wrong(span, "one of insecure, ca and pin is enough", "one of the three"));
    };
    if let (Trust::CaFile(path), Some(raw)) = (&trust, &raw.ca)
        && let Err(e) = std::fs::metadata(path)
    {
        return Err(doc.wrong(raw.span(), format!("{}: {e}", path.display()), "the path of a readable PEM file"));
    }
    Ok(Settings {
        mode,
        http: checks::Http {
            method: doc.parsed(raw.method.as_ref(), "\"GET\"")?.unwrap_or_default(),
            headers: headers.collect::<Result<_, _>>()?,
            host: doc.text(raw.host.as_ref(), "\"example.com\"")?,
            status: doc.parsed(raw.status.as_ref(), "\"200-399\"")?.unwrap_or_default(),
            content: contains.or(matches),
            ..checks::Http::default()
        },
        tls: checks::Tls {
            trust,
            sni: doc.text(raw.sni.as_ref(), "\"example.com\"")?,
            cert_days_min: match &raw.cert_days {
                Some(raw) => Some(doc.number(raw, 0..=3650)? as i16),
                None => None,
            },
        },
    })
}
