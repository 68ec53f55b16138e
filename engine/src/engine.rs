//! The engine as the rest of the project sees it: start it, give it targets, read what it found.
//!
//! ```text
//! Probes ──mailbox──► prober on worker 0..n ──mailbox──► Feed (transitions, samples)
//! Engine::stats ────asks each worker────►  numbers since the start
//! ```
//! Everything here may be called from any thread but a worker's. Nothing here takes a lock that a worker takes.

use crate::check::Check;
use crate::cores::Cores;
use crate::kernel::{self, Backend, Capabilities};
use crate::mailbox::{Full, Receiver, Sender, Wake, mailbox};
use crate::probe::{Command, Flock, Guard, Names, Nets, Outbox, Pace, Prober, ProberParts};
use crate::resident::Resident;
use crate::stats::{Numbers, Stats};
use crate::target::{Policy, Sample, Target, TargetId, Transition};
use crate::worker::{Lodging, Seat, StartError, WorkerOptions, Workers};
use arc_swap::ArcSwapOption;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::time::{Duration, Instant};

/// Additions, removals and updates that may wait for one worker: a worker takes hundreds a turn, so a bulk load fills
/// this only while the worker works off the last of it.
const COMMANDS_MAX: usize = 8192;
/// Transitions on their way; more wait on their workers.
const TRANSITIONS_MAX: usize = 8192;
/// The most probes that [`in_flight_default`] lets one worker have in flight: at the 60 s of the longest timeout, a
/// thousand black holes more a second.
pub const IN_FLIGHT_MAX: u32 = 65_536;
/// Groups that are counted apart, at most.
pub const GROUPS_MAX: usize = 1024;
/// How long [`Engine::stats`] waits for a worker: turns take about a millisecond, so this is one that has stalled.
const STATS_WAIT: Duration = Duration::from_millis(500);

/// How an engine runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Worker threads, 1 to 256. Default: one per core that the process may use.
    pub workers: usize,
    /// Which interface to the kernel. Default: `Auto`.
    pub backend: Backend,
    /// Keep each worker on one core. Default: true.
    pub pin: bool,
    /// Workers wake without pushing aside who runs on their core ([`WorkerOptions::batch`]). Default: false.
    pub batch: bool,
    /// Which cores, in turn. Default: those that the process may use.
    pub cores: Cores,
    /// Probes in flight at most, per worker; each needs a socket, which is kept and used again. Default:
    /// [`in_flight_default`] of the workers' default; who sets `workers` sets this by it too.
    pub in_flight_max: u32,
    /// Probes started a second at most, all workers together; `None`: as many as are due. Default `None`.
    pub rate_max: Option<u32>,
    /// Probes started a second at most towards one network (a /24 of IPv4, a /64 of IPv6), all workers together, each of
    /// which has an even share; `None`: as many as are due. Default `None`.
    pub rate_per_net: Option<u32>,
    /// Probes in flight at most towards one network, all workers together, each of which has an even share, at least 1.
    /// Default `None`.
    pub in_flight_per_net: Option<u32>,
    /// Believe no failure while the prober itself is sick. Default true.
    pub freeze: bool,
    /// What to do when too many targets want to go down at once. Default `Alarm`.
    pub mass_flip: MassFlip,
    /// How many are too many, percent of those that are up, 1 to 100, and ten at least. Default 25.
    pub mass_flip_percent: u8,
    /// Names of the groups that targets count in besides the whole ([`Target::group`] 1 is the first), at most
    /// [`GROUPS_MAX`]: more are not counted apart. A group costs about 40 KiB a worker once something is counted in it.
    /// Default: none.
    pub groups: Vec<String>,
    /// How many samples may wait to be read; 0: none are made. Default 0.
    pub samples_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(TargetId::WORKERS_MAX);
        Options {
            workers,
            backend: Backend::Auto,
            pin: true,
            batch: false,
            cores: Cores::allowed(),
            in_flight_max: in_flight_default(workers),
            rate_max: None,
            rate_per_net: None,
            in_flight_per_net: None,
            freeze: true,
            mass_flip: MassFlip::Alarm,
            mass_flip_percent: 25,
            groups: Vec::new(),
            samples_max: 0,
        }
    }
}

