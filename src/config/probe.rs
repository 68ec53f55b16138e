//! probe.toml: its keys, their ranges and defaults. The table for people is docs/configuration.md.
//! Read into a [`Roster`], so that a million targets exist once.

use super::{Document, Error, unit};
use crate::cli::Backend;
use crate::probe_cmd::checks::{self, Settings};
use crate::probe_cmd::roster::{Roster, Sheet};
use crate::probe_cmd::{source, target};
use ringspan_engine::check::{Content, HttpSettings, Pin, Trust};
use ringspan_engine::engine::MassFlip;
use ringspan_engine::health::Health;
use ringspan_engine::io::Mode;
use ringspan_engine::target::{Adaptive, Damping, INTERVAL_MAX, INTERVAL_MIN, Policy, Proxy, TIMEOUT_MAX, TIMEOUT_MIN};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use toml::Spanned;

/// The policy of targets that name none, and of the command line's.
const POLICY_DEFAULT: &str = "default";
/// More workers than an engine has.
const WORKERS_MAX: i64 = 256;
/// Bytes of a target's name: it becomes a label in metrics.
const NAME_BYTES_MAX: usize = 128;

/// What a file says beside its targets.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Probe {
    /// Threads.
    pub(crate) workers: Option<NonZeroU16>,
    /// io_uring, epoll, or the better one.
    pub(crate) backend: Option<Backend>,
    /// Probes in flight at most, per worker.
    pub(crate) in_flight_max: Option<NonZeroU32>,
    /// Probes started a second at most.
    pub(crate) rate: Option<NonZeroU32>,
    /// The same towards one /24 or /64.
    pub(crate) rate_per_net: Option<NonZeroU32>,
    /// Probes in flight at most towards one.
    pub(crate) in_flight_per_net: Option<NonZeroU32>,
    /// Believe no failure while we are sick.
    pub(crate) freeze: Option<bool>,
    /// What to do when too many go down at once.
    pub(crate) mass_flip: Option<MassFlip>,
    /// How many are too many, percent.
    pub(crate) mass_flip_percent: Option<u8>,
    /// /metrics.
    pub(crate) listen: Option<SocketAddr>,
    /// Targets up to which each has series of its own.
    pub(crate) metrics_targets: Option<usize>,
    /// The interval log.
    pub(crate) hlog: Option<PathBuf>,
    /// Files of targets that were read: a change of one is a change of this.
    pub(crate) files: Vec<PathBuf>,
    /// Groups that the engine, when it started, did not know: their targets count in none.
    pub(crate) groups_unknown: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    probe: RawProbe,
    #[serde(default)]
    policy: BTreeMap<Spanned<String>, RawPolicy>,
    #[serde(default)]
    target: Vec<RawTarget>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProbe {
    workers: Option<Spanned<i64>>,
    backend: Option<Spanned<String>>,
    in_flight_max: Option<Spanned<i64>>,
    rate: Option<Spanned<i64>>,
    rate_per_net: Option<Spanned<i64>>,
    in_flight_per_net: Option<Spanned<i64>>,
    freeze: Option<bool>,
    mass_flip: Option<Spanned<String>>,
    mass_flip_percent: Option<Spanned<i64>>,
    listen: Option<Spanned<String>>,
    metrics_targets: Option<Spanned<i64>>,
    hlog: Option<Spanned<String>>,
    vantage: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    interval: Option<Spanned<String>>,
    interval_fast: Option<Spanned<String>>,
    interval_down: Option<Spanned<String>>,
    jitter: Option<Spanned<i64>>,
    timeout: Option<Spanned<String>>,
    timeout_connect: Option<Spanned<String>>,
    timeout_tls: Option<Spanned<String>>,
    timeout_answer: Option<Spanned<String>>,
    rise: Option<Spanned<i64>>,
    fall: Option<Spanned<i64>>,
    backoff_max: Option<Spanned<i64>>,
    damping: Option<RawDamping>,
    adaptive: Option<Spanned<String>>,
    refusal_is_final: Option<bool>,
    proxy: Option<Spanned<String>>,
    source: Option<Spanned<String>>,
    port: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDamping {
    half_life: Spanned<String>,
    suppress: Spanned<i64>,
    reuse: Spanned<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTarget {
    url: Option<Spanned<String>>,
    #[serde(default)]
    urls: Vec<Spanned<String>>,
    file: Option<Spanned<String>>,
    name: Option<Spanned<String>>,
    password: Option<Spanned<String>>,
    policy: Option<Spanned<String>>,
    group: Option<Spanned<String>>,
    service: Option<Spanned<String>>,
    cluster: Option<Spanned<String>>,
    initial: Option<Spanned<String>>,
    mode: Option<Spanned<String>>,
    method: Option<Spanned<String>>,
    #[serde(default)]
    headers: Vec<Spanned<String>>,
    host: Option<Spanned<String>>,
    status: Option<Spanned<String>>,
    body: Option<Spanned<String>>,
    body_regex: Option<Spanned<String>>,
    redirects: Option<Spanned<i64>>,
    redirects_any_host: Option<bool>,
    insecure: Option<bool>,
    ca: Option<Spanned<String>>,
    pin: Option<Spanned<String>>,
    sni: Option<Spanned<String>>,
    cert_days: Option<Spanned<i64>>,
}

/// Reads and checks a file; its targets go into `roster`, which may have up to `groups_max` groups in the end; 0: those
/// that it has, and no others.
pub(crate) fn read(path: &Path, roster: &mut Roster, groups_max: usize) -> Result<Probe, Error> {
    check(&Document::read(path)?, roster, groups_max)
}

/// Checks a whole document.
pub(crate) fn check(doc: &Document, roster: &mut Roster, groups_max: usize) -> Result<Probe, Error> {
    let raw: Raw = doc.parse()?;
    let mut probe = check_probe(doc, &raw.probe)?;
    let vantage = raw.probe.vantage.as_ref();
    let mut policies: BTreeMap<&str, Arc<Policy>> = BTreeMap::new();
    policies.insert(POLICY_DEFAULT, Arc::new(Policy::DEFAULT));
    for (name, policy) in &raw.policy {
        if let Err(e) = unit::service_name(name.get_ref()) {
            return Err(doc.wrong(name.span(), e, "[policy.web]"));
        }
        policies.insert(name.get_ref(), Arc::new(check_policy(doc, policy)?));
    }
    for target in &raw.target {
        let policy = match &target.policy {
            None => policies[POLICY_DEFAULT].clone(),
            Some(name) => match policies.get(name.get_ref().as_str()) {
                Some(policy) => policy.clone(),
                None => {
                    let known: Vec<String> = policies.keys().map(|name| format!("{name:?}")).collect();
                    return Err(doc.wrong(name.span(), "there is no such [policy]", known.join(", ")));
                }
            },
        };
        add_target(doc, target, policy, vantage, roster, &mut probe, groups_max)?;
    }
    Ok(probe)
}

fn check_probe(doc: &Document, raw: &RawProbe) -> Result<Probe, Error> {
    let some = |raw: &Option<Spanned<i64>>, max: i64| -> Result<Option<u32>, Error> {
        let n = raw.as_ref().map(|raw| doc.number(raw, 1..=max)).transpose()?;
        Ok(n.and_then(|n| u32::try_from(n).ok()))
    };
    let any = i64::from(u32::MAX);
    let nonzero = |n: Option<u32>| n.and_then(NonZeroU32::new);
    let words = |raw: &Option<Spanned<String>>, known: &'static [&'static str]| word(doc, raw.as_ref(), known);
    Ok(Probe {
        workers: some(&raw.workers, WORKERS_MAX)?.and_then(|n| NonZeroU16::new(n as u16)),
        backend: words(&raw.backend, &["auto", "io_uring", "epoll"])?
            .map(|n| [Backend::Auto, Backend::IoUring, Backend::Epoll][n]),
        in_flight_max: nonzero(some(&raw.in_flight_max, 1 << 20)?),
        rate: nonzero(some(&raw.rate, any)?),
        rate_per_net: nonzero(some(&raw.rate_per_net, any)?),
        in_flight_per_net: nonzero(some(&raw.in_flight_per_net, any)?),
        freeze: raw.freeze,
        mass_flip: words(&raw.mass_flip, &["off", "alarm", "hold"])?
            .map(|n| [MassFlip::Off, MassFlip::Alarm, MassFlip::Hold][n]),
        mass_flip_percent: some(&raw.mass_flip_percent, 100)?.map(|n| n as u8),
        listen: raw.listen.as_ref().map(|raw| doc.value(raw, unit::address, "\"127.0.0.1:9100\"")).transpose()?,
        metrics_targets: match &raw.metrics_targets {
            Some(raw) => usize::try_from(doc.number(raw, 0..=1_000_000)?).ok(),
            None => None,
        },
        hlog: raw.hlog.as_ref().map(|raw| doc.value(raw, |t| Ok(doc.path_of(t)), "\"probe.hlog\"")).transpose()?,
        ..Probe::default()
    })
}

/// Which of the known words it is.
fn word(doc: &Document, raw: Option<&Spanned<String>>, known: &'static [&'static str]) -> Result<Option<usize>, Error> {
    let Some(raw) = raw else { return Ok(None) };
    let example: Vec<String> = known.iter().map(|word| format!("{word:?}")).collect();
    let read = |text: &str| known.iter().position(|word| *word == text).ok_or_else(|| "not known here".to_owned());
    doc.value(raw, read, &example.join(", ")).map(Some)
}

