//! Streams with a known content both ways, of which every byte is compared and every end is a SHA-256.
//!
//! ```text
//! visitor ── 32 bytes: up, down, seed, mode ── up bytes ── [half-close] ──────────▶ backend
//!         ◀── down bytes ── SHA-256 of down ── SHA-256 of what came up ── end ──
//! ```
//! Modes: the backend answers after the visitor's end; at once, so that both directions are full; or the visitor keeps its
//! direction open until it has everything, and the backend closes first. Content comes from the seed, so both sides know
//! it: a stream that breaks is still compared up to where it broke.

use crate::process::Failure;
use crate::visitor::Trouble;
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// Silence that no fault explains: a link found dead takes 10 s, a new one follows, and the machine is saturated.
pub(super) const STALL_MAX: Duration = Duration::from_secs(25);

const HEAD_BYTES: usize = 32;
const BLOCK_BYTES: usize = 64 << 10;
const STACK_BYTES: usize = 256 << 10;

/// What the backend writes to its log when something other than what was sent came up.
pub(super) const CORRUPT: &str = "CORRUPT";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The answer begins when the visitor has ended.
    Answer,
    /// Both directions at once.
    Both,
    /// As `Both`, and the visitor ends after the backend.
    BackendFirst,
}

impl Mode {
    fn of(n: u64) -> Mode {
        match n % 3 {
            0 => Mode::Answer,
            1 => Mode::Both,
            _ => Mode::BackendFirst,
        }
    }
}

/// The content of one direction, block by block.
struct Content {
    rng: fastrand::Rng,
    left: u64,
    sha: Context,
}

impl Content {
    fn new(seed: u64, bytes: u64) -> Content {
        Content { rng: fastrand::Rng::with_seed(seed), left: bytes, sha: Context::new(&SHA256) }
    }

    /// The next block; empty at the end.
    fn next<'a>(&mut self, block: &'a mut [u8]) -> &'a [u8] {
        let n = self.left.min(block.len() as u64) as usize;
        self.rng.fill(&mut block[..n]);
        self.sha.update(&block[..n]);
        self.left -= n as u64;
        &block[..n]
    }

    fn send(mut self, to: &mut impl Write) -> io::Result<Context> {
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            match self.next(&mut block) {
                [] => return Ok(self.sha),
                bytes => to.write_all(bytes)?,
            }
        }
    }

    /// Reads as many bytes as it has and compares them. Returns the digest of what came.
    fn receive(mut self, from: &mut impl Read) -> Result<Context, Broke> {
        let (mut expected, mut came) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
        let mut sha = Context::new(&SHA256);
        let mut at = 0;
        loop {
            let expected = self.next(&mut expected);
            if expected.is_empty() {
                return Ok(sha);
            }
            let mut filled = 0;
            while filled < expected.len() {
                let n = from.read(&mut came[filled..expected.len()]).map_err(Broke::Socket)?;
                if n == 0 {
                    return Err(Broke::Short(at + filled as u64));
                }
                if came[filled..filled + n] != expected[filled..filled + n] {
                    return Err(Broke::Corrupt(at + filled as u64));
                }
                filled += n;
            }
            sha.update(&came[..filled]);
            at += filled as u64;
        }
    }
}

/// Why a direction did not come to its end.
#[derive(Debug)]
enum Broke {
    Socket(io::Error),
    /// It ended after so many bytes.
    Short(u64),
    /// Other bytes than were sent, from about here.
    Corrupt(u64),
}

fn trouble(what: &str, broke: Broke) -> Trouble {
    match broke {
        Broke::Socket(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            Trouble::Stalled(format!("{what}: silence of {} s", STALL_MAX.as_secs()))
        }
        Broke::Socket(e) => Trouble::Broken(format!("{what}: {e}")),
        Broke::Short(at) => Trouble::Broken(format!("{what}: ended after {at} bytes")),
        Broke::Corrupt(at) => Trouble::Corrupt(format!("{what}: at byte {at}")),
    }
}

