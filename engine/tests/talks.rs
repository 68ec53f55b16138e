//! Claim: expect, UDP and ICMP checks find real peers as they are, on io_uring and on epoll. Method: sockets of our own on
//! loopback, a thread each that follows a script.

mod common;

use common::{PATIENCE, Prober};
use ringspan_engine::check::{Check, Expect, Pattern, UdpCheck};
use ringspan_engine::kernel::Backend;
use ringspan_engine::outcome::Code;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

/// For those whose silence is the answer.
const SHORT: Duration = Duration::from_millis(200);

fn pattern(text: &str) -> Option<Pattern> {
    Some(Pattern::regex(text).expect("a pattern"))
}

/// A server, one guest at a time (a probe that the prober itself spoilt is made again): says `banner`, then `answer` once it has heard something; tells how the guest left.
fn tcp(banner: &'static str, answer: &'static str) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((guest, _)) = listener.accept() {
            let _ = tell.send(serve(guest, banner, answer));
        }
    });
    (address, told)
}

fn serve(mut guest: TcpStream, banner: &str, answer: &str) -> String {
    let _ = guest.write_all(banner.as_bytes());
    let mut heard = String::new();
    let mut piece = [0; 100];
    loop {
        match guest.read(&mut piece) {
            Ok(0) => return heard + ": closed",
            Ok(bytes) => heard += &String::from_utf8_lossy(&piece[..bytes]),
            Err(error) => return format!("{heard}: {error}"),
        }
        if heard.ends_with("bye") {
            return heard + ": bye";
        }
        let _ = guest.write_all(answer.as_bytes());
    }
}

/// A socket that answers each datagram with these.
fn udp(answers: &'static [&'static str]) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("an address");
    std::thread::spawn(move || {
        let mut question = [0; 100];
        while let Ok((_, guest)) = socket.recv_from(&mut question) {
            answers.iter().for_each(|answer| drop(socket.send_to(answer.as_bytes(), guest)));
        }
    });
    address
}

fn expect(send: &str, wanted: Option<Pattern>) -> Expect {
    Expect::new(send.into(), wanted).expect("a check")
}

/// See the module.
#[test]
fn real_peers_are_found_as_they_are() {
    for backend in [Backend::Auto, Backend::Epoll] {
        let mut prober = Prober::start(backend);
        let ping = prober.probe("127.0.0.1:0".parse().expect("an address"), Check::Ping, None, PATIENCE);
        // Where net.ipv4.ping_group_range leaves us out that is our own trouble, and told as such.
        assert!(matches!(ping.code, Code::L4Ok | Code::SockErr), "{:?} on {backend:?}", ping.code);

        let banner = expect("", pattern("^SSH-2"));
        let redis = expect("PING", pattern("PONG")).leaving_with(b"bye".to_vec()).expect("a check");
        let deaf = expect("hello", None);
        let table = [
            (banner.clone(), "SSH-2.0-x\r\n", "", PATIENCE, Code::L7Ok, ": closed"),
            (banner.clone(), "HTTP/1.0\r\n", "", SHORT, Code::L7Content, ": Connection reset by peer (os error 104)"),
            (banner, "", "", SHORT, Code::L7Timeout, ": Connection reset by peer (os error 104)"),
            (redis, "", "+PONG", PATIENCE, Code::L7Ok, "PINGbye: bye"),
            (deaf.clone(), "", "what?", PATIENCE, Code::L4Ok, "hello: closed"),
            (deaf, "", "", SHORT, Code::L4Ok, "hello: closed"),
        ];
        for (row, (check, banner, answer, timeout, code, left)) in table.into_iter().enumerate() {
            let (address, told) = tcp(banner, answer);
            let sample = prober.probe(address, Check::Expect(Arc::new(check)), None, timeout);
            assert_eq!(sample.code, code, "row {row} on {backend:?}");
            assert_eq!(told.recv_timeout(PATIENCE).expect("the guest has left"), left, "row {row} on {backend:?}");
        }

        let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let quiet = silent.local_addr().expect("an address");
        // Nobody else is given a port that we have just left: ephemeral ports come round late.
        let nobody = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
        let table = [
            (udp(&["late", "", "ok"]), pattern("^ok$"), false, PATIENCE, Code::L7Ok),
            (udp(&[""]), None, false, PATIENCE, Code::L7Ok),
            (udp(&["late"]), pattern("^ok$"), false, SHORT, Code::L7Content),
            (quiet, None, false, SHORT, Code::L7Timeout),
            (quiet, None, true, SHORT, Code::L4Ok),
            (nobody, None, false, PATIENCE, Code::L4Refused),
            (nobody, None, true, PATIENCE, Code::L4Refused),
        ];
        for (row, (address, wanted, silence_is_ok, timeout, code)) in table.into_iter().enumerate() {
            let check = UdpCheck::new(b"?".to_vec(), wanted, silence_is_ok).expect("a check");
            let sample = prober.probe(address, Check::Udp(Arc::new(check)), None, timeout);
            assert_eq!(sample.code, code, "udp row {row} on {backend:?}");
        }
    }
}
