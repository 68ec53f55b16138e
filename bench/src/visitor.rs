//! Visitors of a tunnel whose every byte is checked, for `bench chaos` and `bench garbage`.
//! Promise: each visit ends within `STALL_MAX` of its last byte; what came back is compared byte for byte, so that a
//! broken stream is still checked up to where it broke. Blocking sockets on threads of their own: plain, and not ours.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A visitor who hears nothing for this long was forgotten: every death in these scenarios is a process's, and the
/// kernel tells the other side of a dead process at once.
pub(crate) const STALL_MAX: Duration = Duration::from_secs(10);

/// The longest echoed stream: large enough to fill every window and buffer on the way.
const ECHO_BYTES_MAX: usize = 4 << 20;

/// How a visit went wrong.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The connection was refused, reset, or ended early: what a visitor sees when something on the way died.
    Broken(String),
    /// Nothing came for `STALL_MAX`.
    Stalled(String),
    /// Other bytes came than were sent. Never to be forgiven.
    Corrupt(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Broken(story) => write!(f, "broken: {story}"),
            Trouble::Stalled(story) => write!(f, "left hanging for {} s: {story}", STALL_MAX.as_secs()),
            Trouble::Corrupt(story) => write!(f, "WRONG BYTES: {story}"),
        }
    }
}

fn trouble(what: &str, e: &io::Error) -> Trouble {
    match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Trouble::Stalled(format!("{what}: silence")),
        _ => Trouble::Broken(format!("{what}: {e}")),
    }
}

fn connect(entry: SocketAddr) -> Result<TcpStream, Trouble> {
    let connect = || {
        let stream = TcpStream::connect_timeout(&entry, STALL_MAX)?;
        stream.set_read_timeout(Some(STALL_MAX))?;
        stream.set_write_timeout(Some(STALL_MAX))?;
        Ok(stream)
    };
    connect().map_err(|e| trouble("connect", &e))
}

/// Sends random bytes to an echo, a clean end after them, and compares what comes back, its end included.
/// Returns the number of bytes.
///
/// # Errors
/// See [`Trouble`].
pub(crate) fn echo(entry: SocketAddr, rng: &mut fastrand::Rng) -> Result<u64, Trouble> {
    // Mostly short, sometimes long: as many bytes in streams that fit one frame as in streams that fill windows.
    let len = match rng.u8(..) {
        0..=127 => rng.usize(1..=1024),
        128..=223 => rng.usize(1024..=128 << 10),
        _ => rng.usize(128 << 10..=ECHO_BYTES_MAX),
    };
    let mut payload = vec![0u8; len];
    rng.fill(&mut payload);
    let mut stream = connect(entry)?;
    let mut writer = stream.try_clone().map_err(|e| trouble("dup", &e))?;
    thread::scope(|scope| {
        let sent = &payload;
        scope.spawn(move || {
            // The reader sees what became of the stream; an error here is the same story told twice.
            if writer.write_all(sent).is_ok() {
                let _ = writer.shutdown(Shutdown::Write);
            }
        });
        let outcome = compare(&mut stream, &payload);
        // Wakes the writer, should it still be waiting for room.
        let _ = stream.shutdown(Shutdown::Both);
        outcome
    })
}

fn compare(stream: &mut TcpStream, expected: &[u8]) -> Result<u64, Trouble> {
    let (mut seen, mut buffer) = (0, vec![0u8; 64 << 10]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) if seen == expected.len() => return Ok(seen as u64),
            Ok(0) => return Err(Trouble::Broken(format!("ended after {seen} of {} bytes", expected.len()))),
            Ok(n) if expected.get(seen..seen + n) == Some(&buffer[..n]) => seen += n,
            Ok(n) => return Err(Trouble::Corrupt(format!("bytes {seen} to {} of {}", seen + n, expected.len()))),
            Err(e) => return Err(trouble(&format!("after {seen} of {} bytes", expected.len()), &e)),
        }
    }
}

/// One HTTP request on a connection of its own; returns the body of a 200.
///
/// # Errors
/// See [`Trouble`]; another status and a body shorter than announced are `Broken`.
pub(crate) fn http(entry: SocketAddr, method: &str, path: &str) -> Result<Vec<u8>, Trouble> {
    let mut stream = connect(entry)?;
    let request = format!("{method} {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|e| trouble("request", &e))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(|e| trouble(&format!("after {} bytes of answer", answer.len()), &e))?;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n");
    let end = end.ok_or_else(|| Trouble::Broken(format!("{} bytes and no header", answer.len())))?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let body = answer.split_off(end + 4);
    if !head.starts_with("http/1.1 200") {
        return Err(Trouble::Broken(format!(
            "{} {}",
            head.lines().next().unwrap_or_default(),
            String::from_utf8_lossy(&body)
        )));
    }
    let announced = head.lines().find_map(|l| l.strip_prefix("content-length:")).and_then(|n| n.trim().parse().ok());
    match announced {
        Some(n) if body.len() < n => Err(Trouble::Broken(format!("{} of {n} bytes of body", body.len()))),
        _ => Ok(body),
    }
}