/// How many probes each of so many workers may have in flight: three quarters of the files that this process may have
/// open now (RLIMIT_NOFILE, its soft limit), shared out evenly, 64 to [`IN_FLIGHT_MAX`]. Every probe in flight holds one
/// socket; the last quarter is for whatever else the process opens. 20,000 files and 2 workers: 7,500 each, 15,000 in
/// all; 1,024 files: 768 in all; 1,048,576 files: [`IN_FLIGHT_MAX`] each. Sockets that exist in a ring's own table alone
/// (direct descriptors, Linux 5.19) would not count against the limit; but the kernel could then not be asked what it
/// measured on them, nor could epoll take over.
pub fn in_flight_default(workers: usize) -> u32 {
    in_flight_of(kernel::facts::nofile().map_or(1024, |limit| limit.soft), workers)
}

fn in_flight_of(files: u64, workers: usize) -> u32 {
    let each = files / 4 * 3 / workers.max(1) as u64;
    each.clamp(64, u64::from(IN_FLIGHT_MAX)) as u32
}

/// What to do when too many targets want to go down at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MassFlip {
    /// Nothing.
    Off,
    /// Tell it: a warning in the log, a counter, a gauge. Nothing is found later.
    Alarm,
    /// Tell it, and believe a target's fall only after one more failure than `fall`, as long as the alarm lasts.
    Hold,
}

/// A running engine. Dropping it stops it.
pub struct Engine {
    workers: Option<Workers>,
    capabilities: Capabilities,
    probes: Probes,
}

impl Engine {
    /// Starts the workers, each with a prober and what `extra` puts beside it. `wake` is rung when there is something
    /// to read from the [`Feed`], from a worker's thread: it must not block.
    ///
    /// # Errors
    /// [`StartError`]: no `Io`, no thread.
    pub fn start(
        options: &Options,
        wake: Arc<dyn Wake>,
        mut extra: impl FnMut(&Seat) -> Vec<Box<dyn Resident>>,
    ) -> Result<(Engine, Feed), StartError> {
        let seats = Workers::plan(options.workers.clamp(1, TargetId::WORKERS_MAX))?;
        let seats = seats.into_iter().map(|seat| (extra(&seat), seat)).map(|(residents, seat)| (seat, residents));
        Engine::start_on(options, wake, seats.collect())
    }

    /// As [`start`](Engine::start), on seats that the caller has planned ([`Workers::plan`]; at most 256), because it
    /// needs all of them before it can say who sits beside the probers. `options.workers` is not looked at.
    ///
    /// # Errors
    /// As [`start`](Engine::start).
    pub fn start_on(
        options: &Options,
        wake: Arc<dyn Wake>,
        planned: Vec<(Seat, Vec<Box<dyn Resident>>)>,
    ) -> Result<(Engine, Feed), StartError> {
        let count = planned.len();
        let (transitions_in, transitions) = mailbox(TRANSITIONS_MAX, wake.clone());
        let (samples_in, samples) = mailbox(options.samples_max, wake);
        let flock = Arc::new(Flock::new(options.mass_flip, options.mass_flip_percent));
        let (mut desks, mut seats) = (Vec::new(), Vec::new());
        for (seat, beside) in planned {
            let rouse: Arc<dyn Wake> = Arc::new(seat.waker.clone());
            let (commands, commands_out) = mailbox(COMMANDS_MAX, rouse.clone());
            let (asks, asks_out) = mailbox(16, rouse);
            let desk = Desk {
                commands,
                asks,
                names: Arc::new(Names::new()),
                legacy: Arc::new(ArcSwapOption::empty()),
                targets: AtomicU32::new(0),
            };
            let prober = Prober::new(ProberParts {
                worker: u8::try_from(seat.index).expect("at most 256 workers are planned"),
                in_flight_max: options.in_flight_max,
                groups: options.groups.len().min(GROUPS_MAX),
                pace: Pace::new(options.rate_max, count),
                nets: Nets::new(options.rate_per_net, options.in_flight_per_net, count),
                guard: Guard::new(options.freeze),
                flock: flock.clone(),
                outbox: Outbox::new(transitions_in.clone(), (options.samples_max > 0).then(|| samples_in.clone())),
                commands: commands_out,
                asks: asks_out,
                legacy: desk.legacy.clone(),
                names: desk.names.clone(),
            });
            let mut residents: Vec<Box<dyn Resident>> = vec![Box::new(prober)];
            residents.extend(beside);
            desks.push(desk);
            seats.push((seat, residents));
        }
        let how = WorkerOptions { backend: options.backend, pin: options.pin, batch: options.batch };
        let workers = Workers::start_on(&how, &options.cores, seats)?;
        let capabilities = workers.capabilities().clone();
        let probes = Probes { desks: desks.into() };
        Ok((Engine { workers: Some(workers), capabilities, probes }, Feed { transitions, samples }))
    }

