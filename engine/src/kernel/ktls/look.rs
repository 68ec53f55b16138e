//! What this kernel's TLS can do, found by doing it once on connections over the loopback.
//!
//! Kernels differ by more than their version tells: the module may be missing, one of its algorithms may be, and before
//! 5.16 splicing out of an encrypted socket loses bytes or sleeps. So each ability is used once, on a connection of our
//! own, and what came out is compared with what went in.

use super::{CLOSE_NOTIFY, Direction, Secret, Suite, record};
use crate::kernel::socket::{Pipe, Socket, check};
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The environment variable that turns the kernel's TLS off: `off`, or `auto` (as when it is unset or empty). For
/// tests, and to live with a kernel bug.
pub const KTLS_VARIABLE: &str = "RINGSPAN_KTLS";

/// A splice that should return at once may sleep this long instead (SO_RCVTIMEO), and is known by it.
const SLEEP: Duration = Duration::from_millis(40);
/// How often a splice may seem to sleep because the machine was busy.
const SLEEPS: usize = 3;
/// Bytes over the loopback are there at once; this long only where the machine is very busy.
const WAIT_MS: i32 = 2000;

/// What the kernel's TLS can do here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelTls {
    /// The cipher suites it encrypts and decrypts with; never empty.
    pub suites: Vec<Suite>,
    /// A pipe may be spliced into an encrypted socket.
    pub splice_out: bool,
    /// An encrypted socket may be spliced into a pipe.
    pub splice_in: bool,
    /// What is missing and why; empty if nothing is.
    pub why: String,
}

impl fmt::Display for KernelTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, suite) in self.suites.iter().enumerate() {
            write!(f, "{}{suite}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str(match (self.splice_out, self.splice_in) {
            (true, true) => "; spliced both ways",
            (true, false) => "; spliced out, copied in",
            (false, true) => "; copied out, spliced in",
            (false, false) => "; copied both ways",
        })?;
        if self.why.is_empty() { Ok(()) } else { write!(f, " ({})", self.why) }
    }
}

/// What this kernel's TLS can do; tried at the first call (a few milliseconds, 40 more on kernels whose splice sleeps),
/// remembered afterwards.
///
/// # Errors
/// A sentence: why there is none, and the remedy.
pub fn look() -> &'static Result<KernelTls, String> {
    static FOUND: OnceLock<Result<KernelTls, String>> = OnceLock::new();
    FOUND.get_or_init(|| {
        allowed(std::env::var(KTLS_VARIABLE).ok().as_deref())?;
        try_all()
    })
}

fn allowed(variable: Option<&str>) -> Result<(), String> {
    match variable {
        None | Some("" | "auto") => Ok(()),
        Some("off") => Err(format!("{KTLS_VARIABLE} = \"off\"")),
        Some(other) => Err(format!("{KTLS_VARIABLE} = \"{other}\" is neither \"auto\" nor \"off\": taken as off")),
    }
}

fn try_all() -> Result<KernelTls, String> {
    let (mut suites, mut why) = (Vec::new(), Vec::new());
    for suite in Suite::ALL {
        match Pair::encrypted(suite).and_then(|pair| pair.carries()) {
            Ok(()) => suites.push(suite),
            Err(Trouble::Attach(error)) => return Err(of_attach(&error)),
            Err(Trouble::Other(error)) => why.push(format!("no {suite}: {error}")),
        }
    }
    let Some(&first) = suites.first() else {
        return Err(format!("the module is there and no cipher works: {}. Try: modprobe gcm", why.join("; ")));
    };
    let mut tried = |what: &str, outcome: Result<(), Trouble>| match outcome {
        Ok(()) => true,
        Err(Trouble::Attach(error) | Trouble::Other(error)) => {
            why.push(format!("no splice {what}: {error}"));
            false
        }
    };
    let splice_out = tried("out", Pair::encrypted(first).and_then(|pair| pair.splices_out()));
    let splice_in = tried("in", Pair::encrypted(first).and_then(|pair| pair.splices_in()));
    Ok(KernelTls { suites, splice_out, splice_in, why: why.join("; ") })
}

fn of_attach(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "the kernel has no module `tls`, or it is not loaded. Try: modprobe tls".into(),
        _ => format!("setsockopt(TCP_ULP, \"tls\"): {error}"),
    }
}

/// Why a try failed: a socket does not become one with TLS at all, or something later.
enum Trouble {
    Attach(io::Error),
    Other(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        Trouble::Other(error)
    }
}

fn trouble(why: &str) -> Trouble {
    Trouble::Other(io::Error::other(why.to_owned()))
}

/// A connection over the loopback, ours at both ends.
pub(super) struct Pair {
    pub(super) from: Socket,
    pub(super) to: Socket,
}