fn check_policy(doc: &Document, raw: &RawPolicy) -> Result<Policy, Error> {
    let mut policy = Policy::DEFAULT;
    let time = |raw: &Option<Spanned<String>>, min: Duration, max: Duration| -> Result<Option<Duration>, Error> {
        let example = format!("\"{}\" to \"{}\"", unit::Shown(min), unit::Shown(max));
        raw.as_ref().map(|raw| doc.value(raw, |text| unit::duration_within(text, min, max), &example)).transpose()
    };
    let interval = |raw| time(raw, INTERVAL_MIN, INTERVAL_MAX);
    let timeout = |raw| time(raw, TIMEOUT_MIN, TIMEOUT_MAX);
    let number = |raw: &Option<Spanned<i64>>, range: std::ops::RangeInclusive<i64>| -> Result<Option<u16>, Error> {
        let n = raw.as_ref().map(|raw| doc.number(raw, range)).transpose()?;
        Ok(n.map(|n| u16::try_from(n).expect("every range here ends within 16 bits")))
    };
    let count = |raw| Ok::<_, Error>(number(raw, 1..=255)?.and_then(|n| NonZeroU8::new(n as u8)));
    policy.interval = interval(&raw.interval)?.unwrap_or(policy.interval);
    policy.interval_fast = interval(&raw.interval_fast)?;
    policy.interval_down = interval(&raw.interval_down)?;
    policy.jitter_percent = number(&raw.jitter, 0..=50)?.unwrap_or(0) as u8;
    policy.timeout = timeout(&raw.timeout)?.unwrap_or(policy.timeout);
    policy.timeouts.connect = timeout(&raw.timeout_connect)?;
    policy.timeouts.tls = timeout(&raw.timeout_tls)?;
    policy.timeouts.answer = timeout(&raw.timeout_answer)?;
    policy.thresholds.rise = count(&raw.rise)?.unwrap_or(policy.thresholds.rise);
    policy.thresholds.fall = count(&raw.fall)?.unwrap_or(policy.thresholds.fall);
    policy.backoff_max = number(&raw.backoff_max, 1..=64)?.map_or(policy.backoff_max, |n| n as u8);
    if let Some(raw) = &raw.damping {
        let half_life = Some(raw.half_life.clone());
        let half_life = time(&half_life, Duration::from_secs(1), Duration::from_secs(3600))?.expect("given");
        let suppress = doc.number(&raw.suppress, 1000..=60_000)?;
        let reuse = doc.number(&raw.reuse, 1..=suppress - 1)?;
        policy.damping = Some(Damping { half_life, suppress: suppress as u16, reuse: reuse as u16 });
    }
    policy.adaptive = word(doc, raw.adaptive.as_ref(), &["nacos-tcp", "nacos-http", "nacos-mysql"])?
        .map(|n| [Adaptive::NACOS_TCP, Adaptive::NACOS_HTTP, Adaptive::NACOS_MYSQL][n]);
    policy.refusal_is_final = raw.refusal_is_final.unwrap_or(false);
    policy.proxy = word(doc, raw.proxy.as_ref(), &["v1", "v2"])?.map(|n| [Proxy::V1, Proxy::V2][n]);
    if let Some(raw) = &raw.source {
        let read = |text: &str| text.parse().map_err(|_| "it is no IP address".to_owned());
        policy.source = Some(doc.value(raw, read, "\"192.0.2.7\"")?);
    }
    policy.port = number(&raw.port, 1..=65_535)?;
    policy.check().map_err(|e| doc.lacking(format!("[policy]: {e}"), "a value within the range"))?;
    Ok(policy)
}

