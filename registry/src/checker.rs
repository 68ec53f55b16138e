//! How the registry checks the persistent instances of a cluster: what is asked, at which port, and in which manner.
//! Promise: a [`Checker`] is valid: the engine takes what it makes of it. Passwords are never printed.
//! Pure: no socket, no clock.

pub mod codes;
mod said;

pub use codes::Codes;
pub use said::{CHECKER_KEY, read, take, write};

use crate::model::{InstanceId, Invalid, Metadata};
use ringspan_engine::check::{Check, HttpCheck, MysqlCheck, Secret};
use ringspan_engine::health::Thresholds;
use ringspan_engine::io::Mode;
use ringspan_engine::policy::{Adaptive, INTERVAL_MAX, INTERVAL_MIN, Policy, TIMEOUT_MAX, TIMEOUT_MIN};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// What is shown of a password.
pub const MASK: &str = "***";
/// Nacos' patience with any check (TcpHealthCheckProcessor.CONNECT_TIMEOUT_MS, HttpHealthCheckProcessor).
const NACOS_TIMEOUT: Duration = Duration::from_millis(500);
/// Nacos' `checkTimes`: outcomes in a row that change its mind, either way.
const NACOS_TIMES: NonZeroU8 = NonZeroU8::new(3).expect("3 is not 0");

/// How the persistent instances of a cluster are checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Checker {
    /// What is asked, and in which manner. Shared by all that are asked the same.
    pub how: Arc<How>,
    /// The port that is checked; `None`: each instance's own.
    pub port: Option<u16>,
}

/// What is asked, and in which manner. What two instances at one address have in common is found out once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct How {
    /// What.
    #[serde(flatten)]
    pub kind: Kind,
    /// In which manner; `None`: the registry's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manner: Option<Manner>,
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "type")]
pub enum Kind {
    /// A TCP handshake.
    Tcp,
    /// GET, and this status.
    Http {
        /// With its slash.
        path: String,
        /// As Nacos has them: `Name:value`, separated by `|`.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        headers: String,
        /// Statuses that are well. (Nacos stores one and takes 200 alone.)
        expected: Codes,
    },
    /// A login and a statement.
    Mysql {
        /// Who.
        user: String,
        /// With what. Stored as it is: whoever reads the store can log in.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        password: String,
        /// What must not fail; of the one that asks for `read_only` the answer must be OFF.
        cmd: String,
    },
    /// Nothing: health is what a person or a program sets.
    None,
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Tcp => f.write_str("Tcp"),
            Kind::None => f.write_str("None"),
            // Headers may hold a secret, too.
            Kind::Http { path, headers, expected } => {
                let headers = if headers.is_empty() { "" } else { "***" };
                write!(f, "Http {{ path: {path:?}, headers: {headers:?}, expected: {expected} }}")
            }
            Kind::Mysql { user, cmd, .. } => write!(f, "Mysql {{ user: {user:?}, password: ***, cmd: {cmd:?} }}"),
        }
    }
}

/// In which manner a check is repeated and believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Manner {
    /// As Nacos does it: an adaptive interval, 500 ms of patience, three outcomes either way, and refusals at once.
    Nacos,
    /// At fixed intervals, until so many outcomes in a row speak against what is believed.
    Fixed(Pace),
}

/// How often, how long, how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pace {
    /// From probe to probe, 100 ms to 1 h. Milliseconds.
    pub interval_ms: u32,
    /// Until a probe has failed, 1 ms to 60 s. Milliseconds.
    pub timeout_ms: u32,
    /// Successes that make it up, 1 to 255.
    pub rise: NonZeroU8,
    /// Failures that make it down, 1 to 255.
    pub fall: NonZeroU8,
}

/// What one address is asked: one target of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Where.
    pub address: SocketAddr,
    /// What.
    pub how: Arc<How>,
}

impl Hash for Asked {
    /// Of the address alone: few are asked more than one thing, and what is asked may be long.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address.hash(state);
    }
}

