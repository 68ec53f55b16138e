//! SOCKS 5 UDP ASSOCIATE, the bridge's half (RFC 1928 §7): a UDP socket for one visitor, whose datagrams say where to.
//!
//! ```text
//! visitor ═[header, data]═▶ socket ──▶ flow (one a target) ──frames──▶ pair ──▶ plane ──▶ agent: allow-list, UDP
//!         ◀═[header, data]═══════════ flow's task ◀──frames── pair ◀──
//! ```
//! Promises: it ends with the TCP connection that asked for it; datagrams count only from the address of that
//! connection, and from the first port they come from; fragments are dropped; flows, and what waits in each, are bounded,
//! and no flow waits for another. Each flow is a UDP socket of its own at the agent, which hears its target alone.

use super::Shared;
use super::allow::{Target, Transport};
use super::socks::{datagram, datagram_header, reply_at};
use crate::config::expose::UDP_QUEUE_BYTES;
use crate::doors::udp::frames::{self, Outbox};
use crate::doors::udp::listener::read_more;
use ringspan_engine::kernel::{Socket, monotonic_now};
use ringspan_tunnel::bridge::Entry;
use ringspan_tunnel::limits::{Pass, Way};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Targets of one association at once. For one more, the one that has been silent for longest ends.
const FLOWS_MAX: usize = 64;
/// A flow without a datagram for this long ends, as a conversation of a udp listener does.
const FLOW_IDLE: Duration = Duration::from_secs(60);
/// A target that was not reached is not tried again before this.
const RETRY: Duration = Duration::from_secs(1);
/// An association without a datagram for this long ends, although its TCP connection is there.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// The largest datagram, and its header with the longest name.
const PACKET_BYTES_MAX: usize = 65_535;

thread_local! {
    /// What a call receives into: used between two awaits.
    static PACKET: RefCell<Vec<u8>> = RefCell::new(vec![0; PACKET_BYTES_MAX]);
}

/// One visitor's.
struct Association {
    shared: Arc<Shared>,
    udp: UdpSocket,
    /// Who asked for it, over TCP.
    peer: SocketAddr,
    pass: Option<Pass>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Where its datagrams come from.
    client: Option<SocketAddr>,
    flows: HashMap<Target, Arc<Flow>>,
}

/// What goes to one target, and comes from it.
struct Flow {
    target: Target,
    stream: UnixStream,
    state: Mutex<FlowState>,
    /// The task is to look at the queue.
    full: Notify,
    stop: Notify,
}

struct FlowState {
    out: Outbox,
    seen: Instant,
    is_over: bool,
}

/// Serves an association to its end; says why it ended. Needs a runtime.
pub(super) async fn serve(
    shared: Arc<Shared>,
    mut stream: TcpStream,
    peer: SocketAddr,
    pass: Option<Pass>,
) -> io::Result<&'static str> {
    let udp = UdpSocket::bind((stream.local_addr()?.ip(), 0)).await?;
    stream.write_all(&reply_at(udp.local_addr()?)).await?;
    let association = Arc::new(Association { shared, udp, peer, pass, state: Mutex::default() });
    let why = association.carry(&mut stream).await;
    for flow in association.state().flows.values() {
        flow.stop.notify_one();
    }
    Ok(why)
}

