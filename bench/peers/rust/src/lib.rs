//! What both probers share: their command line and the line they print.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Patience with one probe, beyond any queueing on a saturated core.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one answer that are read at most.
pub const ANSWER_MAX: usize = 4096;

/// What to probe.
pub struct Task {
    /// Probes to make.
    pub count: usize,
    /// How many at a time.
    pub in_flight: usize,
    /// What is asked for.
    pub path: String,
    /// Whom, in turn.
    pub targets: Vec<SocketAddr>,
    started: Instant,
}

impl Task {
    /// Reads the command line; a wrong one ends the process with a sentence.
    pub fn read() -> Task {
        let mut args = std::env::args().skip(1);
        let mut next = || args.next().unwrap_or_else(|| fail("COUNT IN_FLIGHT PATH ADDRESS..."));
        let (count, in_flight, path) = (number(&next()), number(&next()), next());
        let targets: Vec<SocketAddr> =
            args.map(|a| a.parse().unwrap_or_else(|e| fail(&format!("address \"{a}\": {e}")))).collect();
        if targets.is_empty() {
            fail("no address");
        }
        Task { count, in_flight, path, targets, started: Instant::now() }
    }

    /// Prints the result.
    pub fn finish(&self, up: usize) {
        println!("{{\"up\":{up},\"seconds\":{:.6}}}", self.started.elapsed().as_secs_f64());
    }
}

fn number(text: &str) -> usize {
    text.parse().unwrap_or_else(|e| fail(&format!("number \"{text}\": {e}")))
}

fn fail(why: &str) -> ! {
    eprintln!("peer: {why}");
    std::process::exit(2);
}
