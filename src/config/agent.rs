//! agent.toml: its keys, their ranges and defaults. The table for people is docs/configuration.md.

use super::bridge::{Engine, RawEngine, check_engine};
use super::carrier::{self, DIRECT_MAX_DEFAULT};
use super::expose::{Expose, RawExpose, check_expose};
use super::memory::{RawMemory, check_memory};
use super::visit::{RawVisit, Visit, check_visit};
use super::{Document, Error};
use crate::cli::STATE_DIR_DEFAULT;
use ringspan_tunnel::memory::MemoryLimits;
use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Carriers a link may have: each is a TCP connection with buffers of its own; past a handful they only divide the
/// same path.
pub(crate) const CARRIERS_MAX: u8 = 16;
/// Carriers without a word in the file: one for bulk, one that stays free beside it.
pub(crate) const CARRIERS_DEFAULT: u8 = 2;
/// An agent's configuration, checked.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    /// What lets it join the first time.
    pub(crate) token: Option<Secret>,
    /// The token_file, if it is not there or empty: no trouble for an agent that has joined.
    pub(crate) token_file_missing: Option<PathBuf>,
    /// Its identity.
    pub(crate) state_dir: PathBuf,
    /// TCP connections to the bridge.
    pub(crate) carriers: u8,
    /// Whether the kernel may encrypt them.
    pub(crate) ktls: bool,
    /// TCP connections beside them, each for one stream.
    pub(crate) direct_max: u16,
    /// Its backends.
    pub(crate) exposes: Vec<Expose>,
    /// Secret services of other agents.
    pub(crate) visits: Vec<Visit>,
    /// Threads and kernel interface.
    pub(crate) engine: Engine,
    /// What its streams may take.
    pub(crate) memory: MemoryLimits,
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
    engine: Option<RawEngine>,
    memory: Option<RawMemory>,
    #[serde(default)]
    expose: Vec<RawExpose>,
    #[serde(default)]
    visit: Vec<RawVisit>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    token: Option<Spanned<String>>,
    token_file: Option<Spanned<String>>,
    state_dir: Option<Spanned<String>>,
    carriers: Option<Spanned<i64>>,
    ktls: Option<Spanned<String>>,
    direct_max: Option<Spanned<i64>>,
}

/// Checks a whole document.
pub(crate) fn check(doc: &Document) -> Result<Agent, Error> {
    let raw: Raw = doc.parse()?;
    let mut agent = Agent {
        token: None,
        token_file_missing: None,
        state_dir: doc.path_of(STATE_DIR_DEFAULT),
        carriers: CARRIERS_DEFAULT,
        ktls: true,
        direct_max: DIRECT_MAX_DEFAULT,
        exposes: Vec::new(),
        visits: Vec::new(),
        engine: check_engine(doc, raw.engine.as_ref())?,
        memory: check_memory(doc, raw.memory.as_ref())?,
    };
    if let Some(link) = &raw.link {
        if let Some(dir) = &link.state_dir {
            agent.state_dir = doc.value(dir, |text| Ok(doc.path_of(text)), "\"/var/lib/ringspan-agent\"")?;
        }
        if let Some(carriers) = &link.carriers {
            agent.carriers = doc.number(carriers, 1..=CARRIERS_MAX.into())? as u8;
        }
        agent.ktls = super::ktls::check(doc, link.ktls.as_ref())?;
        agent.direct_max = carrier::direct_max(doc, link.direct_max.as_ref())?;
        (agent.token, agent.token_file_missing) = token(doc, link)?;
    }
    for raw in &raw.expose {
        check_expose(doc, raw, &mut agent.exposes)?;
    }
    for raw in &raw.visit {
        agent.visits.push(check_visit(doc, raw)?);
    }
    if agent.exposes.is_empty() && agent.visits.is_empty() {
        let remedy = "add [[expose]] with service = \"web\" and address = \"127.0.0.1:8081\"";
        return Err(doc.lacking("there is no [[expose]]: the agent would have nothing to offer", remedy));
    }
    Ok(agent)
}

fn token(doc: &Document, link: &RawLink) -> Result<(Option<Secret>, Option<PathBuf>), Error> {
    match (&link.token, &link.token_file) {
        (Some(token), Some(_)) => Err(doc.wrong_secret(token.span(), "token_file is there, too", "one of the two")),
        (Some(token), None) => {
            let text = doc.secret(token)?;
            if text.trim().is_empty() {
                return Err(doc.wrong_secret(token.span(), "it is empty", "what `ringspan token create` prints"));
            }
            Ok((Some(Secret(text.trim().to_owned())), None))
        }
        (None, Some(file)) => {
            let path = doc.value(file, |text| Ok(doc.path_of(text)), "\"join.token\"")?;
            match std::fs::read_to_string(&path) {
                Ok(text) if text.trim().is_empty() => Ok((None, Some(path))),
                Ok(text) => Ok((Some(Secret(text.trim().to_owned())), None)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok((None, Some(path))),
                Err(e) => Err(doc.wrong(file.span(), format!("{}: {e}", path.display()), "a readable file")),
            }
        }
        (None, None) => Ok((None, None)),
    }
}
