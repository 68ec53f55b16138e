//! Lanes of every way, family and source.

use super::talks::{heard_by, serve_on};
use super::*;
use crate::io::{End, HEAR_MAX, Leg, TcpFacts, Trouble};
use std::io::{Read, Write};
use std::net::{IpAddr, UdpSocket};

fn udp() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((ELSEWHERE, 0)).expect("a port");
    let at = socket.local_addr().expect("bound");
    socket.set_nonblocking(true).expect("a live socket");
    (socket, at)
}

/// A lane's call of "hello" comes, and "yes" is heard. From whom it came, and its connection.
fn answer_call(rig: &mut Rig, lane: Lane, listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).expect("a live socket");
    let (mut stream, from) = rig.meanwhile(|| listener.accept());
    stream.set_nonblocking(true).expect("a live socket");
    let mut bytes = [0; 8];
    let count = rig.meanwhile(|| stream.read(&mut bytes));
    assert_eq!(&bytes[..count], b"hello", "on {}", rig.tier);
    stream.set_nonblocking(false).expect("a live socket");
    stream.write_all(b"yes").expect("it listens");
    assert_eq!(rig.hears(lane), "yes", "on {}", rig.tier);
    (stream, from)
}

/// The same by a datagram.
fn answer_datagram(rig: &mut Rig, lane: Lane, server: &UdpSocket) {
    let (_, from) = rig.meanwhile(|| server.recv_from(&mut [0; 8]));
    server.send_to(b"yes", from).expect("sent");
    assert_eq!(rig.hears(lane), "yes", "on {}", rig.tier);
}

/// Each word heard is one datagram, cut off where the buffer ends; an answer to the call before is nobody's.
#[test]
fn datagrams_come_one_by_one() {
    on_every_io(|rig| {
        let (server, at) = udp();
        let lane = rig.lines(Way::Datagram, 1)[0];
        let mut bytes = [0; 64];
        for round in 0..20 {
            rig.call(lane, at, b"first");
            let (_, first) = rig.meanwhile(|| server.recv_from(&mut bytes));
            rig.io.cancel(token(TALK, lane.0));
            assert_eq!(rig.outcome(), Err(Trouble { leg: Leg::Hear, errno: Errno(libc::ECANCELED) }));
            // One answer lies in the socket when it is hung up, one comes after that.
            server.send_to(b"late", first).expect("sent");
            rig.hang(lane, if round % 2 == 0 { End::Reset } else { End::Fin });
            server.send_to(b"too late", first).expect("sent");
            rig.call(lane, at, b"second");
            let (count, second) = rig.meanwhile(|| server.recv_from(&mut bytes));
            assert_eq!(&bytes[..count], b"second");
            for answer in [&b"one"[..], b"", &[b'x'; 5000]] {
                server.send_to(answer, second).expect("sent");
            }
            assert_eq!(rig.hears(lane), "one", "on {}", rig.tier);
            rig.talk(lane, b"");
            assert_eq!(rig.hears(lane), "", "on {}", rig.tier);
            rig.talk(lane, b"");
            assert_eq!(rig.hears(lane).len(), HEAR_MAX, "on {}", rig.tier);
            assert_eq!(rig.io.tcp_facts(lane), None);
            rig.hang(lane, End::Reset);
        }
    });
}

/// Nobody has the port: the machine's word for it reaches the call, and not the next one.
#[test]
fn datagrams_are_refused() {
    on_every_io(|rig| {
        let ((closed, closed_at), (server, at)) = (udp(), udp());
        drop(closed);
        let lane = rig.lines(Way::Datagram, 1)[0];
        for _ in 0..20 {
            rig.call(lane, closed_at, b"hello");
            let trouble = rig.outcome().expect_err("nobody has the port");
            assert!(trouble.leg != Leg::Connect && trouble.errno == Errno(libc::ECONNREFUSED), "{trouble:?}");
            rig.hang(lane, End::Reset);
            // Refused, and hung up before it was told.
            rig.call(lane, closed_at, b"hello");
            rig.io.cancel(token(TALK, lane.0));
            assert!(rig.outcome().is_err());
            rig.hang(lane, End::Reset);
            rig.call(lane, at, b"hello");
            answer_datagram(rig, lane, &server);
            rig.hang(lane, End::Reset);
        }
    });
}

