//! When the far end of a carrier is asked for a sign of life, and when the carrier is given up.
//! Promise: a far end that falls silent is found dead within 10 s, by one of two: its kernel no longer answers ours (TCP
//! keepalive, which wakes no process), or it does not answer a PING. Who is waited for is asked soon, whoever else may
//! be watching; who is not, and is watched by the kernel, is asked once a minute, so that a thousand idle agents cost next to
//! nothing. Nobody is given up who was not asked. Pure.
//!
//! ```text
//! the kernel watches    keepalive: 4 s of silence, then one probe a second, over after 9 s
//! and nobody waits      PING after a minute: for a process that hangs, and for what ends TCP on the way
//! else                  PING after 3 s, over after 9 s, 5 s after the PING at the least
//! ```

use crate::mux::Side;
use ringspan_engine::kernel::Socket;
use ringspan_engine::time::Instant;
use std::time::Duration;

/// A far end that says nothing for this long is asked for a sign of life, if anybody waits for it.
const ASK_AFTER: Duration = Duration::from_secs(3);
/// The same for one that nobody waits for and the kernel watches: of the two the bridge asks first, all that are due in one
/// turn.
const ASK_IDLE_BRIDGE: Duration = Duration::from_secs(50);
const ASK_IDLE_AGENT: Duration = Duration::from_secs(60);
/// A far end that has said nothing for this long is dead: with a look each second, it is found within 10 s.
const SILENT_MAX: Duration = Duration::from_secs(9);
/// An answer takes no longer: TCP has sent a lost question or answer five times by then.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Keepalive: the first probe, and the time between two. Five are lost before the kernel gives up at [`SILENT_MAX`]
/// (TCP_USER_TIMEOUT takes the place of TCP_KEEPCNT: net/ipv4/tcp_timer.c, tcp_keepalive_timer).
const PROBE_AFTER: Duration = Duration::from_secs(4);
const PROBE_EVERY: Duration = Duration::from_secs(1);
const _: () = assert!(SILENT_MAX.as_secs() - ASK_AFTER.as_secs() > ANSWER_MAX.as_secs());

/// What a look says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    Enough,
    /// Ask now.
    Ask,
    Dead,
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signs {
    heard: Instant,
    /// The first question since.
    asked: Option<Instant>,
    ask_idle: Duration,
    /// The kernel finds out by itself whether the far end's is there.
    watched: bool,
}

impl Signs {
    /// Of a connection that is new.
    pub(super) fn new(side: Side, watched: bool, now: Instant) -> Signs {
        let ask_idle = match side {
            Side::Opener => ASK_IDLE_BRIDGE,
            Side::Accepter => ASK_IDLE_AGENT,
        };
        Signs { heard: now, asked: None, ask_idle, watched }
    }

    /// Has the kernel watch the connection. `false`: it cannot, the socket is no TCP connection.
    pub(super) fn watch(socket: &Socket) -> bool {
        // Unacknowledged bytes kill the connection as fast as silence does.
        let timeout = socket.set_user_timeout(SILENT_MAX);
        let interval = timeout.and_then(|()| socket.set_keepalive_interval(PROBE_EVERY));
        interval.and_then(|()| socket.set_keepalive(PROBE_AFTER)).is_ok()
    }

    /// What answers the kernel's probes is not the far end: TCP ends on the way, at a proxy.
    pub(super) fn on_relayed(&mut self) {
        self.watched = false;
    }

    /// Something came.
    pub(super) fn on_heard(&mut self, now: Instant) {
        (self.heard, self.asked) = (now, None);
    }

    /// A PING went out.
    pub(super) fn on_asked(&mut self, now: Instant) {
        self.asked.get_or_insert(now);
    }

    /// Whether nothing has come for as long as a far end may be silent that is asked.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        now.since(self.heard) >= SILENT_MAX
    }

    /// What is to be done. `awaited`: somebody waits for what the far end may say.
    pub(super) fn look(&self, now: Instant, awaited: bool) -> Sign {
        let silence = now.since(self.heard);
        let ask_after = if awaited || !self.watched { ASK_AFTER } else { self.ask_idle };
        match self.asked {
            None if silence >= ask_after => Sign::Ask,
            Some(asked) if silence >= SILENT_MAX && now.since(asked) >= ANSWER_MAX => Sign::Dead,
            None | Some(_) => Sign::Enough,
        }
    }
}

/// Why a carrier is over that was silent.
pub(super) fn silence() -> String {
    format!("not heard for {} s", SILENT_MAX.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(1000) + Duration::from_millis(ms)
    }

    /// Looks each second from `phase_ms` on until the far end, silent from the beginning, is dead; somebody waits for it
    /// from `awaited_ms` on. Returns when it was asked, and when it was found dead.
    fn silent(side: Side, watched: bool, phase_ms: u64, awaited_ms: u64) -> (u64, u64) {
        let mut signs = Signs::new(side, watched, at(0));
        let mut asked = Vec::new();
        for tick in 0..200 {
            let ms = tick * 1000 + phase_ms;
            match signs.look(at(ms), ms >= awaited_ms) {
                Sign::Enough => {}
                Sign::Ask => {
                    signs.on_asked(at(ms));
                    asked.push(ms);
                }
                Sign::Dead => {
                    assert_eq!(asked.len(), 1, "one question is enough: TCP repeats it");
                    return (asked[0], ms);
                }
            }
        }
        panic!("never found dead");
    }

    /// Whoever is waited for, or is watched by nobody else, is asked after 3 s and found dead within 10, wherever the
    /// looks fall.
    #[test]
    fn silence_is_found_within_ten_seconds() {
        for phase_ms in 0..1000 {
            for (watched, awaited_ms) in [(true, 0), (false, 0), (false, u64::MAX)] {
                for side in [Side::Opener, Side::Accepter] {
                    let (asked, dead) = silent(side, watched, phase_ms, awaited_ms);
                    assert!((3000..4000).contains(&asked) && (9000..=10_000).contains(&dead), "{asked} {dead}");
                }
            }
        }
    }

    /// An idle carrier that the kernel watches is asked once a minute, the bridge's before the agent's; and one that was
    /// idle is asked as soon as somebody waits, and has time to answer however long ago it was heard.
    #[test]
    fn idle_carriers_are_left_alone() {
        for phase_ms in [0, 1, 500, 999] {
            assert!((50_000..51_000).contains(&silent(Side::Opener, true, phase_ms, u64::MAX).0));
            assert!((60_000..61_000).contains(&silent(Side::Accepter, true, phase_ms, u64::MAX).0));
            let (asked, dead) = silent(Side::Opener, true, phase_ms, 30_000);
            assert!((30_000..31_000).contains(&asked) && (35_000..37_000).contains(&dead), "{asked} {dead}");
        }
    }

    /// A word takes every doubt away, and what was asked before it is no question any more.
    #[test]
    fn a_word_is_enough() {
        let mut signs = Signs::new(Side::Opener, true, at(0));
        signs.on_asked(at(3500));
        signs.on_asked(at(4500));
        assert_eq!(signs.look(at(8999), true), Sign::Enough);
        assert_eq!(signs.look(at(9000), true), Sign::Dead);
        signs.on_heard(at(9000));
        assert_eq!(signs.look(at(11_999), true), Sign::Enough);
        assert_eq!(signs.look(at(12_000), true), Sign::Ask);
        assert_eq!(signs.look(at(12_000), false), Sign::Enough);
        signs.on_relayed();
        assert_eq!(signs.look(at(12_000), false), Sign::Ask);
    }
}
