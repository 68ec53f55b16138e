//! Targets as people write them: "host:port", "tcp://host:port", one a line in a file; and the addresses they mean.
//! Promise: an error names the file and line (or the argument) and what would be right. Names are resolved once, in
//! parallel, before the first probe: a slow name server delays the start and never a probe.

use std::fmt;
use std::io::{BufRead, Read};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Most targets one run takes: token indices are 24 bits per worker, and a list longer than this is a mistake.
pub(super) const TARGETS_MAX: usize = 4_000_000;
/// Longest line: a host name has at most 253 bytes (RFC 1035 §2.3.4).
const LINE_BYTES_MAX: usize = 1024;
/// Names looked up at a time: a name server's usual limit per client is far higher, and a list of dead names at 5 s
/// each still gets through.
const LOOKUPS_AT_ONCE: usize = 32;
/// Errors shown of one run; the rest is counted.
const ERRORS_SHOWN: usize = 10;

/// Where a target was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// On the command line.
    Argument,
    /// In a file, at a line counted from 1.
    Line(Arc<str>, usize),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Argument => Ok(()),
            Origin::Line(file, line) => write!(f, "{file}:{line}: "),
        }
    }
}

/// A target read but not yet resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// As its author wrote it, without the scheme.
    pub(super) text: String,
    host: Host,
    port: u16,
    origin: Origin,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    Name(String),
}

/// A target ready to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    /// As its author wrote it, without the scheme.
    pub(super) text: String,
    /// Where to knock.
    pub(super) address: SocketAddr,
}

/// All targets of the command line and of the file, in that order.
pub(super) fn collect(arguments: &[String], file: Option<&Path>) -> Result<Vec<Resolved>, String> {
    let mut written = Vec::new();
    let mut errors = Errors::default();
    for text in arguments {
        errors.keep(parse(text, Origin::Argument), &mut written);
    }
    match file {
        Some(path) if path.as_os_str() == "-" => read_lines(std::io::stdin().lock(), "-", &mut written, &mut errors)?,
        Some(path) => {
            let name = path.display().to_string();
            let file = std::fs::File::open(path)
                .map_err(|e| format!("--file {name}: {e}. Try: a readable file of targets, or - for stdin"))?;
            read_lines(std::io::BufReader::new(file), &name, &mut written, &mut errors)?;
        }
        None => {}
    }
    errors.into_result()?;
    if written.is_empty() {
        return Err("no targets. Try: ringspan probe 127.0.0.1:80, or --file targets.txt".into());
    }
    resolve(written)
}

fn read_lines(
    mut from: impl BufRead,
    name: &str,
    written: &mut Vec<Written>,
    errors: &mut Errors,
) -> Result<(), String> {
    let name: Arc<str> = name.into();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let n = from
            .by_ref()
            .take(LINE_BYTES_MAX as u64 + 1)
            .read_until(b'\n', &mut line)
            .map_err(|e| format!("--file {name}: {e}"))?;
        let origin = Origin::Line(name.clone(), number);
        if n == 0 {
            return Ok(());
        }
        if n > LINE_BYTES_MAX {
            return Err(format!("{origin}the line has more than {LINE_BYTES_MAX} bytes. Try: one target a line"));
        }
        if written.len() >= TARGETS_MAX {
            return Err(format!("{origin}more than {TARGETS_MAX} targets. Try: several runs"));
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.split('#').next().unwrap_or_default().trim();
        if !text.is_empty() {
            errors.keep(parse(text, origin), written);
        }
    }
    Ok(())
}

