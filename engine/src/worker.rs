//! The threads of the engine: each pinned to a core, with an [`Io`] of its own and the residents that share it.
//!
//! ```text
//! on_start → { on_turn(each) → wait(earliest deadline) → on_completion(whom the token names) } → on_stop → Done
//! ```
//! Nothing is shared between workers. A resident that panics takes its worker down, and the process is told by
//! [`Workers::is_whole`] and an error in the log; the other workers go on.

use crate::cores::Cores;
use crate::io::Io;
use crate::kernel::{self, Backend, Capabilities, OpenError, Tier, Waker};
use crate::mailbox::{Full, Receiver, Sender, Wake, mailbox};
use crate::resident::{Cx, Next, Resident};
use crate::time::Instant;
use crate::token::Token;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long residents have to finish after [`Workers::stop`].
pub const STOP_MAX: Duration = Duration::from_secs(2);
/// Residents on one worker: their numbers are 1 to 15.
pub const RESIDENTS_MAX: usize = Token::RESIDENTS_MAX as usize - 1;

/// Residents on their way to a worker that runs.
const NEWCOMERS_MAX: usize = 16;

/// A worker's place before it runs: mailboxes are made with its waker, then it starts.
pub struct Seat {
    /// Which worker, from 0.
    pub index: usize,
    /// Rouses it; `Arc::new(seat.waker.clone())` is what a mailbox wants.
    pub waker: Waker,
}

/// How workers run.
#[derive(Clone, Copy, Debug)]
pub struct WorkerOptions {
    /// Which kind of `Io`.
    pub backend: Backend,
    /// Keep each worker on one core of those the process may use, in turn.
    pub pin: bool,
    /// Whether workers wake without pushing aside who runs on their core: see [`kernel::batch_thread`]. For who moves many
    /// small messages; a prober that is to be on time says no.
    pub batch: bool,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        WorkerOptions { backend: Backend::Auto, pin: true, batch: false }
    }
}

/// Why workers did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kernel gives no `Io`.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No thread to be had, or no waker.
    #[error("cannot start a worker thread: {0}")]
    Thread(#[from] io::Error),
    /// A worker ended while it started; its panic is in the log.
    #[error("worker {0} ended while it started")]
    Ended(usize),
}

/// One worker's way in: how to wake it, and where to leave a resident.
type Way = (Waker, Sender<Box<dyn Resident>>);

/// Where residents move in while the workers run. Clones lead to the same workers.
#[derive(Clone)]
pub struct Lodging {
    doors: Arc<[Way]>,
}

impl Lodging {
    /// Seats beside those who live there, for mailboxes.
    pub fn seats(&self) -> Vec<Seat> {
        (0..).zip(self.doors.iter()).map(|(index, (waker, _))| Seat { index, waker: waker.clone() }).collect()
    }

    /// One resident for each worker, in order; they start within a turn and live until they say [`Next::Done`]. A
    /// worker has room for [`RESIDENTS_MAX`] at a time: one for which there is none waits until another one leaves.
    ///
    /// # Errors
    /// [`Full`] with those that could not be delivered: a worker has not taken in the last 16.
    pub fn move_in(&self, residents: Vec<Box<dyn Resident>>) -> Result<(), Full<Vec<Box<dyn Resident>>>> {
        let (mut left, mut full) = (Vec::new(), false);
        for ((_, door), resident) in self.doors.iter().zip(residents) {
            if let Err(Full(resident)) = door.send(resident) {
                left.push(resident);
                full = true;
            }
        }
        if full { Err(Full(left)) } else { Ok(()) }
    }
}

/// Running workers. Dropping it stops them.
pub struct Workers {
    threads: Vec<Thread>,
    stop: Arc<AtomicBool>,
    capabilities: Capabilities,
    lodging: Lodging,
}

struct Thread {
    index: usize,
    waker: Waker,
    handle: Option<JoinHandle<()>>,
}

impl Workers {
    /// Seats for `count` workers, to make mailboxes with.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM (eventfd(2)).
    pub fn plan(count: usize) -> io::Result<Vec<Seat>> {
        (0..count).map(|index| Ok(Seat { index, waker: Waker::new()? })).collect()
    }

    /// Starts a worker per seat with these residents, numbered from 1 in the order given. Panics if a seat has more
    /// than [`RESIDENTS_MAX`].
    ///
    /// # Errors
    /// The first worker's trouble; those that had started are stopped again.
    pub fn start(options: &WorkerOptions, seats: Vec<(Seat, Vec<Box<dyn Resident>>)>) -> Result<Workers, StartError> {
        Workers::start_on(options, &Cores::allowed(), seats)
    }