/// Calls, datagrams and knocks that look go over IPv6 too.
#[test]
fn every_way_goes_over_ipv6() {
    on_every_io(|rig| {
        let (Ok(listener), Ok(server)) = (TcpListener::bind("[::1]:0"), UdpSocket::bind("[::1]:0")) else {
            eprintln!("no IPv6 here");
            return;
        };
        server.set_nonblocking(true).expect("a live socket");
        let kind = |way| LaneKind { way, family: Family::V6, source: Some("::1".parse().expect("an address")) };
        for _ in 0..3 {
            let lane = rig.lines_of(kind(Way::Stream), 1)[0];
            rig.call(lane, listener.local_addr().expect("bound"), b"hello");
            let (mut stream, _) = answer_call(rig, lane, &listener);
            rig.hang(lane, End::Reset);
            assert!(stream.read(&mut [0]).is_err(), "a reset");
            let lane = rig.lines_of(kind(Way::Datagram), 1)[0];
            rig.call(lane, server.local_addr().expect("bound"), b"hello");
            answer_datagram(rig, lane, &server);
            rig.hang(lane, End::Reset);
        }
    });
}

/// What speaks from an address of its own does so after it was recycled too, and with a port that is chosen anew; an
/// address that is not this machine's, or of another family, is refused when the lanes are opened.
#[test]
fn sources_are_kept() {
    const SOURCE: &str = "127.41.0.9";
    on_every_io(|rig| {
        let kind =
            |way, source: &str| LaneKind { way, family: Family::V4, source: Some(source.parse().expect("an address")) };
        let is_source = |from: SocketAddr| from.ip() == SOURCE.parse::<IpAddr>().expect("an address");
        let (listener, at) = open_target_on("127.41.0.8");
        let lane = rig.lines_of(kind(Way::Stream, SOURCE), 1)[0];
        for round in 0..10 {
            rig.call(lane, at, b"hello");
            let (_stream, from) = answer_call(rig, lane, &listener);
            assert!(is_source(from), "{from} in round {round} on {}", rig.tier);
            rig.hang(lane, if round == 5 { End::Fin } else { End::Reset });
        }
        for mode in [Mode::Full, Mode::Graceful] {
            let range = rig.io.open_lanes(kind(Way::Knock(mode), SOURCE), 1).expect("a lane");
            for _ in 0..3 {
                rig.knock(Lane(range.start), at);
                assert_eq!(knocked(rig.wait_for(1))[&range.start], Ok(()));
                assert!(is_source(rig.meanwhile(|| listener.accept()).1), "{mode:?} on {}", rig.tier);
            }
        }
        let (server, at) = udp();
        let lane = rig.lines_of(kind(Way::Datagram, SOURCE), 1)[0];
        for _ in 0..3 {
            rig.call(lane, at, b"hello");
            assert!(is_source(rig.meanwhile(|| server.recv_from(&mut [0; 8])).1), "on {}", rig.tier);
            rig.io.cancel(token(TALK, lane.0));
            assert!(rig.outcome().is_err());
            rig.hang(lane, End::Reset);
        }
        // RFC 5737: nobody's.
        for way in [Way::Stream, Way::Datagram, Way::Knock(Mode::HalfOpen), Way::Knock(Mode::Graceful)] {
            let error = rig.io.open_lanes(kind(way, "192.0.2.1"), 1).expect_err("not ours");
            assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL), "{way:?} on {}", rig.tier);
            let error = rig.io.open_lanes(kind(way, "::1"), 1).expect_err("another family");
            assert_eq!(error.raw_os_error(), Some(libc::EAFNOSUPPORT), "{way:?} on {}", rig.tier);
        }
    });
}

