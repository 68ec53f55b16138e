//! A thousand agents that offer nothing and are asked nothing: each a connection with a key of its own, the handshake by
//! the tunnel's own state machine, then signs of life as docs/link-protocol.md has them. One thread for all.

use crate::process::Failure;
use mio::{Events, Interest, Poll, Token};
use ringspan_tunnel::frame::{HEADER_BYTES, Header, Kind};
use ringspan_tunnel::hello::{self, AgentHello, AgentStep, Carrier, Introduction, SessionId, VERSIONS};
use ringspan_tunnel::identity::{AgentKey, AgentName};
use ringspan_tunnel::tls::Binding;
use ringspan_tunnel::token::JoinToken;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Silence after which an agent that nobody waits for asks for a sign of life.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The kernel asks meanwhile: when it begins to, and how often.
const PROBE_AFTER: Duration = Duration::from_secs(4);
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// A tick of the herd's clock: what an agent says may be late by so much.
const TICK: Duration = Duration::from_millis(50);

struct Agent {
    stream: mio::net::TcpStream,
    heard: Instant,
    asked: bool,
    /// The beginning of a header that has not come whole.
    rest: Vec<u8>,
}

/// Joins `count` agents, says so by a line, and keeps them until one is lost or the parent is gone.
///
/// # Errors
/// An agent cannot join, or is lost.
pub(crate) fn run(bridge: SocketAddr, token: &str, count: usize) -> Result<(), Failure> {
    let token: JoinToken = token.trim().parse().map_err(|e| format!("the token: {e}"))?;
    let failed = |e: io::Error| format!("herd: {e}");
    let mut poll = Poll::new().map_err(failed)?;
    let mut agents = Vec::with_capacity(count);
    for n in 0..count {
        let stream = join(bridge, &token, n).map_err(|e| format!("agent {n} of {count}: {e}"))?;
        stream.set_nonblocking(true).map_err(failed)?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(n), Interest::READABLE).map_err(failed)?;
        agents.push(Agent { stream, heard: Instant::now(), asked: false, rest: Vec::new() });
        // Those who are in must not fall silent while the others join.
        turn(&mut poll, &mut agents, Duration::ZERO)?;
    }
    println!("up {count}");
    loop {
        turn(&mut poll, &mut agents, TICK)?;
    }
}

fn turn(poll: &mut Poll, agents: &mut [Agent], patience: Duration) -> Result<(), Failure> {
    let mut events = Events::with_capacity(1024);
    match poll.poll(&mut events, Some(patience)) {
        Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(format!("herd: {e}")),
        _ => {}
    }
    let now = Instant::now();
    for event in &events {
        let n = event.token().0;
        agents[n].hear(now).map_err(|e| format!("agent {n} is lost: {e}"))?;
    }
    for (n, agent) in agents.iter_mut().enumerate() {
        if !agent.asked && now.duration_since(agent.heard) > SILENCE_MAX {
            agent.asked = true;
            let ping = Header { credit: n as u32, ..Header::new(Kind::Ping, 0) };
            agent.stream.write_all(&ping.encode()).map_err(|e| format!("agent {n} is lost: {e}"))?;
        }
    }
    Ok(())
}

impl Agent {
    fn hear(&mut self, now: Instant) -> io::Result<()> {
        (self.heard, self.asked) = (now, false);
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.rest.extend_from_slice(&bytes[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        while let Some(head) = self.rest.first_chunk::<HEADER_BYTES>() {
            let header = Header::decode(head).map_err(|e| io::Error::other(format!("{e:?}")))?;
            let whole = HEADER_BYTES + header.len as usize;
            if self.rest.len() < whole {
                break;
            }
            self.rest.drain(..whole);
            if header.kind == Kind::Ping {
                let pong = Header { credit: header.credit, ..Header::new(Kind::Pong, 0) };
                self.stream.write_all(&pong.encode())?;
            }
        }
        Ok(())
    }
}

/// A welcomed carrier of an agent that offers nothing.
fn join(bridge: SocketAddr, token: &JoinToken, n: usize) -> Result<TcpStream, Failure> {
    let failed = |e: io::Error| e.to_string();
    let name = AgentName::try_from(format!("idle-{n}")).map_err(|e| e.to_string())?;
    let introduction = Introduction {
        identity: AgentKey::generate(name),
        token: Some(token.clone()),
        session: SessionId::generate(),
        exposes: Vec::new(),
        watches: 0,
        software: "herd".into(),
    };
    let mut stream = TcpStream::connect(bridge).map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY);
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(failed)?;
    stream.set_read_timeout(Some(hello::DEADLINE)).map_err(failed)?;
    let mut talk = AgentHello::new(introduction, VERSIONS, Carrier::mux(0, 1), Binding::NONE);
    loop {
        let mut head = [0; HEADER_BYTES];
        stream.read_exact(&mut head).map_err(failed)?;
        let header = Header::decode(&head).map_err(|e| format!("{e:?}"))?;
        let mut payload = vec![0; header.len as usize];
        stream.read_exact(&mut payload).map_err(failed)?;
        use hello::Kind::{Auth, Challenge, Refused, Welcome};
        let step = [Challenge, Auth, Welcome, Refused].into_iter().find(|kind| *kind as u16 == header.aux);
        match talk.on_message(step.ok_or("a step of no kind")?, &payload) {
            AgentStep::Send(message) => {
                let header = Header {
                    aux: message.kind as u16,
                    len: message.payload.len() as u32,
                    ..Header::new(Kind::Hello, 0)
                };
                stream.write_all(&[&header.encode(), message.payload.as_slice()].concat()).map_err(failed)?;
            }
            AgentStep::Welcomed(_) => return Ok(stream),
            other => return Err(format!("{other:?}")),
        }
    }
}
