//! agent.toml: its keys, their ranges and defaults. The table for people is docs/configuration.md.

use super::bridge::{Engine, RawEngine, check_engine};
use super::{Document, Error, unit};
use crate::cli::STATE_DIR_DEFAULT;
use ringspan_engine::health::Thresholds;
use ringspan_engine::io::Mode;
use ringspan_engine::target::{INTERVAL_MAX, INTERVAL_MIN, Policy, TIMEOUT_MAX, TIMEOUT_MIN};
use serde::Deserialize;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;

/// Carriers a link may have: each is a TCP connection with buffers of its own; past a handful they only divide the
/// same path.
pub(crate) const CARRIERS_MAX: u8 = 16;
/// Carriers without a word in the file: one for bulk, one that stays free beside it.
pub(crate) const CARRIERS_DEFAULT: u8 = 2;
/// A backend's check without a word in the file. An agent sits beside its backends: it can ask often and expect an
/// answer soon. A refused backend is out after 3 s, a black-holed one after 4.5 s.
pub(crate) const CHECK_DEFAULT: Check = Check {
    mode: Mode::HalfOpen,
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

/// An agent's configuration, checked.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    /// What lets it join the first time.
    pub(crate) token: Option<Secret>,
    /// The token_file, if it is not there or empty: no trouble for an agent that has joined.
    pub(crate) token_file_missing: Option<PathBuf>,
    /// Its identity.
    pub(crate) state_dir: PathBuf,
    /// TCP connections to the bridge.
    pub(crate) carriers: u8,
    /// Its backends.
    pub(crate) exposes: Vec<Expose>,
    /// Threads and kernel interface.
    pub(crate) engine: Engine,
}

/// A secret; prints as `***`.
#[derive(Clone)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "***")
    }
}

/// One backend.
#[derive(Clone, Debug)]
pub(crate) struct Expose {
    /// The service it belongs to.
    pub(crate) service: String,
    /// Where the agent dials it.
    pub(crate) address: SocketAddr,
    /// How it is checked.
    pub(crate) check: Check,
}

/// How a backend is checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check {
    /// How a probe ends.
    pub(crate) mode: Mode,
    /// How often, how long, how many.
    pub(crate) policy: Policy,
}

impl Agent {
    /// Reads and checks a file. A token_file is read only if it is there: after enrolment nobody needs it.
    pub(crate) fn read(path: &Path) -> Result<Agent, Error> {
        check(&Document::read(path)?)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    link: Option<RawLink>,
    engine: Option<RawEngine>,
    #[serde(default)]
    expose: Vec<RawExpose>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    token: Option<Spanned<String>>,
    token_file: Option<Spanned<String>>,
    state_dir: Option<Spanned<String>>,
    carriers: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExpose {
    service: Spanned<String>,
    address: Spanned<String>,
    check: Option<RawCheck>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCheck {
    r#type: Option<Spanned<String>>,
    mode: Option<Spanned<String>>,
    interval: Option<Spanned<String>>,
    timeout: Option<Spanned<String>>,
    rise: Option<Spanned<i64>>,
    fall: Option<Spanned<i64>>,
}

/// Checks a whole document.
pub(crate) fn check(doc: &Document) -> Result<Agent, Error> {
    let raw: Raw = doc.parse()?;
    let mut agent = Agent {
        token: None,
        token_file_missing: None,
        state_dir: doc.path_of(STATE_DIR_DEFAULT),
        carriers: CARRIERS_DEFAULT,
        exposes: Vec::new(),
        engine: check_engine(doc, raw.engine.as_ref())?,
    };
    if let Some(link) = &raw.link {
        if let Some(dir) = &link.state_dir {
            agent.state_dir = doc.value(dir, |text| Ok(doc.path_of(text)), "\"/var/lib/ringspan-agent\"")?;
        }
        if let Some(carriers) = &link.carriers {
            agent.carriers = doc.number(carriers, 1..=CARRIERS_MAX.into())? as u8;
        }
        (agent.token, agent.token_file_missing) = token(doc, link)?;
    }
    for raw in &raw.expose {
        let service = doc.value(&raw.service, |n| unit::service_name(n).map(|()| n.to_owned()), "\"web\"")?;
        let address = doc.value(&raw.address, unit::address, "\"127.0.0.1:8081\"")?;
        if address.port() == 0 {
            return Err(doc.wrong(raw.address.span(), "nothing can listen on port 0", "the backend's port"));
        }
        if agent.exposes.iter().any(|e| e.service == service && e.address == address) {
            let problem = format!("service {service:?} has this backend already");
            return Err(doc.wrong(raw.address.span(), problem, "another address, or remove one of the two"));
        }
        let check = raw.check.as_ref().map_or(Ok(CHECK_DEFAULT), |raw| check_check(doc, raw))?;
        agent.exposes.push(Expose { service, address, check });
    }
    if agent.exposes.is_empty() {
        let remedy = "add [[expose]] with service = \"web\" and address = \"127.0.0.1:8081\"";
        return Err(doc.lacking("there is no [[expose]]: the agent would have nothing to offer", remedy));
    }
    Ok(agent)
}

fn token(doc: &Document, link: &RawLink) -> Result<(Option<Secret>, Option<PathBuf>), Error> {
    match (&link.token, &link.token_file) {
        (Some(token), Some(_)) => Err(doc.wrong_secret(token.span(), "token_file is there, too", "one of the two")),
        (Some(token), None) => {
            let text = doc.secret(token)?;
            if text.trim().is_empty() {
                return Err(doc.wrong_secret(token.span(), "it is empty", "what `ringspan token create` prints"));
            }
            Ok((Some(Secret(text.trim().to_owned())), None))
        }
        (None, Some(file)) => {
            let path = doc.value(file, |text| Ok(doc.path_of(text)), "\"join.token\"")?;
            match std::fs::read_to_string(&path) {
                Ok(text) if text.trim().is_empty() => Ok((None, Some(path))),
                Ok(text) => Ok((Some(Secret(text.trim().to_owned())), None)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok((None, Some(path))),
                Err(e) => Err(doc.wrong(file.span(), format!("{}: {e}", path.display()), "a readable file")),
            }
        }
        (None, None) => Ok((None, None)),
    }
}

fn check_check(doc: &Document, raw: &RawCheck) -> Result<Check, Error> {
    let mut check = CHECK_DEFAULT;
    if let Some(kind) = &raw.r#type {
        doc.value(kind, |t| if t == "tcp" { Ok(()) } else { Err("no such type of check".into()) }, "\"tcp\"")?;
    }
    if let Some(mode) = &raw.mode {
        let read = |text: &str| match text {
            "half-open" => Ok(Mode::HalfOpen),
            "full" => Ok(Mode::Full),
            "graceful" => Ok(Mode::Graceful),
            _ => Err("no such mode".into()),
        };
        check.mode = doc.value(mode, read, "\"half-open\", \"full\" or \"graceful\"")?;
    }
    let policy = &mut check.policy;
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
    Ok(check)
}