/// A knock that looks knows what TCP measured, of a half-open one too; the application still sees nothing of that. A
/// knock that does not look, or that fails, knows nothing.
#[test]
fn knocks_look() {
    on_every_io(|rig| {
        for mode in [Mode::HalfOpen, Mode::Full, Mode::Graceful] {
            let ((listener, at), (_closed, closed_at)) = (open_target(), closed_target());
            listener.set_nonblocking(true).expect("a flag");
            let lane = rig.lanes(mode, 1)[0];
            let mut knock = |to, look| {
                rig.io.submit(token(KNOCK, lane.0), Op::Knock { lane, to, look });
                let result = knocked(rig.wait_for(1))[&lane.0];
                (result.is_ok(), rig.io.tcp_facts(lane))
            };
            assert_eq!(knock(at, false), (true, None), "{mode:?}");
            for _ in 0..5 {
                let (is_up, facts) = knock(at, true);
                assert!(is_up);
                let TcpFacts { rtt_us, retransmits } = facts.expect("it looked");
                assert!(rtt_us > 0 && rtt_us < 10_000_000 && retransmits == 0, "{rtt_us} us, {retransmits}, {mode:?}");
            }
            assert_eq!(knock(closed_at, true), (false, None), "{mode:?}");
            assert_eq!(knock(at, false), (true, None), "{mode:?}");
            if mode == Mode::HalfOpen {
                assert!(listener.accept().is_err(), "the application saw it on {}", rig.tier);
            }
        }
    });
}

/// Without descriptors a call that needs a new socket says EMFILE; when there is one it is made.
#[test]
fn calls_wait_for_descriptors() {
    on_every_io(|rig| {
        let tier = rig.tier;
        // As in `lanes_end_where_descriptors_do`.
        std::thread::spawn(move || {
            // SAFETY: unshare(2) takes an integer. From here on this thread has a descriptor table of its own.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
            let waker = Waker::new().expect("an eventfd");
            let (io, _) = open_tier(tier, &waker).expect("it opened before");
            let mut rig = Rig { io, waker, tier };
            let (_server, at) = udp();
            let lane = rig.lines(Way::Datagram, 1)[0];
            let mut held = Vec::new();
            while let Ok(socket) = Socket::tcp(Family::V4) {
                held.push(socket);
            }
            let none = Err(Trouble { leg: Leg::Connect, errno: Errno(libc::EMFILE) });
            for _ in 0..3 {
                rig.call(lane, at, b"hello");
                assert_eq!(rig.outcome(), none, "on {tier}");
                rig.hang(lane, End::Reset);
            }
            for way in [Way::Stream, Way::Datagram] {
                let kind = LaneKind { way, family: Family::V4, source: None };
                let error = rig.io.open_lanes(kind, 1).expect_err("none is left");
                assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{way:?} on {tier}");
            }
            held.pop();
            rig.call(lane, at, b"hello");
            rig.is_quiet();
            rig.io.cancel(token(TALK, lane.0));
            let cancelled = Err(Trouble { leg: Leg::Hear, errno: Errno(libc::ECANCELED) });
            assert_eq!(rig.outcome(), cancelled, "on {tier}");
        })
        .join()
        .expect("as above");
    });
}

/// A network namespace of this thread's own, its loopback up, pings allowed to everybody; `Err` says why there is none.
pub(super) fn own_network() -> Result<(), String> {
    // SAFETY: unshare(2) takes an integer.
    super::super::socket::check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map_err(|e| format!("unshare: {e}"))?;
    // Opened after the change, so it is the new namespace's.
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").map_err(|e| format!("sysctl: {e}"))?;
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|e| format!("socket: {e}"))?;
    // SAFETY: ifreq is plain integers; all zeroes is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    // SAFETY: SIOCSIFFLAGS reads one ifreq (netdevice(7)), which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    super::super::socket::check(result).map_err(|e| format!("lo up: {e}"))?;
    Ok(())
}

