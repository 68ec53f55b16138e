//! The kernel's TLS records, where the kernel has them: elsewhere each test says that it was skipped.
//! scripts/kernel-matrix runs them on kernels that do.

use super::look::{Pair, pattern};
use super::*;
use crate::kernel::Pipe;
use std::io::ErrorKind;

const KEYS: [[u8; 32]; 2] = [[1; 32], [2; 32]];
const IV: [u8; 12] = [3; 12];

fn secret(suite: Suite, way: usize, sequence: u64) -> Secret<'static> {
    Secret { suite, key: &KEYS[way][..suite.key_bytes()], iv: &IV, sequence }
}

/// The suites that this kernel has, or a line that says it has none.
fn suites(test: &str) -> Vec<Suite> {
    match look() {
        Ok(tls) => tls.suites.clone(),
        Err(why) => {
            println!("SKIPPED {test}: {why}");
            Vec::new()
        }
    }
}

/// Encrypted both ways, each with a key of its own.
fn pair(suite: Suite, sequence: u64) -> Pair {
    let pair = Pair::plain().unwrap();
    for (socket, send, receive) in [(&pair.from, 0, 1), (&pair.to, 1, 0)] {
        socket.attach_tls().unwrap();
        socket.set_tls_key(Direction::Send, &secret(suite, send, sequence)).unwrap();
        socket.set_tls_key(Direction::Receive, &secret(suite, receive, sequence)).unwrap();
    }
    pair
}

fn receive(pair: &Pair, buffer: &mut [u8]) -> io::Result<Received> {
    loop {
        match pair.to.receive_record(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => pair.wait()?,
            other => return other,
        }
    }
}

/// Without the module, and on sockets that cannot have it, the answer is an errno and the socket goes on as it was.
#[test]
fn refusals_leave_the_socket_alone() {
    let pair = Pair::plain().unwrap();
    let attached = pair.from.attach_tls();
    if let Err(error) = &attached {
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
    }
    let short = Secret { key: &[0; 5], ..secret(Suite::Aes128Gcm, 0, 0) };
    assert_eq!(pair.from.set_tls_key(Direction::Send, &short).unwrap_err().kind(), ErrorKind::InvalidInput);
    pair.from.send(b"plain", false).unwrap();
    pair.wait().unwrap();
    let mut buffer = [0; 16];
    assert_eq!(pair.to.recv(&mut buffer).unwrap(), 5);
    assert_eq!(&buffer[..5], b"plain");
    assert_eq!(format!("{short:?}"), "Secret(AES-128-GCM, ***, record 0)");
}