    /// Where residents move in beside the probers while the workers run; `None` after [`stop`](Engine::stop).
    pub fn lodging(&self) -> Option<Lodging> {
        self.workers.as_ref().map(Workers::lodging)
    }

    /// Where targets are added and removed. Clones share the engine.
    pub fn probes(&self) -> Probes {
        self.probes.clone()
    }

    /// What the probers have counted since the start, with every target known that was added before the call. Asks
    /// every worker and waits for its next turn, about a millisecond; a worker that has stalled for 500 ms counts as it
    /// stood when it last answered. After [`stop`](Engine::stop): the final numbers.
    pub fn stats(&self) -> Stats {
        let asked: Vec<_> =
            self.probes.desks.iter().map(|desk| self.workers.as_ref().and_then(|_| desk.ask())).collect();
        let deadline = Instant::now() + STATS_WAIT;
        let numbers = asked.into_iter().zip(self.probes.desks.iter()).map(|(answer, desk)| {
            let wait = || deadline.saturating_duration_since(Instant::now());
            match answer.and_then(|answer| answer.recv_timeout(wait()).ok()) {
                Some(numbers) => {
                    desk.remember(&numbers);
                    numbers
                }
                None => desk.legacy.load().as_deref().cloned().unwrap_or_default(),
            }
        });
        Stats::of(numbers.collect())
    }

    /// Which interface to the kernel runs, and why.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Whether every worker still runs.
    pub fn is_whole(&self) -> bool {
        self.workers.as_ref().is_some_and(Workers::is_whole)
    }

    /// Stops the workers: probes in flight are abandoned, other residents are told. Waits for 2 s at most. What is in
    /// the [`Feed`] can still be read, and [`stats`](Engine::stats) still be asked. Again: nothing.
    pub fn stop(&mut self) {
        if let Some(workers) = self.workers.take() {
            workers.stop();
        }
    }
}

/// Where targets are added, changed and removed. Cheap to clone; all clones speak to the same workers.
#[derive(Clone)]
pub struct Probes {
    desks: Arc<[Desk]>,
}

/// One worker's counter hatch.
struct Desk {
    commands: Sender<Command>,
    asks: Sender<SyncSender<Numbers>>,
    names: Arc<Names>,
    legacy: Arc<ArcSwapOption<Numbers>>,
    /// Targets added less those removed.
    targets: AtomicU32,
}

impl Probes {
    /// Probes `target` from now on, on the worker with the fewest targets. Its first probe starts within one
    /// interval, spread by key and address. A policy out of range is clamped ([`Policy::check`]).
    ///
    /// # Errors
    /// [`Full`] with the target when the worker's mailbox is full: try again in a millisecond.
    pub fn add(&self, target: Target) -> Result<TargetId, Full<Target>> {
        let id = self.post_add(target)?;
        self.desks[id.worker()].commands.wake();
        Ok(id)
    }

