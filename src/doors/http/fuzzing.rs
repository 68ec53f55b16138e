//! A door for scripts/fuzz: what a visitor's head means to the listener itself, beyond what hyper makes of it.

use super::rules::{remove_hop_by_hop, upgrade_of};
use super::table::{host_name, is_under, plain_path, without_prefix};
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE};

/// Reads a head. Panics where a promise is broken: a route is found by a path that leads up, a header for one hop goes
/// on, a host has two spellings.
pub(crate) fn request(data: &[u8]) {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    if request.parse(data).is_err() {
        return;
    }
    if let Some(path) = request.path.and_then(|path| path.split('?').next()).filter(|path| path.starts_with('/')) {
        if let Some(plain) = plain_path(path) {
            assert!(plain.starts_with('/') && !plain.contains("//") && !plain.contains('\0'), "{path:?}: {plain:?}");
            assert!(!plain.split('/').any(|segment| segment == "." || segment == ".."), "{path:?}: {plain:?}");
            assert!(is_under(&plain, "/"));
        }
        if let Some(rest) = without_prefix(path, "/api") {
            assert!(rest.starts_with('/') && !rest.starts_with("//"), "{path:?}: {rest:?}");
        }
    }
    let mut map = HeaderMap::new();
    for header in request.headers.iter() {
        let pair = (HeaderName::from_bytes(header.name.as_bytes()), HeaderValue::from_bytes(header.value));
        if let (Ok(name), Ok(value)) = pair {
            map.append(name, value);
        }
    }
    if let Some(host) = map.get(HOST).and_then(|host| host.to_str().ok()) {
        assert!(!host_name(host).contains(char::is_uppercase) || !host.is_ascii(), "{host:?}");
    }
    let upgrade = upgrade_of(&map);
    assert!(upgrade.is_none() || map.contains_key(UPGRADE));
    remove_hop_by_hop(&mut map);
    assert!(!map.contains_key(UPGRADE) && !map.contains_key(TRANSFER_ENCODING));
    assert!(map.get(CONNECTION).is_none_or(|value| value == "te"));
}