fn add_target(
    doc: &Document,
    raw: &RawTarget,
    policy: Arc<Policy>,
    vantage: Option<&Spanned<String>>,
    roster: &mut Roster,
    probe: &mut Probe,
    groups_max: usize,
) -> Result<(), Error> {
    let group = match group_name(doc, raw, vantage)? {
        None => 0,
        Some((name, at)) => match roster.group(&name, groups_max) {
            Some(number) => number,
            None if groups_max == 0 => {
                probe.groups_unknown.push(name);
                0
            }
            None => return Err(doc.wrong(at, format!("more than {groups_max} groups"), "fewer groups")),
        },
    };
    let initial = word(doc, raw.initial.as_ref(), &["unknown", "up", "down"])?;
    let initial = initial.map_or(Health::Unknown, |n| [Health::Unknown, Health::Up, Health::Down][n]);
    let sheet = roster.sheet(Sheet { settings: settings(doc, raw)?, policy, group, initial });
    if let Some(file) = &raw.file {
        if file.get_ref() == "-" {
            return Err(doc.wrong(file.span(), "stdin cannot be read again", "the path of a file"));
        }
        let path = doc.path_of(file.get_ref());
        source::file(roster, sheet, &path).map_err(|e| doc.wrong(file.span(), e, "a file of targets, one a line"))?;
        probe.files.push(path);
    }
    let name = raw.name.as_ref().map(|raw| doc.value(raw, target_name, "\"db-1\"")).transpose()?;
    match (&raw.url, raw.urls.as_slice(), &raw.file) {
        (Some(url), [], None) => push(doc, url, name.as_deref(), raw.password.as_ref(), sheet, roster),
        (None, urls, _) if !urls.is_empty() || raw.file.is_some() => {
            if let Some(alone) = raw.name.as_ref().or(raw.password.as_ref()) {
                return Err(doc.wrong_secret(alone.span(), "it is for one url", "url = ... in place of urls and file"));
            }
            urls.iter().try_for_each(|url| push(doc, url, None, None, sheet, roster))
        }
        (Some(url), _, _) => {
            Err(doc.wrong_secret(url.span(), "urls or file are there, too", "a [[target]] of its own"))
        }
        (None, _, _) => {
            Err(doc.lacking("a [[target]] has no url", "url = \"http://10.0.0.7/health\", urls = [...] or file = ..."))
        }
    }
}

