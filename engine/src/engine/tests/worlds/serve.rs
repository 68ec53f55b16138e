//! Hosts of the made-up network on real sockets: threads that carry their words.

use crate::kernel::Socket;
use crate::sim::{Cut, Host, Said, Speaker, Word};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long a server waits for its peer to go: for ever, by the measure of a test.
const PATIENCE: Duration = Duration::from_secs(60);

fn own() -> SocketAddr {
    super::own_address(crate::io::Family::V4)
}

/// A host that accepts connections, until dropped.
pub(super) struct Streams {
    pub(super) address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Streams {
    pub(super) fn serve(host: Arc<dyn Host>, cut: Cut) -> Streams {
        let listener = TcpListener::bind(own()).expect("a loopback address");
        let (address, over) = (listener.local_addr().expect("bound"), Arc::new(AtomicBool::new(false)));
        let is_over = over.clone();
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let speaker = host.answer();
                thread::spawn(move || converse(stream, speaker, cut));
            }
        });
        Streams { address, over, thread: Some(thread) }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // It waits for somebody to accept.
        drop(TcpStream::connect(self.address));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// One call, from its greeting to the peer's end.
fn converse(mut stream: TcpStream, mut speaker: Box<dyn Speaker>, cut: Cut) {
    stream.set_nodelay(true).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a connection");
    let (mut says, mut heard) = (Vec::new(), [0; 4096]);
    speaker.greet(&mut says);
    loop {
        for Said { after, word } in says.drain(..) {
            if !after.is_zero() {
                thread::sleep(after);
            }
            match word {
                Word::Bytes(bytes) => {
                    let size = if let Cut::Pieces(size, _) = cut { size } else { bytes.len().max(1) };
                    // The peer may have gone: then nobody is there to be told.
                    if bytes.chunks(size).any(|piece| stream.write_all(piece).is_err()) {
                        return;
                    }
                }
                Word::Close => return close(&mut stream),
                Word::Reset => {
                    return Socket::from_owned(OwnedFd::from(stream)).reset_on_close().expect("a connection");
                }
            }
        }
        match stream.read(&mut heard) {
            Ok(0) | Err(_) => return,
            Ok(bytes) => speaker.hear(&heard[..bytes], &mut says),
        }
    }
}

/// FIN, and no reset for what the peer still says.
fn close(stream: &mut TcpStream) {
    let _ = stream.shutdown(std::net::Shutdown::Write);
    while !matches!(stream.read(&mut [0; 4096]), Ok(0) | Err(_)) {}
}

/// A host that answers each datagram as if it were the first.
pub(super) struct Datagrams {
    pub(super) address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Datagrams {
    pub(super) fn serve(host: Arc<dyn Host>) -> Datagrams {
        let socket = UdpSocket::bind(own()).expect("a loopback address");
        let (address, over) = (socket.local_addr().expect("bound"), Arc::new(AtomicBool::new(false)));
        let is_over = over.clone();
        let thread = thread::spawn(move || {
            let mut heard = [0; 4096];
            while !is_over.load(Ordering::Relaxed) {
                let (bytes, from) = match socket.recv_from(&mut heard) {
                    Ok(received) => received,
                    // Somebody's answer found nobody.
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
                    Err(error) => panic!("a datagram socket: {error}"),
                };
                let mut says = Vec::new();
                host.answer().hear(&heard[..bytes], &mut says);
                for said in says {
                    if let Word::Bytes(bytes) = said.word {
                        let _ = socket.send_to(&bytes, from);
                    }
                }
            }
        });
        Datagrams { address, over, thread: Some(thread) }
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a loopback address");
        let _ = socket.send_to(b"over", self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A UDP port on an address that nobody else uses: nobody is there.
pub(super) fn nobody() -> SocketAddr {
    UdpSocket::bind(own()).expect("a loopback address").local_addr().expect("bound")
}