/// Reads one target.
fn parse(text: &str, origin: Origin) -> Result<Written, String> {
    let wrong = |problem: &str, remedy: &str| Err(format!("{origin}target {text:?}: {problem}. Try: {remedy}"));
    let rest = match text.split_once("://") {
        None => text,
        Some(("tcp", rest)) => rest,
        Some((scheme, rest)) => {
            return wrong(&format!("no such kind of probe as {scheme:?}"), &format!("tcp://{rest}"));
        }
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '@', ' ', '\t']) {
        return wrong("it is more than a host and a port", "tcp://host:port");
    }
    let Some((host, port)) = rest.rsplit_once(':') else {
        return wrong("it has no port", &format!("{rest}:80"));
    };
    let Some(port) = port.parse::<u16>().ok().filter(|p| *p > 0) else {
        return match rest.parse::<std::net::Ipv6Addr>() {
            Ok(_) => wrong("it has no port", &format!("[{rest}]:80")),
            Err(_) => wrong("its port is not a number from 1 to 65535", &format!("{host}:80")),
        };
    };
    let host = if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        match inner.parse::<std::net::Ipv6Addr>() {
            Ok(ip) => Host::Address(ip.into()),
            Err(_) => return wrong("what stands in brackets is no IPv6 address", "[::1]:80"),
        }
    } else if host.contains(':') {
        return wrong("an IPv6 address stands in brackets", &format!("[{host}]:{port}"));
    } else if host.is_empty() {
        return wrong("it has no host", &format!("127.0.0.1:{port}"));
    } else {
        match host.parse::<IpAddr>() {
            Ok(ip) => Host::Address(ip),
            Err(_) => Host::Name(host.to_owned()),
        }
    };
    Ok(Written { text: rest.to_owned(), host, port, origin })
}

/// Gives every target an address.
fn resolve(written: Vec<Written>) -> Result<Vec<Resolved>, String> {
    let names: Vec<&Written> = written.iter().filter(|w| matches!(w.host, Host::Name(_))).collect();
    let found = look_up(&names);
    let mut found = found.into_iter();
    let mut errors = Errors::default();
    let mut resolved = Vec::with_capacity(written.len());
    for target in &written {
        let address = match &target.host {
            Host::Address(ip) => Ok(SocketAddr::new(*ip, target.port)),
            Host::Name(name) => found
                .next()
                .expect("one answer for each name")
                .map_err(|e| format!("{}target {:?}: the name {name} has no address: {e}", target.origin, target.text)),
        };
        errors.keep(address.map(|address| Resolved { text: target.text.clone(), address }), &mut resolved);
    }
    errors.into_result()?;
    Ok(resolved)
}

/// The first address of each name, in order.
fn look_up(names: &[&Written]) -> Vec<Result<SocketAddr, String>> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(vec![Err(String::new()); names.len()]);
    std::thread::scope(|scope| {
        for _ in 0..names.len().min(LOOKUPS_AT_ONCE) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(Written { host: Host::Name(name), port, .. }) = names.get(index) else { return };
                    let answer = match (name.as_str(), *port).to_socket_addrs() {
                        Ok(mut addresses) => addresses.next().ok_or_else(|| "the answer was empty".to_owned()),
                        Err(e) => Err(e.to_string()),
                    };
                    found.lock().expect("no lookup panics while it holds the list")[index] = answer;
                }
            });
        }
    });
    found.into_inner().expect("no lookup panics while it holds the list")
}

/// Collects what is wrong, so that a file is mended in one go.
#[derive(Default)]
struct Errors {
    shown: Vec<String>,
    more: usize,
}

impl Errors {
    fn keep<T>(&mut self, result: Result<T, String>, good: &mut Vec<T>) {
        match result {
            Ok(value) => good.push(value),
            Err(e) if self.shown.len() < ERRORS_SHOWN => self.shown.push(e),
            Err(_) => self.more += 1,
        }
    }

