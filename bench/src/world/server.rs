//! The loop of a world: epoll (mio), non-blocking sockets, a wheel of answers.
//! Promise: one request per connection, one answer, and close; about five system calls a request, so that on a core of
//! its own it is never what a prober waits for. A visitor that goes away costs its own connection. Ends by itself after
//! an hour.
//!
//! ```text
//! accept ─► read ─► request is whole ─► wheel ─► write, close
//!             └─ not yet: epoll ─┘   └─► silent mortal: held until the visitor goes
//! ```

use super::wheel::Wheel;
use super::{Count, Death, Deaths, Obituary, Plan};
use crate::process::Failure;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use ringspan_engine::kernel::monotonic_now;
use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// What everybody is answered: the shortest answer that a checker accepts.
const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
/// Connections that may wait to be accepted: as many as the kernel allows by default (net.core.somaxconn).
const BACKLOG: i32 = 4096;
/// No world lasts longer, whatever became of its parent: an hour is longer than any scenario.
const LIFETIME_MAX: Duration = Duration::from_secs(3600);
/// The token of the thread that brings questions.
const QUESTION: Token = Token(usize::MAX);
/// The longest delay of an answer that may be asked for.
const DELAY_MAX_MS: u16 = 2000;
/// Calls of a mortal that are remembered: one of them was made on time, however busy the machine was.
const CALLS_KEPT: usize = 12;
/// The end of a request without a body.
const END: &[u8; 4] = b"\r\n\r\n";

/// A question, and where its answer goes.
type Question = (String, SyncSender<String>);

/// Someone who is called.
struct Resident {
    address: SocketAddr,
    /// `None`: closed.
    listener: Option<TcpListener>,
    silent: bool,
    /// The last few; only kept of mortals.
    calls_ns: VecDeque<u64>,
    /// Its calls without an answer; only kept of mortals.
    open: Vec<usize>,
}

/// One connection.
struct Call {
    stream: TcpStream,
    resident: usize,
    /// Tells it from another call that had its place in the slab.
    serial: u64,
    /// Bytes of [`END`] seen in a row; 4: the request is whole.
    matched: u8,
    watched: bool,
}

struct Server {
    poll: Poll,
    residents: Vec<Resident>,
    /// Residents from here on are mortal.
    mortal_from: usize,
    calls: Slab<Call>,
    wheel: Wheel<(usize, u64)>,
    delay_max_ms: u16,
    rng: fastrand::Rng,
    count: Count,
}

/// Serves, until the hour is over.
///
/// # Errors
/// A port cannot be had.
pub(crate) fn serve(plan: &Plan) -> Result<(), Failure> {
    let trouble = |e: io::Error| format!("world: {e}");
    let poll = Poll::new().map_err(trouble)?;
    let waker = Arc::new(Waker::new(poll.registry(), QUESTION).map_err(trouble)?);
    let mut server = Server {
        poll,
        residents: Vec::new(),
        mortal_from: plan.crowd.len(),
        calls: Slab::new(),
        wheel: Wheel::new(DELAY_MAX_MS, now_ms()),
        delay_max_ms: plan.delay_max_ms,
        rng: fastrand::Rng::with_seed(plan.seed),
        count: Count::default(),
    };
    for (index, &address) in plan.crowd.iter().chain(&plan.mortals).enumerate() {
        let resident = Resident { address, listener: None, silent: false, calls_ns: VecDeque::new(), open: Vec::new() };
        server.residents.push(resident);
        server.listen(index).map_err(|e| format!("world: listen on {address}: {e}"))?;
    }
    let questions = hear_questions(plan.control, waker)?;
    server.run(&questions).map_err(trouble)
}

fn now_ms() -> u64 {
    monotonic_now().ns() / 1_000_000
}

/// A thread that takes questions, one visitor after the other.
fn hear_questions(address: SocketAddr, waker: Arc<Waker>) -> Result<Receiver<Question>, Failure> {
    let listener = std::net::TcpListener::bind(address).map_err(|e| format!("world: listen on {address}: {e}"))?;
    let (to, questions) = sync_channel::<Question>(1);
    thread::spawn(move || {
        for visitor in listener.incoming().flatten() {
            let Ok(mut answers) = visitor.try_clone() else { continue };
            for line in BufReader::new(visitor).lines().map_while(Result::ok) {
                let (answer_to, answer) = sync_channel(1);
                if to.send((line, answer_to)).is_err() || waker.wake().is_err() {
                    return;
                }
                let Ok(answer) = answer.recv() else { return };
                if writeln!(answers, "{answer}").is_err() {
                    break;
                }
            }
        }
    });
    Ok(questions)
}

impl Server {
    fn listen(&mut self, index: usize) -> io::Result<()> {
        let address = self.residents[index].address;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(socket.into());
        self.poll.registry().register(&mut listener, Token(index), Interest::READABLE)?;
        self.residents[index].listener = Some(listener);
        Ok(())
    }

