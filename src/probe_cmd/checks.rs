//! What a target is asked: its URL and the settings that come with it (flags, or keys of a file) made into the engine's
//! check. Promise: what does not fit together is an error that names the setting.

use super::target::{self, Host, Kind, Mysql, Written};
use base64::Engine as _;
use ringspan_engine::check::{
    Check, Content, Expect, HttpCheck, HttpSettings, Method, MysqlAsk, MysqlCheck, MysqlColumn, MysqlError, MysqlTls,
    MysqlValue, Pattern, Pin, Redirects, Secret, Statuses, TlsCheck, TlsClient, TlsSettings, Trust, UdpCheck,
};
use ringspan_engine::io::Mode;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;

/// Settings beside the URL. Those of another kind than the target's are not looked at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// How a handshake ends.
    pub(crate) mode: Mode,
    /// Of http and https.
    pub(crate) http: Http,
    /// Of https and tls.
    pub(crate) tls: Tls,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { mode: Mode::HalfOpen, http: Http::default(), tls: Tls::default() }
    }
}

/// Of http and https.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Http {
    /// Default GET.
    pub(crate) method: Method,
    /// Beside Host, User-Agent, Accept and Connection.
    pub(crate) headers: Vec<(String, String)>,
    /// The Host header. Default: the URL's.
    pub(crate) host: Option<String>,
    /// Statuses that are good. Default 200 to 399.
    pub(crate) status: Statuses,
    /// What the body must be like.
    pub(crate) content: Option<Content>,
    /// What becomes of redirects.
    pub(crate) redirects: Redirects,
}

/// Of https and tls.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tls {
    /// Whose certificates are accepted.
    pub(crate) trust: Trust,
    /// Name asked for and verified. Default: the URL's host.
    pub(crate) sni: Option<String>,
    /// Fewer days left than this are a failure.
    pub(crate) cert_days_min: Option<i16>,
}

/// Whom to trust; `None`: too much was said.
pub(crate) fn trust(is_insecure: bool, ca: Option<PathBuf>, pin: Option<Pin>) -> Option<Trust> {
    match (is_insecure, ca, pin) {
        (false, None, None) => Some(Trust::System),
        (true, None, None) => Some(Trust::Insecure),
        (false, Some(path), None) => Some(Trust::CaFile(path)),
        (false, None, Some(pin)) => Some(Trust::Pinned(vec![pin])),
        _ => None,
    }
}

fn tls(written: &Written, settings: &Tls) -> TlsSettings {
    let host = match &written.host {
        Host::Name(name) => Some(name.clone()),
        Host::Address(_) => None,
    };
    let name = settings.sni.clone().or(host);
    TlsSettings { name, trust: settings.trust.clone(), cert_days_min: settings.cert_days_min, ..TlsSettings::default() }
}

/// So many redirects, or none.
pub(crate) fn redirects(max: u8, any_host: bool) -> Redirects {
    if max == 0 { Redirects::Judge } else { Redirects::Follow { max, any_host } }
}

/// What a target's check depends on beside its settings: targets of one key share a check. Holds passwords; is never
/// printed.
pub(crate) fn key(written: &Written) -> String {
    let host = match &written.host {
        // The Host header and the name in the TLS handshake are the target's own address where nothing names another.
        Host::Address(_) => "",
        Host::Name(name) => name,
    };
    match &written.kind {
        Kind::Tcp => String::new(),
        Kind::Icmp => "i".into(),
        Kind::Expect { send, expect } => format!("e{} {}", send.escape_ascii(), expect.escape_ascii()),
        Kind::Udp { send, expect, is_silence_good } => {
            format!("u{} {} {is_silence_good}", send.escape_ascii(), expect.escape_ascii())
        }
        Kind::Tls => format!("t{host}"),
        Kind::Http { is_tls, path, login } => {
            let login = login.as_ref().map(|(user, password)| format!("{user}\n{}", password.0));
            format!("h{is_tls} {host} {} {path} {login:?}", written.port)
        }
        Kind::Mysql(Mysql { user, password, query, expect, is_primary, takes_server_key, tls, database }) => {
            let rest = format!("{host} {tls:?} {database:?} {query:?} {expect:?} {is_primary} {takes_server_key}");
            format!("m{user:?} {:?} {rest}", password.0)
        }
    }
}