    fn into_result(mut self) -> Result<(), String> {
        if self.shown.is_empty() {
            return Ok(());
        }
        if self.more > 0 {
            self.shown.push(format!("... and {} more", self.more));
        }
        Err(self.shown.join("\nringspan: "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<SocketAddr, String> {
        collect(&[text.to_owned()], None).map(|r| r[0].address)
    }

    /// Every form a target may have, and the address it means.
    #[test]
    fn forms() {
        for (text, address) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("tcp://127.0.0.1:80", "127.0.0.1:80"),
            ("tcp://127.0.0.1:80/", "127.0.0.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("tcp://[fe80::1]:65535", "[fe80::1]:65535"),
        ] {
            assert_eq!(one(text), Ok(address.parse().expect(address)), "{text}");
        }
        let local = one("localhost:7").expect("localhost is in /etc/hosts");
        assert!(local.ip().is_loopback() && local.port() == 7);
    }

    /// What is no target, and what is said of it.
    #[test]
    fn mistakes() {
        for (text, say) in [
            ("localhost", "target \"localhost\": it has no port. Try: localhost:80"),
            ("::1", "target \"::1\": an IPv6 address stands in brackets. Try: [:]:1"),
            ("fe80::a", "target \"fe80::a\": it has no port. Try: [fe80::a]:80"),
            ("[::1]", "target \"[::1]\": its port is not a number from 1 to 65535. Try: [::80"),
            ("a:0", "target \"a:0\": its port is not a number from 1 to 65535. Try: a:80"),
            (":80", "target \":80\": it has no host. Try: 127.0.0.1:80"),
            ("[x]:80", "target \"[x]:80\": what stands in brackets is no IPv6 address. Try: [::1]:80"),
            ("http://a:80", "target \"http://a:80\": no such kind of probe as \"http\". Try: tcp://a:80"),
            ("a:80/x", "target \"a:80/x\": it is more than a host and a port. Try: tcp://host:port"),
        ] {
            assert_eq!(one(text), Err(say.to_owned()), "{text}");
        }
        assert!(
            one("no-such-name.invalid:1")
                .expect_err("RFC 2606")
                .contains("the name no-such-name.invalid has no address")
        );
    }

    /// A file: comments, empty lines, and every mistake with its line.
    #[test]
    fn files() {
        let mut written = Vec::new();
        let mut errors = Errors::default();
        let text = "# mine\n\n127.0.0.1:1 # first\n  [::1]:2\r\nbad\n127.0.0.1:3\nworse\n";
        read_lines(text.as_bytes(), "t.txt", &mut written, &mut errors).expect("it reads");
        assert_eq!(
            written.iter().map(|w| w.text.as_str()).collect::<Vec<_>>(),
            ["127.0.0.1:1", "[::1]:2", "127.0.0.1:3"]
        );
        assert_eq!(
            errors.into_result().expect_err("two are bad"),
            "t.txt:5: target \"bad\": it has no port. Try: bad:80\nringspan: t.txt:7: target \"worse\": it has no port. Try: worse:80"
        );
        let long = "x".repeat(LINE_BYTES_MAX + 1);
        let error =
            read_lines(long.as_bytes(), "t.txt", &mut Vec::new(), &mut Errors::default()).expect_err("too long");
        assert_eq!(error, "t.txt:1: the line has more than 1024 bytes. Try: one target a line");
    }

    /// A name server's answers go to the targets that asked, in order.
    #[test]
    fn answers_keep_their_order() {
        let arguments: Vec<String> = (1..200).map(|port| format!("localhost:{port}")).collect();
        let ports: Vec<u16> =
            collect(&arguments, None).expect("localhost resolves").iter().map(|r| r.address.port()).collect();
        assert_eq!(ports, (1..200).collect::<Vec<u16>>());
    }

    /// Whatever the line, it is a target or an error that quotes it, never a panic; and what a target is written as
    /// reads back as the same one.
    #[test]
    fn no_line_panics() {
        use proptest::prelude::*;
        let piece =
            prop::sample::select(vec!["tcp://", "a", ":", "80", "[", "]", "::1", "é", "/", "127.0.0.1", "@", "%"]);
        let text = prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat());
        proptest!(|(text in text)| {
            match parse(&text, Origin::Argument) {
                Ok(read) => prop_assert_eq!(parse(&read.text, Origin::Argument), Ok(read)),
                Err(error) => prop_assert!(error.contains(&format!("{:?}", text)), "{}", error),
            }
        });
    }
}
