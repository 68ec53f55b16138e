//! What a visitor's stream is counted and limited by, for as long as it lives: bytes a second by reading and writing
//! later, silence and age by ending it.
//! Promise: a stream without limits has none of this, and a limited one never sleeps: it is looked at when its time has
//! come, and what it does not read stops its sender.

use super::{Plane, Stage};
use crate::frame::Reason;
use crate::limits::{Pass, Way};
use crate::routes::LoadGuard;
use crate::slots::Key;
use ringspan_engine::resident::Cx;
use ringspan_engine::time::Instant;
use std::cmp::Reverse;

/// Looks that are kept without asking whether their streams are still there.
pub(super) const LOOKS_MIN: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Fare {
    pub(crate) pass: Pass,
    /// Counted for its backend; another when it is sent to another.
    pub(crate) load: Option<LoadGuard>,
    /// Of the pass, what the visitor keeps when it is sent to another agent.
    own: usize,
    /// When bytes last went, either way.
    active_at: Instant,
    since: Option<Instant>,
    /// Whether bytes to the visitor are limited.
    pub(super) paced: bool,
    /// A look at what waits for the visitor is due.
    waiting: bool,
}

/// Why a stream is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Look {
    /// Bytes from the visitor may go.
    Up,
    /// Bytes to it may.
    Down,
    /// It may have been silent for too long.
    Idle,
    /// It has lasted long enough.
    Total,
}

impl Fare {
    pub(crate) fn new(pass: Pass) -> Box<Fare> {
        let paced = pass.limits(Way::Down);
        Box::new(Fare {
            own: pass.counts(),
            pass,
            load: None,
            active_at: Instant::ZERO,
            since: None,
            paced,
            waiting: false,
        })
    }

    /// It is sent to an agent that counts it too; `None`: to none that does, or to none yet.
    pub(crate) fn set_agent(&mut self, pass: Option<Pass>) {
        self.pass.leave_past(self.own);
        if let Some(pass) = pass {
            self.pass.join(pass);
        }
        self.paced = self.pass.limits(Way::Down);
    }

    /// Whether its bytes have to be seen: then it cannot ride a connection of its own.
    pub(super) fn is_watched(&self) -> bool {
        let Fare { pass, .. } = self;
        pass.limits(Way::Up) || pass.limits(Way::Down) || pass.idle().is_some() || pass.total().is_some()
    }
}

impl Plane {
    /// The stream begins.
    pub(super) fn begin_fare(&mut self, key: Key, now: Instant) {
        let Some(fare) = self.endpoints.get_mut(key).and_then(|e| e.fare.as_mut()) else { return };
        fare.active_at = now;
        // One that comes back from a backend that was not reached is not younger for it.
        let since = *fare.since.get_or_insert(now);
        let (idle, total) = (fare.pass.idle(), fare.pass.total());
        if let Some(idle) = idle {
            self.look_at(now + idle, key, Look::Idle);
        }
        if let Some(total) = total {
            self.look_at(since + total, key, Look::Total);
        }
    }

    /// Most bytes that may be read of the visitor now; 0: it is looked at later.
    pub(super) fn fare_up(&mut self, key: Key, now: Instant) -> usize {
        let Some(fare) = self.endpoints.get(key).and_then(|e| e.fare.as_ref()) else { return usize::MAX };
        match fare.pass.wait(Way::Up, now) {
            None => fare.pass.slice(Way::Up),
            Some(at) => {
                self.look_at(at, key, Look::Up);
                0
            }
        }
    }

    /// `n` bytes went.
    pub(super) fn pay(&mut self, key: Key, way: Way, now: Instant, n: usize) {
        if let Some(fare) = self.endpoints.get_mut(key).and_then(|e| e.fare.as_mut()) {
            fare.active_at = now;
            fare.pass.spend(way, now, n);
        }
    }

    /// Whether what waits for the visitor must wait for its time; then it is looked at.
    pub(super) fn must_wait(&mut self, key: Key, now: Instant) -> bool {
        let Some(fare) = self.endpoints.get_mut(key).and_then(|e| e.fare.as_mut()).filter(|fare| fare.paced) else {
            return false;
        };
        let Some(at) = fare.pass.wait(Way::Down, now) else { return false };
        if !std::mem::replace(&mut fare.waiting, true) {
            self.look_at(at, key, Look::Down);
        }
        true
    }

    /// Streams end long before their time: those that have are forgotten whenever the heap has doubled.
    fn look_at(&mut self, at: Instant, key: Key, look: Look) {
        if self.looks.len() >= self.looks_max {
            let endpoints = &self.endpoints;
            self.looks.retain(|Reverse((_, key, _))| endpoints.get(*key).is_some());
            self.looks_max = LOOKS_MIN.max(self.looks.len() * 2);
        }
        self.looks.push(Reverse((at, key, look)));
    }

    /// Looks at the streams whose time has come.
    pub(super) fn look(&mut self, cx: &mut Cx<'_>) {
        while let Some(Reverse((at, key, look))) = self.looks.peek().copied()
            && at <= cx.now
        {
            self.looks.pop();
            let Some(e) = self.endpoints.get_mut(key).filter(|e| e.stage == Stage::Open) else { continue };
            let Some(fare) = e.fare.as_mut() else { continue };
            match look {
                Look::Up => self.source_ready(key),
                Look::Down => {
                    fare.waiting = false;
                    self.settle(cx, key);
                }
                Look::Idle => {
                    let due = fare.active_at + fare.pass.idle().unwrap_or_default();
                    if due <= cx.now {
                        self.fail(cx, key, Reason::IdleTime);
                    } else {
                        self.look_at(due, key, Look::Idle);
                    }
                }
                Look::Total => self.fail(cx, key, Reason::TotalTime),
            }
        }
    }
}
