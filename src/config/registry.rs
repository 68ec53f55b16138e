//! `[registry]` of a bridge.toml: where the registry's records are kept.

use super::{Document, Error, unit};
use ringspan_registry::cluster::{EtcdOptions, Options};
use serde::Deserialize;
use std::net::SocketAddr;
use toml::Spanned;

/// What all keys begin with, unless the file says otherwise.
const PREFIX_DEFAULT: &str = "/ringspan/";
/// Longest prefix: it is part of each key.
const PREFIX_BYTES_MAX: usize = 64;

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRegistry {
    store: Option<Spanned<String>>,
    endpoints: Option<Spanned<Vec<Spanned<String>>>>,
    prefix: Option<Spanned<String>>,
    member: Option<Spanned<String>>,
    address: Option<Spanned<String>>,
    user: Option<Spanned<String>>,
    password: Option<Spanned<String>>,
    ca: Option<Spanned<String>>,
    cert: Option<Spanned<String>>,
    key: Option<Spanned<String>>,
    /// See `webhook`.
    #[serde(default)]
    pub(super) webhook: Vec<Spanned<super::webhook::RawWebhook>>,
    pub(super) auth: Option<Spanned<String>>,
    pub(super) session: Option<Spanned<String>>,
    pub(super) rate_limit: Option<Spanned<i64>>,
    pub(super) rate_limit_user: Option<Spanned<i64>>,
    pub(super) audit: Option<Spanned<String>>,
}

/// Checks it; `None`: the embedded store.
pub(super) fn check_registry(
    doc: &Document,
    raw: Option<&Spanned<RawRegistry>>,
    http_listen: SocketAddr,
) -> Result<Option<Options>, Error> {
    let Some(spanned) = raw else { return Ok(None) };
    let raw = spanned.get_ref();
    let is_etcd = match &raw.store {
        None => false,
        Some(store) => doc.value(
            store,
            |text| match text {
                "embedded" => Ok(false),
                "etcd" => Ok(true),
                _ => Err("no such store".into()),
            },
            "\"embedded\" or \"etcd\"",
        )?,
    };
    if !is_etcd {
        let others = [&raw.prefix, &raw.member, &raw.address, &raw.user, &raw.password, &raw.ca, &raw.cert, &raw.key];
        let other = others.into_iter().flatten().map(Spanned::span).next();
        return match other.or(raw.endpoints.as_ref().map(Spanned::span)) {
            Some(at) => Err(doc.wrong_as(
                at,
                "***".into(),
                "the embedded store has no such key".into(),
                "store = \"etcd\"".into(),
            )),
            None => Ok(None),
        };
    }
    let Some(endpoints) = &raw.endpoints else { return Err(doc.missing(spanned.span(), "endpoints")) };
    let Some(member) = &raw.member else { return Err(doc.missing(spanned.span(), "member")) };
    let read_url = |raw: &Spanned<String>| doc.value(raw, url, "\"http://127.0.0.1:2379\"");
    let urls = endpoints.get_ref().iter().map(read_url).collect::<Result<Vec<_>, _>>()?;
    if urls.is_empty() {
        return Err(doc.wrong(endpoints.span(), "there are none", "[\"http://127.0.0.1:2379\"]"));
    }
    let login = match (&raw.user, &raw.password) {
        (None, None) => None,
        (Some(user), Some(password)) => Some((doc.secret(user)?, doc.secret(password)?)),
        _ => return Err(doc.wrong_table(spanned.span(), "user and password belong together", "both, or neither")),
    };
    let file = |raw: &Option<Spanned<String>>| match raw {
        None => Ok(None),
        Some(raw) => {
            let read = |text: &str| {
                let path = doc.path_of(text);
                std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))
            };
            doc.value(raw, read, "the path of a readable PEM file").map(Some)
        }
    };
    let identity = match (file(&raw.cert)?, file(&raw.key)?) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some((cert, key)),
        _ => return Err(doc.wrong_table(spanned.span(), "cert and key belong together", "both, or neither")),
    };
    let member = doc.value(member, |n| unit::service_name(n).map(|()| n.to_owned()), "\"n1\"")?;
    let prefix = match &raw.prefix {
        Some(prefix) => doc.value(prefix, read_prefix, "\"/ringspan/\"")?,
        None => PREFIX_DEFAULT.into(),
    };
    let address = doc.text(raw.address.as_ref(), "\"10.0.0.1:8848\"")?.unwrap_or_else(|| http_listen.to_string());
    let etcd = EtcdOptions { endpoints: urls, login, ca: file(&raw.ca)?, identity };
    Ok(Some(Options { etcd, prefix, member, address }))
}

fn url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.contains('@') => Ok(text.to_owned()),
        _ => Err("it is no URL of an etcd endpoint".into()),
    }
}

fn read_prefix(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > PREFIX_BYTES_MAX || !text.ends_with('/') || text.contains('\0') {
        return Err(format!("it should be 1 to {PREFIX_BYTES_MAX} bytes and end in a slash"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::config::{Document, bridge};

    fn read(section: &str) -> Result<Option<ringspan_registry::cluster::Options>, String> {
        let text = format!("[registry]\n{section}");
        bridge::check(&Document::of("bridge.toml", &text)).map(|b| b.cluster).map_err(|e| e.to_string())
    }

    /// What belongs together is asked for together, and what is wrong is named with what would be right: table.
    #[test]
    fn the_section_is_read() {
        assert!(read("").unwrap().is_none());
        assert!(read("store = \"embedded\"").unwrap().is_none());
        let good = "store = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]\nmember = \"n1\"\n";
        let options = read(good).unwrap().expect("a cluster");
        assert_eq!((&*options.prefix, &*options.member, &*options.address), ("/ringspan/", "n1", "127.0.0.1:8848"));
        let bad = [
            ("store = \"redis\"".to_owned(), "embedded"),
            ("member = \"n1\"".into(), "store = \"etcd\""),
            ("store = \"etcd\"\nmember = \"n1\"".into(), "endpoints"),
            ("store = \"etcd\"\nendpoints = [\"http://a:1\"]".into(), "member"),
            (good.replace("http://127.0.0.1:2379", "127.0.0.1:2379"), "http://127.0.0.1:2379"),
            (good.replace("[\"http://127.0.0.1:2379\"]", "[]"), "there are none"),
            (format!("{good}prefix = \"x\""), "slash"),
            (format!("{good}user = \"root\""), "belong together"),
            (format!("{good}cert = \"c.pem\""), "c.pem"),
        ];
        for (section, says) in bad {
            let refused = read(&section).expect_err(&section);
            assert!(refused.contains(says) && refused.contains("registry"), "{section}: {refused}");
        }
    }
}