static TCP: LazyLock<Arc<How>> = LazyLock::new(|| Arc::new(How { kind: Kind::Tcp, manner: None }));

impl Default for Checker {
    /// The checker of a cluster that never said: TCP to the instance's own port.
    fn default() -> Checker {
        Checker { how: TCP.clone(), port: None }
    }
}

impl Checker {
    /// A TCP handshake to this port of each instance; `None`: to the one it registered.
    pub fn tcp(port: Option<u16>) -> Checker {
        Checker { how: TCP.clone(), port }
    }

    /// None at all.
    pub fn none() -> Checker {
        Checker { how: How { kind: Kind::None, manner: None }.into(), port: None }
    }

    /// Checks what was asked for.
    ///
    /// # Errors
    /// [`Invalid`], in the words of Nacos' parameters.
    pub fn new(kind: Kind, manner: Option<Manner>, port: Option<u16>) -> Result<Checker, Invalid> {
        if port == Some(0) {
            return Err(Invalid::new("checkPort", "it should be 1 to 65535."));
        }
        if let Some(Manner::Fixed(pace)) = manner {
            pace.check()?;
        }
        let how = How { kind, manner };
        how.check()?;
        Ok(Checker { how: how.into(), port })
    }

    /// The same, and with the password of `known` where this one says `***`, which is what is shown of one.
    ///
    /// # Errors
    /// [`Invalid`] if nothing is known that it could stand for: another user's password is not this one's.
    pub(crate) fn with_secret_of(self, known: Option<&Checker>) -> Result<Checker, Invalid> {
        let Kind::Mysql { user, password, cmd } = &self.how.kind else { return Ok(self) };
        if password != MASK {
            return Ok(self);
        }
        match known.map(|k| &k.how.kind) {
            Some(Kind::Mysql { user: same, password, .. }) if same == user => {
                let kind = Kind::Mysql { user: user.clone(), password: password.clone(), cmd: cmd.clone() };
                Ok(Checker { how: How { kind, manner: self.how.manner }.into(), port: self.port })
            }
            _ => Err(Invalid::new(
                "password",
                format!("{MASK} stands for the one that is stored, and none is for {user:?}."),
            )),
        }
    }

    /// The same in this manner, if it has none of its own.
    #[must_use]
    pub(crate) fn or_in_manner(self, manner: Option<Manner>) -> Checker {
        match manner {
            Some(_) if self.how.manner.is_none() && self.how.kind != Kind::None => {
                Checker { how: How { kind: self.how.kind.clone(), manner }.into(), port: self.port }
            }
            _ => self,
        }
    }

    /// What `id` is to be asked, if it is to be checked.
    pub fn asked(&self, id: &InstanceId) -> Option<Asked> {
        if self.how.kind == Kind::None {
            return None;
        }
        Some(Asked { address: SocketAddr::new(id.ip()?, self.port.unwrap_or(id.port())), how: self.how.clone() })
    }
}

/// Metadata key of a service: in which manner the clusters that have none of their own are checked, `nacos` or `own`.
/// It may be changed at any time.
pub const MANNER_KEY: &str = "preserved.manner";

/// Metadata key of a service or of one of its clusters, which goes before it: whether its instances are checked, `on`
/// (default) or `off`. Off: nobody is asked, what was believed stands, and health may be set by hand. Beats are no checks.
pub const CHECKS_KEY: &str = "preserved.checks";

/// Whether metadata switches checks on or off; `None`: it does not say.
///
/// # Errors
/// [`Invalid`] for anything but `on` and `off`.
pub fn checks_of(metadata: &Metadata) -> Result<Option<bool>, Invalid> {
    match metadata.get(CHECKS_KEY).map(|text| text.trim()) {
        None => Ok(None),
        Some("on") => Ok(Some(true)),
        Some("off") => Ok(Some(false)),
        Some(other) => Err(Invalid::new(CHECKS_KEY, format!("{other:?} is neither \"on\" nor \"off\"."))),
    }
}