/// An echo request is answered, IPv4 and IPv6, by the loopback; where pings are not permitted opening says EACCES.
#[test]
fn pings_are_answered() {
    on_every_io(|rig| {
        let tier = rig.tier;
        std::thread::spawn(move || {
            if let Err(why) = own_network() {
                eprintln!("no network of our own ({why}); the machine's rules count");
            }
            let waker = Waker::new().expect("an eventfd");
            let (io, _) = open_tier(tier, &waker).expect("it opened before");
            let mut rig = Rig { io, waker, tier };
            for (family, to, ask, answer) in [(Family::V4, "127.0.0.1:0", 8, 0), (Family::V6, "[::1]:0", 128, 129)] {
                let kind = LaneKind { way: Way::Ping, family, source: None };
                let lane = match rig.io.open_lanes(kind, 1) {
                    Ok(range) => Lane(range.start),
                    Err(error) => {
                        let errno = error.raw_os_error();
                        assert!(matches!(errno, Some(libc::EACCES | libc::EAFNOSUPPORT)), "{error} on {tier}");
                        eprintln!("no pings over {family:?} here: {error}");
                        continue;
                    }
                };
                for sequence in 0..20 {
                    let said = [ask, 0, 0, 0, 0, 0, 0, sequence, b'h', b'i'];
                    rig.call(lane, to.parse().expect("an address"), &said);
                    assert_eq!(rig.outcome(), Ok(said.len()), "on {tier}");
                    let heard = rig.io.heard(lane);
                    assert_eq!((heard[0], &heard[6..]), (answer, &said[6..]), "on {tier}");
                    rig.hang(lane, End::Reset);
                }
            }
        })
        .join()
        .expect("as above");
    });
}

/// A peer of the talks' own address: nothing is left of a lane that was hung up with End::Fin and opened again.
#[test]
fn a_lane_has_one_socket() {
    on_every_io(|rig| {
        let (at, server) = serve_on("127.41.0.4", 40, |mut stream| {
            heard_by(&mut stream);
            stream.write_all(b"yes").expect("it listens");
            heard_by(&mut stream);
        });
        let lane = rig.lines(Way::Stream, 1)[0];
        for _ in 0..40 {
            rig.call(lane, at, b"hello");
            assert_eq!(rig.hears(lane), "yes", "on {}", rig.tier);
            rig.hang(lane, End::Fin);
        }
        server.join().expect("every end was seen by the server");
    });
}

/// Who speaks first sends the handshake's last ACK with its words; who has nothing to say sends it at once, on the same
/// lane too: a server that speaks first must not wait for it.
#[test]
fn acks_wait_for_words_alone() {
    on_every_io(|rig| {
        let (listener, at) = open_target_on("127.41.0.10");
        listener.set_nonblocking(true).expect("a live socket");
        let lane = rig.lines_of(LaneKind { way: Way::Stream, family: Family::V4, source: None }, 1)[0];
        for words in [&b""[..], b"hello", b"", b"hello"] {
            rig.call(lane, at, words);
            let deadline = rig.io.now() + FAR;
            while rig.io.connected_at(lane).is_none() {
                assert!(rig.io.now() < deadline, "not connected on {}", rig.tier);
                rig.io.wait(Some(rig.io.now() + Duration::from_millis(1)), &mut Vec::new());
            }
            // Loopback delivers within the call that sends: whoever is connected and has nothing to say has been heard.
            let accepted = if words.is_empty() { listener.accept() } else { Ok(rig.meanwhile(|| listener.accept())) };
            let (mut stream, _) =
                accepted.unwrap_or_else(|e| panic!("silent callers are seen at once: {e}, {}", rig.tier));
            stream.write_all(b"yes").expect("it listens");
            assert_eq!(rig.hears(lane), "yes", "on {}", rig.tier);
            rig.hang(lane, End::Reset);
        }
        // The same sockets, bare: an ACK that waits leaves its connection unseen.
        for wait in [true, false] {
            let socket = crate::kernel::lane::open(LaneKind { way: Way::Stream, family: Family::V4, source: None });
            let socket = socket.expect("a socket");
            crate::kernel::lane::let_ack_wait(&socket, wait);
            rig.io.submit(token(TALK, 9), Op::Connect { fd: socket.fd(), to: at });
            assert!(matches!(rig.wait_for(1)[0].event, Event::Connected(Ok(()))));
            assert_eq!(listener.accept().is_err(), wait, "on {}", rig.tier);
            if wait {
                socket.send(b"now", false).expect("connected");
                drop(rig.meanwhile(|| listener.accept()));
            }
        }
    });
}
