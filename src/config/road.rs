//! `proxy` and `websocket` of `[link]` and `[[bridge]]` in agent.toml: the way to a bridge that is not straight.

use super::agent::Secret;
use super::{Document, Error, unit};
use crate::doors::road::trust::Trust;
use crate::doors::road::{Login, Proxy, ProxyKind, Road, WebSocket};
use percent_encoding::percent_decode_str;
use ringspan_tunnel::address::Address;
use std::ops::Range;
use toml::Spanned;

/// What is right.
const PROXY_FORM: &str = "\"http://user:${PASSWORD}@proxy.example.com:3128\" or \"socks5://proxy.example.com:1080\"";
const WEBSOCKET_FORM: &str = "\"wss://bridge.example.com/link\"";
/// Longest user name and password (RFC 1929).
const FIELD_BYTES_MAX: usize = 255;

/// The keys, as they stand in the file.
#[derive(Default)]
pub(super) struct RawRoad<'a> {
    pub(super) proxy: Option<&'a Spanned<String>>,
    pub(super) websocket: Option<&'a Spanned<String>>,
    pub(super) ca: Option<&'a Spanned<String>>,
    pub(super) pin: Option<&'a Spanned<String>>,
}

/// Checks them.
pub(super) fn check_road(doc: &Document, raw: &RawRoad<'_>) -> Result<Road, Error> {
    let proxy = raw.proxy.map(|raw| proxy(doc, raw)).transpose()?;
    let Some(url) = raw.websocket else {
        return match raw.ca.or(raw.pin) {
            None => Ok(Road { proxy, websocket: None }),
            Some(key) => Err(doc.wrong(key.span(), "there is no websocket to believe", "remove it, or add websocket")),
        };
    };
    let (is_tls, address) = doc.value(url, websocket_url, WEBSOCKET_FORM)?;
    if let (Some(key), false) = (raw.ca.or(raw.pin), is_tls) {
        return Err(doc.wrong(key.span(), "ws:// has no TLS", "wss:// in websocket"));
    }
    let trust = if is_tls { Some(trust(doc, raw)?) } else { None };
    let websocket = WebSocket::new(url.get_ref().clone(), address, trust);
    let at = raw.ca.unwrap_or(url);
    let websocket = websocket.map_err(|why| doc.wrong(at.span(), why, "websocket_ca = \"ca.pem\""))?;
    Ok(Road { proxy, websocket: Some(websocket) })
}

fn trust(doc: &Document, raw: &RawRoad<'_>) -> Result<Trust, Error> {
    match (raw.ca, raw.pin) {
        (Some(_), Some(pin)) => Err(doc.wrong(pin.span(), "websocket_ca is there, too", "one of the two")),
        (Some(ca), None) => {
            let read = |text: &str| {
                let path = doc.path_of(text);
                std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
            };
            Ok(Trust::Ca(doc.value(ca, read, "the path of a PEM file")?))
        }
        (None, Some(pin)) => {
            let read = |text: &str| text.parse().map_err(|_| "it is no pin".to_owned());
            Ok(Trust::Pin(doc.value(pin, read, "\"key:HEX\" or \"cert:HEX\", a SHA-256 of 64 digits")?))
        }
        (None, None) => Ok(Trust::System),
    }
}

