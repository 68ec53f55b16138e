//! agent.toml: its keys, their ranges and defaults. The table for people is docs/configuration.md.

use super::agent_link::{AgentLink, RawLink, check_links};
use super::bridge::{Engine, RawEngine, check_engine};
use super::drain::{DRAIN_DEFAULT, check_drain};
use super::expose::{Expose, RawExpose, check_expose};
use super::memory::{RawMemory, check_memory};
use super::visit::{RawVisit, Visit, check_visit};
use super::watches::{RawChecks, check_checks};
use super::{Document, Error};
use ipnet::IpNet;
use ringspan_tunnel::memory::MemoryLimits;
use serde::Deserialize;
use std::fmt;
use std::path::Path;
use std::time::Duration;
use toml::Spanned;

/// Carriers a link may have: each is a TCP connection with buffers of its own; past a handful they only divide the
/// same path.
pub(crate) const CARRIERS_MAX: u8 = 16;
/// Carriers without a word in the file: frames that leave together share a write, a read and two wake-ups, and bulk has
/// connections of its own.
pub(crate) const CARRIERS_DEFAULT: u8 = 1;

/// An agent's configuration, checked.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    /// The bridges it belongs to; at least one.
    pub(crate) links: Vec<AgentLink>,
    /// Its backends.
    pub(crate) exposes: Vec<Expose>,
    /// Secret services of other agents.
    pub(crate) visits: Vec<Visit>,
    /// Threads and kernel interface.
    pub(crate) engine: Engine,
    /// What its streams may take.
    pub(crate) memory: MemoryLimits,
    /// Networks that bridges' registries may have it look at; default none.
    pub(crate) checks: Vec<IpNet>,
    /// Visitors have this long when the agent stops.
    pub(crate) drain: Duration,
}

/// A secret; prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "***")
    }
}

impl Agent {
    /// Reads and checks a file. A token_file is read only if it is there: after enrolment nobody needs it.
    pub(crate) fn read(path: &Path) -> Result<Agent, Error> {
        check(&Document::read(path)?)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    link: Option<RawLink>,
    #[serde(default)]
    bridge: Vec<Spanned<RawLink>>,
    engine: Option<RawEngine>,
    memory: Option<RawMemory>,
    #[serde(default)]
    expose: Vec<RawExpose>,
    #[serde(default)]
    visit: Vec<RawVisit>,
    checks: Option<RawChecks>,
    drain: Option<Spanned<String>>,
}

/// Checks a whole document.
pub(crate) fn check(doc: &Document) -> Result<Agent, Error> {
    let raw: Raw = doc.parse()?;
    let mut agent = Agent {
        links: check_links(doc, raw.link.as_ref(), &raw.bridge)?,
        exposes: Vec::new(),
        visits: Vec::new(),
        engine: check_engine(doc, raw.engine.as_ref())?,
        memory: check_memory(doc, raw.memory.as_ref())?,
        checks: check_checks(doc, raw.checks.as_ref())?,
        drain: check_drain(doc, raw.drain.as_ref(), DRAIN_DEFAULT)?,
    };
    for raw in &raw.expose {
        check_expose(doc, raw, &mut agent.exposes)?;
    }
    for raw in &raw.visit {
        let has_websocket = agent.links[0].road.websocket.is_some();
        agent.visits.push(check_visit(doc, raw, has_websocket)?);
    }
    if agent.exposes.is_empty() && agent.visits.is_empty() && agent.checks.is_empty() {
        let remedy = "add [[expose]] with service = \"web\" and address = \"127.0.0.1:8081\"";
        return Err(doc.lacking("there is no [[expose]]: the agent would have nothing to offer", remedy));
    }
    Ok(agent)
}
