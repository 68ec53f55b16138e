//! Visitors without a pause, all of them counted.

use super::until;
use super::world::get;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// Visitors without a pause.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    visits: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<Vec<String>>>,
}

impl Load {
    /// Fetches `/`, on a fresh connection each time.
    pub(crate) fn start(at: SocketAddr) -> Load {
        Load::start_for(at, "/")
    }

    /// The same for another path.
    pub(crate) fn start_for(at: SocketAddr, path: &'static str) -> Load {
        Load::of(move || match get(at, path)? {
            (200, _) => Ok(()),
            (status, body) => Err(format!("{status} {body}")),
        })
    }

    /// Any kind of visit.
    pub(crate) fn of(visit: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Load {
        let (stop, visits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let visit = Arc::new(visit);
        let one = || {
            let (stop, visits, visit) = (stop.clone(), visits.clone(), visit.clone());
            thread::spawn(move || {
                let mut lost = Vec::new();
                while !stop.load(Ordering::Acquire) {
                    match visit() {
                        Ok(()) => drop(visits.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => lost.push(error),
                    }
                }
                lost
            })
        };
        let threads = (0..2).map(|_| one()).collect();
        Load { stop, visits, threads }
    }

    /// Waits for as many visits more.
    pub(crate) fn more(&self, visits: u64) {
        let seen = self.visits.load(Ordering::Relaxed);
        until("more visits", || (self.visits.load(Ordering::Relaxed) >= seen + visits).then_some(()));
    }

    /// Ends; nobody was lost.
    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::Release);
        let lost: Vec<String> = self.threads.into_iter().flat_map(|t| t.join().expect("no panic")).collect();
        assert!(lost.is_empty(), "{} of {}: {:?}", lost.len(), self.visits.load(Ordering::Relaxed), &lost[0]);
    }
}
