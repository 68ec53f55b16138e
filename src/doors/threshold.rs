//! The limits of a door's listener, kept at the door's own accept as the workers keep those of `tcp` listeners; who its
//! visitors are, where a PROXY header says it; and the room of those who have not yet said what they want.
//! Promises: who is not let in costs one look, and is counted; limits that a change of configuration leaves alone keep
//! their counts; a crowd that says nothing keeps nobody out, since the one that has been silent for longest goes.

use super::proxied::{self, Who};
use super::tally::{Few, Tally};
use arc_swap::ArcSwapOption;
use ipnet::IpNet;
use ringspan_engine::kernel::monotonic_now;
use ringspan_tunnel::frame::Reason;
use ringspan_tunnel::limits::{Limiter, Pass};
use ringspan_tunnel::proxy_header::WAITING_MAX;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// See the module.
pub(crate) struct Threshold {
    listener: String,
    limiter: ArcSwapOption<Limiter>,
    proxies: ArcSwapOption<Vec<IpNet>>,
    headers: Arc<Anteroom>,
    tally: Arc<Tally>,
    told: Few,
}

impl std::fmt::Debug for Threshold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "threshold of {}", self.listener)
    }
}

impl Threshold {
    /// Of this listener; without a limiter everybody comes in, and without proxies everybody is who it seems.
    pub(crate) fn new(
        listener: &str,
        limiter: Option<Arc<Limiter>>,
        proxies: Option<Vec<IpNet>>,
        tally: Arc<Tally>,
    ) -> Threshold {
        let (limiter, proxies) = (ArcSwapOption::new(limiter), ArcSwapOption::new(proxies.map(Arc::new)));
        // For one more, the one that has waited longest goes.
        let headers = Anteroom::new(WAITING_MAX);
        Threshold { listener: listener.to_owned(), limiter, proxies, headers, tally, told: Few::default() }
    }

    /// Other limits and proxies, from the next visitor on. The same limits go on counting.
    pub(crate) fn set(&self, limiter: Option<&Arc<Limiter>>, proxies: Option<&Vec<IpNet>>) {
        if self.limiter.load().as_deref() != limiter.map(AsRef::as_ref) {
            self.limiter.store(limiter.cloned());
        }
        self.proxies.store(proxies.cloned().map(Arc::new));
    }

    /// Reads the PROXY header of a connection if there is to be one, and lets the visitor in that it names.
    ///
    /// # Errors
    /// [`Reason::ProxyHeader`]: there is none, or not from there. Else as [`enter`](Threshold::enter). It is counted and logged.
    pub(crate) async fn visitor(
        &self,
        stream: &mut TcpStream,
        peer: SocketAddr,
    ) -> Result<(Who, Option<Pass>), Reason> {
        let proxies = self.proxies.load_full();
        let who = match proxies.as_deref() {
            None => peer.into(),
            Some(proxies) => self.named(proxies, stream, peer).await.map_err(|error| {
                self.tally.door_headers_bad.add(1);
                if let Some(unsaid) = self.told.one_more() {
                    tracing::warn!(listener = self.listener, %peer, %error, unsaid, "no visitor");
                }
                Reason::ProxyHeader
            })?,
        };
        Ok((who, self.enter(Some(who.visitor.ip()))?))
    }

    async fn named(&self, proxies: &[IpNet], stream: &mut TcpStream, peer: SocketAddr) -> io::Result<Who> {
        if !proxied::is_trusted(proxies, peer) {
            return Err(io::Error::other("proxy_protocol_from does not have it"));
        }
        let seat = self.headers.sit();
        tokio::select! {
            who = proxied::read(stream, peer) => who,
            () = seat.lost() => Err(io::Error::other("too many wait for their PROXY headers")),
        }
    }

