//! One call over the made-up network: what is on its way to the prober, and when it will be there.
//! Pure: the time comes in with each call.

use crate::io::{Errno, HEAR_MAX, TcpFacts, Way};
use crate::sim::host::{Said, Speaker, Word};
use crate::sim::world::{Manner, Meeting};
use crate::time::Instant;
use fastrand::Rng;
use std::collections::VecDeque;

/// See the module.
pub(crate) struct Call {
    way: Way,
    manner: Manner,
    speaker: Option<Box<dyn Speaker>>,
    pub(crate) facts: TcpFacts,
    /// When the worker saw that it was connected.
    pub(crate) connected: Option<Instant>,
    /// What is on its way, in order of its arrival.
    inbound: VecDeque<(Instant, Arrival)>,
    /// When the host has said all it has to say so far.
    said_at: Instant,
    /// The host has said its last word.
    over: bool,
}

enum Arrival {
    Bytes(Vec<u8>),
    Close,
    Failure(Errno),
}

impl Call {
    pub(crate) fn new(way: Way, meeting: Meeting) -> Call {
        let speaker = if let Manner::Talks(speech) = &meeting.manner { Some(speech.host.answer()) } else { None };
        Call {
            way,
            manner: meeting.manner,
            speaker,
            facts: meeting.facts,
            connected: None,
            inbound: VecDeque::new(),
            said_at: Instant::ZERO,
            over: false,
        }
    }

    /// The connection was made at `at`, and the worker saw it at `seen`.
    pub(crate) fn on_connected(&mut self, at: Instant, seen: Instant, rng: &mut Rng) {
        self.connected = Some(seen);
        if let (Way::Stream, Some(speaker)) = (self.way, &mut self.speaker) {
            let mut says = Vec::new();
            speaker.greet(&mut says);
            self.on_says(at, says, rng);
        }
    }

    /// The prober says something. Returns the errno if it cannot.
    pub(crate) fn on_said(&mut self, now: Instant, said: &[u8], rng: &mut Rng) -> Result<(), Errno> {
        if let Some(errno) = self.inbound.iter().find_map(|(at, arrival)| match arrival {
            Arrival::Failure(errno) if *at <= now => Some(*errno),
            _ => None,
        }) {
            return Err(errno);
        }
        if self.over {
            return Ok(());
        }
        match (&self.manner, &mut self.speaker) {
            (Manner::Talks(speech), Some(speaker)) => {
                let datagram = self.way == Way::Datagram;
                let mut says = Vec::new();
                if !datagram || rng.f64() >= speech.loss {
                    speaker.hear(said, &mut says);
                    if datagram && rng.f64() < speech.twice {
                        speaker.hear(said, &mut says);
                    }
                }
                let heard_at = now + speech.flight(rng);
                self.on_says(heard_at, says, rng);
            }
            (Manner::Refuses(after, errno), _) => self.arrive(now + *after, Arrival::Failure(*errno)),
            (Manner::Echoes(after), _) => {
                let (after, mut echo) = (*after, said.to_vec());
                match echo.first_mut() {
                    Some(kind @ 8) => *kind = 0,
                    Some(kind @ 128) => *kind = 129,
                    _ => return Err(Errno(libc::EINVAL)),
                }
                self.arrive(now + after, Arrival::Bytes(echo));
            }
            _ => {}
        }
        Ok(())
    }

    /// The host says something, the first of it after `at`.
    fn on_says(&mut self, at: Instant, says: Vec<Said>, rng: &mut Rng) {
        let Manner::Talks(speech) = &self.manner else { unreachable!("who says something talks") };
        let speech = speech.clone();
        self.said_at = self.said_at.max(at);
        for Said { after, word } in says {
            if self.over {
                return;
            }
            self.said_at = self.said_at + after;
            let arrives = self.said_at + speech.flight(rng);
            match word {
                Word::Bytes(bytes) if self.way == Way::Datagram => {
                    let times = if rng.f64() < speech.loss { 0 } else { 1 + u32::from(rng.f64() < speech.twice) };
                    (0..times).for_each(|_| self.arrive(arrives, Arrival::Bytes(bytes.clone())));
                }
                Word::Bytes(bytes) => {
                    let mut arrives = arrives;
                    for (wait, piece) in speech.pieces(&bytes, rng) {
                        arrives = arrives + wait;
                        self.said_at = self.said_at.max(arrives);
                        self.arrive(arrives, Arrival::Bytes(piece));
                    }
                }
                Word::Close if self.way == Way::Datagram => {}
                Word::Close => {
                    self.over = true;
                    self.arrive(arrives, Arrival::Close);
                }
                Word::Reset => {
                    self.over = self.way == Way::Stream;
                    let errno = if self.over { libc::ECONNRESET } else { libc::ECONNREFUSED };
                    self.arrive(arrives, Arrival::Failure(Errno(errno)));
                }
            }
        }
    }

    /// A stream keeps its order; a datagram may overtake.
    fn arrive(&mut self, at: Instant, arrival: Arrival) {
        let last = self.inbound.back().map_or(Instant::ZERO, |(at, _)| *at);
        if self.way == Way::Stream {
            self.inbound.push_back((at.max(last), arrival));
        } else {
            let place = self.inbound.partition_point(|(other, _)| *other <= at);
            self.inbound.insert(place, (at, arrival));
        }
    }

    /// When there will be something to hear, as far as is decided.
    pub(crate) fn first(&self) -> Option<Instant> {
        self.inbound.front().map(|(at, _)| *at)
    }

    /// Hears what has come by `now`, into `heard`: one datagram, or some of the pieces of a stream.
    pub(crate) fn hear(&mut self, now: Instant, heard: &mut Vec<u8>, rng: &mut Rng) -> Result<usize, Errno> {
        heard.clear();
        while let Some((at, arrival)) = self.inbound.front_mut()
            && *at <= now
        {
            match arrival {
                Arrival::Close => break,
                Arrival::Failure(errno) if heard.is_empty() => {
                    let errno = *errno;
                    self.inbound.pop_front();
                    return Err(errno);
                }
                Arrival::Failure(_) => break,
                Arrival::Bytes(bytes) if self.way == Way::Stream => {
                    let size = bytes.len().min(HEAR_MAX - heard.len());
                    heard.extend(bytes.drain(..size));
                    if bytes.is_empty() {
                        self.inbound.pop_front();
                    }
                    if heard.len() == HEAR_MAX || rng.bool() {
                        break;
                    }
                }
                Arrival::Bytes(bytes) => {
                    heard.extend_from_slice(&bytes[..bytes.len().min(HEAR_MAX)]);
                    self.inbound.pop_front();
                    break;
                }
            }
        }
        Ok(heard.len())
    }
}
