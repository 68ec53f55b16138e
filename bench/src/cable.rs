//! A bad network between an agent and its bridge: carries TCP connections, and on command delays, freezes, cuts or
//! half-closes them, also in the middle of a frame.
//! Promise: every byte that comes out went in, in order; only how long it takes and where it ends is up to the command. A
//! command takes effect on all connections there are; those that come later are well. In the bench's own process, two
//! threads for each connection: nobody's account.

use crate::process::Failure;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// One read of a direction.
const PIECE_BYTES: usize = 128 << 10;

/// What can be done to every connection that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Harm {
    /// After so many more bytes either way, both ends are reset.
    ResetAfter(u64),
    /// After so many more bytes either way, both ends see a clean end.
    EndAfter(u64),
    /// After so many more bytes from the agent, that direction ends; the other goes on.
    HalfCloseAfter(u64),
    /// Nothing passes for so long, then everything.
    Freeze(Duration),
    /// Nothing passes any more, and nobody is told.
    Swallow,
    /// Each piece is late by so much, for a second.
    Late(Duration),
}

/// The cable.
pub(crate) struct Cable {
    /// Where the agent connects.
    pub(crate) address: SocketAddr,
    lines: Arc<Mutex<Vec<Arc<Line>>>>,
}

struct Line {
    agent: TcpStream,
    bridge: TcpStream,
    /// Harms so far: a direction looks up what to do when this has changed.
    harms: AtomicU64,
    harm: Mutex<Option<(Harm, Instant)>>,
    over: AtomicBool,
}

/// Lays a cable from `listen` to `to`.
///
/// # Errors
/// The port cannot be had.
pub(crate) fn lay(listen: SocketAddr, to: SocketAddr) -> Result<Cable, Failure> {
    let listener = TcpListener::bind(listen).map_err(|e| format!("listen on {listen}: {e}"))?;
    let address = listener.local_addr().map_err(|e| format!("{listen}: {e}"))?;
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = lines.clone();
    thread::spawn(move || {
        for agent in listener.incoming().flatten() {
            // A dead bridge refuses: so does the cable.
            if let Ok(line) = connect(agent, to) {
                let mut lines: std::sync::MutexGuard<'_, Vec<Arc<Line>>> =
                    kept.lock().unwrap_or_else(PoisonError::into_inner);
                lines.retain(|line| !line.over.load(Ordering::Relaxed));
                lines.push(line);
            }
        }
    });
    Ok(Cable { address, lines })
}

fn connect(agent: TcpStream, to: SocketAddr) -> io::Result<Arc<Line>> {
    let bridge = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    agent.set_nodelay(true)?;
    bridge.set_nodelay(true)?;
    let line = Line { agent, bridge, harms: AtomicU64::new(0), harm: Mutex::new(None), over: AtomicBool::new(false) };
    let line = Arc::new(line);
    for from_agent in [true, false] {
        let line = line.clone();
        thread::spawn(move || {
            // An error is the end of a connection, which is passed on.
            let clean = line.carry(from_agent).is_ok_and(|clean| clean);
            if !clean {
                line.reset();
            }
        });
    }
    Ok(line)
}

impl Line {
    /// Until the end of this direction. True: it ended as a direction does.
    fn carry(&self, from_agent: bool) -> io::Result<bool> {
        let (mut from, mut to) = if from_agent { (&self.agent, &self.bridge) } else { (&self.bridge, &self.agent) };
        let (mut piece, mut seen) = (vec![0; PIECE_BYTES], 0);
        let mut left = u64::MAX;
        let mut harm = None;
        loop {
            let n = from.read(&mut piece)?;
            if n == 0 {
                to.shutdown(Shutdown::Write)?;
                return Ok(true);
            }
            let harms = self.harms.load(Ordering::Acquire);
            if harms != seen {
                seen = harms;
                harm = *self.harm.lock().unwrap_or_else(PoisonError::into_inner);
                left = match harm {
                    Some((Harm::ResetAfter(n) | Harm::EndAfter(n), _)) => n,
                    Some((Harm::HalfCloseAfter(n), _)) if from_agent => n,
                    _ => u64::MAX,
                };
            }
            match harm {
                Some((Harm::Freeze(how_long), since)) => thread::sleep(how_long.saturating_sub(since.elapsed())),
                Some((Harm::Late(by), since)) if since.elapsed() < Duration::from_secs(1) => thread::sleep(by),
                Some((Harm::Swallow, _)) => {
                    // Both sockets stay open, and what comes is taken until nobody sends any more.
                    while from.read(&mut piece)? > 0 {}
                    return Ok(true);
                }
                _ => {}
            }
            let pass = n.min(usize::try_from(left).unwrap_or(usize::MAX));
            to.write_all(&piece[..pass])?;
            left -= if left == u64::MAX { 0 } else { pass as u64 };
            if left == 0 {
                return match harm {
                    Some((Harm::ResetAfter(_), _)) => Ok(false),
                    Some((Harm::EndAfter(_), _)) => {
                        self.over.store(true, Ordering::Relaxed);
                        let _ = self.agent.shutdown(Shutdown::Both);
                        let _ = self.bridge.shutdown(Shutdown::Both);
                        Ok(true)
                    }
                    _ => {
                        to.shutdown(Shutdown::Write)?;
                        // The rest of this direction goes nowhere.
                        while from.read(&mut piece)? > 0 {}
                        Ok(true)
                    }
                };
            }
        }
    }