    /// As [`add`](Probes::add) for each, in order, with one wake of a worker for hundreds: a hundred thousand a second
    /// cost one thread a few percent of a core (example `churn`). Appends the ids.
    ///
    /// # Errors
    /// [`Full`] with the first target that found no room; the ones after it are still in `targets`. Try again with both
    /// in a millisecond.
    pub fn add_all(
        &self,
        targets: &mut impl Iterator<Item = Target>,
        ids: &mut Vec<TargetId>,
    ) -> Result<(), Full<Target>> {
        let mut bells = Bells::new(&self.desks);
        for target in targets {
            let id = self.post_add(target)?;
            ids.push(id);
            bells.on_post(id);
        }
        Ok(())
    }

    fn post_add(&self, target: Target) -> Result<TargetId, Full<Target>> {
        let (number, desk) = self
            .desks
            .iter()
            .enumerate()
            .min_by_key(|(_, desk)| desk.targets.load(Ordering::Relaxed))
            .expect("an engine has at least one worker");
        let Some(key) = desk.names.take() else { return Err(Full(target)) };
        if let Err(Full(command)) = desk.commands.post(Command::Add(key, target)) {
            desk.names.give_back(key);
            let Command::Add(_, target) = command else { unreachable!("what was sent comes back") };
            return Err(Full(target));
        }
        desk.targets.fetch_add(1, Ordering::Relaxed);
        Ok(TargetId::new(u8::try_from(number).expect("an engine has at most 256 workers"), key))
    }

    /// Probes it no more. A probe in flight is abandoned; a result that is already in the [`Feed`] stays there. A
    /// target that is gone is nothing.
    ///
    /// # Errors
    /// [`Full`] with the id when the worker's mailbox is full: try again in a millisecond.
    pub fn remove(&self, id: TargetId) -> Result<(), Full<TargetId>> {
        self.post_remove(id)?;
        self.wake(id);
        Ok(())
    }

    /// As [`remove`](Probes::remove) for each, in order, with one wake of a worker for hundreds.
    ///
    /// # Errors
    /// [`Full`] with the first id that found no room; the ones after it are still in `ids`. Try again with both in a
    /// millisecond.
    pub fn remove_all(&self, ids: &mut impl Iterator<Item = TargetId>) -> Result<(), Full<TargetId>> {
        let mut bells = Bells::new(&self.desks);
        for id in ids {
            self.post_remove(id)?;
            bells.on_post(id);
        }
        Ok(())
    }

    fn post_remove(&self, id: TargetId) -> Result<(), Full<TargetId>> {
        let Some(desk) = self.desks.get(id.worker()) else { return Ok(()) };
        desk.commands.post(Command::Remove(id.key())).map_err(|_| Full(id))?;
        let _ = desk.targets.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |targets| targets.checked_sub(1));
        Ok(())
    }

    /// Probes it by another policy, from its next probe on. Its health stays. A target that is gone is nothing.
    ///
    /// # Errors
    /// [`Full`] with both when the worker's mailbox is full: try again in a millisecond.
    pub fn update(&self, id: TargetId, policy: Arc<Policy>) -> Result<(), Full<(TargetId, Arc<Policy>)>> {
        self.post_update(id, policy)?;
        self.wake(id);
        Ok(())
    }

    /// As [`update`](Probes::update) for each, in order, with one wake of a worker for hundreds.
    ///
    /// # Errors
    /// [`Full`] with the first change that found no room; the ones after it are still in `changes`. Try again with both
    /// in a millisecond.
    pub fn update_all(
        &self,
        changes: &mut impl Iterator<Item = (TargetId, Arc<Policy>)>,
    ) -> Result<(), Full<(TargetId, Arc<Policy>)>> {
        let mut bells = Bells::new(&self.desks);
        for (id, policy) in changes {
            self.post_update(id, policy)?;
            bells.on_post(id);
        }
        Ok(())
    }

    fn post_update(&self, id: TargetId, policy: Arc<Policy>) -> Result<(), Full<(TargetId, Arc<Policy>)>> {
        let Some(desk) = self.desks.get(id.worker()) else { return Ok(()) };
        desk.commands.post(Command::Update(id.key(), policy)).map_err(|Full(command)| {
            let Command::Update(_, policy) = command else { unreachable!("what was sent comes back") };
            Full((id, policy))
        })
    }

    fn wake(&self, id: TargetId) {
        if let Some(desk) = self.desks.get(id.worker()) {
            desk.commands.wake();
        }
    }
}

