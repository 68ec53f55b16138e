//! `[checks]` of agent.toml: where bridges' registries may have the agent look.

use super::limits::networks;
use super::{Document, Error};
use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawChecks {
    allow: Option<Vec<Spanned<String>>>,
}

/// Checks it. Without a word: nowhere, since whoever has the bridge could look round the agent's networks otherwise.
pub(super) fn check_checks(doc: &Document, raw: Option<&RawChecks>) -> Result<Vec<IpNet>, Error> {
    networks(doc, raw.and_then(|raw| raw.allow.as_deref()))
}
