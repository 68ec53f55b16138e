//! Something between agent and bridge that carries their bytes, badly.

use ringspan_engine::kernel::Socket;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// A relay for one link. Its threads end with their connections; those of frozen ones with it.
pub(crate) struct Cable {
    pub(crate) address: SocketAddr,
    lines: Arc<Mutex<Vec<Line>>>,
    frozen: Mutex<Vec<Line>>,
}

struct Line {
    near: TcpStream,
    far: TcpStream,
    gate: Arc<Gate>,
}

/// What both copying threads of a line pass before each piece.
struct Gate {
    way: Mutex<Way>,
    changed: Condvar,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Open,
    /// They stop, and stay.
    Shut,
    /// They end with resets.
    Dead,
}

impl Gate {
    fn new() -> Arc<Gate> {
        Arc::new(Gate { way: Mutex::new(Way::Open), changed: Condvar::new() })
    }

    fn set(&self, way: Way) {
        *self.way.lock().unwrap() = way;
        self.changed.notify_all();
    }

    /// Whether to go on, as soon as that is known.
    fn passes(&self) -> bool {
        *self.changed.wait_while(self.way.lock().unwrap(), |way| *way == Way::Shut).unwrap() == Way::Open
    }
}

/// Passes bytes on as they come.
pub(crate) fn straight(to: SocketAddr) -> Cable {
    relay(to, false)
}

/// Passes bytes on in pieces of 1 to 60 bytes, now and then in a burst.
pub(crate) fn choppy(to: SocketAddr) -> Cable {
    relay(to, true)
}

fn relay(to: SocketAddr, choppy: bool) -> Cable {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, lines) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let kept = lines.clone();
    thread::spawn(move || {
        for near in listener.incoming() {
            let near = near.unwrap();
            // The bridge may be gone at the end of a test.
            let Ok(far) = TcpStream::connect(to) else { return };
            let gate = Gate::new();
            let ways =
                [(&near, &far), (&far, &near)].map(|(from, to)| (from.try_clone().unwrap(), to.try_clone().unwrap()));
            // Known before it carries anything: who sees that it works can cut it.
            kept.lock().unwrap().push(Line { near, far, gate: gate.clone() });
            for (from, to) in ways {
                let gate = gate.clone();
                thread::spawn(move || carry(from, to, choppy, &gate));
            }
        }
    });
    Cable { address, lines, frozen: Mutex::default() }
}

fn carry(mut from: TcpStream, mut to: TcpStream, choppy: bool, gate: &Gate) {
    let (mut rng, mut buffer) = (fastrand::Rng::with_seed(9), vec![0; 64 << 10]);
    to.set_nodelay(true).unwrap();
    // A look at the gate now and then.
    from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return drop(to.shutdown(Shutdown::Write)),
            Ok(n) => n,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if gate.passes() {
                    continue;
                }
                return;
            }
            Err(_) => break,
        };
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            let max = if choppy && rng.u8(..20) > 0 { rng.usize(1..=60) } else { rest.len() };
            let (piece, after) = rest.split_at(max.min(rest.len()));
            if !gate.passes() {
                return;
            }
            if to.write_all(piece).is_err() {
                // The other thread of this line waits in a read.
                let _ = from.shutdown(Shutdown::Both);
                return;
            }
            rest = after;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

impl Line {
    /// The last to close either socket resets it: one of the threads, a moment later.
    fn reset(self) {
        for socket in [self.near, self.far] {
            Socket::from_owned(OwnedFd::from(socket)).reset_on_close().unwrap();
        }
        self.gate.set(Way::Dead);
    }
}

impl Cable {
    /// Ends every connection that is open now.
    pub(crate) fn cut(&self) {
        for line in self.lines.lock().unwrap().drain(..) {
            let _ = line.near.shutdown(Shutdown::Both);
            let _ = line.far.shutdown(Shutdown::Both);
        }
    }

    /// Resets the connections that were made first, so many.
    pub(crate) fn reset_first(&self, n: usize) {
        self.lines.lock().unwrap().drain(..n).for_each(Line::reset);
    }

    /// Resets the connections that were made after the first so many.
    pub(crate) fn reset_after(&self, n: usize) {
        self.lines.lock().unwrap().drain(n..).for_each(Line::reset);
    }

    /// Stops every connection that is open now, without a word to either side, until the cable is dropped. Later ones work.
    pub(crate) fn freeze(&self) {
        for line in self.lines.lock().unwrap().drain(..) {
            line.gate.set(Way::Shut);
            self.frozen.lock().unwrap().push(line);
        }
    }
}

/// What frozen connections hold is much of the memory that a small machine has for TCP (tcp_mem, tcp(7)): kept for longer,
/// it stops the streams of later tests for minutes. Seen in a guest of 768 MiB.
impl Drop for Cable {
    fn drop(&mut self) {
        self.frozen.get_mut().unwrap().drain(..).for_each(Line::reset);
    }
}