fn push(
    doc: &Document,
    raw: &Spanned<String>,
    name: Option<&str>,
    password: Option<&Spanned<String>>,
    sheet: u32,
    roster: &mut Roster,
) -> Result<(), Error> {
    let mut text = raw.get_ref().clone();
    if let Some(password) = password {
        let secret = doc.secret(password)?;
        let url = url::Url::parse(&text).ok().and_then(|mut url| {
            // A colon and a percent sign of a password are its own, not the URL's.
            let escaped: String =
                percent_encoding::utf8_percent_encode(&secret, percent_encoding::NON_ALPHANUMERIC).collect();
            url.set_password(Some(&escaped)).ok()?;
            Some(String::from(url))
        });
        text = url.ok_or_else(|| {
            doc.wrong_secret(password.span(), "its url has no place for it", "url = \"mysql://user@10.0.0.7/\"")
        })?;
    }
    let shown = format!("{:?}", target::masked(raw.get_ref()));
    roster.push(&text, name, sheet).map_err(|wrong| doc.wrong_as(raw.span(), shown, wrong.problem, wrong.remedy))
}

/// The group's name and where it stands: `group`, or service and cluster, and from where they are seen.
fn group_name(
    doc: &Document,
    raw: &RawTarget,
    vantage: Option<&Spanned<String>>,
) -> Result<Option<(String, std::ops::Range<usize>)>, Error> {
    let parts = [&raw.group, &raw.service, &raw.cluster].into_iter().flatten();
    let parts: Vec<&Spanned<String>> = parts.chain(vantage).collect();
    let names = parts.iter().map(|raw| doc.value(raw, |n| unit::service_name(n).map(|()| n.to_owned()), "\"web\""));
    let names = names.collect::<Result<Vec<String>, Error>>()?;
    Ok(parts.first().map(|first| (names.join("/"), first.span())))
}