/// What the visitors have met so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Visits that went well.
    pub(crate) good: AtomicU64,
    /// Visits that broke.
    pub(crate) broken: AtomicU64,
    /// Payload bytes compared in good visits.
    pub(crate) bytes: AtomicU64,
    /// The longest good visit, in microseconds.
    pub(crate) longest_us: AtomicU64,
    /// The last broken visit's story.
    pub(crate) last_broken: Mutex<String>,
    /// Stories of stalls and corruptions.
    pub(crate) violations: Mutex<Vec<String>>,
}

impl Tally {
    fn record(&self, outcome: Result<u64, Trouble>, took: Duration) {
        match outcome {
            Ok(bytes) => {
                self.good.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.longest_us.fetch_max(took.as_micros() as u64, Ordering::Relaxed);
            }
            Err(Trouble::Broken(story)) => {
                self.broken.fetch_add(1, Ordering::Relaxed);
                *self.last_broken.lock().expect("no visitor panics") = story;
            }
            Err(other) => self.violations.lock().expect("no visitor panics").push(other.to_string()),
        }
    }
}

/// Visitors on threads of their own, until dropped.
pub(crate) struct Crowd {
    /// What they have met.
    pub(crate) tally: Arc<Tally>,
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    stop: AtomicBool,
    pause: AtomicBool,
    visiting: AtomicUsize,
}

impl Crowd {
    /// `count` visitors; each calls `visit` again and again, with `pause_between` in between.
    pub(crate) fn start<V>(count: usize, seed: u64, pause_between: Duration, visit: V) -> Crowd
    where
        V: Fn(&mut fastrand::Rng) -> Result<u64, Trouble> + Send + Sync + 'static,
    {
        let (tally, state, visit) = (Arc::<Tally>::default(), Arc::<State>::default(), Arc::new(visit));
        let spawn = |i: usize| {
            let (tally, state, visit) = (tally.clone(), state.clone(), visit.clone());
            let mut rng = fastrand::Rng::with_seed(seed.wrapping_add(i as u64));
            thread::spawn(move || {
                while !state.stop.load(Ordering::Relaxed) {
                    state.visiting.fetch_add(1, Ordering::SeqCst);
                    if !state.pause.load(Ordering::SeqCst) {
                        let started = Instant::now();
                        let outcome = visit(&mut rng);
                        let broken = outcome.is_err();
                        tally.record(outcome, started.elapsed());
                        state.visiting.fetch_sub(1, Ordering::SeqCst);
                        // A refused visitor tries again soon, not at once: people do, and the machine has two cores.
                        thread::sleep(if broken { Duration::from_millis(20) } else { pause_between });
                    } else {
                        state.visiting.fetch_sub(1, Ordering::SeqCst);
                        thread::sleep(Duration::from_millis(5));
                    }
                }
            })
        };
        let threads = (0..count).map(spawn).collect();
        Crowd { tally, state, threads }
    }

    /// Lets no new visit begin, and waits until the last one has ended.
    pub(crate) fn pause(&self) {
        self.state.pause.store(true, Ordering::SeqCst);
        while self.state.visiting.load(Ordering::SeqCst) > 0 {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lets them in again.
    pub(crate) fn resume(&self) {
        self.state.pause.store(false, Ordering::SeqCst);
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A visitor that panicked has said so on stderr.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server for one connection: reads until the visitor's clean end, then answers with what `answer` makes of it.
    fn serve(answer: fn(Vec<u8>) -> Vec<u8>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a visitor");
            let mut sent = Vec::new();
            stream.read_to_end(&mut sent).expect("all of it");
            stream.write_all(&answer(sent)).expect("the visitor listens");
        });
        address
    }

    /// What came back decides: all of it is good, a part is broken, one wrong bit or one byte too many is corrupt.
    #[test]
    fn echoes_are_judged_by_their_bytes() {
        let visit = |answer| echo(serve(answer), &mut fastrand::Rng::with_seed(3));
        assert!(matches!(visit(|sent| sent), Ok(n) if n > 0));
        let cut = visit(|mut sent| {
            sent.pop();
            sent
        });
        assert!(matches!(cut, Err(Trouble::Broken(_))), "{cut:?}");
        let flipped = visit(|mut sent| {
            *sent.last_mut().expect("not empty") ^= 1;
            sent
        });
        assert!(matches!(flipped, Err(Trouble::Corrupt(_))), "{flipped:?}");
        let longer = visit(|mut sent| {
            sent.push(0);
            sent
        });
        assert!(matches!(longer, Err(Trouble::Corrupt(_))), "{longer:?}");
    }

    /// A crowd at rest makes no visit, and makes them again afterwards.
    #[test]
    fn a_paused_crowd_visits_nobody() {
        let crowd = Crowd::start(4, 1, Duration::ZERO, |_| Ok(1));
        let visits = || crowd.tally.good.load(Ordering::Relaxed);
        let wait_past = |count| {
            while visits() <= count {
                thread::yield_now();
            }
        };
        wait_past(0);
        crowd.pause();
        let at_rest = visits();
        thread::sleep(Duration::from_millis(20));
        assert_eq!(visits(), at_rest);
        crowd.resume();
        wait_past(at_rest);
    }
}
