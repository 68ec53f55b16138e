//! Checkers as Nacos writes them (`healthChecker`), and what we add: `manner`, `intervalMs`, `timeoutMs`, `rise`, `fall`.
//! Promise: what is shown is what is done, but for secrets, which are shown as `***`.

use super::params::Params;
use crate::checker::{self, Checker, How, Kind, Manner, Pace};
use crate::model::Invalid;
use serde_json::{Value, json};

const PARAM: &str = "healthChecker";

/// Reads `healthChecker`, `checkPort` and `useInstancePort4Check`.
pub(super) fn read(params: &Params) -> Result<Checker, Invalid> {
    let port = port(params)?;
    match params.text(PARAM) {
        Some(text) => checker::read(text, port),
        None => Ok(Checker::tcp(port)),
    }
}

/// The same as one object, as it comes with a registration.
pub(super) fn read_inline(params: &Params) -> Result<String, Invalid> {
    let port = port(params)?;
    let text = params.text(PARAM).unwrap_or(r#"{"type":"TCP"}"#);
    checker::read(text, port)?;
    let mut said: Value = serde_json::from_str(text).map_err(|e| Invalid::new(PARAM, format!("{e}.")))?;
    if let (Some(port), Some(said)) = (port, said.as_object_mut()) {
        said.entry("checkPort").or_insert(port.into());
    }
    Ok(said.to_string())
}

fn port(params: &Params) -> Result<Option<u16>, Invalid> {
    let own_port = params.flag("useInstancePort4Check")?.unwrap_or(true);
    let check_port: Option<u16> = params.parse("checkPort", "a port, 1 to 65535")?;
    match (own_port, check_port) {
        (true, _) => Ok(None),
        (false, Some(port)) if port != 0 => Ok(Some(port)),
        (false, _) => Err(Invalid::new("checkPort", "it should be 1 to 65535 when useInstancePort4Check is false.")),
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
