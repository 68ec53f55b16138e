use super::*;
use crate::io::{Completion, Errno, Event, Interest, Op};
use crate::kernel::Socket;
use crate::mailbox::{Receiver, Sender, mailbox};
use std::net::TcpListener;

const ACCEPT: u8 = 1;
const CONNECT: u8 = 2;
const POLL: u8 = 3;

/// Connects to a listener of its own, and tells what it saw.
struct SelfCaller {
    listener: Socket,
    caller: Option<Socket>,
    accepted: Vec<Socket>,
    said: Sender<String>,
    open: u8,
}

impl SelfCaller {
    fn say(&self, what: &str) {
        self.said.send(what.to_owned()).expect("room for a few words");
    }
}

impl Resident for SelfCaller {
    fn on_start(&mut self, cx: &mut Cx<'_>) {
        let to = self.listener.local_addr().expect("bound");
        let caller = Socket::tcp(crate::io::Family::V4).expect("a socket");
        cx.io.submit(cx.token(ACCEPT, 0, 0), Op::Accept { fd: self.listener.fd() });
        cx.io.submit(cx.token(CONNECT, 0, 0), Op::Connect { fd: caller.fd(), to });
        self.caller = Some(caller);
        self.open = 2;
    }

    fn on_completion(&mut self, cx: &mut Cx<'_>, completion: Completion) {
        match completion.event {
            Event::Accepted(Ok(socket)) => {
                socket.send(b"hello", false).expect("an empty socket takes five bytes");
                self.accepted.push(socket);
                self.say("accepted");
            }
            Event::Accepted(Err(errno)) => {
                self.open -= 1;
                self.say(&format!("accept over: {}", errno == Errno(libc::ECANCELED)));
            }
            Event::Connected(result) => {
                let fd = self.caller.as_ref().expect("submitted with it").fd();
                cx.io.submit(cx.token(POLL, 0, 0), Op::Poll { fd, interest: Interest::Read });
                self.say(&format!("connected: {}", result.is_ok()));
            }
            Event::Ready { .. } => {
                let mut buffer = [0; 16];
                let n = self.caller.as_ref().expect("submitted with it").recv(&mut buffer).expect("ready");
                self.open -= 1;
                self.say(&format!("heard {}", String::from_utf8_lossy(&buffer[..n])));
            }
            Event::Heard(_) | Event::Hung => panic!("nobody called"),
            Event::Knocked(_) => unreachable!("no knock was submitted"),
        }
    }

    fn on_turn(&mut self, _: &mut Cx<'_>) -> Next {
        // Open is 0 only after the stop: the accept lasts until then.
        if self.open == 0 { Next::Done } else { Next::Event }
    }

    fn on_stop(&mut self, cx: &mut Cx<'_>) {
        self.say("stopping");
        cx.io.cancel(cx.token(ACCEPT, 0, 0));
    }
}

struct Unpark(std::thread::Thread);
impl crate::mailbox::Wake for Unpark {
    fn wake(&self) {
        self.0.unpark();
    }
}

fn words(rx: &Receiver<String>, count: usize) -> Vec<String> {
    let mut heard = Vec::new();
    while heard.len() < count {
        match rx.try_recv() {
            Some(word) => heard.push(word),
            None => std::thread::park_timeout(Duration::from_secs(10)),
        }
    }
    heard
}

/// A resident on each worker hears of its accept, connect and poll; a stop lets it cancel and finish.
#[test]
fn residents_live_from_start_to_stop() {
    for backend in [Backend::Auto, Backend::Epoll] {
        let (tx, rx) = mailbox(64, Arc::new(Unpark(std::thread::current())));
        let seats = Workers::plan(2).expect("two eventfds");
        let seats = seats.into_iter().map(|seat| {
            let listener = Socket::listen(&([127, 0, 0, 1], 0).into(), 16).expect("a listener");
            let resident = SelfCaller { listener, caller: None, accepted: Vec::new(), said: tx.clone(), open: 0 };
            (seat, vec![Box::new(resident) as Box<dyn Resident>])
        });
        let workers =
            Workers::start(&WorkerOptions { backend, pin: true, batch: false }, seats.collect()).expect("started");
        assert!(workers.is_whole());
        let mut heard = words(&rx, 6);
        heard.sort();
        assert_eq!(heard, ["accepted", "accepted", "connected: true", "connected: true", "heard hello", "heard hello"]);
        workers.stop();
        let mut heard = words(&rx, 4);
        heard.sort();
        assert_eq!(heard, ["accept over: true", "accept over: true", "stopping", "stopping"]);
    }
}

