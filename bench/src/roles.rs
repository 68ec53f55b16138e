//! A backend that plays the part its visitor asks for, and visitors who ask: for `bench idle`, `fairness`, `wan` and `outage`.
//! The first byte of a stream says the part: `D` the backend sends for ever, `U` it reads for ever, `S` it reads no more,
//! `E` it gives back what comes.
//! Promise: each is a process of its own (hidden `child` commands), on blocking sockets and a thread for each stream:
//! plain, and not ours. Nothing here runs longer than its plan says; the backend ends with its parent.

use crate::process::{self, Failure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// One read or write of a stream that is never idle.
const BLOCK_BYTES: usize = 64 << 10;

/// A small request and its answer.
const SMALL_BYTES: usize = 64;

/// How often each asker asks: a request that takes longer makes its next one late.
pub(crate) const ASK_EVERY: Duration = Duration::from_millis(20);

/// Who waits longer for anything has been forgotten.
const PATIENCE: Duration = Duration::from_secs(30);

/// Stacks of the threads: there are hundreds, and they call nothing deep.
const STACK_BYTES: usize = 128 << 10;

/// The backend, for ever.
///
/// # Errors
/// The port cannot be had.
pub(crate) fn serve(listen: SocketAddr) -> Result<(), Failure> {
    let listener = TcpListener::bind(listen).map_err(|e| format!("listen on {listen}: {e}"))?;
    for visitor in listener.incoming().flatten() {
        // No thread for it: the visitor is dropped, and says so.
        let _ = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || play(visitor));
    }
    Ok(())
}

fn play(mut visitor: TcpStream) -> io::Result<()> {
    visitor.set_nodelay(true)?;
    let (mut part, mut block) = ([0], vec![7; BLOCK_BYTES]);
    visitor.read_exact(&mut part)?;
    match part[0] {
        b'D' => loop {
            visitor.write_all(&block)?;
        },
        b'U' => while visitor.read(&mut block)? > 0 {},
        b'S' => loop {
            thread::park();
        },
        _ => loop {
            match visitor.read(&mut block)? {
                0 => break,
                n => visitor.write_all(&block[..n])?,
            }
        },
    }
    Ok(())
}

/// Which way the bytes of a crowd go.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Way {
    /// From the backend to the visitors.
    Down,
    /// From the visitors to the backend.
    Up,
}

/// What a crowd of visitors does.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Plan {
    /// Where they go in.
    pub(crate) entry: SocketAddr,
    /// Where their bytes go.
    pub(crate) way: Way,
    /// Streams that move all they can.
    pub(crate) busy: usize,
    /// No more than this each, bytes a second; none: no limit.
    pub(crate) busy_rate: Option<u32>,
    /// Streams whose receiver never reads.
    pub(crate) stalled: usize,
    /// Kept streams with a small request each every [`ASK_EVERY`].
    pub(crate) askers: u32,
    /// Seconds to get going.
    pub(crate) warm_up: f64,
    /// How long it is measured after that.
    pub(crate) seconds: f64,
}

/// What became of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Found {
    /// Bytes of each busy stream while it was measured.
    pub(crate) bytes: Vec<u64>,
    /// Small requests answered.
    pub(crate) asked: u64,
    /// Half of them took at most this.
    pub(crate) p50_us: u64,
    /// 99 of 100.
    pub(crate) p99_us: u64,
    /// Streams that broke.
    pub(crate) broken: usize,
}

impl Found {
    /// Over all busy streams.
    pub(crate) fn gbit_per_s(&self, seconds: f64) -> f64 {
        self.bytes.iter().sum::<u64>() as f64 * 8e-9 / seconds
    }

    /// The slowest busy stream over the mean.
    pub(crate) fn least_share(&self) -> f64 {
        let mean = self.bytes.iter().sum::<u64>() as f64 / self.bytes.len().max(1) as f64;
        self.bytes.iter().min().map_or(f64::NAN, |&least| least as f64 / mean)
    }
}

fn open(entry: SocketAddr, part: u8) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&entry, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&[part])?;
    Ok(stream)
}

