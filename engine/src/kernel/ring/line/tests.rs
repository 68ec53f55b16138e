use super::*;
use fastrand::Rng;

/// A kernel that runs what a line asks of it, in the order that links allow, with random results.
struct Kernel {
    rng: Rng,
    /// Sends are silent unless they fail.
    quiet: bool,
    /// A short send breaks the chain (MSG_WAITALL and links: since 5.12).
    short_breaks: bool,
    /// Chains in progress; the first step of each is the one that runs.
    chains: Vec<Vec<Step>>,
    /// Posted, not yet taken.
    posted: Vec<(Step, i32)>,
    missed_cuts: u32,
    to_say: usize,
    said: usize,
}

const BUSY: [i32; 2] = [-libc::EINPROGRESS, -libc::EALREADY];

impl Kernel {
    fn start(&mut self, line: &mut Line, chain: &[Step]) {
        line.sent(chain);
        self.chains.push(chain.to_vec());
    }

    /// The first step of a chain ends; the rest goes on or ends with it.
    fn end(&mut self, number: usize, result: i32) {
        let step = self.chains[number].remove(0);
        let is_linked = !self.chains[number].is_empty();
        let is_short = step == Step::Say && result >= 0 && self.said < self.to_say;
        let breaks = result < 0 || (is_short && self.short_breaks);
        let is_quiet = self.quiet && step == Step::Say && is_linked;
        if breaks || !is_quiet {
            self.posted.push((step, result));
        }
        if breaks {
            let rest = std::mem::take(&mut self.chains[number]);
            if !is_quiet {
                self.posted.extend(rest.into_iter().map(|step| (step, -libc::ECANCELED)));
            }
        }
        if self.chains[number].is_empty() {
            self.chains.swap_remove(number);
        }
    }

    fn tick(&mut self) {
        if self.chains.is_empty() {
            return;
        }
        let number = self.rng.usize(..self.chains.len());
        let result = match (self.chains[number][0], self.rng.u32(0..10)) {
            // A connect that is given up breaks its chain; only old kernels do so, and never silently.
            (Step::Connect, 0) => BUSY[self.rng.usize(..2)],
            (Step::Connect, 1) => -libc::ECONNREFUSED,
            (Step::Say, 0) => -libc::EPIPE,
            (Step::Say, 1) => -libc::EAGAIN,
            (Step::Say, _) => {
                let piece = self.rng.usize(1..=self.to_say - self.said);
                self.said += piece;
                piece as i32
            }
            (Step::Hear, 0) => -libc::EAGAIN,
            (Step::Hear, 1) => -libc::ECONNRESET,
            (Step::Hear, _) => 3,
            (Step::Connect | Step::Poll | Step::Hang, _) => 0,
        };
        self.end(number, result);
    }

    fn cancel(&mut self, steps: &[Step]) {
        let mut last = false;
        for step in steps {
            let found = self.chains.iter().position(|chain| chain[0] == *step);
            last = found.is_some();
            if let Some(number) = found {
                self.end(number, -libc::ECANCELED);
            }
        }
        self.missed_cuts += u32::from(!last);
    }
}

/// Whatever the kernel answers and whenever the caller cancels, every operation ends, with nothing left in the kernel's
/// hand, nothing asked for twice at a time, and no answer but to all that was said. Random results against a model of
/// linked steps, for each kind of kernel.
#[test]
fn every_operation_ends() {
    for seed in 0..20_000 {
        let mut rng = Rng::with_seed(seed);
        let (quiet, linked) = (rng.bool(), rng.bool());
        let short_breaks = quiet || rng.bool();
        let mut line = Line::new(quiet);
        for is_call in [true, false] {
            line.outgoing.resize(rng.usize(0..4) * 10, 7);
            let to_say = line.outgoing.len();
            let rng = Rng::with_seed(rng.u64(..));
            let mut kernel =
                Kernel { rng, quiet, short_breaks, chains: vec![], posted: vec![], missed_cuts: 0, to_say, said: 0 };
            line.begin(is_call);
            let result = run(&mut line, &mut kernel, linked, seed);
            assert!(line.outgoing.is_empty() && line.lent.is_empty(), "seed {seed}");
            if let Ok(count) = result {
                assert_eq!((count, line.heard().len()), (3, 3), "seed {seed}");
                assert!(kernel.said == to_say || !quiet, "half a question was answered, seed {seed}");
            } else {
                break;
            }
        }
        line.begin_hang();
        assert_eq!(line.next(), Next::Hang);
        line.sent(&[Step::Hang]);
        assert_eq!(line.next(), Next::Wait);
        line.on_done(Step::Hang, 0, Instant::ZERO, || 0);
        assert_eq!(line.next(), Next::End);
        line.forget_call();
        assert!(line.heard().is_empty() && !line.in_call && line.connected_at.is_none());
    }
}

