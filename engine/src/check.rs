//! What can be asked of a target: one kind of check each, and what it says of an answer beyond its code.
//! Owns the choice ([`Check`]); each kind's settings and its machine live in one file of `probe/`.

pub use crate::probe::expect::{Expect, ExpectError};
pub use crate::probe::http::{Content, HttpCheck, HttpSettings, Method, Redirects, Statuses};
pub use crate::probe::mysql::{MysqlAsk, MysqlCheck, MysqlColumn, MysqlError, MysqlTls, MysqlValue, Secret};
pub use crate::probe::pattern::{Pattern, PatternError};
pub use crate::probe::tls::{CertificateFault, Identity, Pin, TlsCheck, TlsClient, TlsSettings, Trust, Versions};
pub use crate::probe::udp::{UdpCheck, UdpError};

use crate::io::{Mode, Way};
use crate::outcome::Code;
use std::sync::Arc;

/// What a probe does. Settings are shared: a million targets with the same check hold one copy.
#[derive(Clone, Debug)]
pub enum Check {
    /// Nothing: the target is kept with the health it was given, and no packet is sent.
    None,
    /// A TCP handshake, ended as `Mode` says.
    Tcp(Mode),
    /// A TCP connection on which something is said, something expected, or both.
    Expect(Arc<Expect>),
    /// A TLS handshake and nothing more.
    Tls(Arc<TlsCheck>),
    /// One HTTP/1.1 request, over TLS or not.
    Http(Arc<HttpCheck>),
    /// A MySQL login, or a question to the server.
    Mysql(Arc<MysqlCheck>),
    /// A datagram and its answer.
    Udp(Arc<UdpCheck>),
    /// ICMP echo.
    Ping,
}

impl Check {
    /// The short name in logs, JSON and metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Check::None => "none",
            Check::Tcp(_) => "tcp",
            Check::Expect(_) => "expect",
            Check::Tls(_) => "tls",
            Check::Http(_) => "http",
            Check::Mysql(_) => "mysql",
            Check::Udp(_) => "udp",
            Check::Ping => "icmp",
        }
    }

    /// Which lanes it needs; `None` for none.
    pub const fn way(&self) -> Option<Way> {
        match self {
            Check::None => None,
            Check::Tcp(mode) => Some(Way::Knock(*mode)),
            Check::Expect(_) | Check::Tls(_) | Check::Http(_) | Check::Mysql(_) => Some(Way::Stream),
            Check::Udp(_) => Some(Way::Datagram),
            Check::Ping => Some(Way::Ping),
        }
    }

    /// Whether an outcome, with its [`Detail::number`], is final for a policy that says `refusal_is_final`: Nacos'
    /// checkFailNow. A refused connection always is; of HTTP, a status of [`HttpSettings::status_final`]; of MySQL, an
    /// error the server answered with.
    pub fn is_final(&self, code: Code, number: u32) -> bool {
        match (code, self) {
            (Code::L4Refused, _) => true,
            (Code::L7Status, Check::Http(check)) => {
                u16::try_from(number).is_ok_and(|status| check.settings().status_final.contains(status))
            }
            (Code::L7Status, Check::Mysql(_)) => true,
            _ => false,
        }
    }
}

/// A setting of a check that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value:?}: {right}")]
pub struct CheckError {
    /// Which setting.
    pub key: &'static str,
    /// What it was; not shown where it may be a secret.
    pub value: String,
    /// What would be right.
    pub right: String,
}

impl CheckError {
    /// `value` must not be a secret; a long one is cut.
    pub(crate) fn new(key: &'static str, value: &str, right: &str) -> CheckError {
        CheckError { key, value: value.chars().take(200).collect(), right: right.to_owned() }
    }
}

/// What an outcome says beyond its code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// What the protocol said: HTTP status, MySQL error number, TLS alert. 0: nothing.
    pub number: u32,
    /// Whole days until the presented certificate expires, negative when it has. `None`: no certificate was seen.
    pub cert_days: Option<i16>,
}

/// How long each part of a probe took, microseconds from its start; 0: not reached. The total is the sample's RTT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// The connection was made, as this worker saw it.
    pub connect_us: u32,
    /// The TLS handshake was over.
    pub tls_us: u32,
    /// The first byte of the answer was there.
    pub first_byte_us: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What turns a target down at once is what Nacos has so, and nothing else.
    #[test]
    fn final_outcomes() {
        let nacos = Check::Http(Arc::new(HttpCheck::nacos("/", "").expect("valid")));
        let plain = Check::Http(Arc::new(HttpCheck::default()));
        let is_final = |check: &Check, code, number| check.is_final(code, number);
        for (status, expected) in [(302, false), (503, false), (404, true), (500, true), (301, true), (70_000, false)] {
            assert_eq!(is_final(&nacos, Code::L7Status, status), expected, "{status}");
            assert!(!is_final(&plain, Code::L7Status, status));
        }
        for check in [&nacos, &plain, &Check::Tcp(Mode::HalfOpen), &Check::Ping] {
            let finals: Vec<Code> = Code::ALL.iter().copied().filter(|code| is_final(check, *code, 503)).collect();
            assert_eq!(finals, [Code::L4Refused], "{check:?}");
        }
    }
}