/// A crowd's whole life.
///
/// # Errors
/// The entry refuses.
pub(crate) fn crowd(plan: &Plan) -> Result<Found, Failure> {
    let refused = |e: io::Error| format!("{}: {e}", plan.entry);
    let (begin, end) = (AtomicBool::new(false), AtomicBool::new(false));
    let busy = (0..plan.busy).map(|_| open(plan.entry, if plan.way == Way::Down { b'D' } else { b'U' }));
    let busy = busy.collect::<io::Result<Vec<_>>>().map_err(refused)?;
    let stalled = (0..plan.stalled).map(|_| open(plan.entry, if plan.way == Way::Down { b'D' } else { b'S' }));
    let mut stalled = stalled.collect::<io::Result<Vec<_>>>().map_err(refused)?;
    let asking = (0..plan.askers).map(|_| open(plan.entry, b'E')).collect::<io::Result<Vec<_>>>().map_err(refused)?;
    thread::scope(|scope| {
        let spawn = |run| thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, run);
        let (begin, end) = (&begin, &end);
        let move_bytes = |stream: TcpStream| move || pump(stream, plan, begin, end);
        let threads: Vec<_> =
            busy.into_iter().map(|s| spawn(Box::new(move_bytes(s)) as Box<dyn FnOnce() -> _ + Send>)).collect();
        if plan.way == Way::Up {
            for stream in &mut stalled {
                // Fills what there is to fill, and no more.
                let _ = stream.set_write_timeout(Some(Duration::from_millis(300)));
                while stream.write(&[7; BLOCK_BYTES]).is_ok() {}
            }
        }
        let askers: Vec<_> = (0..)
            .zip(asking)
            .map(|(n, s)| scope.spawn(move || ask(s, ASK_EVERY / plan.askers * n, begin, end)))
            .collect();
        thread::sleep(Duration::from_secs_f64(plan.warm_up));
        begin.store(true, Ordering::Relaxed);
        thread::sleep(Duration::from_secs_f64(plan.seconds));
        end.store(true, Ordering::Relaxed);
        let mut found = Found { bytes: Vec::new(), asked: 0, p50_us: 0, p99_us: 0, broken: 0 };
        for thread in threads {
            let moved = thread.map_err(|e| format!("a thread: {e}"))?.join();
            match moved.expect("a visitor does not panic") {
                Ok(bytes) => found.bytes.push(bytes),
                Err(_) => found.broken += 1,
            }
        }
        let mut times = no_times();
        for asker in askers {
            match asker.join().expect("a visitor does not panic") {
                Ok(its) => times.add(its).expect("the same bounds"),
                Err(_) => found.broken += 1,
            }
        }
        found.asked = times.len();
        [found.p50_us, found.p99_us] = [0.5, 0.99].map(|quantile| times.value_at_quantile(quantile));
        Ok(found)
    })
}

/// A crowd in a process of its own, so that its threads are nobody's account.
///
/// # Errors
/// It fails, or does not end.
pub(crate) fn in_a_child(plan: &Plan) -> Result<Found, Failure> {
    let plan = serde_json::to_string(plan).expect("plain figures make JSON");
    let own = process::own_program().to_string_lossy().into_owned();
    let args = ["-s", "KILL", "180", &own, "child", "crowd", &plan];
    let finished = process::run("crowd", process::command(Path::new("timeout"), &args, None), &[0])?;
    serde_json::from_str(finished.stdout.trim()).map_err(|e| format!("the crowd printed no result: {e}"))
}

/// One byte there and back.
///
/// # Errors
/// It does not come.
pub(crate) fn echo_once(entry: SocketAddr) -> Result<(), Failure> {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&entry, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"Ex")?;
        stream.read_exact(&mut [0])
    };
    ask().map_err(|e: io::Error| e.to_string())
}

/// Moves bytes until the end; those between beginning and end count.
fn pump(mut stream: TcpStream, plan: &Plan, begin: &AtomicBool, end: &AtomicBool) -> io::Result<u64> {
    let (mut block, mut counted) = (vec![7; BLOCK_BYTES], 0);
    let mut due = Instant::now();
    while !end.load(Ordering::Relaxed) {
        let n = match plan.way {
            Way::Down => stream.read(&mut block)?,
            Way::Up => stream.write(&block)?,
        };
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if begin.load(Ordering::Relaxed) {
            counted += n as u64;
        }
        if let Some(rate) = plan.busy_rate {
            due += Duration::from_secs_f64(n as f64 / f64::from(rate));
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    Ok(counted)
}

fn no_times() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are constants")
}

fn ask(mut stream: TcpStream, phase: Duration, begin: &AtomicBool, end: &AtomicBool) -> io::Result<Histogram<u64>> {
    let mut times = no_times();
    let mut block = [1; SMALL_BYTES];
    let mut due = Instant::now() + phase;
    while !end.load(Ordering::Relaxed) {
        // From when it was due, not from when it was sent: who waits for one answer is late with the next.
        due += ASK_EVERY;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        stream.write_all(&block)?;
        stream.read_exact(&mut block)?;
        if begin.load(Ordering::Relaxed) {
            times.saturating_record(due.elapsed().as_micros() as u64);
        }
    }
    Ok(times)
}

/// Opens so many streams, has one byte come back on each, says so by a line, and holds them until its standard input ends.
///
/// # Errors
/// The entry refuses, or an answer does not come.
pub(crate) fn hold(entry: SocketAddr, count: usize) -> Result<(), Failure> {
    let mut held = Vec::with_capacity(count);
    for n in 0..count {
        let one = || {
            let mut stream = open(entry, b'E')?;
            stream.read_exact(&mut [0])?;
            Ok::<_, io::Error>(stream)
        };
        held.push(one().map_err(|e| format!("{entry}: stream {n}: {e}"))?);
    }
    println!("held {count}");
    // Ends with the parent, whatever it says.
    let _ = io::stdin().read_to_end(&mut Vec::new());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Busy streams move, a stalled one hinders nobody where there is no tunnel, and small requests are answered.
    #[test]
    fn a_crowd_finds_what_it_asks_for() {
        let probe = TcpListener::bind("127.0.0.1:0").expect("a port");
        let entry = probe.local_addr().expect("bound");
        drop(probe);
        thread::spawn(move || serve(entry));
        while TcpStream::connect(entry).is_err() {
            thread::yield_now();
        }
        for way in [Way::Down, Way::Up] {
            let plan =
                Plan { entry, way, busy: 2, busy_rate: None, stalled: 1, askers: 2, warm_up: 0.05, seconds: 0.2 };
            let found = crowd(&plan).expect("the backend is there");
            assert_eq!((found.bytes.len(), found.broken), (2, 0));
            assert!(found.bytes.iter().all(|&n| n > 0) && found.asked > 0 && found.p99_us >= found.p50_us);
        }
    }
}
