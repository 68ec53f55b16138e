use super::*;

fn listener() -> (Socket, SocketAddr) {
    let listener = Socket::listen(&SocketAddr::from(([127, 0, 0, 1], 0)), 128).expect("a listener");
    let at = listener.local_addr().expect("bound");
    (listener, at)
}

fn accepted(completions: Vec<Completion>) -> Vec<Result<Socket, Errno>> {
    let said = completions.into_iter().map(|c| match c.event {
        Event::Accepted(result) => result,
        event => panic!("not an accept's: {event:?}"),
    });
    said.collect()
}

/// One accept brings every caller, those before it too, until it is cancelled; then it ends once.
#[test]
fn accepts_go_on_until_cancelled() {
    on_every_io(|rig| {
        let (listener, at) = listener();
        let call = || TcpStream::connect(at).expect("it listens");
        let early: Vec<_> = (0..100).map(|_| call()).collect();
        rig.io.submit(token(ACCEPT, 3), Op::Accept { fd: listener.fd() });
        let mut sockets = accepted(rig.wait_for(100));
        rig.is_quiet();
        let late: Vec<_> = (0..10).map(|_| call()).collect();
        sockets.extend(accepted(rig.wait_for(10)));
        let mut callers: Vec<_> = early.iter().chain(&late).map(|s| s.local_addr().expect("connected")).collect();
        let mut peers: Vec<_> =
            sockets.into_iter().map(|s| s.expect("a socket").peer_addr().expect("connected")).collect();
        callers.sort();
        peers.sort();
        assert_eq!(callers, peers, "on {}", rig.tier);
        rig.io.cancel(token(ACCEPT, 3));
        let end = accepted(rig.wait_for(1)).pop().expect("one");
        assert_eq!(end.expect_err("cancelled"), Errno(libc::ECANCELED));
        let _unheard = call();
        rig.is_quiet();
    });
}

/// Without descriptors an accept ends with EMFILE, the listener lives, and the next accept gets the caller.
#[test]
fn accepts_end_where_descriptors_do() {
    on_every_io(|rig| {
        let tier = rig.tier;
        // As in `lanes_end_where_descriptors_do`.
        std::thread::spawn(move || {
            // SAFETY: unshare(2) takes an integer.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
            let waker = Waker::new().expect("an eventfd");
            let (io, _) = open_tier(tier, &waker).expect("it opened before");
            let mut rig = Rig { io, waker, tier };
            let (listener, at) = listener();
            let caller = Socket::tcp(Family::V4).expect("a socket");
            let mut held = Vec::new();
            while let Ok(socket) = Socket::tcp(Family::V4) {
                held.push(socket);
            }
            rig.io.submit(token(ACCEPT, 0), Op::Accept { fd: listener.fd() });
            rig.io.submit(token(CONNECT, 0), Op::Connect { fd: caller.fd(), to: at });
            for completion in rig.wait_for(2) {
                match completion.event {
                    Event::Connected(result) => assert_eq!(result, Ok(())),
                    Event::Accepted(result) => assert_eq!(result.expect_err("no room"), Errno(libc::EMFILE)),
                    event => panic!("{event:?}"),
                }
            }
            held.pop();
            // Some kernels lose the connection that found no descriptor; a second caller shows that accepts go on.
            rig.io.submit(token(ACCEPT, 0), Op::Accept { fd: listener.fd() });
            let again = Socket::tcp(Family::V4);
            drop(again);
            held.truncate(held.len() - 3);
            let second = TcpStream::connect(at).expect("it listens");
            let mut peers = Vec::new();
            while !peers.contains(&second.local_addr().expect("connected")) {
                for socket in accepted({
                    let mut completions = Vec::new();
                    rig.io.wait(Some(rig.io.now() + FAR), &mut completions);
                    assert!(!completions.is_empty(), "nobody came on {tier}");
                    completions
                }) {
                    peers.push(socket.expect("there is room").peer_addr().expect("connected"));
                }
            }
        })
        .join()
        .expect("as above");
    });
}

/// What is no listener ends the accept with the kernel's word for it.
#[test]
fn accepts_need_a_listener() {
    on_every_io(|rig| {
        let socket = Socket::tcp(Family::V4).expect("a socket");
        rig.io.submit(token(ACCEPT, 0), Op::Accept { fd: socket.fd() });
        let end = accepted(rig.wait_for(1)).pop().expect("one");
        assert_eq!(end.expect_err("not listening"), Errno(libc::EINVAL), "on {}", rig.tier);
        rig.is_quiet();
    });
}
