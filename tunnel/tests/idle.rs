//! What a visitor costs that says nothing. Alone in its program: it counts the memory of the whole process.

mod rig;

use rig::{RING, Shape};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

/// Memory of this process that is in RAM and its own, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// A backend that accepts, says one byte, and keeps what it accepted; nothing of it is on a heap but a descriptor.
fn idle_backend() -> (SocketAddr, mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (told, heard) = mpsc::channel();
    thread::spawn(move || {
        let mut kept = Vec::with_capacity(1 << 16);
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.write_all(b"!").unwrap();
            kept.push(stream);
            // The test may be over.
            let _ = told.send(());
        }
    });
    (address, heard)
}

/// An idle stream costs both sides together at most 4 KiB of user memory: 2 KiB each. Counted over streams that come
/// after the first few hundred, which pay for what all share.
#[test]
fn idle_streams_are_cheap() {
    const FIRST: usize = 200;
    const MORE: usize = 1500;
    for shape in [RING, Shape { tls: true, ..RING }] {
        let (address, heard) = idle_backend();
        let bridge = rig::bridge(shape, &["idle"]);
        let agent = bridge.agent(shape, &[("idle", address)]);
        let mut visitors: Vec<TcpStream> = Vec::with_capacity(FIRST + MORE);
        let mut crowd = |n: usize| {
            for _ in 0..n {
                let mut visitor = bridge.visit(0);
                visitor.write_all(b"?").unwrap();
                visitor.read_exact(&mut [0]).unwrap();
                heard.recv_timeout(rig::PATIENCE).unwrap();
                visitors.push(visitor);
            }
        };
        crowd(FIRST);
        let before = resident();
        crowd(MORE);
        let each = resident().saturating_sub(before) / MORE;
        println!("{shape:?}: {each} bytes for each idle stream, both sides together");
        assert!(each <= 4096, "{shape:?}: {each} bytes for each idle stream");
        assert_eq!(agent.handle.stats().streams_open, (FIRST + MORE) as u64);
    }
}
