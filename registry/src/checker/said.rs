//! A checker as Nacos writes it (`healthChecker`), and what we add to it: `manner`, `intervalMs`, `timeoutMs`, `rise`,
//! `fall`; and, where it comes with an instance's registration, `checkPort`.

use super::{Checker, Codes, Kind, Manner, Pace};
use crate::model::{Invalid, Metadata};
use serde::Deserialize;
use serde_json::json;
use std::num::NonZeroU8;

const PARAM: &str = "healthChecker";
/// Metadata key of a registration: the checker of the instance's cluster, set in the same step. It is taken out of the
/// metadata.
pub const CHECKER_KEY: &str = "preserved.checker";

/// Nacos' object. Unknown fields are ignored there, and here: newer clients send more.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Said {
    r#type: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    headers: String,
    expected_response_code: Option<Codes>,
    #[serde(default)]
    user: String,
    #[serde(default)]
    pwd: String,
    #[serde(default)]
    cmd: String,
    manner: Option<String>,
    interval_ms: Option<u32>,
    timeout_ms: Option<u32>,
    rise: Option<NonZeroU8>,
    fall: Option<NonZeroU8>,
    check_port: Option<u16>,
}

/// Takes the checker out of a registration's metadata, if there is one.
///
/// # Errors
/// [`Invalid`] if it is none.
pub fn take(metadata: &mut Metadata) -> Result<Option<Checker>, Invalid> {
    metadata.remove(CHECKER_KEY).map(|text| read(&text, None)).transpose()
}

/// Reads one. `port` is what the object's own `checkPort` goes before.
///
/// # Errors
/// [`Invalid`] if it is no JSON, or says what cannot be.
pub fn read(text: &str, port: Option<u16>) -> Result<Checker, Invalid> {
    let said: Said =
        serde_json::from_str(text).map_err(|e| Invalid::new(PARAM, format!("it is no checker in JSON: {e}.")))?;
    let manner = manner(&said)?;
    let port = said.check_port.or(port);
    let kind = match said.r#type.to_ascii_uppercase().as_str() {
        "TCP" => Kind::Tcp,
        "NONE" => Kind::None,
        "HTTP" => Kind::Http {
            path: if said.path.starts_with('/') { said.path } else { format!("/{}", said.path) },
            headers: said.headers,
            expected: said.expected_response_code.unwrap_or_default(),
        },
        "MYSQL" => Kind::Mysql { user: said.user, password: said.pwd, cmd: said.cmd },
        _ => return Err(Invalid::new(PARAM, "its type should be TCP, HTTP, MYSQL or NONE.")),
    };
    let port = if kind == Kind::None { None } else { port };
    Checker::new(kind, manner, port)
}

/// Writes what [`read`] reads, its secrets and its port among it.
pub fn write(checker: &Checker) -> String {
    let mut said = match &checker.how.kind {
        Kind::Tcp => json!({ "type": "TCP" }),
        Kind::None => json!({ "type": "NONE" }),
        Kind::Http { path, headers, expected } => {
            json!({ "type": "HTTP", "path": path, "headers": headers, "expectedResponseCode": expected })
        }
        Kind::Mysql { user, password, cmd } => json!({ "type": "MYSQL", "user": user, "pwd": password, "cmd": cmd }),
    };
    match checker.how.manner {
        None => {}
        Some(Manner::Nacos) => said["manner"] = "nacos".into(),
        Some(Manner::Fixed(pace)) => {
            said["manner"] = "fixed".into();
            said["intervalMs"] = pace.interval_ms.into();
            said["timeoutMs"] = pace.timeout_ms.into();
            said["rise"] = pace.rise.get().into();
            said["fall"] = pace.fall.get().into();
        }
    }
    if let Some(port) = checker.port {
        said["checkPort"] = port.into();
    }
    said.to_string()
}

fn manner(said: &Said) -> Result<Option<Manner>, Invalid> {
    let paced =
        [said.interval_ms, said.timeout_ms].iter().any(Option::is_some) || said.rise.is_some() || said.fall.is_some();
    match said.manner.as_deref() {
        Some("nacos") if paced => {
            Err(Invalid::new(PARAM, "manner nacos has its own interval, timeout, rise and fall."))
        }
        Some("nacos") => Ok(Some(Manner::Nacos)),
        None | Some("fixed") if paced => {
            let count = |n: Option<NonZeroU8>, default| n.unwrap_or(NonZeroU8::new(default).expect("not 0"));
            Ok(Some(Manner::Fixed(Pace {
                interval_ms: said.interval_ms.unwrap_or(5_000),
                timeout_ms: said.timeout_ms.unwrap_or(1_000),
                rise: count(said.rise, 2),
                fall: count(said.fall, 3),
            })))
        }
        None | Some("fixed") => Ok(None),
        Some(_) => Err(Invalid::new(PARAM, "manner should be nacos or fixed.")),
    }
}