/// Makes the check.
pub(crate) fn check(written: &Written, settings: &Settings) -> Result<Check, String> {
    let pattern = |bytes: &[u8]| match bytes {
        [] => Ok(None),
        bytes => Pattern::bytes(bytes).map(Some).map_err(|e| format!("expect: {e}")),
    };
    Ok(match &written.kind {
        Kind::Tcp => Check::Tcp(settings.mode),
        Kind::Icmp => Check::Ping,
        Kind::Expect { send, expect } => {
            Check::Expect(Arc::new(Expect::new(send.clone(), pattern(expect)?).map_err(|e| e.to_string())?))
        }
        Kind::Udp { send, expect, is_silence_good } => {
            let check = UdpCheck::new(send.clone(), pattern(expect)?, *is_silence_good);
            Check::Udp(Arc::new(check.map_err(|e| e.to_string())?))
        }
        Kind::Tls => Check::Tls(Arc::new(TlsCheck::new(tls(written, &settings.tls)).map_err(|e| e.to_string())?)),
        Kind::Http { path, login, is_tls } => {
            let mut headers = settings.http.headers.clone();
            if let Some((user, password)) = login {
                let token = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{}", password.0));
                headers.push(("Authorization".into(), format!("Basic {token}")));
            }
            let check = HttpCheck::new(HttpSettings {
                method: settings.http.method,
                path: path.clone(),
                host: settings.http.host.clone().or_else(|| authority(written, *is_tls)),
                headers,
                status: settings.http.status.clone(),
                content: settings.http.content.clone(),
                redirects: settings.http.redirects,
                tls: is_tls.then(|| tls(written, &settings.tls)),
                ..HttpSettings::default()
            });
            Check::Http(Arc::new(check.map_err(|e| e.to_string())?))
        }
        Kind::Mysql(asked) => {
            let check = mysql(asked).map_err(|e| e.to_string())?;
            let client = || TlsClient::new(tls(written, &settings.tls)).map_err(|e| e.to_string());
            Check::Mysql(Arc::new(check.over(match asked.tls {
                target::MysqlTls::Off => MysqlTls::Off,
                target::MysqlTls::Prefer => MysqlTls::Preferred(client()?),
                target::MysqlTls::Require => MysqlTls::Required(client()?),
            })))
        }
    })
}

fn mysql(asked: &Mysql) -> Result<MysqlCheck, MysqlError> {
    let expect = |value: &String| MysqlValue { column: MysqlColumn::Number(NonZeroU16::MIN), value: value.clone() };
    let ask = match &asked.query {
        _ if asked.is_primary => MysqlAsk::IsPrimary,
        Some(sql) => MysqlAsk::Statement { sql: sql.clone(), expect: asked.expect.as_ref().map(expect) },
        None => MysqlAsk::Nothing,
    };
    let user = if asked.user.is_empty() { MysqlCheck::USER_DEFAULT } else { &asked.user };
    MysqlCheck::new(user, Secret::new(asked.password.0.clone()))?
        .in_database(asked.database.as_str())?
        .taking_server_key(asked.takes_server_key)
        .asking(ask)
}

/// The Host header of a URL whose host is a name; an address's own is made from where the probe goes.
fn authority(written: &Written, is_tls: bool) -> Option<String> {
    let Host::Name(name) = &written.host else { return None };
    Some(match (is_tls, written.port) {
        (false, 80) | (true, 443) => name.clone(),
        (_, port) => format!("{name}:{port}"),
    })
}