fn target_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX {
        Err(format!("a target's name has 1 to {NAME_BYTES_MAX} bytes"))
    } else if text.contains(char::is_control) {
        Err("a control character is in it".into())
    } else {
        Ok(text.to_owned())
    }
}

fn settings(doc: &Document, raw: &RawTarget) -> Result<Settings, Error> {
    let mode = word(doc, raw.mode.as_ref(), &["half-open", "full", "graceful"])?;
    let headers = raw.headers.iter().map(|raw| {
        let line = doc.secret(raw)?;
        unit::header(&line).map_err(|e| doc.wrong_secret(raw.span(), e, "\"X-Probe: 1\""))
    });
    let contains = doc.text(raw.body.as_ref(), "\"ok\"")?.map(Content::Contains);
    let matches = doc.text(raw.body_regex.as_ref(), "\"ok|well\"")?.map(Content::Matches);
    if let (Some(_), Some(_), Some(regex)) = (&contains, &matches, &raw.body_regex) {
        return Err(doc.wrong(regex.span(), "body is there, too", "one of the two"));
    }
    let redirects = match &raw.redirects {
        Some(raw) => doc.number(raw, 0..=HttpSettings::REDIRECTS_MAX.into())? as u8,
        None => 0,
    };
    let pin: Option<Pin> = doc.parsed(raw.pin.as_ref(), "\"cert:<64 hex digits>\" or \"key:<64 hex digits>\"")?;
    let ca = doc.text(raw.ca.as_ref(), "\"ca.pem\"")?.map(|path| doc.path_of(&path));
    let Some(trust) = checks::trust(raw.insecure.unwrap_or(false), ca, pin) else {
        let span = raw.pin.as_ref().or(raw.ca.as_ref()).map_or(0..0, Spanned::span);
        return Err(doc.wrong(span, "one of insecure, ca and pin is enough", "one of the three"));
    };
    if let (Trust::CaFile(path), Some(raw)) = (&trust, &raw.ca)
        && let Err(e) = std::fs::metadata(path)
    {
        return Err(doc.wrong(raw.span(), format!("{}: {e}", path.display()), "the path of a readable PEM file"));
    }
    Ok(Settings {
        mode: mode.map_or(Mode::HalfOpen, |n| [Mode::HalfOpen, Mode::Full, Mode::Graceful][n]),
        http: checks::Http {
            method: doc.parsed(raw.method.as_ref(), "\"GET\"")?.unwrap_or_default(),
            headers: headers.collect::<Result<_, _>>()?,
            host: doc.text(raw.host.as_ref(), "\"example.com\"")?,
            status: doc.parsed(raw.status.as_ref(), "\"200-399\"")?.unwrap_or_default(),
            content: contains.or(matches),
            redirects: checks::redirects(redirects, raw.redirects_any_host.unwrap_or(false)),
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

#[cfg(test)]
mod tests;
