//! Who may use the registry: `[registry] auth`, `session`, `rate_limit`, `rate_limit_user`, `audit`, and `[http] cert`, `key`.

use super::http::CertFiles;
use super::{Document, Error, unit};
use ringspan_registry::access::{Rate, Rates, SESSION_DEFAULT};
use std::net::SocketAddr;
use std::time::Duration;
use toml::Spanned;

/// A login holds for at least this.
const SESSION_MIN: Duration = Duration::from_secs(60);
/// A login holds for at most this; API tokens are for what takes longer.
const SESSION_MAX: Duration = Duration::from_secs(30 * 86_400);
/// More than any machine answers.
const RATE_MAX: i64 = 10_000_000;

/// Whether users have to say who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Auth {
    /// As soon as others than this machine can reach the registry.
    #[default]
    Auto,
    /// Always.
    Required,
    /// Never.
    Off,
}

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Access {
    /// Whether users have to say who they are.
    pub(crate) auth: Auth,
    /// How long a login holds.
    pub(crate) session: Duration,
    /// Requests a second.
    pub(crate) rates: Rates,
    /// Whether changes are noted; `None`: where users say who they are.
    pub(crate) audit: Option<bool>,
    /// The certificate of HTTP and gRPC; `None`: in the clear.
    pub(crate) tls: Option<CertFiles>,
}

impl Default for Access {
    fn default() -> Access {
        Access { auth: Auth::Auto, session: SESSION_DEFAULT, rates: Rates::default(), audit: None, tls: None }
    }
}

impl Access {
    /// Whether users have to say who they are, and why.
    pub(crate) fn is_required(&self, http: SocketAddr, grpc: Option<SocketAddr>) -> (bool, &'static str) {
        let is_open = |address: SocketAddr| !address.ip().to_canonical().is_loopback();
        match self.auth {
            Auth::Required => (true, "[registry] auth = \"required\""),
            Auth::Off => (false, "[registry] auth = \"off\""),
            Auth::Auto if is_open(http) => (true, "[http] listen is not loopback"),
            Auth::Auto if grpc.is_some_and(is_open) => (true, "[http] grpc_listen is not loopback"),
            Auth::Auto => (false, "only this machine can reach it"),
        }
    }
}

/// As it stands in the file, from both sections.
#[derive(Default)]
pub(super) struct Raw<'a> {
    pub(super) auth: Option<&'a Spanned<String>>,
    pub(super) session: Option<&'a Spanned<String>>,
    pub(super) rate_limit: Option<&'a Spanned<i64>>,
    pub(super) rate_limit_user: Option<&'a Spanned<i64>>,
    pub(super) audit: Option<&'a Spanned<String>>,
    pub(super) cert: Option<&'a Spanned<String>>,
    pub(super) key: Option<&'a Spanned<String>>,
}

/// Checks it.
pub(super) fn check(doc: &Document, raw: &Raw<'_>) -> Result<Access, Error> {
    let mut access = Access::default();
    if let Some(auth) = raw.auth {
        let read = |text: &str| match text {
            "auto" => Ok(Auth::Auto),
            "required" => Ok(Auth::Required),
            "off" => Ok(Auth::Off),
            _ => Err("no such way".into()),
        };
        access.auth = doc.value(auth, read, "\"auto\", \"required\" or \"off\"")?;
    }
    if let Some(session) = raw.session {
        let within = |text: &str| unit::duration_within(text, SESSION_MIN, SESSION_MAX);
        access.session = doc.value(session, within, "\"5h\"")?;
    }
    let rate = |raw: Option<&Spanned<i64>>| match raw {
        None => Ok(Rate::OFF),
        Some(raw) => doc.number(raw, 0..=RATE_MAX).map(|n| Rate::per_second(u32::try_from(n).unwrap_or(u32::MAX))),
    };
    access.rates = Rates { per_address: rate(raw.rate_limit)?, per_principal: rate(raw.rate_limit_user)? };
    if let Some(audit) = raw.audit {
        let read = |text: &str| match text {
            "auto" => Ok(None),
            "on" => Ok(Some(true)),
            "off" => Ok(Some(false)),
            _ => Err("no such way".into()),
        };
        access.audit = doc.value(audit, read, "\"auto\", \"on\" or \"off\"")?;
    }
    let file = |raw: &Spanned<String>| {
        let open = |text: &str| {
            let path = doc.path_of(text);
            std::fs::File::open(&path).map(|_| path.clone()).map_err(|e| format!("{}: {e}", path.display()))
        };
        doc.value(raw, open, "the path of a readable PEM file")
    };
    access.tls = match (raw.cert, raw.key) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some(CertFiles { cert: file(cert)?, key: file(key)? }),
        (Some(one), None) | (None, Some(one)) => {
            return Err(doc.wrong(one.span(), "cert and key belong together", "both, or neither"));
        }
    };
    Ok(access)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Document, bridge};

    fn read(text: &str) -> Result<bridge::Bridge, String> {
        bridge::check(&Document::of("bridge.toml", text)).map_err(|e| e.to_string())
    }

    /// Whoever can be reached by others asks who is there, unless the file says otherwise: table.
    #[test]
    fn open_to_this_machine_alone() {
        let cases = [
            ("", false),
            ("[http]\nlisten = \"[::1]:8848\"", false),
            ("[http]\nlisten = \"0.0.0.0:8848\"", true),
            ("[http]\nlisten = \"[::]:8848\"", true),
            ("[http]\nlisten = \"10.0.0.1:8848\"", true),
            ("[http]\nlisten = \"127.0.0.1:8848\"\ngrpc_listen = \"0.0.0.0:9848\"", true),
            ("[registry]\nauth = \"required\"", true),
            ("[http]\nlisten = \"0.0.0.0:8848\"\n[registry]\nauth = \"off\"", false),
            ("[http]\nlisten = \"0.0.0.0:8848\"\n[registry]\nauth = \"auto\"", true),
        ];
        for (text, required) in cases {
            let bridge = read(text).unwrap();
            assert_eq!(bridge.access.is_required(bridge.http_listen, bridge.grpc_listen).0, required, "{text}");
        }
    }

    /// Values are taken, and what is wrong is named with what would be right: table.
    #[test]
    fn the_keys_are_read() {
        let text = "[registry]\nsession = \"30m\"\nrate_limit = 100\nrate_limit_user = 0\naudit = \"on\"";
        let access = read(text).unwrap().access;
        assert_eq!((access.session, access.audit), (Duration::from_secs(1_800), Some(true)));
        assert_eq!(access.rates, Rates { per_address: Rate::per_second(100), per_principal: Rate::OFF });
        let bad = [
            ("[registry]\nauth = \"yes\"", "\"auto\", \"required\" or \"off\""),
            ("[registry]\nsession = \"1s\"", "5h"),
            ("[registry]\nrate_limit = -1", "rate_limit"),
            ("[registry]\naudit = \"maybe\"", "\"on\""),
            ("[http]\ncert = \"/etc/hostname\"", "belong together"),
            ("[http]\ncert = \"/no/such\"\nkey = \"/no/such\"", "/no/such"),
        ];
        for (text, says) in bad {
            let refused = read(text).expect_err(text);
            assert!(refused.contains(says), "{text}: {refused}");
        }
    }
}