/// The backend, for ever.
///
/// # Errors
/// The port cannot be had.
pub(crate) fn serve(listen: SocketAddr) -> Result<(), Failure> {
    let listener = TcpListener::bind(listen).map_err(|e| format!("listen on {listen}: {e}"))?;
    for visitor in listener.incoming().flatten() {
        let answer = move || {
            if let Err(Broke::Corrupt(at)) = keep(&visitor) {
                eprintln!("{CORRUPT}: at byte {at}");
            }
        };
        // No thread for it: the visitor is dropped, and says so.
        let _ = thread::Builder::new().stack_size(STACK_BYTES).spawn(answer);
    }
    Ok(())
}

fn keep(mut visitor: &TcpStream) -> Result<(), Broke> {
    visitor.set_read_timeout(Some(STALL_MAX * 2)).map_err(Broke::Socket)?;
    visitor.set_write_timeout(Some(STALL_MAX * 2)).map_err(Broke::Socket)?;
    let mut head = [0; HEAD_BYTES];
    visitor.read_exact(&mut head).map_err(Broke::Socket)?;
    let [up, down, seed, mode] = parts(&head);
    let mode = Mode::of(mode);
    let (up, down) = (Content::new(seed, up), Content::new(!seed, down));
    let mut end = visitor;
    let finish = |mut visitor: &TcpStream, up: Context, down: Context| {
        visitor.write_all(down.finish().as_ref())?;
        visitor.write_all(up.finish().as_ref())
    };
    let came = match mode {
        Mode::Answer => {
            let came = up.receive(&mut visitor)?;
            match visitor.read(&mut [0]) {
                Ok(0) => {}
                Ok(_) => return Err(Broke::Corrupt(u64::MAX)),
                Err(e) => return Err(Broke::Socket(e)),
            }
            let sent = down.send(&mut end).map_err(Broke::Socket)?;
            return finish(visitor, came, sent).map_err(Broke::Socket);
        }
        Mode::Both | Mode::BackendFirst => thread::scope(|scope| {
            let sender = scope.spawn(move || down.send(&mut end));
            let came = up.receive(&mut visitor);
            if came.is_err() {
                let _ = visitor.shutdown(Shutdown::Both);
            }
            let sent = sender.join().expect("a sender does not panic");
            Ok::<_, Broke>((came?, sent.map_err(Broke::Socket)?))
        })?,
    };
    finish(visitor, came.0, came.1).map_err(Broke::Socket)?;
    if mode == Mode::BackendFirst {
        visitor.shutdown(Shutdown::Write).map_err(Broke::Socket)?;
        // The visitor's end comes after ours.
        let _ = visitor.read(&mut [0]);
    }
    Ok(())
}

fn parts(head: &[u8; HEAD_BYTES]) -> [u64; 4] {
    let part = |i: usize| u64::from_le_bytes(head[i * 8..i * 8 + 8].try_into().expect("eight bytes"));
    [part(0), part(1), part(2), part(3)]
}

/// One visit; the number of bytes both ways that were compared.
///
/// # Errors
/// See [`Trouble`].
pub(crate) fn visit(entry: SocketAddr, rng: &mut fastrand::Rng) -> Result<u64, Trouble> {
    // Mostly small, sometimes long enough that a stream is bulk by anybody's measure.
    let mut bytes = || match rng.u8(..) {
        0..=99 => rng.u64(0..=4 << 10),
        100..=199 => rng.u64(0..=512 << 10),
        200..=243 => rng.u64(512 << 10..=8 << 20),
        _ => rng.u64(8 << 20..=64 << 20),
    };
    let (up, down) = (bytes(), bytes());
    let head = [up, down, rng.u64(..), rng.u64(..3)];
    converse(entry, head).map(|()| up + down)
}

