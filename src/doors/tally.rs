//! What the doors count, for /metrics and for a line in the log when something is lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

macro_rules! tally {
    ($($name:ident $series:literal $help:literal)*) => {
        /// Counters of all doors of one kind of program. Relaxed: each is a number of its own.
        #[derive(Debug, Default)]
        pub(crate) struct Tally { $(#[doc = $help] pub(crate) $name: Count),* }

        impl Tally {
            /// Name, help and value of each.
            pub(crate) fn series(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$(($series, $help, self.$name.get())),*]
            }
        }
    };
}

tally! {
    sessions "udp_sessions_opened" "Conversations of UDP visitors that began"
    sessions_refused "udp_sessions_refused" "Datagrams dropped because there were as many conversations as may be"
    datagrams_in "udp_received_datagrams" "Datagrams received from UDP visitors"
    datagrams_out "udp_sent_datagrams" "Datagrams sent to UDP visitors"
    datagrams_full "udp_dropped_datagrams" "Datagrams dropped because their conversation had too many bytes waiting"
    datagrams_lost "udp_unsent_datagrams" "Datagrams that the kernel did not send: too large for the path, or no route"
    limited "door_visitors_refused" "Visitors of listeners other than tcp that their listener's limits kept out"
    door_headers_bad "door_bad_headers" "Connections to listeners other than tcp that brought no PROXY header that is believed"
    headers_bad "udp_bad_headers" "Datagrams dropped because they had no PROXY header that is believed"
    associate_bad "socks_bad_datagrams" "Datagrams of SOCKS visitors that were fragments or had no good header"
    proxied "proxy_granted" "Requests to socks5 and connect listeners that reached their target"
    proxy_refused "proxy_refused" "Requests to socks5 and connect listeners that were refused or failed"
}

/// One counter.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// Counts.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// How many so far.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Lines of the log about what strangers do: a few a second, then only their number.
#[derive(Debug, Default)]
pub(crate) struct Few(Mutex<FewState>);

#[derive(Debug, Default)]
struct FewState {
    since: Option<Instant>,
    said: u32,
    unsaid: u64,
}

impl Few {
    /// Lines a second.
    const MAX: u32 = 10;

    /// Whether there is room for one more line, and how many had none since the last.
    pub(crate) fn one_more(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if state.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            (state.since, state.said) = (Some(now), 0);
        }
        if state.said >= Few::MAX {
            state.unsaid += 1;
            return None;
        }
        state.said += 1;
        Some(std::mem::take(&mut state.unsaid))
    }
}
