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