/// Whether it is TLS, and whom to connect to.
fn websocket_url(text: &str) -> Result<(bool, Address), String> {
    let (is_tls, rest) = match (text.strip_prefix("wss://"), text.strip_prefix("ws://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => return Err("it begins neither with wss:// nor with ws://".into()),
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if !path.is_empty() && !path.starts_with('/') || path.contains(['#', ' ']) || path.contains(char::is_control) {
        return Err("its path is none".into());
    }
    if authority.contains('@') {
        return Err("a user name has no meaning here".into());
    }
    let has_port = authority.rsplit(']').next().is_some_and(|tail| tail.contains(':'));
    let port = if is_tls { ":443" } else { ":80" };
    let whole = if has_port { authority.to_owned() } else { format!("{authority}{port}") };
    unit::host_port(&whole).map(|address| (is_tls, address))
}

/// The value is never shown: there may be a password in it.
fn proxy(doc: &Document, raw: &Spanned<String>) -> Result<Proxy, Error> {
    let wrong = |problem: &str| doc.wrong_secret(raw.span(), problem, PROXY_FORM);
    let text = raw.get_ref().as_str();
    let (kind, rest) = match text.split_once("://") {
        Some(("http", rest)) => (ProxyKind::Http, rest),
        Some(("socks5" | "socks5h", rest)) => (ProxyKind::Socks5, rest),
        Some(_) | None => return Err(wrong("it begins neither with http:// nor with socks5://")),
    };
    let (login, host) = match rest.rsplit_once('@') {
        Some((login, host)) => (Some(login), host),
        None => (None, rest),
    };
    let host = host.strip_suffix('/').unwrap_or(host);
    let address = unit::host_port(host).map_err(|problem| wrong(&problem))?;
    let login = login.map(|login| {
        let (user, password) = login.split_once(':').ok_or_else(|| wrong("its user has no password"))?;
        let (user, password) = (field(doc, raw.span(), user)?, field(doc, raw.span(), password)?);
        if user.is_empty() || user.contains(':') {
            return Err(wrong("its user has no name, or a colon in it"));
        }
        if user.len().max(password.len()) > FIELD_BYTES_MAX || user.contains(char::is_control) {
            return Err(wrong("its user or password is longer than 255 bytes, or no text"));
        }
        Ok(Login { user, password: Secret(password) })
    });
    Ok(Proxy { kind, address, login: login.transpose()? })
}

/// Percent signs are carried out in what the file says, not in what the environment says.
fn field(doc: &Document, span: Range<usize>, text: &str) -> Result<String, Error> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| doc.wrong_secret(span.clone(), "its user or password is no text", PROXY_FORM))?;
    doc.secret(&Spanned::new(span, decoded.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Road, String> {
        #[derive(serde::Deserialize)]
        struct Raw {
            proxy: Option<Spanned<String>>,
            websocket: Option<Spanned<String>>,
            websocket_ca: Option<Spanned<String>>,
            websocket_pin: Option<Spanned<String>>,
        }
        let doc = Document::of("agent.toml", text);
        let raw: Raw = doc.parse().expect("TOML");
        let Raw { proxy, websocket, websocket_ca, websocket_pin } = &raw;
        let (ca, pin) = (websocket_ca.as_ref(), websocket_pin.as_ref());
        let raw = RawRoad { proxy: proxy.as_ref(), websocket: websocket.as_ref(), ca, pin };
        check_road(&doc, &raw).map_err(|error| error.to_string())
    }

    /// Every form of a proxy, with what is shown of it.
    #[test]
    fn proxies() {
        for (text, shown, password) in [
            ("http://p:3128", "http://p:3128", None),
            ("http://u:w@p:3128/", "http://u:***@p:3128", Some("w")),
            ("socks5://[::1]:1080", "socks5://[::1]:1080", None),
            ("socks5h://u:@10.0.0.1:1", "socks5://u:***@10.0.0.1:1", Some("")),
            ("http://u%40x:a%2Fb@c@p:1", "http://u@x:***@p:1", Some("a/b@c")),
        ] {
            let road = check(&format!("proxy = {text:?}")).expect(text);
            let proxy = road.proxy.expect("a proxy");
            assert_eq!(proxy.to_string(), shown);
            assert_eq!(proxy.login.map(|login| login.password.0).as_deref(), password, "{text}");
        }
    }

    /// What is wrong with one is said without showing it.
    #[test]
    fn wrong_proxies() {
        for (text, say) in [
            ("p:3128", "neither with http://"),
            ("https://u:hidden@p:3128", "neither with http://"),
            ("http://u:hidden@p", "no port"),
            ("http://hidden@p:1", "no password"),
            ("http://:hidden@p:1", "no name"),
            ("http://u:hidden@p:0", "from 1 to 65535"),
            ("http://u:${RINGSPAN_NOT_THERE}@p:1", "RINGSPAN_NOT_THERE"),
        ] {
            let error = check(&format!("proxy = {text:?}")).expect_err(text);
            assert!(error.contains(say) && error.contains("***") && !error.contains("hidden"), "{text}: {error}");
        }
    }

    /// Where a WebSocket goes, and what cannot be one.
    #[test]
    fn websockets() {
        let to = |text: &str| websocket_url(text).map(|(is_tls, to)| (is_tls, to.to_string()));
        assert_eq!(to("wss://b.example.com/link"), Ok((true, "b.example.com:443".into())));
        assert_eq!(to("ws://127.0.0.1"), Ok((false, "127.0.0.1:80".into())));
        assert_eq!(to("wss://[2001:db8::1]:8443/a?b=c"), Ok((true, "[2001:db8::1]:8443".into())));
        for text in ["https://b/", "wss://", "wss://u@b/", "wss://b:0/", "wss://b/#x", "wss://b?x"] {
            assert!(to(text).is_err(), "{text}");
        }
        let pin = format!("websocket_pin = \"key:{}\"", "0".repeat(64));
        for (text, say) in [
            (pin.clone(), "no websocket"),
            (format!("websocket = \"ws://b/\"\n{pin}"), "no TLS"),
            (format!("websocket = \"wss://b/\"\nwebsocket_ca = \"x\"\n{pin}"), "one of the two"),
            ("websocket = \"wss://b/\"\nwebsocket_ca = \"/nonexistent\"".into(), "/nonexistent"),
            ("websocket = \"wss://b/\"\nwebsocket_pin = \"x\"".into(), "no pin"),
        ] {
            let error = check(&text).expect_err(&text);
            assert!(error.contains(say), "{text}: {error}");
        }
        assert!(check(&format!("websocket = \"wss://b/\"\n{pin}")).is_ok());
    }
}