fn converse(entry: SocketAddr, head: [u64; 4]) -> Result<(), Trouble> {
    let [up, down, seed, mode] = head;
    let opened = || {
        let stream = TcpStream::connect_timeout(&entry, STALL_MAX)?;
        stream.set_read_timeout(Some(STALL_MAX))?;
        stream.set_write_timeout(Some(STALL_MAX))?;
        stream.set_nodelay(true)?;
        Ok::<_, io::Error>((stream.try_clone()?, stream))
    };
    let (mut writer, mut stream) = opened().map_err(|e| trouble("connect", Broke::Socket(e)))?;
    thread::scope(|scope| {
        let sender = scope.spawn(move || {
            writer.write_all(&head.map(u64::to_le_bytes).concat())?;
            let sent = Content::new(seed, up).send(&mut writer)?;
            if Mode::of(mode) != Mode::BackendFirst {
                // The answer may be here and the connection over: what was sent is judged by its digest.
                match writer.shutdown(Shutdown::Write) {
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                    result => result?,
                }
            }
            Ok::<_, io::Error>(sent)
        });
        let outcome = (|| {
            let came = Content::new(!seed, down).receive(&mut stream)?;
            let mut digests = [0; 2 * SHA256_OUTPUT_LEN];
            stream.read_exact(&mut digests).map_err(Broke::Socket)?;
            match stream.read(&mut [0]) {
                Ok(0) => Ok((came, digests)),
                Ok(_) => Err(Broke::Corrupt(u64::MAX)),
                Err(e) => Err(Broke::Socket(e)),
            }
        })();
        // Wakes the sender, should it still wait for room; after a good end it is the visitor's own end.
        let _ = stream.shutdown(Shutdown::Both);
        let sent = sender.join().expect("a sender does not panic");
        let (came, digests) = outcome.map_err(|broke| trouble(&format!("{up} up, {down} down, mode {mode}"), broke))?;
        let sent = sent.map_err(|e| trouble("sending", Broke::Socket(e)))?;
        let (down_digest, up_digest) = digests.split_at(SHA256_OUTPUT_LEN);
        if came.finish().as_ref() == down_digest && sent.finish().as_ref() == up_digest {
            Ok(())
        } else {
            Err(Trouble::Corrupt(format!("SHA-256 of a stream of {up} up and {down} down")))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cable::{Harm, lay};

    fn on_a_thread() -> SocketAddr {
        let probe = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = probe.local_addr().expect("bound");
        drop(probe);
        thread::spawn(move || serve(address));
        while TcpStream::connect(address).is_err() {
            thread::yield_now();
        }
        address
    }

    /// Every mode comes to its good end, with nothing, with a little, with more than any buffer.
    #[test]
    fn good_streams_are_good() {
        let address = on_a_thread();
        for mode in 0..3 {
            for (up, down) in [(0, 0), (1, 0), (0, 1), (100_000, 3_000_000)] {
                converse(address, [up, down, 7, mode]).expect("nothing is between us");
            }
        }
    }

    /// A cut is broken, never corrupt; other bytes are corrupt, never broken.
    #[test]
    fn a_cut_is_no_corruption() {
        let address = on_a_thread();
        let cable = lay("127.0.0.1:0".parse().expect("an address"), address).expect("a port");
        for mode in 0..3 {
            let visit = thread::scope(|scope| {
                let visit = scope.spawn(|| converse(cable.address, [4 << 20, 64 << 20, 9, mode]));
                while cable.harm(Harm::ResetAfter(1_000_001)) == 0 {
                    thread::yield_now();
                }
                visit.join().expect("a visitor does not panic")
            });
            assert!(matches!(visit, Err(Trouble::Broken(_))), "{visit:?}");
        }
        let mut other = Content::new(1, 10);
        let mut block = [0; 10];
        let bytes = other.next(&mut block).to_vec();
        let judged = Content::new(2, 10).receive(&mut bytes.as_slice());
        assert!(matches!(judged, Err(Broke::Corrupt(0))));
    }
}