fn run(line: &mut Line, kernel: &mut Kernel, linked: bool, seed: u64) -> Result<usize, Trouble> {
    for _ in 0..2000 {
        match line.next() {
            Next::Wait => {
                if kernel.posted.is_empty() && kernel.missed_cuts > 0 {
                    kernel.missed_cuts = 0;
                    line.on_missed_cut();
                    continue;
                }
                if kernel.rng.u32(0..30) == 0 {
                    line.on_cancel();
                    continue;
                }
                kernel.tick();
                if kernel.rng.bool() && !kernel.posted.is_empty() {
                    let (step, result) = kernel.posted.remove(0);
                    assert!(line.is_out(step), "{step:?} came back twice, seed {seed}");
                    let failure = [0, 0, libc::ECONNREFUSED][kernel.rng.usize(..3)];
                    line.on_done(step, result, Instant::ZERO, || failure);
                }
            }
            Next::Connect => {
                let chain = [Step::Connect, Step::Say, Step::Hear];
                let is_mute = line.to_say().is_empty();
                match (linked, is_mute) {
                    (false, _) => kernel.start(line, &chain[..1]),
                    (true, true) => kernel.start(line, &[Step::Connect, Step::Hear]),
                    (true, false) => kernel.start(line, &chain),
                }
            }
            Next::Say { and_hear: true } => kernel.start(line, &[Step::Say, Step::Hear]),
            Next::Say { and_hear: false } => kernel.start(line, &[Step::Say]),
            Next::Hear => kernel.start(line, &[Step::Hear]),
            Next::PollConnect | Next::PollHear => kernel.start(line, &[Step::Poll]),
            Next::Cut => {
                let behind = [Step::Poll, Step::Say, Step::Hear];
                let all = if line.is_out(Step::Connect) { &[Step::Connect][..] } else { &behind[..] };
                let out: Vec<Step> = all.iter().copied().filter(|step| line.is_out(*step)).collect();
                kernel.cancel(&out);
                line.on_cut();
            }
            Next::Hang => panic!("nobody hangs up, seed {seed}"),
            Next::End => {
                assert!(kernel.chains.is_empty() && kernel.posted.is_empty(), "something is left, seed {seed}");
                return line.end();
            }
        }
    }
    panic!("it never ends, seed {seed}");
}

/// A cancel names the leg that it found the call at.
#[test]
fn a_cancel_names_its_leg() {
    let cancelled = |line: &mut Line, step| {
        line.on_cancel();
        assert_eq!(line.next(), Next::Cut);
        line.on_cut();
        line.on_done(step, -libc::ECANCELED, Instant::ZERO, || 0);
        assert_eq!(line.next(), Next::End);
        line.end().expect_err("cancelled").leg
    };
    let mut line = Line::new(false);
    line.outgoing.extend_from_slice(b"hello");
    line.begin(true);
    line.sent(&[Step::Connect]);
    assert_eq!(cancelled(&mut line, Step::Connect), Leg::Connect);
    line.outgoing.extend_from_slice(b"hello");
    line.begin(true);
    line.sent(&[Step::Connect]);
    line.on_done(Step::Connect, 0, Instant::ZERO, || 0);
    line.sent(&[Step::Say]);
    assert_eq!(cancelled(&mut line, Step::Say), Leg::Say);
    line.begin(false);
    line.sent(&[Step::Hear]);
    assert_eq!(cancelled(&mut line, Step::Hear), Leg::Hear);
}