impl Manner {
    /// What a service's metadata asks for; `None`: the registry's own.
    ///
    /// # Errors
    /// [`Invalid`] for anything but `nacos` and `own`.
    pub fn of(metadata: &Metadata) -> Result<Option<Manner>, Invalid> {
        match metadata.get(MANNER_KEY).map(|text| text.trim()) {
            None | Some("own") => Ok(None),
            Some("nacos") => Ok(Some(Manner::Nacos)),
            Some(other) => Err(Invalid::new(MANNER_KEY, format!("{other:?} is neither \"nacos\" nor \"own\"."))),
        }
    }
}

impl Pace {
    fn check(self) -> Result<(), Invalid> {
        let within = |param, ms: u32, min: Duration, max: Duration| {
            if (min..=max).contains(&Duration::from_millis(ms.into())) {
                return Ok(());
            }
            let text = format!("{ms} is not in the range {} to {} milliseconds.", min.as_millis(), max.as_millis());
            Err(Invalid::new(param, text))
        };
        within("intervalMs", self.interval_ms, INTERVAL_MIN, INTERVAL_MAX)?;
        within("timeoutMs", self.timeout_ms, TIMEOUT_MIN, TIMEOUT_MAX)
    }
}

impl How {
    /// What the engine is to do.
    ///
    /// # Errors
    /// [`Invalid`]: the engine does no such check.
    pub fn check(&self) -> Result<Check, Invalid> {
        let wrong = |error: &dyn fmt::Display| Invalid::new("healthChecker", format!("{error}."));
        Ok(match &self.kind {
            Kind::None => Check::None,
            Kind::Tcp => Check::Tcp(Mode::HalfOpen),
            Kind::Http { path, headers, expected } => {
                // A virtual host is a setting of its own in the engine, and a header in Nacos' words.
                let is_host = |pair: &&str| {
                    pair.split_once(':').is_some_and(|(name, _)| name.trim().eq_ignore_ascii_case("host"))
                };
                let host = headers.split('|').find(is_host).and_then(|pair| pair.split_once(':'));
                let headers: Vec<&str> = headers.split('|').filter(|pair| !is_host(pair)).collect();
                let check = HttpCheck::nacos(path, &headers.join("|")).map_err(|e| wrong(&e))?;
                let mut settings = check.settings().clone();
                settings.host = host.map(|(_, value)| value.trim().to_owned());
                settings.status = expected.statuses();
                Check::Http(Arc::new(HttpCheck::new(settings).map_err(|e| wrong(&e))?))
            }
            Kind::Mysql { user, password, cmd } => {
                let check = MysqlCheck::nacos(user.clone(), Secret::new(password.clone()), cmd);
                Check::Mysql(Arc::new(check.map_err(|e| wrong(&e))?))
            }
        })
    }

