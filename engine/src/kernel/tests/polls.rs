use super::*;

/// Two ends of a connection.
fn pair() -> (Socket, Socket) {
    let (listener, at) = open_target();
    let near = Socket::from_owned(TcpStream::connect(at).expect("it listens").into());
    let far = Socket::from_owned(listener.accept().expect("it called").0.into());
    (near, far)
}

fn fill(socket: &Socket) {
    let bytes = vec![0u8; 1 << 20];
    while socket.send(&bytes, false).is_ok() {}
}

fn drain(socket: &Socket) {
    let mut bytes = vec![0u8; 1 << 20];
    while socket.recv(&mut bytes).is_ok_and(|n| n > 0) {}
}

fn ready(completions: Vec<Completion>) -> Vec<Token> {
    let tokens = completions.into_iter().map(|c| match c.event {
        Event::Ready { .. } => c.token,
        event => panic!("not a poll's: {event:?}"),
    });
    tokens.collect()
}

/// A poll for reading and one for writing, on one socket at a time, each end by their own cause.
#[test]
fn directions_are_independent() {
    on_every_io(|rig| {
        let (near, far) = pair();
        fill(&near);
        rig.io.submit(token(READ, 0), Op::Poll { fd: near.fd(), interest: Interest::Read });
        rig.io.submit(token(WRITE, 0), Op::Poll { fd: near.fd(), interest: Interest::Write });
        rig.is_quiet();
        far.send(b"x", false).expect("room");
        assert_eq!(ready(rig.wait_for(1)), [token(READ, 0)], "on {}", rig.tier);
        rig.is_quiet();
        drain(&far);
        assert_eq!(ready(rig.wait_for(1)), [token(WRITE, 0)], "on {}", rig.tier);
        // Already ready: comes at once. Then again, for nothing was read.
        for _ in 0..3 {
            rig.io.submit(token(READ, 0), Op::Poll { fd: near.fd(), interest: Interest::Read });
            assert_eq!(ready(rig.wait_for(1)), [token(READ, 0)], "on {}", rig.tier);
        }
    });
}

/// The end of the stream and a reset make a reader ready.
#[test]
fn ends_make_ready() {
    on_every_io(|rig| {
        for reset in [false, true] {
            let (near, far) = pair();
            rig.io.submit(token(READ, 0), Op::Poll { fd: near.fd(), interest: Interest::Read });
            rig.is_quiet();
            if reset {
                far.reset_on_close().expect("a live socket");
            }
            drop(far);
            assert_eq!(ready(rig.wait_for(1)), [token(READ, 0)]);
            assert_eq!(near.recv(&mut [0; 8]).ok(), (!reset).then_some(0));
        }
    });
}

/// A reader is told that the end is behind its bytes if it is, and not if it is not.
#[test]
fn ends_are_announced() {
    on_every_io(|rig| {
        for end in [false, true] {
            let (near, far) = pair();
            far.send(b"last words", false).expect("room");
            if end {
                far.shutdown(Shutdown::Write);
            }
            rig.io.submit(token(READ, 0), Op::Poll { fd: near.fd(), interest: Interest::Read });
            let told = rig.wait_for(1).pop().expect("one").event;
            assert!(matches!(told, Event::Ready { ends } if ends == end), "{told:?} on {}", rig.tier);
        }
    });
}

/// A cancelled poll ends; the other direction's goes on, and the descriptor's next owner is not disturbed.
#[test]
fn cancelled_polls_end_alone() {
    on_every_io(|rig| {
        for _ in 0..20 {
            let (near, far) = pair();
            fill(&near);
            rig.io.submit(token(READ, 0), Op::Poll { fd: near.fd(), interest: Interest::Read });
            rig.io.submit(token(WRITE, 0), Op::Poll { fd: near.fd(), interest: Interest::Write });
            rig.is_quiet();
            rig.io.cancel(token(READ, 0));
            assert_eq!(ready(rig.wait_for(1)), [token(READ, 0)]);
            rig.io.cancel(token(WRITE, 0));
            assert_eq!(ready(rig.wait_for(1)), [token(WRITE, 0)]);
            drop((near, far));
            // Very likely the same number again.
            let (near, far) = pair();
            rig.io.submit(token(READ, 0), Op::Poll { fd: near.fd(), interest: Interest::Read });
            rig.is_quiet();
            far.send(b"x", false).expect("room");
            assert_eq!(ready(rig.wait_for(1)), [token(READ, 0)], "on {}", rig.tier);
        }
    });
}

/// A closed descriptor's number, given out again, is polled as what it is now.
#[test]
fn numbers_may_be_given_out_again() {
    on_every_io(|rig| {
        let (near, far) = pair();
        far.send(b"x", false).expect("room");
        rig.io.submit(token(READ, 0), Op::Poll { fd: near.fd(), interest: Interest::Read });
        rig.wait_for(1);
        let (other, _other_far) = pair();
        // SAFETY: dup2(2) takes integers; `near`'s descriptor stays owned by `near`, and is another file from now on.
        assert!(unsafe { libc::dup2(other.raw(), near.raw()) } >= 0);
        rig.io.submit(token(READ, 0), Op::Poll { fd: near.fd(), interest: Interest::Read });
        rig.is_quiet();
        _other_far.send(b"x", false).expect("room");
        assert_eq!(ready(rig.wait_for(1)), [token(READ, 0)], "on {}", rig.tier);
    });
}

