//! `[link]` and `[[bridge]]` of agent.toml: the bridges an agent belongs to, and the way there.

use super::agent::{CARRIERS_DEFAULT, CARRIERS_MAX, Secret};
use super::carrier::{self, DIRECT_MAX_DEFAULT};
use super::road::{RawRoad, check_road};
use super::{Document, Error};
use crate::cli::STATE_DIR_DEFAULT;
use crate::doors::road::Road;
use ringspan_tunnel::identity::AgentName;
use serde::Deserialize;
use std::path::PathBuf;
use toml::Spanned;

/// Bridges at most: each takes a place on each worker, and two for a moment at a reload.
pub(crate) const LINKS_MAX: usize = 4;

/// One bridge.
#[derive(Clone, Debug)]
pub(crate) struct AgentLink {
    /// What it is called there; `None`: as this machine was when it joined.
    pub(crate) name: Option<AgentName>,
    /// What lets it join the first time.
    pub(crate) token: Option<Secret>,
    /// The token_file, if it is not there or empty: no trouble for an agent that has joined.
    pub(crate) token_file_missing: Option<PathBuf>,
    /// Its identity there.
    pub(crate) state_dir: PathBuf,
    /// TCP connections to the bridge.
    pub(crate) carriers: u8,
    /// Whether the kernel may encrypt them.
    pub(crate) ktls: bool,
    /// TCP connections beside them, each for one stream.
    pub(crate) direct_max: u16,
    /// Through what.
    pub(crate) road: Road,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLink {
    name: Option<Spanned<String>>,
    token: Option<Spanned<String>>,
    token_file: Option<Spanned<String>>,
    state_dir: Option<Spanned<String>>,
    carriers: Option<Spanned<i64>>,
    ktls: Option<Spanned<String>>,
    direct_max: Option<Spanned<i64>>,
    proxy: Option<Spanned<String>>,
    websocket: Option<Spanned<String>>,
    websocket_ca: Option<Spanned<String>>,
    websocket_pin: Option<Spanned<String>>,
}

/// All of them: `[link]` first.
pub(super) fn check_links(
    doc: &Document,
    first: Option<&RawLink>,
    more: &[Spanned<RawLink>],
) -> Result<Vec<AgentLink>, Error> {
    let mut links = vec![match first {
        Some(raw) => check_link(doc, raw)?,
        None => AgentLink::at(doc.path_of(STATE_DIR_DEFAULT)),
    }];
    for raw in more {
        let Some(dir) = &raw.get_ref().state_dir else {
            let problem = "state_dir is missing: an agent has an identity of its own at each bridge";
            return Err(doc.lacking_in(raw.span(), problem, "state_dir = \"/var/lib/ringspan-agent-2\""));
        };
        let link = check_link(doc, raw.get_ref())?;
        if links.iter().any(|other| other.state_dir == link.state_dir) {
            return Err(doc.wrong(dir.span(), "another bridge has this state_dir", "a folder of its own"));
        }
        if links.len() == LINKS_MAX {
            let problem = format!("an agent has at most {LINKS_MAX} bridges");
            return Err(doc.lacking_in(raw.span(), problem, "a second agent for the others"));
        }
        links.push(link);
    }
    Ok(links)
}

impl AgentLink {
    /// Defaults, with the identity in this folder.
    pub(crate) fn at(state_dir: PathBuf) -> AgentLink {
        AgentLink {
            name: None,
            token: None,
            token_file_missing: None,
            state_dir,
            carriers: CARRIERS_DEFAULT,
            ktls: true,
            direct_max: DIRECT_MAX_DEFAULT,
            road: Road::default(),
        }
    }
}

fn check_link(doc: &Document, raw: &RawLink) -> Result<AgentLink, Error> {
    let mut link = AgentLink::at(doc.path_of(STATE_DIR_DEFAULT));
    if let Some(dir) = &raw.state_dir {
        link.state_dir = doc.value(dir, |text| Ok(doc.path_of(text)), "\"/var/lib/ringspan-agent\"")?;
    }
    if let Some(name) = &raw.name {
        let read = |text: &str| AgentName::try_from(text.to_owned()).map_err(|e| e.to_string());
        link.name = Some(doc.value(name, read, "\"edge-7\"")?);
    }
    if let Some(carriers) = &raw.carriers {
        link.carriers = doc.number(carriers, 1..=CARRIERS_MAX.into())? as u8;
    }
    link.ktls = super::ktls::check(doc, raw.ktls.as_ref())?;
    link.direct_max = carrier::direct_max(doc, raw.direct_max.as_ref())?;
    let road = RawRoad {
        proxy: raw.proxy.as_ref(),
        websocket: raw.websocket.as_ref(),
        ca: raw.websocket_ca.as_ref(),
        pin: raw.websocket_pin.as_ref(),
    };
    link.road = check_road(doc, &road)?;
    (link.token, link.token_file_missing) = token(doc, raw)?;
    Ok(link)
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