    fn run(&mut self, questions: &Receiver<Question>) -> io::Result<()> {
        let (mut events, mut due) = (Events::with_capacity(1024), Vec::new());
        let until_ms = now_ms() + LIFETIME_MAX.as_millis() as u64;
        loop {
            let patience = if self.wheel.is_empty() { Duration::from_secs(1) } else { Duration::from_millis(1) };
            match self.poll.poll(&mut events, Some(patience)) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    QUESTION => {
                        for (question, to) in questions.try_iter() {
                            // Nobody there any more: then nobody wants to know.
                            let _ = to.send(self.answer(&question));
                        }
                    }
                    Token(index) if index < self.residents.len() => self.accept(index),
                    Token(other) => self.read(other - self.residents.len()),
                }
            }
            let now = now_ms();
            if now > until_ms {
                return Err(io::Error::other("an hour is over"));
            }
            self.wheel.turn(now, &mut due);
            for (key, serial) in due.drain(..) {
                if self.calls.get(key).is_some_and(|call| call.serial == serial) {
                    self.say(key);
                }
            }
        }
    }

    fn accept(&mut self, index: usize) {
        while let Some(listener) = &self.residents[index].listener {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => match e.raw_os_error() {
                    // EMFILE, ENFILE: the next visitor's knock wakes us again.
                    Some(23 | 24) => {
                        self.count.full += 1;
                        return;
                    }
                    // An error of the visitor's connection (accept(2)); the next one may be well.
                    _ => continue,
                },
            };
            self.count.accepted += 1;
            let call = Call { stream, resident: index, serial: self.count.accepted, matched: 0, watched: false };
            let key = self.calls.insert(call);
            if index >= self.mortal_from {
                let resident = &mut self.residents[index];
                if resident.calls_ns.len() == CALLS_KEPT {
                    resident.calls_ns.pop_front();
                }
                resident.calls_ns.push_back(monotonic_now().ns());
                resident.open.push(key);
            }
            // The request has often come with the connection: one look saves a turn through epoll.
            self.read(key);
        }
    }

    fn read(&mut self, key: usize) {
        let mut bytes = [0; 1024];
        loop {
            let Some(call) = self.calls.get_mut(key) else { return };
            match call.stream.read(&mut bytes) {
                Ok(0) => return self.drop_call(key),
                Ok(n) => {
                    if call.matched < 4 && call.hear(&bytes[..n]) {
                        return self.on_request(key);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return self.watch(key),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.drop_call(key),
            }
        }
    }

    fn on_request(&mut self, key: usize) {
        let serial = self.calls[key].serial;
        match (self.residents[self.calls[key].resident].silent, self.delay_max_ms) {
            (true, _) => self.watch(key),
            (false, 0) => self.say(key),
            (false, max) => {
                let delay = self.rng.u64(..=u64::from(max));
                self.wheel.put(now_ms() + delay, (key, serial));
            }
        }
    }

    fn say(&mut self, key: usize) {
        let call = &mut self.calls[key];
        if self.residents[call.resident].silent {
            return self.watch(key);
        }
        // An answer this short always fits a fresh socket's buffer.
        match call.stream.write(ANSWER) {
            Ok(_) => self.count.served += 1,
            Err(_) => self.count.unheard += 1,
        }
        self.drop_call(key);
    }

    fn watch(&mut self, key: usize) {
        let call = &mut self.calls[key];
        if !call.watched {
            let token = Token(self.residents.len() + key);
            call.watched = true;
            if self.poll.registry().register(&mut call.stream, token, Interest::READABLE).is_err() {
                self.drop_call(key);
            }
        }
    }

    fn drop_call(&mut self, key: usize) {
        let call = self.calls.remove(key);
        if call.resident >= self.mortal_from {
            self.residents[call.resident].open.retain(|open| *open != key);
        }
    }

    fn answer(&mut self, question: &str) -> String {
        match question {
            "count" => json(&self.count),
            "die" => json(&self.die()),
            _ if question.starts_with("delay ") => match question[6..].parse() {
                Ok(ms) if ms <= DELAY_MAX_MS => {
                    self.delay_max_ms = ms;
                    json(&ms)
                }
                _ => json(&format!("{question}: must be from 0 to {DELAY_MAX_MS} ms")),
            },
            "revive" => match self.revive() {
                Ok(at_ns) => json(&at_ns),
                Err(e) => json(&format!("revive: {e}")),
            },
            other => json(&format!("no such question: {other}")),
        }
    }

    fn die(&mut self) -> Deaths {
        let mut dead = Vec::new();
        for index in self.mortal_from..self.residents.len() {
            // Who has knocked already has called before the death.
            self.accept(index);
            let resident = &mut self.residents[index];
            let death = if index % 2 == 0 { Death::Refused } else { Death::Silent };
            dead.push(Obituary {
                address: resident.address,
                death,
                calls_ns: resident.calls_ns.iter().copied().collect(),
                last_call_open: !resident.open.is_empty(),
            });
            let open = resident.open.clone();
            match death {
                Death::Refused => {
                    resident.listener = None;
                    open.into_iter().for_each(|key| self.drop_call(key));
                }
                Death::Silent => {
                    resident.silent = true;
                    open.into_iter().for_each(|key| self.watch(key));
                }
            }
        }
        Deaths { at_ns: monotonic_now().ns(), dead }
    }

    fn revive(&mut self) -> io::Result<u64> {
        for index in self.mortal_from..self.residents.len() {
            self.residents[index].silent = false;
            if self.residents[index].listener.is_none() {
                self.listen(index)?;
            }
        }
        Ok(monotonic_now().ns())
    }
}

impl Call {
    /// Whether the request is whole now.
    fn hear(&mut self, bytes: &[u8]) -> bool {
        for &byte in bytes {
            self.matched = match byte {
                b if b == END[usize::from(self.matched)] => self.matched + 1,
                b'\r' => 1,
                _ => 0,
            };
            if self.matched == 4 {
                return true;
            }
        }
        false
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain data makes JSON")
}