    /// The same, on these cores in turn if they are to be kept on cores at all.
    ///
    /// # Errors
    /// As [`start`](Workers::start). A core that is not there is a warning, and its worker runs anywhere.
    pub fn start_on(
        options: &WorkerOptions,
        cores: &Cores,
        seats: Vec<(Seat, Vec<Box<dyn Resident>>)>,
    ) -> Result<Workers, StartError> {
        let cores = if options.pin { cores.as_slice() } else { &[] };
        let stop = Arc::new(AtomicBool::new(false));
        let (doors, mut newcomers): (Vec<_>, VecDeque<_>) = seats
            .iter()
            .map(|(seat, _)| {
                let (door, newcomers) = mailbox(NEWCOMERS_MAX, Arc::new(seat.waker.clone()) as Arc<dyn Wake>);
                ((seat.waker.clone(), door), newcomers)
            })
            .unzip();
        let lodging = Lodging { doors: doors.into() };
        let mut workers = Workers { threads: Vec::new(), stop, capabilities: Capabilities::none(), lodging };
        let mut reports = Vec::new();
        if let Some((seat, _)) = seats.first() {
            kernel::facts::reserve_descriptors(seat.waker.fd());
        }
        for (Seat { index, waker }, residents) in seats {
            assert!(residents.len() <= RESIDENTS_MAX, "a worker has room for {RESIDENTS_MAX} residents");
            let core = (!cores.is_empty()).then(|| cores[index % cores.len()]);
            let (report, opened) = mpsc::sync_channel(1);
            let newcomers = newcomers.pop_front().expect("one a seat");
            let stop = workers.stop.clone();
            let plan = Plan {
                index,
                waker: waker.clone(),
                core,
                backend: options.backend,
                batch: options.batch,
                stop,
                newcomers,
            };
            let handle = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || run(plan, residents, &report))?;
            workers.threads.push(Thread { index, waker, handle: Some(handle) });
            reports.push((index, opened));
        }
        for (index, opened) in reports {
            workers.capabilities = opened.recv().map_err(|_| StartError::Ended(index))??;
        }
        let (count, io) = (workers.threads.len(), &workers.capabilities);
        if options.backend == Backend::Auto && io.tier == Tier::Epoll {
            tracing::warn!(workers = count, why = io.why, "no io_uring here: workers run on epoll");
        } else {
            let kept_on =
                Cores::of(cores.iter().copied().take(count)).map_or("any".to_owned(), |used| used.to_string());
            tracing::info!(workers = count, cores = kept_on, %io, "workers run");
        }
        Ok(workers)
    }

    /// Where residents move in while the workers run.
    pub fn lodging(&self) -> Lodging {
        self.lodging.clone()
    }

    /// What the workers' `Io` is; the same for all.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Whether every worker still runs. False after a panic of a resident, and after a stop.
    pub fn is_whole(&self) -> bool {
        self.threads.iter().all(|t| t.handle.as_ref().is_some_and(|h| !h.is_finished()))
    }

    /// Tells all residents to stop, waits for them (at most [`STOP_MAX`]) and joins the threads.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in &self.threads {
            thread.waker.wake();
        }
        for thread in &mut self.threads {
            if let Some(handle) = thread.handle.take()
                && handle.join().is_err()
            {
                tracing::error!(worker = thread.index, "worker had panicked");
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.halt();
    }
}

/// What one worker's thread needs to begin.
struct Plan {
    index: usize,
    waker: Waker,
    core: Option<usize>,
    backend: Backend,
    batch: bool,
    stop: Arc<AtomicBool>,
    newcomers: Receiver<Box<dyn Resident>>,
}

fn run(plan: Plan, residents: Vec<Box<dyn Resident>>, report: &mpsc::SyncSender<Result<Capabilities, OpenError>>) {
    if let Some(core) = plan.core
        && let Err(error) = kernel::pin_thread(core)
    {
        tracing::warn!(worker = plan.index, core, %error, "worker is not pinned");
    }
    if plan.batch
        && let Err(error) = kernel::batch_thread()
    {
        tracing::warn!(worker = plan.index, %error, "worker keeps the normal scheduling policy");
    }
    match kernel::open(plan.backend, &plan.waker) {
        Ok((io, capabilities)) => {
            // A failed send means that start gave up because of another worker; the stop flag ends this one too.
            let _ = report.send(Ok(capabilities));
            Worker::new(io, residents, plan.newcomers).run(&plan.stop);
        }
        Err(error) => {
            let _ = report.send(Err(error));
        }
    }
}

