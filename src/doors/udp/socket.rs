//! A UDP socket on tokio, in batches: recvmmsg and GRO in, GSO out, with the local address of each datagram (quinn-udp).
//! Promise: nothing here waits; datagrams of any size are sent, in fragments where the path needs them.

use super::frames::{self, TooLong};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use ringspan_engine::kernel::let_fragment;
use socket2::{Domain, Protocol, Socket, Type};
use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Messages one system call takes.
const BATCH: usize = 16;
/// Each message may be 64 datagrams that the kernel put together (GRO), or one large one.
const MESSAGE_BYTES: usize = 65_536;
/// Bytes a listener's socket may hold while its task is busy; net.core.rmem_max caps it.
const RECEIVE_BYTES: usize = 4 << 20;
/// Datagrams up to this size go out in runs: what Ethernet takes in one frame over IPv4. Larger ones become fragments,
/// which segmentation offload does not make.
const SEGMENT_BYTES_MAX: usize = 1472;

thread_local! {
    /// What a call receives into: used between two awaits, so one a thread is enough for all sockets.
    static INCOMING: RefCell<Vec<u8>> = RefCell::new(vec![0; BATCH * MESSAGE_BYTES]);
    /// Runs of datagrams on their way out.
    static OUTGOING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// See the module.
#[derive(Debug)]
pub(super) struct Udp {
    io: UdpSocket,
    state: UdpSocketState,
}

/// Where datagrams go, and from which of our addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Path {
    pub(super) peer: SocketAddr,
    /// `None`: the kernel's choice.
    pub(super) local: Option<IpAddr>,
}

/// What came of sending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// Bytes of the stream that are done with.
    pub(super) taken: usize,
    /// Datagrams among them that went out.
    pub(super) datagrams: u64,
    /// Datagrams that the kernel did not take: too large for the path, no route.
    pub(super) lost: u64,
    /// The socket has no room now.
    pub(super) is_blocked: bool,
    /// Nothing listens at the peer (ICMP).
    pub(super) is_refused: bool,
}

impl Udp {
    /// Listens. An IPv6 address takes no IPv4 visitors, as with TCP. Needs a runtime.
    pub(super) fn bind(address: SocketAddr) -> io::Result<Udp> {
        if let Some(inherited) = crate::inherit::udp(address) {
            return Udp::of(inherited.into());
        }
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // As much as the system allows.
        let _ = socket.set_recv_buffer_size(RECEIVE_BYTES);
        socket.bind(&address.into())?;
        Udp::of(socket)
    }

    /// Talks to one peer only. Needs a runtime.
    pub(super) fn connect(to: SocketAddr) -> io::Result<Udp> {
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
        socket.connect(&to.into())?;
        Udp::of(socket)
    }

    fn of(socket: Socket) -> io::Result<Udp> {
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // quinn-udp turned fragments off, as QUIC wants it; who we carry for may send what does not fit a frame.
        let_fragment(&socket)?;
        Ok(Udp { io: UdpSocket::from_std(socket.into())?, state })
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        self.io.readable().await
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        self.io.writable().await
    }