impl Association {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one step: what a panic left behind is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn carry(self: &Arc<Self>, stream: &mut TcpStream) -> &'static str {
        let began = Instant::now();
        let total = self.pass.as_ref().and_then(Pass::total);
        let idle = self.pass.as_ref().and_then(Pass::idle).map_or(IDLE_MAX, |idle| idle.min(IDLE_MAX));
        let (mut heard, mut rest) = (began, [0; 512]);
        loop {
            let end = total.map_or(heard + idle, |total| (heard + idle).min(began + total));
            tokio::select! {
                read = stream.read(&mut rest) => match read {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return "its TCP connection ended",
                },
                ready = self.udp.readable() => {
                    if ready.is_err() {
                        return "its socket broke";
                    }
                    if self.receive() {
                        heard = Instant::now();
                    }
                }
                () = tokio::time::sleep_until(end) => {
                    // Answers count as well.
                    let answered = self.state().flows.values().map(|flow| flow.state().seen).max();
                    heard = heard.max(answered.unwrap_or(heard));
                    if total.is_some_and(|total| began + total <= Instant::now()) || heard + idle <= Instant::now() {
                        return "it was silent or there for too long";
                    }
                }
            }
        }
    }

    /// Takes what one call gives; whether it was the visitor's.
    fn receive(self: &Arc<Self>) -> bool {
        PACKET.with_borrow_mut(|packet| {
            // An error is some datagram of ours that was not wanted (ICMP).
            let Ok((n, from)) = self.udp.try_recv_from(packet) else { return false };
            self.on_packet(&packet[..n], from)
        })
    }

    fn on_packet(self: &Arc<Self>, packet: &[u8], from: SocketAddr) -> bool {
        if from.ip().to_canonical() != self.peer.ip().to_canonical() {
            return false;
        }
        let tally = &self.shared.tally;
        let Some((target, data)) = datagram(packet) else {
            tally.associate_bad.add(1);
            return false;
        };
        if *self.state().client.get_or_insert(from) != from {
            return false;
        }
        tally.datagrams_in.add(1);
        let allow = self.shared.config.allow.as_ref();
        if allow.is_some_and(|allow| !allow.may_ask(Transport::Udp, &target)) {
            self.shared.refused(self.peer, Some(&target), "the listener's allow-list does not have it over UDP");
            return true;
        }
        if !self.may(Way::Up, packet.len()) {
            tally.datagrams_full.add(1);
            return true;
        }
        let known = self.state().flows.get(&target).cloned();
        match known.map_or_else(|| self.open(target), Ok) {
            Ok(flow) if flow.push(data) => {}
            Ok(_) => tally.datagrams_full.add(1),
            Err(error) => {
                tracing::debug!(listener = self.shared.gate.name, visitor = %self.peer, %error, "no stream for a target");
                tally.sessions_refused.add(1);
            }
        }
        true
    }

    /// Datagrams that come before their time are dropped: nobody waits for UDP.
    fn may(&self, way: Way, bytes: usize) -> bool {
        let (Some(pass), now) = (&self.pass, monotonic_now()) else { return true };
        let may = pass.wait(way, now).is_none();
        if may {
            pass.spend(way, now, bytes);
        }
        may
    }

    fn open(self: &Arc<Self>, target: Target) -> io::Result<Arc<Flow>> {
        let (inside, outside) = Socket::pair()?;
        let stream = UnixStream::from_std(StdStream::from(outside.into_owned()))?;
        let entry = Entry {
            visitor: Some(self.peer),
            is_datagrams: true,
            target: Some(Transport::Udp.name(&target)),
            ..Entry::new(inside, self.shared.gate.clone())
        };
        self.shared.handle.admit(entry).map_err(|_| io::Error::other("the workers have too much mail"))?;
        let state = FlowState { out: Outbox::new(UDP_QUEUE_BYTES), seen: Instant::now(), is_over: false };
        let (full, stop) = (Notify::new(), Notify::new());
        let flow = Arc::new(Flow { target: target.clone(), stream, state: Mutex::new(state), full, stop });
        let mut state = self.state();
        if state.flows.len() >= FLOWS_MAX
            && let Some(silent) = state.flows.values().min_by_key(|flow| flow.state().seen).cloned()
        {
            state.flows.remove(&silent.target);
            silent.stop.notify_one();
        }
        state.flows.insert(target, flow.clone());
        drop(state);
        self.shared.tally.sessions.add(1);
        let (association, its) = (self.clone(), flow.clone());
        tokio::spawn(async move {
            association.run(&its).await;
            let mut state = association.state();
            if state.flows.get(&its.target).is_some_and(|now| Arc::ptr_eq(now, &its)) {
                state.flows.remove(&its.target);
            }
        });
        Ok(flow)
    }

    /// Carries a flow until it is over.
    async fn run(&self, flow: &Flow) {
        let (mut inbox, mut was_answered) = (Vec::new(), false);
        let why = loop {
            let (has_more, end) = {
                let state = flow.state();
                (!state.out.is_empty(), state.seen + FLOW_IDLE)
            };
            tokio::select! {
                () = flow.stop.notified() => return,
                ready = flow.stream.readable() => {
                    match ready.and_then(|()| read_more(&flow.stream, &mut inbox)) {
                        Ok(1..) => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                        Ok(0) | Err(_) => break "the target is not reached, or not any more",
                    }
                    was_answered = true;
                    flow.state().seen = Instant::now();
                    if self.deliver(flow, &mut inbox).is_err() {
                        break "the agent sent no datagrams";
                    }
                }
                _ = flow.stream.writable(), if has_more => flow.flush(),
                () = flow.full.notified() => {}
                () = tokio::time::sleep_until(end) => {
                    if flow.state().seen + FLOW_IDLE <= Instant::now() {
                        break "nothing was said for too long";
                    }
                }
            }
        };
        tracing::trace!(listener = self.shared.gate.name, visitor = %self.peer, target = %flow.target, why, "flow over");
        if !was_answered {
            flow.state().is_over = true;
            let _ = tokio::time::timeout(RETRY, flow.stop.notified()).await;
        }
    }

    /// Sends what came whole to the visitor.
    fn deliver(&self, flow: &Flow, inbox: &mut Vec<u8>) -> Result<(), frames::TooLong> {
        let (tally, client) = (&self.shared.tally, self.state().client);
        let (mut at, mut packet) = (0, datagram_header(&flow.target));
        let header_bytes = packet.len();
        while let Some((data, taken)) = frames::first(&inbox[at..])? {
            at += taken;
            packet.truncate(header_bytes);
            packet.extend_from_slice(data);
            let Some(client) = client else { continue };
            let sent = self.may(Way::Down, packet.len()) && self.udp.try_send_to(&packet, client).is_ok();
            let count = if sent { &tally.datagrams_out } else { &tally.datagrams_lost };
            count.add(1);
        }
        inbox.drain(..at);
        if inbox.is_empty() {
            *inbox = Vec::new();
        }
        Ok(())
    }
}

impl Flow {
    fn state(&self) -> MutexGuard<'_, FlowState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a datagram and sends what goes. `false`: it was dropped.
    fn push(&self, data: &[u8]) -> bool {
        let mut state = self.state();
        state.seen = Instant::now();
        let queued = !state.is_over && state.out.push(data);
        drop(state);
        self.flush();
        queued
    }

    /// Gives the stream what it takes now; the task waits for the rest.
    fn flush(&self) {
        let mut state = self.state();
        while !state.out.is_empty() {
            match self.stream.try_write(state.out.pending()) {
                Ok(n) => state.out.took(n),
                // A broken stream is found by the task, which reads it.
                Err(_) => break,
            }
        }
        if !state.out.is_empty() {
            self.full.notify_one();
        }
    }
}