/// Wakes the workers that were sent something, once for many messages: when so many were sent that the workers should
/// begin, and when all were.
struct Bells<'a> {
    desks: &'a [Desk],
    /// A bit for each worker.
    sent: [u64; TargetId::WORKERS_MAX / 64],
    count: usize,
}

/// As many messages as a worker takes in one turn.
const POSTS_PER_WAKE: usize = 512;

impl Bells<'_> {
    fn new(desks: &[Desk]) -> Bells<'_> {
        Bells { desks, sent: [0; TargetId::WORKERS_MAX / 64], count: 0 }
    }

    fn on_post(&mut self, id: TargetId) {
        self.sent[id.worker() / 64] |= 1 << (id.worker() % 64);
        self.count += 1;
        if self.count == POSTS_PER_WAKE {
            self.ring();
        }
    }

    fn ring(&mut self) {
        let sent = std::mem::take(&mut self.sent);
        let is_sent = |number: &usize| sent[number / 64] & 1 << (number % 64) != 0;
        for (_, desk) in self.desks.iter().enumerate().filter(|(number, _)| is_sent(number)) {
            desk.commands.wake();
        }
        self.count = 0;
    }
}

impl Drop for Bells<'_> {
    fn drop(&mut self) {
        self.ring();
    }
}

impl Probes {
    /// Asks the target something else, from its next probe on, which comes at its next slot. Its health stays. A probe
    /// in flight is abandoned. [`Check::None`] ends probing, until the next recheck. A target that is gone, or that has
    /// had all its probes, is nothing.
    ///
    /// # Errors
    /// [`Full`] with both when the worker's mailbox is full: try again in a millisecond.
    pub fn recheck(&self, id: TargetId, check: Check) -> Result<(), Full<(TargetId, Check)>> {
        let Some(desk) = self.desks.get(id.worker()) else { return Ok(()) };
        desk.commands.send(Command::Recheck(id.key(), check.clone())).map_err(|_| Full((id, check)))
    }

    /// Probes the target once at once, besides its schedule, which goes on as it was. It counts like every probe. A
    /// target that is due or being probed, has no check, has had all its probes, or is gone: nothing.
    ///
    /// # Errors
    /// [`Full`] with the id when the worker's mailbox is full: try again in a millisecond.
    pub fn probe_now(&self, id: TargetId) -> Result<(), Full<TargetId>> {
        let Some(desk) = self.desks.get(id.worker()) else { return Ok(()) };
        desk.commands.send(Command::ProbeNow(id.key())).map_err(|_| Full(id))
    }
}

impl Desk {
    /// Keeps the numbers for when the worker does not answer, unless newer ones are kept.
    fn remember(&self, numbers: &Numbers) {
        let numbers = Arc::new(numbers.clone());
        self.legacy.rcu(|kept| match kept {
            Some(kept) if kept.counters.started > numbers.counters.started => Some(kept.clone()),
            _ => Some(numbers.clone()),
        });
    }

    fn ask(&self) -> Option<mpsc::Receiver<Numbers>> {
        let (to, answer) = mpsc::sync_channel(1);
        self.asks.send(to).ok().map(|()| answer)
    }
}

/// What the probers found, to be read by one reader.
pub struct Feed {
    transitions: Receiver<Transition>,
    samples: Receiver<Sample>,
}

impl Feed {
    /// Appends the changes of health since the last call, at most as many as were there when it began. Those of one
    /// target are in order.
    pub fn transitions(&mut self, into: &mut Vec<Transition>) {
        into.extend((0..self.transitions.len()).map_while(|_| self.transitions.try_recv()));
    }

    /// Appends the samples since the last call, at most as many as were there when it began. Those of one target are
    /// in order.
    pub fn samples(&mut self, into: &mut Vec<Sample>) {
        into.extend((0..self.samples.len()).map_while(|_| self.samples.try_recv()));
    }
}

#[cfg(test)]
mod tests;