    fn reset(&self) {
        if !self.over.swap(true, Ordering::Relaxed) {
            for stream in [&self.agent, &self.bridge] {
                // Unread bytes and SO_LINGER 0 both make a reset of a close; the shutdown wakes the other direction.
                let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Cable {
    /// Does it to all connections there are; returns how many.
    pub(crate) fn harm(&self, harm: Harm) -> usize {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|line| !line.over.load(Ordering::Relaxed));
        for line in lines.iter() {
            *line.harm.lock().unwrap_or_else(PoisonError::into_inner) = Some((harm, Instant::now()));
            line.harms.fetch_add(1, Ordering::Release);
        }
        lines.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Cable, TcpStream, TcpStream) {
        let bridge = TcpListener::bind("127.0.0.1:0").expect("a port");
        let to = bridge.local_addr().expect("bound");
        let cable = lay("127.0.0.1:0".parse().expect("an address"), to).expect("a port");
        let agent = TcpStream::connect(cable.address).expect("the cable listens");
        let (far, _) = bridge.accept().expect("the cable comes");
        for stream in [&agent, &far] {
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        }
        // The line is in the list when something has come through it.
        (&agent).write_all(b"hello").expect("open");
        (&far).read_exact(&mut [0; 5]).expect("it carries");
        while cable.lines.lock().expect("nobody panics").is_empty() {
            thread::yield_now();
        }
        (cable, agent, far)
    }

    /// A cut lets exactly as many bytes through as it was told, then ends the connection as it was told.
    #[test]
    fn cuts_are_where_they_were_asked_for() {
        for (harm, clean) in [(Harm::EndAfter(7), true), (Harm::ResetAfter(7), false), (Harm::HalfCloseAfter(7), true)]
        {
            let (cable, mut agent, mut far) = pair();
            assert_eq!(cable.harm(harm), 1);
            agent.write_all(b"0123456789").expect("open");
            let mut came = Vec::new();
            let end = far.read_to_end(&mut came);
            assert!(b"0123456".starts_with(&came), "{came:?}");
            assert!(!clean || (end.is_ok() && came.len() == 7), "{harm:?}: {end:?}, {came:?}");
            if matches!(harm, Harm::HalfCloseAfter(_)) {
                far.write_all(b"still here").expect("the other direction goes on");
                agent.read_exact(&mut [0; 10]).expect("it comes");
            }
        }
    }

    /// What is frozen or late comes all the same; what is swallowed does not, and nobody is told.
    #[test]
    fn delays_lose_nothing() {
        let (cable, mut agent, mut far) = pair();
        for harm in [Harm::Freeze(Duration::from_millis(50)), Harm::Late(Duration::from_millis(5))] {
            cable.harm(harm);
            agent.write_all(b"abc").expect("open");
            let mut came = [0; 3];
            far.read_exact(&mut came).expect("it comes");
            assert_eq!(&came, b"abc");
        }
        cable.harm(Harm::Swallow);
        agent.write_all(b"abc").expect("open");
        far.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        let error = far.read(&mut [0; 3]).expect_err("nothing comes").kind();
        assert!(matches!(error, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{error:?}");
    }
}
