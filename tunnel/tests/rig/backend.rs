//! Backends that do what the visitor's first bytes ask for, and visitors that ask.
//!
//! The first 17 bytes: what to do, a seed, a count. Then the bytes themselves. Contents are slices of one random block,
//! so that a gigabyte costs no more than hashing it.

use ring::digest::{Context, SHA256};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

pub(crate) const ORDER_BYTES: usize = 17;

/// What a backend is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Send everything back until the end, then end.
    Echo = 1,
    /// Send that many bytes and end, then read to the end and report.
    Send = 2,
    /// Read that many bytes, then reset.
    Reset = 3,
    /// Send for ever, until the socket fails, and report.
    Flood = 4,
    /// Say nothing, read to the end, report.
    Listen = 5,
}

/// How a backend's connection ended: bytes read, their digest, the error if there was one.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) order: u8,
    pub(crate) bytes: u64,
    pub(crate) digest: [u8; 32],
    pub(crate) error: Option<ErrorKind>,
}

/// Bytes that depend on the seed alone.
pub(crate) struct Source {
    rng: fastrand::Rng,
    block: Vec<u8>,
    pub(crate) digest: Context,
}

impl Source {
    pub(crate) fn new(seed: u64) -> Source {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut block = vec![0; 1 << 20];
        rng.fill(&mut block);
        Source { rng, block, digest: Context::new(&SHA256) }
    }

    /// The next up to `max` bytes: mostly large pieces, often tiny ones.
    pub(crate) fn next(&mut self, max: u64) -> &[u8] {
        let size = if self.rng.u8(..4) == 0 { self.rng.usize(1..200) } else { self.rng.usize(1..300_000) };
        let len = size.min(usize::try_from(max).unwrap_or(usize::MAX));
        let at = self.rng.usize(..=self.block.len() - len);
        self.digest.update(&self.block[at..at + len]);
        &self.block[at..at + len]
    }

    pub(crate) fn write(&mut self, to: &mut impl Write, count: u64) -> std::io::Result<()> {
        let mut left = count;
        while left > 0 {
            let piece = self.next(left);
            left -= piece.len() as u64;
            to.write_all(piece)?;
            self.pause();
        }
        Ok(())
    }

    /// Now and then, lets others run between two pieces.
    pub(crate) fn pause(&mut self) {
        if self.rng.u8(..8) == 0 {
            thread::yield_now();
        }
    }
}

pub(crate) fn finish(digest: Context) -> [u8; 32] {
    digest.finish().as_ref().try_into().unwrap()
}

/// Reads to the end in pieces of all sizes.
pub(crate) fn read_all(from: &mut impl Read, seed: u64) -> (u64, [u8; 32], Option<ErrorKind>) {
    let (mut rng, mut digest, mut bytes) = (fastrand::Rng::with_seed(seed), Context::new(&SHA256), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let max = if rng.u8(..8) == 0 { rng.usize(1..100) } else { buffer.len() };
        match from.read(&mut buffer[..max]) {
            Ok(0) => return (bytes, finish(digest), None),
            Ok(n) => {
                digest.update(&buffer[..n]);
                bytes += n as u64;
            }
            Err(error) => return (bytes, finish(digest), Some(error.kind())),
        }
    }
}

/// A backend that takes orders until the process ends; its reports come out of the channel.
pub(crate) fn start() -> (SocketAddr, mpsc::Receiver<Report>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (reports, receiver) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, reports) = (stream.unwrap(), reports.clone());
            thread::spawn(move || {
                // Nobody listens to the reports of a test that is over.
                let _ = reports.send(serve(stream));
            });
        }
    });
    (address, receiver)
}

/// A backend that says its name and then sends back all it hears, from the first byte on: a header as well.
pub(crate) fn mirror(name: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut reader = stream.try_clone().unwrap();
                // A visitor may go at any time.
                let _ = stream.write_all(&[name]);
                let _ = std::io::copy(&mut reader, &mut stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    address
}

fn serve(mut stream: TcpStream) -> Report {
    let mut order = [0; ORDER_BYTES];
    if let Err(error) = stream.read_exact(&mut order) {
        return Report { order: 0, bytes: 0, digest: [0; 32], error: Some(error.kind()) };
    }
    let seed = u64::from_le_bytes(order[1..9].try_into().unwrap());
    let count = u64::from_le_bytes(order[9..17].try_into().unwrap());
    let mut report = Report { order: order[0], bytes: 0, digest: [0; 32], error: None };
    match order[0] {
        1 => {
            let mut buffer = vec![0; 128 << 10];
            let mut rng = fastrand::Rng::with_seed(seed);
            report.error = loop {
                let max = if rng.u8(..8) == 0 { 77 } else { buffer.len() };
                match stream.read(&mut buffer[..max]) {
                    Ok(0) => break stream.shutdown(Shutdown::Write).err().map(|e| e.kind()),
                    Ok(n) => {
                        report.bytes += n as u64;
                        if let Err(error) = stream.write_all(&buffer[..n]) {
                            break Some(error.kind());
                        }
                    }
                    Err(error) => break Some(error.kind()),
                }
            };
        }
        2 => {
            if let Err(error) = Source::new(seed).write(&mut stream, count) {
                report.error = Some(error.kind());
                return report;
            }
            stream.shutdown(Shutdown::Write).unwrap();
            (report.bytes, report.digest, report.error) = read_all(&mut stream, seed);
        }
        3 => {
            // Closing with unread bytes resets.
            let mut buffer = vec![0; 64 << 10];
            while report.bytes < count {
                let n = (count - report.bytes).min(buffer.len() as u64);
                stream.read_exact(&mut buffer[..n as usize]).unwrap();
                report.bytes += n;
            }
        }
        4 => {
            let mut source = Source::new(seed);
            report.error = loop {
                match stream.write(source.next(1 << 20)) {
                    Ok(n) => report.bytes += n as u64,
                    Err(error) => break Some(error.kind()),
                }
            };
        }
        _ => (report.bytes, report.digest, report.error) = read_all(&mut stream, seed),
    }
    report
}

/// Sends the order.
pub(crate) fn ask(stream: &mut impl Write, order: Order, seed: u64, count: u64) {
    stream.write_all(&self::order(order, seed, count)).unwrap();
}

/// The order's bytes.
pub(crate) fn order(order: Order, seed: u64, count: u64) -> [u8; ORDER_BYTES] {
    let mut bytes = [order as u8; ORDER_BYTES];
    bytes[1..9].copy_from_slice(&seed.to_le_bytes());
    bytes[9..].copy_from_slice(&count.to_le_bytes());
    bytes
}
