//! Changes to headers and passwords of a route: what is read of `request_headers`, `response_headers` and `basic_auth`.

use super::super::agent::Secret;
use super::{Document, Error, unit};
use serde::Deserialize;
use std::fmt;
use toml::Spanned;

/// Headers that say how a message is framed or where it goes: set by us alone, or the two sides may read two messages
/// where one was sent (RFC 9112 §11.2).
const OURS: [&str; 10] = [
    "connection",
    "content-length",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Longest name of a header: one that nobody has and every server takes.
const NAME_BYTES_MAX: usize = 1024;

/// Changes to headers, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edits {
    /// Names.
    pub(crate) remove: Vec<String>,
    /// In place of those that are there.
    pub(crate) set: Vec<(String, Secret)>,
    /// Besides them.
    pub(crate) add: Vec<(String, Secret)>,
}

/// Who may pass (RFC 7617).
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    /// Without a colon.
    pub(crate) user: String,
    /// As it is sent.
    pub(crate) password: Secret,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({}, ***)", self.user)
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawEdits {
    pub(super) remove: Vec<Spanned<String>>,
    pub(super) set: Vec<Spanned<String>>,
    pub(super) add: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLogin {
    pub(super) user: Spanned<String>,
    pub(super) password: Option<Spanned<String>>,
    pub(super) password_file: Option<Spanned<String>>,
}

/// Checks changes to headers.
pub(super) fn check_edits(doc: &Document, raw: &RawEdits) -> Result<Edits, Error> {
    let pair = |raw: &Spanned<String>| -> Result<(String, Secret), Error> {
        let text = doc.secret(raw)?;
        let (name, value) = unit::header(&text)
            .and_then(|(name, value)| Ok((header_name(&name)?, value)))
            .map_err(|problem| doc.wrong_secret(raw.span(), problem, "\"X-Name: value\""))?;
        not_ours(&name).map_err(|(problem, remedy)| doc.wrong_secret(raw.span(), problem, remedy))?;
        Ok((name, Secret(value)))
    };
    let name = |raw: &Spanned<String>| {
        let name = doc.value(raw, header_name, "the name of a header, as in \"X-Name\"")?;
        not_ours(&name).map_err(|(problem, remedy)| doc.wrong(raw.span(), problem, remedy))?;
        Ok(name)
    };
    Ok(Edits {
        remove: raw.remove.iter().map(name).collect::<Result<_, Error>>()?,
        set: raw.set.iter().map(pair).collect::<Result<_, _>>()?,
        add: raw.add.iter().map(pair).collect::<Result<_, _>>()?,
    })
}

/// Reads a header's name, which stands alone.
pub(super) fn header_name(text: &str) -> Result<String, String> {
    if text.contains(':') {
        return Err("a name alone stands here, without a colon and a value".into());
    }
    unit::header(&format!("{text}: x"))?;
    match text.len() {
        ..=NAME_BYTES_MAX => Ok(text.to_owned()),
        _ => Err(format!("its name has more than {NAME_BYTES_MAX} bytes")),
    }
}

/// Whether the name is one that is not set by us alone.
pub(super) fn not_ours(name: &str) -> Result<(), (String, &'static str)> {
    let lower = name.to_ascii_lowercase();
    if lower == "host" {
        return Err(("the Host header has a key of its own".into(), "rewrite_host = \"app.internal\""));
    }
    if OURS.contains(&lower.as_str()) {
        return Err((format!("{name} belongs to the connection, not to the message"), "another header"));
    }
    Ok(())
}

/// Checks who may pass.
pub(super) fn check_login(doc: &Document, raw: &RawLogin) -> Result<Login, Error> {
    let user = doc.value(
        &raw.user,
        |u| match u {
            "" => Err("a user has a name".to_owned()),
            u if u.contains(|c: char| c == ':' || c.is_control()) => Err("a user's name has no colon".to_owned()),
            u => Ok(u.to_owned()),
        },
        "\"alice\"",
    )?;
    let password = match (&raw.password, &raw.password_file) {
        (Some(password), None) => {
            let text = doc.secret(password)?;
            if text.is_empty() {
                return Err(doc.wrong_secret(password.span(), "it is empty", "\"${NAME}\", or password_file"));
            }
            text
        }
        (None, Some(file)) => {
            let read = |text: &str| {
                let path = doc.path_of(text);
                let content = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                match content.lines().next().unwrap_or_default() {
                    "" => Err(format!("{}: its first line is empty", path.display())),
                    line => Ok(line.to_owned()),
                }
            };
            doc.value(file, read, "the path of a file whose first line is the password")?
        }
        _ => {
            let remedy = "password = \"${NAME}\", or password_file = \"path\": one of them";
            return Err(doc.wrong(raw.user.span(), "this user needs one password", remedy));
        }
    };
    Ok(Login { user, password: Secret(password) })
}
