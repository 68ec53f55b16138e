//! Ranges of ports: one entry of a file for several listeners or backends.
//! Pure. `"0.0.0.0:6000-6010"` is eleven addresses; a `*` in the service's name stands for the port, so that each port of a
//! listener leads to the backend of the same port; without one, all of them lead to one service.

use super::{Document, Error, unit};
use std::net::SocketAddr;
use toml::Spanned;

/// Ports of one range: each is a socket on every worker, or a backend of its own.
pub(super) const PORTS_MAX: usize = 1000;

/// The addresses of an address with one port or several.
pub(super) fn addresses(doc: &Document, raw: &Spanned<String>, example: &str) -> Result<Vec<SocketAddr>, Error> {
    doc.value(raw, read, example)
}

fn read(text: &str) -> Result<Vec<SocketAddr>, String> {
    let Some((start, last)) = text.rsplit_once('-').filter(|(start, _)| start.contains(':')) else {
        return unit::address(text).map(|address| vec![address]);
    };
    let first = unit::address(start)?;
    let last: u16 = last.parse().map_err(|_| "its last port is not a number from 1 to 65535".to_owned())?;
    if first.port() == 0 {
        return Err("its first port is 0, which is any free one: a range begins at 1".into());
    }
    if last < first.port() {
        return Err("its ports are not from a lower to a higher one".into());
    }
    if usize::from(last - first.port()) >= PORTS_MAX {
        return Err(format!("it has more than {PORTS_MAX} ports"));
    }
    Ok((first.port()..=last).map(|port| SocketAddr::new(first.ip(), port)).collect())
}

/// The service of one port: its name, with the port in place of a `*`.
pub(super) fn service(
    doc: &Document,
    raw: &Spanned<String>,
    addresses: &[SocketAddr],
    port: u16,
) -> Result<String, Error> {
    let read = |text: &str| {
        let name = match text.matches('*').count() {
            0 => text.to_owned(),
            1 if addresses.len() > 1 => text.replace('*', &port.to_string()),
            1 => return Err("a * stands for a port of several, as in 127.0.0.1:6000-6010".to_owned()),
            _ => return Err("one * is enough".to_owned()),
        };
        unit::service_name(&name).map(|()| name)
    };
    doc.value(raw, read, "\"web\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranges, and what is said of each that is none.
    #[test]
    fn ranges() {
        let ports = |text: &str| read(text).map(|all| all.iter().map(SocketAddr::port).collect::<Vec<u16>>());
        assert_eq!(ports("0.0.0.0:80"), Ok(vec![80]));
        assert_eq!(ports("127.0.0.1:6000-6002"), Ok(vec![6000, 6001, 6002]));
        assert_eq!(ports("[::1]:65535-65535"), Ok(vec![65535]));
        assert_eq!(ports("0.0.0.0:1-1000").map(|all| all.len()), Ok(1000));
        for (text, say) in [
            ("0.0.0.0:1-1001", "more than 1000"),
            ("0.0.0.0:0-5", "a range begins at 1"),
            ("0.0.0.0:9-8", "lower to a higher"),
            ("0.0.0.0:9-", "last port"),
            ("0.0.0.0:9-70000", "last port"),
            ("0.0.0.0-9", "IP:PORT"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(say), "{text}: {error}");
        }
    }
}