/// A resident that panics takes its own worker down and is noticed; the stop still ends.
#[test]
fn a_panic_is_noticed() {
    struct Bad;
    impl Resident for Bad {
        fn on_start(&mut self, _: &mut Cx<'_>) {
            panic!("on purpose, in a test");
        }
        fn on_completion(&mut self, _: &mut Cx<'_>, _: Completion) {}
        fn on_turn(&mut self, _: &mut Cx<'_>) -> Next {
            Next::Event
        }
        fn on_stop(&mut self, _: &mut Cx<'_>) {}
    }
    let seats = Workers::plan(1).expect("an eventfd");
    let seats = seats.into_iter().map(|seat| (seat, vec![Box::new(Bad) as Box<dyn Resident>])).collect();
    let workers = Workers::start(&WorkerOptions::default(), seats).expect("it panics later");
    while workers.is_whole() {
        std::thread::yield_now();
    }
    workers.stop();
}

/// A port that is taken is said so when the listener is made, not by a worker.
#[test]
fn a_taken_port_is_an_error_even_if_shared() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let error = Socket::listen_group(&taken.local_addr().expect("bound"), 16, 2).expect_err("taken");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

/// Says when it comes and goes, and goes after so many turns.
struct Guest {
    said: Sender<String>,
    number: usize,
    turns: usize,
}

impl Resident for Guest {
    fn on_start(&mut self, _: &mut Cx<'_>) {
        self.said.send(format!("start {}", self.number)).expect("room");
    }
    fn on_completion(&mut self, _: &mut Cx<'_>, completion: Completion) {
        panic!("nothing was submitted: {completion:?}");
    }
    fn on_turn(&mut self, _: &mut Cx<'_>) -> Next {
        self.turns -= 1;
        if self.turns == 0 { Next::Done } else { Next::Now }
    }
    fn on_stop(&mut self, _: &mut Cx<'_>) {
        self.said.send(format!("stop {}", self.number)).expect("room");
        self.turns = 1;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.said.send(format!("gone {}", self.number)).expect("room");
    }
}

/// A resident that ends leaves its place: more than a worker has room for live there one after the other; one that is
/// still there at the stop is told.
#[test]
fn residents_come_and_go() {
    let (said, rx) = mailbox(256, Arc::new(Unpark(std::thread::current())));
    let seats = Workers::plan(1).expect("an eventfd").into_iter().map(|seat| (seat, Vec::new())).collect();
    let workers = Workers::start(&WorkerOptions::default(), seats).expect("started");
    let lodging = workers.lodging();
    let guest = |number, turns| Box::new(Guest { said: said.clone(), number, turns }) as Box<dyn Resident>;
    for number in 0..3 * RESIDENTS_MAX {
        assert!(lodging.move_in(vec![guest(number, 3)]).is_ok());
        assert_eq!(words(&rx, 2), [format!("start {number}"), format!("gone {number}")]);
    }
    assert!(lodging.move_in(vec![guest(99, usize::MAX)]).is_ok());
    assert_eq!(words(&rx, 1), ["start 99"]);
    workers.stop();
    assert_eq!(words(&rx, 2), ["stop 99", "gone 99"]);
}

/// One for whom there is no room waits for it, and comes in when another one leaves, on a worker that nothing else rouses.
#[test]
fn newcomers_wait_for_room() {
    let (said, rx) = mailbox(256, Arc::new(Unpark(std::thread::current())));
    let leave = Arc::<AtomicBool>::default();
    /// Stays until it is let go; asks nobody to be woken.
    struct Stayer(Guest, Arc<AtomicBool>);
    impl Resident for Stayer {
        fn on_start(&mut self, cx: &mut Cx<'_>) {
            self.0.on_start(cx);
        }
        fn on_completion(&mut self, _: &mut Cx<'_>, _: Completion) {}
        fn on_turn(&mut self, _: &mut Cx<'_>) -> Next {
            if self.1.load(Ordering::Acquire) { Next::Done } else { Next::Event }
        }
        fn on_stop(&mut self, cx: &mut Cx<'_>) {
            self.0.on_stop(cx);
            self.1.store(true, Ordering::Release);
        }
    }
    let seats = Workers::plan(1).expect("an eventfd");
    let waker = seats[0].waker.clone();
    let seats = seats.into_iter().map(|seat| (seat, Vec::new())).collect();
    let workers = Workers::start(&WorkerOptions::default(), seats).expect("started");
    let lodging = workers.lodging();
    let stayer = |number, leave: &Arc<AtomicBool>| {
        Box::new(Stayer(Guest { said: said.clone(), number, turns: 1 }, leave.clone())) as Box<dyn Resident>
    };
    for number in 0..RESIDENTS_MAX {
        let leaves = if number == 3 { leave.clone() } else { Arc::default() };
        assert!(lodging.move_in(vec![stayer(number, &leaves)]).is_ok());
        assert_eq!(words(&rx, 1), [format!("start {number}")]);
    }
    assert!(lodging.move_in(vec![stayer(99, &Arc::default())]).is_ok());
    leave.store(true, Ordering::Release);
    waker.wake();
    assert_eq!(words(&rx, 2), ["gone 3", "start 99"]);
    workers.stop();
}