/// A message of any kind comes out with its kind, in order with the data around it, from any record number on.
#[test]
fn records_keep_kind_and_order() {
    for suite in suites("records_keep_kind_and_order") {
        let pair = pair(suite, 77);
        let mut buffer = [0; 256];
        for round in 0..50u8 {
            pair.from.send(&[round; 100], false).unwrap();
            pair.from.send_record(record::HANDSHAKE, &[24, 0, 0, 1, round]).unwrap();
            let data = receive(&pair, &mut buffer).unwrap();
            assert_eq!((data, &buffer[..100]), (Received { kind: record::DATA, len: 100 }, &[round; 100][..]));
            let message = receive(&pair, &mut buffer).unwrap();
            assert_eq!((message.kind, &buffer[..message.len]), (record::HANDSHAKE, &[24, 0, 0, 1, round][..]));
        }
        assert_eq!(pair.to.receive_record(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

/// Frames as the movers write them, a small part with MSG_MORE and a large one spliced behind it, arrive whole while
/// the receiver is slow: the record that blocks is continued, not torn.
#[test]
fn frames_survive_a_slow_reader() {
    if look().as_ref().is_ok_and(|tls| !tls.splice_out) {
        return println!("SKIPPED frames_survive_a_slow_reader: no splice out");
    }
    for suite in suites("frames_survive_a_slow_reader") {
        let (pair, source) = (pair(suite, 0), Pair::plain().unwrap());
        let payload = pattern(60_000);
        let pipe = Pipe::new(256 << 10).unwrap();
        let (mut expected, mut got, mut buffer) = (Vec::new(), Vec::new(), vec![0; 5000]);
        let mut blocked = 0;
        for frame in 0..100u8 {
            source.from.send(&payload, false).unwrap();
            let mut left = 0;
            while left < payload.len() {
                source.wait().unwrap();
                left += pipe.fill(&source.to, payload.len() - left).unwrap();
            }
            let header = [frame; 16];
            expected.extend_from_slice(&header);
            expected.extend_from_slice(&payload);
            let mut at = 0;
            while at < header.len() || left > 0 {
                let sent = match at < header.len() {
                    true => pair.from.send(&header[at..], true).map(|n| at += n),
                    false => pipe.drain(&pair.from, left, false).map(|n| left -= n),
                };
                match sent {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        blocked += 1;
                        for _ in 0..20 {
                            pair.wait().unwrap();
                            let n = pair.to.recv(&mut buffer).unwrap();
                            got.extend_from_slice(&buffer[..n]);
                        }
                    }
                    Err(error) => panic!("{suite}: {error}"),
                }
            }
        }
        while got.len() < expected.len() {
            pair.wait().unwrap();
            let n = pair.to.recv(&mut buffer).unwrap();
            got.extend_from_slice(&buffer[..n]);
        }
        assert!(got == expected, "{suite}");
        assert!(blocked > 0, "the reader was never slow");
    }
}

/// A clean end is an alert and then the end of the stream; a cut is the end alone; and what a stranger wrote into the
/// stream is an error, never data.
#[test]
fn ends_are_told_apart() {
    for suite in suites("ends_are_told_apart") {
        let mut buffer = [0; 64];
        let pair_a = pair(suite, 0);
        pair_a.from.send(b"last words", false).unwrap();
        pair_a.from.shutdown_tls();
        assert_eq!(receive(&pair_a, &mut buffer).unwrap(), Received { kind: record::DATA, len: 10 });
        let goodbye = receive(&pair_a, &mut buffer).unwrap();
        assert_eq!((goodbye.kind, &buffer[..goodbye.len]), (record::ALERT, &CLOSE_NOTIFY[..]));
        assert_eq!(receive(&pair_a, &mut buffer).unwrap(), Received { kind: record::DATA, len: 0 });
        // The other direction is still open.
        pair_a.to.send(b"yes", false).unwrap();

        let pair_b = pair(suite, 0);
        pair_b.from.shutdown(Shutdown::Write);
        assert_eq!(receive(&pair_b, &mut buffer).unwrap(), Received { kind: record::DATA, len: 0 });

        // Encrypted by nobody, and cut off inside a record.
        let forged = Pair::plain().unwrap();
        forged.to.attach_tls().unwrap();
        forged.to.set_tls_key(Direction::Receive, &secret(suite, 0, 0)).unwrap();
        forged.from.send(&[&[23, 3, 3, 0, 40][..], &[0; 40]].concat(), false).unwrap();
        forged.wait().unwrap();
        let error = forged.to.receive_record(&mut buffer).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADMSG), "{suite}: {error}");

        let cut = Pair::plain().unwrap();
        cut.to.attach_tls().unwrap();
        cut.to.set_tls_key(Direction::Receive, &secret(suite, 0, 0)).unwrap();
        cut.from.send(&[23, 3, 3, 0, 40, 1, 2, 3], false).unwrap();
        cut.from.shutdown(Shutdown::Write);
        let end = receive(&cut, &mut buffer);
        assert!(!matches!(end, Ok(Received { len: 1.., .. })), "{suite}: {end:?}");
    }
}

/// What was queued before the key came is decrypted with it: the peer need not wait for us.
#[test]
fn records_may_be_early() {
    for suite in suites("records_may_be_early") {
        let pair = Pair::plain().unwrap();
        pair.from.attach_tls().unwrap();
        pair.from.set_tls_key(Direction::Send, &secret(suite, 0, 5)).unwrap();
        let words = pattern(50_000);
        pair.from.send(&words, false).unwrap();
        pair.wait().unwrap();
        pair.to.attach_tls().unwrap();
        pair.to.set_tls_key(Direction::Receive, &secret(suite, 0, 5)).unwrap();
        let (mut got, mut buffer) = (Vec::new(), vec![0; 9000]);
        while got.len() < words.len() {
            let received = receive(&pair, &mut buffer).unwrap();
            assert_eq!(received.kind, record::DATA);
            got.extend_from_slice(&buffer[..received.len]);
        }
        assert!(got == words, "{suite}");
    }
}
