//! The world that HTTP probes meet: a crowd that is always well, and mortals that can be killed and revived. One child
//! process, one thread, on a core of its own.
//!
//! ```text
//! crowd    listeners on 0.0.0.0: each serves all of 127/8, so 80 ports are as many targets as there are addresses
//! mortals  a listener each; `die` closes every second one for good (refused) and makes the others accept and say
//!          nothing (silent); `revive` brings all back
//! ```
//! Owns the plan, the handle of the child and what is said between the two: one line asked over TCP, one line of JSON
//! answered. The loop is in `server`.

mod server;
mod wheel;

use crate::process::{self, Failure, Process};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

pub(crate) use server::serve;

/// An answer to a question of ours takes a turn of the loop; this long means that it stands still.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Who lives in a world.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Plan {
    /// Where the crowd is asked.
    pub(crate) crowd: Vec<SocketAddr>,
    /// Where the mortals are.
    pub(crate) mortals: Vec<SocketAddr>,
    /// Each answer is held back for a time drawn from 0 to this, milliseconds; 0: none is.
    pub(crate) delay_max_ms: u16,
    /// Where questions are asked.
    pub(crate) control: SocketAddr,
    /// Of the delays.
    pub(crate) seed: u64,
}

/// How a mortal died.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Death {
    /// Its listener is closed, and its connections with it.
    Refused,
    /// It accepts, reads, and never answers.
    Silent,
}

/// What is known of one mortal's end.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Obituary {
    /// Who.
    pub(crate) address: SocketAddr,
    /// How.
    pub(crate) death: Death,
    /// When it was called the last few times, oldest first, CLOCK_MONOTONIC in ns.
    pub(crate) calls_ns: Vec<u64>,
    /// Whether the last call was still without its answer, so that it is the first to fail.
    pub(crate) last_call_open: bool,
}

/// What the killing of the mortals came to.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Deaths {
    /// When, CLOCK_MONOTONIC in ns.
    pub(crate) at_ns: u64,
    /// Who.
    pub(crate) dead: Vec<Obituary>,
}

/// What a world has counted since it began.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Count {
    /// Connections accepted.
    pub(crate) accepted: u64,
    /// Requests answered.
    pub(crate) served: u64,
    /// Answers that found nobody any more.
    pub(crate) unheard: u64,
    /// Times accept(2) failed for want of a descriptor.
    pub(crate) full: u64,
}

/// A running world.
#[derive(Debug)]
pub(crate) struct World {
    /// For its CPU and memory.
    pub(crate) process: Process,
    control: BufReader<TcpStream>,
}

impl World {
    /// Starts it on a core.
    ///
    /// # Errors
    /// A port is taken, or the limit on open files is too low; with its log.
    pub(crate) fn start(plan: &Plan, core: Option<usize>, folder: &Path) -> Result<World, Failure> {
        let text = serde_json::to_string(plan).expect("a plan is plain data");
        let command = process::command(&process::own_program(), &["child", "world", &text], core);
        let mut process = Process::start("world", command, folder)?;
        process.wait_listening(plan.control)?;
        let trouble = |e| format!("world at {}: {e}", plan.control);
        let control = TcpStream::connect(plan.control).map_err(trouble)?;
        control.set_read_timeout(Some(ASK_TIMEOUT)).map_err(trouble)?;
        control.set_nodelay(true).map_err(trouble)?;
        Ok(World { process, control: BufReader::new(control) })
    }

    fn ask<T: for<'a> Deserialize<'a>>(&mut self, question: &str) -> Result<T, Failure> {
        let mut answer = String::new();
        let asked = writeln!(self.control.get_mut(), "{question}").and_then(|()| self.control.read_line(&mut answer));
        let failed = |e: &dyn std::fmt::Display| format!("world, asked {question}: {e}\n{}", self.process.log_end());
        asked.map_err(|e| failed(&e))?;
        serde_json::from_str(&answer).map_err(|e| failed(&e))
    }

    /// What it has counted.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn count(&mut self) -> Result<Count, Failure> {
        self.ask("count")
    }

    /// From now on each answer is held back for a time drawn from 0 to `max_ms` milliseconds.
    ///
    /// # Errors
    /// It does not answer, or cannot wait that long.
    pub(crate) fn delay(&mut self, max_ms: u16) -> Result<(), Failure> {
        self.ask::<u16>(&format!("delay {max_ms}")).map(drop)
    }

    /// Kills the mortals.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn die(&mut self) -> Result<Deaths, Failure> {
        self.ask("die")
    }

    /// Brings the mortals back; returns when, CLOCK_MONOTONIC in ns.
    ///
    /// # Errors
    /// It does not answer, or a port is taken.
    pub(crate) fn revive(&mut self) -> Result<u64, Failure> {
        self.ask("revive")
    }
}

#[cfg(test)]
mod tests;
