//! Checkers as Nacos writes them (`healthChecker`), and what we add: `manner`, `intervalMs`, `timeoutMs`, `rise`, `fall`.
//! Promise: what is shown is what is done, but for secrets, which are shown as `***`.

use super::params::Params;
use crate::checker::{Checker, How, Kind, Manner, Pace};
use crate::model::Invalid;
use serde::Deserialize;
use serde_json::{Value, json};
use std::num::NonZeroU8;

const PARAM: &str = "healthChecker";

/// Nacos' object. Unknown fields are ignored there, and here: newer clients send more.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Said {
    r#type: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    headers: String,
    expected_response_code: Option<u16>,
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
}

/// Reads `healthChecker`, `checkPort` and `useInstancePort4Check`.
pub(super) fn read(params: &Params) -> Result<Checker, Invalid> {
    let own_port = params.flag("useInstancePort4Check")?.unwrap_or(true);
    let check_port: Option<u16> = params.parse("checkPort", "a port, 1 to 65535")?;
    let port = match (own_port, check_port) {
        (true, _) => None,
        (false, Some(port)) if port != 0 => Some(port),
        (false, _) => {
            return Err(Invalid::new("checkPort", "it should be 1 to 65535 when useInstancePort4Check is false."));
        }
    };
    let Some(text) = params.text(PARAM) else { return Ok(Checker::tcp(port)) };
    let said: Said =
        serde_json::from_str(text).map_err(|e| Invalid::new(PARAM, format!("it is no checker in JSON: {e}.")))?;
    let manner = manner(&said)?;
    let kind = match said.r#type.to_ascii_uppercase().as_str() {
        "TCP" => Kind::Tcp,
        "NONE" => Kind::None,
        "HTTP" => Kind::Http {
            path: if said.path.starts_with('/') { said.path } else { format!("/{}", said.path) },
            headers: said.headers,
            expected: said.expected_response_code.unwrap_or(200),
        },
        "MYSQL" => Kind::Mysql { user: said.user, password: said.pwd, cmd: said.cmd },
        _ => return Err(Invalid::new(PARAM, "its type should be TCP, HTTP, MYSQL or NONE.")),
    };
    let port = if kind == Kind::None { None } else { port };
    Checker::new(kind, manner, port)
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

/// The object of a checker.
pub(super) fn show(how: &How) -> Value {
    let masked = |secret: &str| if secret.is_empty() { "" } else { "***" };
    let mut shown = match &how.kind {
        Kind::Tcp => json!({ "type": "TCP" }),
        Kind::None => json!({ "type": "NONE" }),
        Kind::Http { path, headers, expected } => {
            json!({ "type": "HTTP", "path": path, "headers": headers, "expectedResponseCode": expected })
        }
        Kind::Mysql { user, password, cmd } => {
            json!({ "type": "MYSQL", "user": user, "pwd": masked(password), "cmd": cmd })
        }
    };
    match how.manner {
        None => {}
        Some(Manner::Nacos) => shown["manner"] = "nacos".into(),
        Some(Manner::Fixed(Pace { interval_ms, timeout_ms, rise, fall })) => {
            let ours = json!({ "intervalMs": interval_ms, "timeoutMs": timeout_ms, "rise": rise, "fall": fall });
            if let (Value::Object(shown), Value::Object(ours)) = (&mut shown, ours) {
                shown.extend(ours);
            }
        }
    }
    shown
}

/// Every kind with its defaults, as Nacos lists them.
pub(super) fn kinds() -> Value {
    json!({
        "TCP": { "type": "TCP" },
        "HTTP": { "type": "HTTP", "path": "", "headers": "", "expectedResponseCode": 200 },
        "MYSQL": { "type": "MYSQL", "user": "", "pwd": "", "cmd": "" },
        "NONE": { "type": "NONE" },
    })
}