impl Pair {
    pub(super) fn plain() -> io::Result<Pair> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let from = TcpStream::connect(listener.local_addr()?)?;
        loop {
            let (to, peer) = listener.accept()?;
            // Somebody else may find the port as well.
            if peer != from.local_addr()? {
                continue;
            }
            for stream in [&from, &to] {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
            }
            let pair = Pair { from: Socket::from_owned(OwnedFd::from(from)), to: Socket::from_owned(to.into()) };
            return Ok(pair);
        }
    }

    /// Encrypted from `from` to `to`, with keys that protect nothing.
    fn encrypted(suite: Suite) -> Result<Pair, Trouble> {
        let pair = Pair::plain()?;
        for socket in [&pair.from, &pair.to] {
            socket.attach_tls().map_err(Trouble::Attach)?;
        }
        let (key, iv) = ([7; 32], [9; 12]);
        let secret = Secret { suite, key: &key[..suite.key_bytes()], iv: &iv, sequence: 0 };
        pair.from.set_tls_key(Direction::Send, &secret)?;
        pair.to.set_tls_key(Direction::Receive, &secret)?;
        Ok(pair)
    }

    /// Waits until there is something to read.
    pub(super) fn wait(&self) -> io::Result<()> {
        let mut poll = libc::pollfd { fd: self.to.raw(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the pointer describes one pollfd, which outlives the call.
        match check(unsafe { libc::poll(&raw mut poll, 1, WAIT_MS) })? {
            0 => Err(ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    /// Reads exactly what is expected.
    fn expect(&self, expected: &[u8]) -> Result<(), Trouble> {
        let mut got = Vec::new();
        while got.len() < expected.len() {
            let mut buffer = [0; 4096];
            let ask = buffer.len().min(expected.len() - got.len());
            match self.to.recv(&mut buffer[..ask]) {
                Ok(0) => return Err(trouble("the bytes end too early")),
                Ok(n) => got.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait()?,
                Err(error) => return Err(error.into()),
            }
        }
        if got == expected { Ok(()) } else { Err(trouble("other bytes come out than went in")) }
    }

    /// Data passes, and so does an alert between data.
    fn carries(&self) -> Result<(), Trouble> {
        let words = pattern(3000);
        self.from.send(&words, false)?;
        self.expect(&words)?;
        self.from.send_record(record::ALERT, &CLOSE_NOTIFY)?;
        self.from.send(&words, false)?;
        self.expect_alert()?;
        self.expect(&words)
    }

    fn expect_alert(&self) -> Result<(), Trouble> {
        self.wait()?;
        if !matches!(self.to.recv(&mut [0; 64]), Err(error) if error.raw_os_error() == Some(libc::EIO)) {
            return Err(trouble("recv does not stop at an alert"));
        }
        let mut body = [0; 64];
        let received = self.to.receive_record(&mut body)?;
        match received.kind == record::ALERT && body[..received.len] == CLOSE_NOTIFY {
            true => Ok(()),
            false => Err(trouble("an alert does not come out as one")),
        }
    }

    /// A header sent with MSG_MORE and a payload spliced behind it, as a large frame is.
    fn splices_out(&self) -> Result<(), Trouble> {
        let words = pattern(40_000);
        let (header, payload) = words.split_at(16);
        let source = Pair::plain()?;
        source.from.send(payload, false)?;
        let pipe = Pipe::new(64 << 10)?;
        let mut left = 0;
        while left < payload.len() {
            source.wait()?;
            left += pipe.fill(&source.to, payload.len() - left)?;
        }
        self.from.send(header, true)?;
        while left > 0 {
            match pipe.drain(&self.from, left, false)? {
                0 => return Err(trouble("splice moves nothing")),
                n => left -= n,
            }
        }
        self.expect(&words)
    }

    /// The rest of a record after recv had its part; nothing, without sleeping; and an alert, which stays for recvmsg.
    fn splices_in(&self) -> Result<(), Trouble> {
        let timeout = libc::timeval { tv_sec: 0, tv_usec: SLEEP.as_micros() as libc::suseconds_t };
        self.to.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, timeout)?;
        let words = pattern(3000);
        let pipe = Pipe::new(64 << 10)?;
        self.from.send(&words, false)?;
        self.expect(&words[..16])?;
        let rest = &words[16..];
        if pipe.fill(&self.to, rest.len()).is_ok_and(|n| n != rest.len()) {
            return Err(trouble("it does not see the rest of a record"));
        }
        let mut got = [0; 4096];
        match pipe.read(&mut got) {
            Ok(n) if got[..n] == *rest => {}
            _ => return Err(trouble("it loses what recv left of a record")),
        }
        let sleeps = (0..SLEEPS).all(|_| {
            let start = Instant::now();
            let _ = pipe.fill(&self.to, 100);
            start.elapsed() >= SLEEP
        });
        if sleeps {
            return Err(trouble("it sleeps where nothing is there to read"));
        }
        self.from.send_record(record::ALERT, &CLOSE_NOTIFY)?;
        self.from.send(&words, false)?;
        self.wait()?;
        if !matches!(pipe.fill(&self.to, 100), Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
            return Err(trouble("it does not stop at an alert"));
        }
        self.expect_alert()?;
        self.wait()?;
        match (pipe.fill(&self.to, words.len())?, pipe.read(&mut got)?) {
            (n, m) if n == m && got[..n] == words[..n] => Ok(()),
            _ => Err(trouble("it goes wrong behind an alert")),
        }
    }
}

pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The variable turns it off, nonsense does as well and says so.
    #[test]
    fn the_variable_decides() {
        assert_eq!((allowed(None), allowed(Some("")), allowed(Some("auto"))), (Ok(()), Ok(()), Ok(())));
        assert_eq!(allowed(Some("off")).unwrap_err(), "RINGSPAN_KTLS = \"off\"");
        assert!(allowed(Some("on")).unwrap_err().contains("neither"));
    }

    /// A kernel without the module says what is missing; one with it passes its own tries, and finds the same twice.
    #[test]
    fn what_is_found_is_found_again() {
        let found = try_all();
        match &found {
            Ok(tls) => {
                println!("kernel TLS: {tls}");
                assert!(tls.suites.contains(&Suite::Aes128Gcm), "{tls}");
                assert_eq!(tls.why.is_empty(), tls.splice_in && tls.splice_out && tls.suites.len() == 3, "{tls}");
                assert_eq!(try_all().as_ref(), Ok(tls));
            }
            Err(why) => assert!(why.contains("Try: modprobe tls"), "{why}"),
        }
    }
}