    /// Lets a visitor in; `None`: nothing is limited. Who has no address (a Unix socket's) comes in where no list asks
    /// for one.
    ///
    /// # Errors
    /// What [`Limiter::enter`] says; it is counted and logged.
    pub(crate) fn enter(&self, visitor: Option<IpAddr>) -> Result<Option<Pass>, Reason> {
        let limiter = self.limiter.load();
        let Some(limiter) = limiter.as_ref() else { return Ok(None) };
        match limiter.enter(monotonic_now(), visitor) {
            Ok(pass) => Ok(Some(pass).filter(|pass| !pass.is_free())),
            Err(reason) => {
                self.tally.limited.add(1);
                if let Some(unsaid) = self.told.one_more() {
                    let (listener, reason) = (&self.listener, reason.as_str());
                    tracing::warn!(listener, ?visitor, reason, unsaid, "a visitor was not let in");
                }
                Err(reason)
            }
        }
    }
}

/// Where those wait who are in their handshake: so many at once. For one more, the one that has been there for longest
/// goes: whoever is quick gets through a crowd of those who say nothing.
#[derive(Debug)]
pub(crate) struct Anteroom {
    places: usize,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    next: u64,
    /// In the order in which they came.
    waiting: VecDeque<(u64, Arc<Notify>)>,
}

/// A place in the anteroom; free when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    room: Arc<Anteroom>,
    number: u64,
    leave: Arc<Notify>,
}

impl Anteroom {
    /// For so many.
    pub(crate) fn new(places: usize) -> Arc<Anteroom> {
        Arc::new(Anteroom { places, inside: Mutex::default() })
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        // Each change is one step: what a panic left behind is whole.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place, if need be that of whoever has been there for longest.
    pub(crate) fn sit(self: &Arc<Anteroom>) -> Seat {
        let leave = Arc::<Notify>::default();
        let mut inside = self.inside();
        if inside.waiting.len() >= self.places
            && let Some((_, longest)) = inside.waiting.pop_front()
        {
            longest.notify_one();
        }
        let number = inside.next;
        inside.next += 1;
        inside.waiting.push_back((number, leave.clone()));
        Seat { room: self.clone(), number, leave }
    }
}

impl Seat {
    /// Ends when another one takes the place.
    pub(crate) async fn lost(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inside = self.room.inside();
        if let Ok(at) = inside.waiting.binary_search_by_key(&self.number, |(number, _)| *number) {
            inside.waiting.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringspan_tunnel::limits::{Limits, Lists, Rules};

    fn limiter(connections_max: u32) -> Option<Arc<Limiter>> {
        let all = Limits { connections_max, ..Limits::default() };
        let lists = Lists { allow: Vec::new(), deny: vec!["192.0.2.0/24".parse().expect("a network")] };
        Some(Limiter::new(Rules { all, lists, ..Rules::default() }))
    }

    /// Who is denied stays out, who is too many waits for a place; equal limits keep their counts, others begin anew.
    #[test]
    fn who_comes_in() {
        let tally = Arc::<Tally>::default();
        let threshold = Threshold::new("web", limiter(1), None, tally.clone());
        let (good, bad) = (Some([198, 51, 100, 1].into()), Some([192, 0, 2, 1].into()));
        assert_eq!(threshold.enter(bad).expect_err("denied"), Reason::Denied);
        let first = threshold.enter(good).expect("there is room").expect("it is counted");
        threshold.set(limiter(1).as_ref(), None);
        assert_eq!(threshold.enter(good).expect_err("full"), Reason::ConnectionsMax);
        drop(first);
        assert!(threshold.enter(None).is_ok_and(|pass| pass.is_some()));
        threshold.set(None, None);
        assert!(threshold.enter(bad).is_ok_and(|pass| pass.is_none()));
        assert_eq!(tally.limited.get(), 2);
    }

    /// One more than there are places: who came first goes, nobody else, and whoever left by himself is not asked to.
    #[tokio::test]
    async fn the_longest_goes() {
        let room = Anteroom::new(2);
        let (first, second) = (room.sit(), room.sit());
        drop(second);
        let (third, fourth) = (room.sit(), room.sit());
        first.lost().await;
        drop(first);
        let fifth = room.sit();
        third.lost().await;
        assert_eq!(room.inside().waiting.len(), 2);
        for seat in [&fourth, &fifth] {
            let mut lost = std::pin::pin!(seat.lost());
            let waker = std::task::Waker::noop();
            assert!(lost.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
        }
    }
}