/// What cannot be polled is "ready": the next call says what is wrong.
#[test]
fn bad_descriptors_are_ready() {
    on_every_io(|rig| {
        // As far up as numbers go: no other test gets there.
        let limit = crate::kernel::facts::nofile().expect("a limit").soft;
        let fd = super::super::Fd(limit.min(60_000) as i32 - 1);
        for interest in [Interest::Read, Interest::Write] {
            rig.io.submit(token(READ, 0), Op::Poll { fd, interest });
            assert_eq!(ready(rig.wait_for(1)), [token(READ, 0)], "on {}", rig.tier);
        }
    });
}

/// Connects come out as knocks do, and a cancelled one ends.
#[test]
fn connects_come_out() {
    on_every_io(|rig| {
        let (_open, open_at) = open_target();
        let (_closed, closed_at) = closed_target();
        let (_hole, hole_at) = black_hole();
        let sockets: Vec<_> = (0..3).map(|_| Socket::tcp(Family::V4).expect("a socket")).collect();
        for (index, to) in (0..).zip([open_at, closed_at, hole_at]) {
            let fd = sockets[index as usize].fd();
            rig.io.submit(token(CONNECT, index), Op::Connect { fd, to });
        }
        let mut completions = rig.wait_for(2);
        rig.is_quiet();
        rig.io.cancel(token(CONNECT, 2));
        completions.extend(rig.wait_for(1));
        for completion in completions {
            let Event::Connected(result) = completion.event else { panic!("{completion:?}") };
            match (completion.token.index(), result) {
                (0, Ok(())) => assert_eq!(sockets[0].peer_addr().expect("connected"), open_at),
                (1, Err(Errno(libc::ECONNREFUSED | libc::ECONNRESET))) | (2, Err(Errno(libc::ECANCELED))) => {}
                other => panic!("{other:?} on {}", rig.tier),
            }
        }
    });
}

/// Thousands of polls at a time, more than any queue holds, all end.
#[test]
fn a_crowd_of_polls_ends() {
    on_every_io(|rig| {
        let pairs: Vec<_> = (0..500).map(|_| pair()).collect();
        for round in 0..4 {
            for (index, (near, _)) in (0..).zip(&pairs) {
                rig.io.submit(token(READ, index), Op::Poll { fd: near.fd(), interest: Interest::Read });
            }
            if round % 2 == 0 {
                rig.is_quiet();
            }
            for (_, far) in &pairs {
                far.send(b"x", false).expect("room");
            }
            assert_eq!(ready(rig.wait_for(500)).len(), 500);
            for (near, _) in &pairs {
                drain(near);
            }
        }
    });
}

/// What happens to a file that once had a descriptor's number does not end the operation on the file that has it now.
#[test]
fn an_old_file_ends_nothing_of_the_new() {
    on_every_io(|rig| {
        let (near, far) = pair();
        rig.io.submit(token(READ, 0), Op::Poll { fd: near.fd(), interest: Interest::Read });
        rig.is_quiet();
        rig.io.cancel(token(READ, 0));
        rig.wait_for(1);
        // The connection lives on under another number; `near`'s number becomes a fresh socket's.
        let (fresh, (_hole, hole_at)) = (Socket::tcp(Family::V4).expect("a socket"), black_hole());
        let old = near.fd.try_clone().expect("a descriptor");
        // SAFETY: dup2(2) takes integers; `near`'s descriptor stays owned by `near`, and is another file from now on.
        assert!(unsafe { libc::dup2(fresh.raw(), near.raw()) } >= 0);
        rig.io.submit(token(CONNECT, 0), Op::Connect { fd: near.fd(), to: hole_at });
        rig.is_quiet();
        far.reset_on_close().expect("a live socket");
        drop(far);
        rig.is_quiet();
        rig.io.cancel(token(CONNECT, 0));
        let end = rig.wait_for(1).pop().expect("one");
        assert!(matches!(end.event, Event::Connected(Err(Errno(libc::ECANCELED)))), "{end:?} on {}", rig.tier);
        drop(old);
    });
}

/// Cancelling an operation that is over leaves its successor in the same slot alone.
#[test]
fn a_late_cancel_hits_nobody() {
    on_every_io(|rig| {
        let (near, far) = pair();
        let (_listener, at) = open_target();
        let (_hole, hole_at) = black_hole();
        let lane = rig.lanes(Mode::HalfOpen, 1)[0];
        let tokens = |generation| (Token::new(1, READ, generation, 0), Token::new(1, KNOCK, generation, 0));
        let (poll, knock) = tokens(1);
        far.send(b"x", false).expect("room");
        rig.io.submit(poll, Op::Poll { fd: near.fd(), interest: Interest::Read });
        rig.io.submit(knock, Op::Knock { lane, to: at, look: false });
        rig.wait_for(2);
        drain(&near);
        let (next_poll, next_knock) = tokens(2);
        rig.io.submit(next_poll, Op::Poll { fd: near.fd(), interest: Interest::Read });
        rig.io.submit(next_knock, Op::Knock { lane, to: hole_at, look: false });
        rig.io.cancel(poll);
        rig.io.cancel(knock);
        rig.is_quiet();
        rig.io.cancel(next_poll);
        rig.io.cancel(next_knock);
        rig.wait_for(2);
    });
}