    /// How the engine is to repeat and believe it; `own` is the registry's.
    pub fn policy(&self, own: &Policy) -> Policy {
        match self.manner {
            None => *own,
            Some(Manner::Fixed(pace)) => Policy {
                interval: Duration::from_millis(pace.interval_ms.into()),
                timeout: Duration::from_millis(pace.timeout_ms.into()),
                thresholds: Thresholds { rise: pace.rise, fall: pace.fall },
                ..*own
            },
            Some(Manner::Nacos) => Policy {
                timeout: NACOS_TIMEOUT,
                thresholds: Thresholds { rise: NACOS_TIMES, fall: NACOS_TIMES },
                adaptive: Some(match self.kind {
                    Kind::Http { .. } => Adaptive::NACOS_HTTP,
                    Kind::Mysql { .. } => Adaptive::NACOS_MYSQL,
                    Kind::Tcp | Kind::None => Adaptive::NACOS_TCP,
                }),
                refusal_is_final: true,
                ..*own
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ_ONLY: &str = "show global variables where variable_name='read_only'";

    fn http(path: &str, headers: &str, expected: u16) -> Kind {
        let expected = Codes::of(expected).unwrap_or_default();
        Kind::Http { path: path.into(), headers: headers.into(), expected }
    }

    fn mysql(user: &str, cmd: &str) -> Kind {
        Kind::Mysql { user: user.into(), password: "hush".into(), cmd: cmd.into() }
    }

    fn pace(interval_ms: u32, timeout_ms: u32) -> Option<Manner> {
        Some(Manner::Fixed(Pace { interval_ms, timeout_ms, rise: NACOS_TIMES, fall: NACOS_TIMES }))
    }

    /// What the engine would not do is refused when it is asked for, naming the parameter: table.
    #[test]
    fn what_is_taken() {
        let long = "x".repeat(1000);
        let cases = [
            (Kind::Tcp, None, Some(80), Ok(())),
            (Kind::Tcp, None, Some(0), Err("checkPort")),
            (http("/health", "", 200), None, None, Ok(())),
            (http("health", "Host:a|X-Key: b:c", 204), Some(Manner::Nacos), None, Ok(())),
            (http("/he alth", "", 200), None, None, Err("healthChecker")),
            (http("/", "no colon", 200), None, None, Err("healthChecker")),
            (mysql("check", READ_ONLY), None, None, Ok(())),
            (mysql("check", ""), None, None, Err("healthChecker")),
            (mysql(&long, READ_ONLY), None, None, Err("healthChecker")),
            (Kind::Tcp, pace(5_000, 1_000), None, Ok(())),
            (Kind::Tcp, pace(99, 1_000), None, Err("intervalMs")),
            (Kind::Tcp, pace(5_000, 0), None, Err("timeoutMs")),
            (Kind::None, None, None, Ok(())),
        ];
        for (kind, manner, port, want) in cases {
            let got = Checker::new(kind.clone(), manner, port).map(drop).map_err(|e| e.param);
            assert_eq!(got, want, "{kind:?} {manner:?} {port:?}");
        }
    }

    /// The checker decides what an instance is asked, and where.
    #[test]
    fn asked() {
        let id = InstanceId::new("", "::1", 80).unwrap();
        let at = |checker: &Checker| checker.asked(&id).map(|asked| asked.address.to_string());
        assert_eq!(at(&Checker::default()).as_deref(), Some("[::1]:80"));
        assert_eq!(at(&Checker::tcp(Some(81))).as_deref(), Some("[::1]:81"));
        assert_eq!(at(&Checker::none()), None);
        let same = Checker::tcp(Some(80)).asked(&id);
        assert_eq!(same, Checker::default().asked(&id), "one question, however it was named");
    }

    /// Nacos' manner has Nacos' constants; the registry's own stays as it is.
    #[test]
    fn manners() {
        let own = Policy { interval: Duration::from_secs(7), ..Policy::DEFAULT };
        let of = |kind, manner| How { kind, manner }.policy(&own);
        assert_eq!(of(Kind::Tcp, None), own);
        let fixed = of(Kind::Tcp, pace(250, 40));
        assert_eq!((fixed.interval.as_millis(), fixed.timeout.as_millis(), fixed.adaptive), (250, 40, None));
        for (kind, adaptive) in [
            (Kind::Tcp, Adaptive::NACOS_TCP),
            (http("/", "", 200), Adaptive::NACOS_HTTP),
            (mysql("u", READ_ONLY), Adaptive::NACOS_MYSQL),
        ] {
            let nacos = of(kind, Some(Manner::Nacos));
            assert_eq!((nacos.adaptive, nacos.refusal_is_final), (Some(adaptive), true));
            assert_eq!(
                (nacos.timeout.as_millis(), nacos.thresholds.rise.get(), nacos.thresholds.fall.get()),
                (500, 3, 3)
            );
        }
    }

    /// A password is nobody's to read, in whatever is printed of it.
    #[test]
    fn secrets_stay_secret() {
        let checkers = [mysql("check", READ_ONLY), http("/", "Authorization: hush", 200)];
        for kind in checkers {
            let printed = format!("{:?}", Checker::new(kind, None, None).unwrap());
            assert!(!printed.contains("hush") && printed.contains("***"), "{printed}");
        }
    }
}