struct Worker {
    io: Box<dyn Io>,
    /// The resident's number is its place, from 1. `None`: it has ended, and its place is free.
    residents: Vec<Option<Box<dyn Resident>>>,
    newcomers: Receiver<Box<dyn Resident>>,
    /// Set once on_stop has been called.
    stop_by: Option<Instant>,
}

impl Worker {
    fn new(io: Box<dyn Io>, residents: Vec<Box<dyn Resident>>, newcomers: Receiver<Box<dyn Resident>>) -> Worker {
        Worker { io, residents: residents.into_iter().map(Some).collect(), newcomers, stop_by: None }
    }

    fn run(mut self, stop: &AtomicBool) {
        let mut completions = Vec::new();
        self.each(|resident, cx| resident.on_start(cx));
        loop {
            if self.stop_by.is_none() && stop.load(Ordering::Acquire) {
                self.stop_by = Some(self.io.now() + STOP_MAX);
                self.each(|resident, cx| resident.on_stop(cx));
            }
            while !self.newcomers.is_empty()
                && let Some(place) = self.free_place()
                && let Some(resident) = self.newcomers.try_recv()
            {
                self.take_in(place, resident);
            }
            let mut deadline = self.turn();
            if !self.newcomers.is_empty() && self.free_place().is_some() {
                // Somebody has left for whom another one waits, and nobody will say so again.
                deadline = Some(Instant::ZERO);
            }
            if let Some(stop_by) = self.stop_by {
                if self.residents.iter().all(Option::is_none) {
                    return;
                }
                if self.io.now() >= stop_by {
                    let late: Vec<_> =
                        (1..).zip(&self.residents).filter(|(_, p)| p.is_some()).map(|(n, _)| n).collect();
                    tracing::warn!(residents = ?late, "stopped without waiting for all");
                    return;
                }
            }
            let deadline = deadline.into_iter().chain(self.stop_by).min();
            self.io.wait(deadline, &mut completions);
            let now = self.io.now();
            for completion in completions.drain(..) {
                let number = completion.token.resident();
                let Some(place) = self.residents.get_mut(usize::from(number).wrapping_sub(1)) else {
                    debug_assert!(false, "a completion for nobody: {completion:?}");
                    continue;
                };
                let mut cx = Cx { io: &mut *self.io, now, resident: number };
                if let Some(resident) = place {
                    resident.on_completion(&mut cx, completion);
                }
            }
        }
    }

    /// The place of one that has ended, or a new one.
    fn free_place(&self) -> Option<usize> {
        let at = self.residents.iter().position(Option::is_none).unwrap_or(self.residents.len());
        (at < RESIDENTS_MAX).then_some(at)
    }

    fn take_in(&mut self, at: usize, mut resident: Box<dyn Resident>) {
        let number = u8::try_from(at + 1).expect("at most RESIDENTS_MAX");
        let mut cx = Cx { now: self.io.now(), io: &mut *self.io, resident: number };
        resident.on_start(&mut cx);
        if self.stop_by.is_some() {
            resident.on_stop(&mut cx);
        }
        if at == self.residents.len() {
            self.residents.push(Some(resident));
        } else {
            self.residents[at] = Some(resident);
        }
    }

    /// Gives each resident its turn; the earliest time one wants the next.
    fn turn(&mut self) -> Option<Instant> {
        let mut deadline: Option<Instant> = None;
        let mut by = |at: Instant| deadline = Some(deadline.map_or(at, |d| d.min(at)));
        let now = self.io.now();
        for (number, place) in (1..).zip(&mut self.residents) {
            let Some(resident) = place else { continue };
            match resident.on_turn(&mut Cx { io: &mut *self.io, now, resident: number }) {
                Next::Now => by(Instant::ZERO),
                Next::At(at) => by(at),
                Next::Event => {}
                Next::Done => *place = None,
            }
        }
        deadline
    }

    fn each(&mut self, mut call: impl FnMut(&mut dyn Resident, &mut Cx<'_>)) {
        for (number, place) in (1..).zip(&mut self.residents) {
            let now = self.io.now();
            let Some(resident) = place else { continue };
            call(&mut **resident, &mut Cx { io: &mut *self.io, now, resident: number });
        }
    }
}

#[cfg(test)]
mod tests;