    /// Takes what is there, at most a batch, and gives each datagram with its path back.
    ///
    /// # Errors
    /// `WouldBlock`; ECONNREFUSED of a connected socket.
    pub(super) fn try_recv(&self, mut each: impl FnMut(Path, &[u8])) -> io::Result<()> {
        INCOMING.with_borrow_mut(|buffer| {
            let mut metas = [RecvMeta::default(); BATCH];
            let count = {
                let mut chunks = buffer.chunks_exact_mut(MESSAGE_BYTES);
                let mut slices: [IoSliceMut<'_>; BATCH] =
                    std::array::from_fn(|_| IoSliceMut::new(chunks.next().expect("one a message")));
                let recv = || self.state.recv(UdpSockRef::from(&self.io), &mut slices, &mut metas);
                self.io.try_io(Interest::READABLE, recv)?
            };
            for (message, meta) in buffer.chunks_exact(MESSAGE_BYTES).zip(&metas[..count]) {
                let path = Path { peer: meta.addr, local: meta.dst_ip.filter(is_own) };
                match meta.stride {
                    // An empty datagram.
                    0 => each(path, &[]),
                    stride => message[..meta.len].chunks(stride).for_each(|datagram| each(path, datagram)),
                }
            }
            Ok(())
        })
    }

    /// Sends the whole datagrams at the front of a stream's bytes, as far as the socket has room.
    ///
    /// # Errors
    /// [`TooLong`]: the stream is not one of ours.
    pub(super) fn try_send(&self, stream: &[u8], path: Path) -> Result<Sent, TooLong> {
        OUTGOING.with_borrow_mut(|gathered| {
            let mut sent = Sent::default();
            let mut count_max = self.state.max_gso_segments();
            while let Some(run) = frames::run(&stream[sent.taken..], count_max, SEGMENT_BYTES_MAX, gathered)? {
                let Some((head, head_taken)) = frames::first(&stream[sent.taken..])? else { break };
                let (contents, segment) = match run.count {
                    1 => (head, None),
                    _ => (gathered.as_slice(), Some(head.len())),
                };
                let (taken, datagrams) = if run.count == 1 { (head_taken, 1) } else { (run.taken, run.count as u64) };
                match self.send(contents, segment, path) {
                    Ok(()) => sent.datagrams += datagrams,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        sent.is_blocked = true;
                        break;
                    }
                    // The path's frames are smaller, or the device cannot: one by one.
                    Err(_) if segment.is_some() => {
                        count_max = 1;
                        continue;
                    }
                    Err(error) => {
                        sent.is_refused |= error.kind() == ErrorKind::ConnectionRefused;
                        sent.lost += datagrams;
                    }
                }
                sent.taken += taken;
            }
            Ok(sent)
        })
    }

    fn send(&self, contents: &[u8], segment_size: Option<usize>, path: Path) -> io::Result<()> {
        let transmit = Transmit { destination: path.peer, ecn: None, contents, segment_size, src_ip: path.local };
        self.io.try_io(Interest::WRITABLE, || self.state.try_send(UdpSockRef::from(&self.io), &transmit))
    }
}

/// Whether an answer may come from there: what was sent to everybody is answered from an address of the kernel's choice.
fn is_own(ip: &IpAddr) -> bool {
    !ip.is_multicast() && *ip != IpAddr::V4(Ipv4Addr::BROADCAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(datagrams: &[Vec<u8>]) -> Vec<u8> {
        datagrams.iter().flat_map(|d| [&(d.len() as u16).to_le_bytes()[..], d].concat()).collect()
    }

    /// Runs of one size (GSO where the kernel has it), other sizes, empty and large ones between them: each arrives whole
    /// and in order, also where the kernel puts them together (GRO), and each is counted once.
    #[tokio::test]
    async fn runs_arrive_as_datagrams() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (from, to) = (Udp::bind(any).expect("bound"), Udp::bind(any).expect("bound"));
        let path = Path { peer: to.local_addr().expect("bound"), local: None };
        let of = |n: usize, size: usize| -> Vec<u8> { (0..size).map(|i| (i * 7 + n) as u8).collect() };
        let rounds: [Vec<Vec<u8>>; 5] = [
            (0..64).map(|n| of(n, 1000)).collect(),
            (0..64).map(|n| of(n, if n == 63 { 10 } else { 1472 })).collect(),
            (0..20).map(|n| of(n, [0, 1, 1200, 1200, 3000][n % 5])).collect(),
            vec![of(1, 500), Vec::new(), Vec::new(), of(2, 500), of(3, 501), of(4, 65_507)],
            (0..200).map(|n| of(n, 100)).collect(),
        ];
        for (round, datagrams) in rounds.iter().enumerate() {
            let mut stream = framed(datagrams);
            // What is not whole yet stays where it is.
            stream.extend_from_slice(&[9, 0, 1]);
            let (mut taken, mut count) = (0, 0);
            while taken < stream.len() - 3 {
                from.writable().await.expect("a live socket");
                let sent = from.try_send(&stream[taken..], path).expect("good frames");
                assert_eq!((sent.lost, sent.is_refused), (0, false));
                (taken, count) = (taken + sent.taken, count + sent.datagrams);
            }
            assert_eq!((taken, count), (stream.len() - 3, datagrams.len() as u64), "round {round}");
            let mut got = Vec::new();
            while got.len() < datagrams.len() {
                to.readable().await.expect("a live socket");
                match to.try_recv(|path, datagram| {
                    assert_eq!(path.peer, from.local_addr().expect("bound"));
                    got.push(datagram.to_vec());
                }) {
                    Ok(()) => {}
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            assert!(got == *datagrams, "round {round}: {} datagrams", got.len());
        }
    }
}
