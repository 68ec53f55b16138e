//! Settings as our own API writes and reads them: checkers, who checks, metadata.
//! Promise: what is shown can be sent back and means the same, but for passwords, which are shown as `***`; sent back, that
//! means the one that is stored.

use super::asked::named;
use super::problem::Problem;
use crate::checker::{CHECKER_KEY, Checker, Codes, Kind, MASK, Manner, Pace};
use crate::model::{METADATA_BYTES_MAX, Metadata, Vantage, cluster_name};
use crate::panel::{self, Panel, QUORUM_KEY, VANTAGE_KEY};
use crate::selector::service::{LabelSelector, ServiceSelector};
use crate::table::edits::{ClusterEdit, InstanceEdit, Merge, ServiceEdit};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::num::{NonZeroU8, NonZeroU16};

/// Headers of one check.
pub(super) const HEADERS_MAX: usize = 16;
/// Characters of a header's name.
pub(super) const HEADER_NAME_MAX: usize = 64;
/// Characters of a header's value.
pub(super) const HEADER_VALUE_MAX: usize = 512;

/// Characters of a key of the metadata that our own API sets.
pub(super) const KEY_LEN_MAX: usize = 128;
/// Characters of a value: beside the longest key it has just its place.
pub(super) const VALUE_LEN_MAX: usize = METADATA_BYTES_MAX - KEY_LEN_MAX;

/// A checker.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum CheckerBody {
    Tcp {
        #[serde(default, deserialize_with = "named", skip_serializing_if = "Option::is_none")]
        port: Option<NonZeroU16>,
        #[serde(default)]
        manner: MannerBody,
    },
    Http {
        #[serde(default = "slash")]
        path: String,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<String, String>,
        #[serde(default = "well")]
        expected: Vec<String>,
        #[serde(default, deserialize_with = "named", skip_serializing_if = "Option::is_none")]
        port: Option<NonZeroU16>,
        #[serde(default)]
        manner: MannerBody,
    },
    Mysql {
        user: String,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        password: String,
        query: String,
        #[serde(default, deserialize_with = "named", skip_serializing_if = "Option::is_none")]
        port: Option<NonZeroU16>,
        #[serde(default)]
        manner: MannerBody,
    },
    None {},
}

fn slash() -> String {
    "/".into()
}

fn well() -> Vec<String> {
    vec!["200".into()]
}

/// In which manner it is repeated and believed.
#[derive(Debug, Deserialize, Serialize)]
#[serde(
    untagged,
    expecting = "manner should be \"own\", \"nacos\", or an object of interval_ms (100 to 3600000), timeout_ms (1 to \
                 60000), rise and fall (1 to 255)"
)]
pub(super) enum MannerBody {
    Word(MannerWord),
    Pace(PaceBody),
}

impl Default for MannerBody {
    fn default() -> MannerBody {
        MannerBody::Word(MannerWord::Own)
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum MannerWord {
    Own,
    Nacos,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PaceBody {
    #[serde(default = "interval_ms")]
    interval_ms: u32,
    #[serde(default = "timeout_ms")]
    timeout_ms: u32,
    #[serde(default = "rise")]
    rise: NonZeroU8,
    #[serde(default = "fall")]
    fall: NonZeroU8,
}

fn interval_ms() -> u32 {
    5_000
}

fn timeout_ms() -> u32 {
    1_000
}

fn rise() -> NonZeroU8 {
    NonZeroU8::new(2).expect("not 0")
}

fn fall() -> NonZeroU8 {
    NonZeroU8::new(3).expect("not 0")
}

impl CheckerBody {
    /// Checks it.
    pub(super) fn checker(self) -> Result<Checker, Problem> {
        let (kind, port, manner) = match self {
            CheckerBody::None {} => return Ok(Checker::none()),
            CheckerBody::Tcp { port, manner } => (Kind::Tcp, port, manner),
            CheckerBody::Http { path, headers, expected, port, manner } => {
                if !path.starts_with('/') {
                    return Err(Problem::param("checker.path", format!("checker.path: {path:?} should begin with /")));
                }
                let expected: Codes = expected.join(",").parse()?;
                (Kind::Http { path, headers: joined(&headers)?, expected }, port, manner)
            }
            CheckerBody::Mysql { user, password, query, port, manner } => {
                (Kind::Mysql { user, password, cmd: query }, port, manner)
            }
        };
        let manner = match manner {
            MannerBody::Word(MannerWord::Own) => None,
            MannerBody::Word(MannerWord::Nacos) => Some(Manner::Nacos),
            MannerBody::Pace(PaceBody { interval_ms, timeout_ms, rise, fall }) => {
                Some(Manner::Fixed(Pace { interval_ms, timeout_ms, rise, fall }))
            }
        };
        Ok(Checker::new(kind, manner, port.map(NonZeroU16::get))?)
    }

    /// Shows it.
    pub(super) fn of(checker: &Checker) -> CheckerBody {
        let port = checker.port.and_then(NonZeroU16::new);
        let manner = match checker.how.manner {
            None => MannerBody::Word(MannerWord::Own),
            Some(Manner::Nacos) => MannerBody::Word(MannerWord::Nacos),
            Some(Manner::Fixed(Pace { interval_ms, timeout_ms, rise, fall })) => {
                MannerBody::Pace(PaceBody { interval_ms, timeout_ms, rise, fall })
            }
        };
        match &checker.how.kind {
            Kind::Tcp => CheckerBody::Tcp { port, manner },
            Kind::None => CheckerBody::None {},
            Kind::Http { path, headers, expected } => {
                let pairs = headers.split('|').filter_map(|pair| pair.split_once(':'));
                let headers = pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect();
                CheckerBody::Http { path: path.clone(), headers, expected: expected.terms().collect(), port, manner }
            }
            Kind::Mysql { user, password, cmd } => {
                let password = if password.is_empty() { String::new() } else { MASK.to_owned() };
                CheckerBody::Mysql { user: user.clone(), password, query: cmd.clone(), port, manner }
            }
        }
    }
}

/// Headers as Nacos writes them, which is how they are stored.
fn joined(headers: &BTreeMap<String, String>) -> Result<String, Problem> {
    let wrong = |text: String| Problem::param("checker.headers", format!("checker.headers: {text}"));
    if headers.len() > HEADERS_MAX {
        return Err(wrong(format!("there are {}, at most {HEADERS_MAX} are sent", headers.len())));
    }
    let mut pairs = Vec::new();
    for (name, value) in headers {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`~".contains(&b);
        if name.is_empty() || name.len() > HEADER_NAME_MAX || !name.bytes().all(is_name) {
            return Err(wrong(format!(
                "{name:?} should be a header's name, 1 to {HEADER_NAME_MAX} letters, digits, - or _"
            )));
        }
        let is_value = |b: u8| b != b'|' && (b == b'\t' || (0x20..0x7f).contains(&b));
        if value.len() > HEADER_VALUE_MAX || !value.bytes().all(is_value) {
            return Err(wrong(format!(
                "the value of {name} should be at most {HEADER_VALUE_MAX} visible ASCII characters, none of them '|'"
            )));
        }
        pairs.push(format!("{name}:{value}"));
    }
    Ok(pairs.join("|"))
}

/// Who checks, and how many of them have to agree.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PanelBody {
    vantages: Vec<String>,
    #[serde(default, deserialize_with = "named", skip_serializing_if = "Option::is_none")]
    quorum: Option<u8>,
}

impl PanelBody {
    fn panel(&self) -> Result<Panel, Problem> {
        let wrong = |e: crate::model::Invalid| Problem::param("checked_by", format!("checked_by: {}", e.problem));
        let vantages = self.vantages.iter().map(|v| panel::parse(v)).collect::<Result<_, _>>().map_err(wrong)?;
        Panel::new(vantages, self.quorum).map_err(wrong)
    }

    /// What metadata asks for.
    pub(super) fn of(metadata: &Metadata) -> Option<PanelBody> {
        let panel = Panel::of(metadata).ok()??;
        let vantages = panel.vantages().iter().map(Vantage::to_string).collect();
        Some(PanelBody { vantages, quorum: Some(panel.quorum()) })
    }
}

/// Puts what has a field of its own into the metadata, where it is stored.
fn place(metadata: &mut Merge, checked_by: Option<Named<PanelBody>>) -> Result<(), Problem> {
    if metadata.contains_key(CHECKER_KEY) {
        let detail = format!("metadata: {CHECKER_KEY} has a field of its own here: checker");
        return Err(Problem::param("metadata", detail));
    }
    let is_long = |text: &str, max: usize| text.chars().count() > max;
    let long = metadata.iter().find(|(key, value)| {
        is_long(key, KEY_LEN_MAX) || value.as_deref().is_some_and(|value| is_long(value, VALUE_LEN_MAX))
    });
    if let Some((key, _)) = long {
        let detail = format!(
            "metadata: {:?}: a key has at most {KEY_LEN_MAX} characters, a value {VALUE_LEN_MAX}",
            key.chars().take(KEY_LEN_MAX).collect::<String>()
        );
        return Err(Problem::param("metadata", detail));
    }
    let Some(checked_by) = checked_by else { return Ok(()) };
    // It is shown in both places, and may be sent back so: the field of its own counts.
    metadata.extend([(VANTAGE_KEY.to_owned(), None), (QUORUM_KEY.to_owned(), None)]);
    if let Named::As(panel) = checked_by {
        let mut pairs = Metadata::new();
        panel.panel()?.write(&mut pairs);
        metadata.extend(pairs.into_iter().map(|(k, v)| (k, Some(v))));
    }
    Ok(())
}

/// A field that was named: with a value, or `null`: as if it had never been set.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Named<T> {
    As(T),
    Away(()),
}

/// A field that tells `null` from being left out. The value's own error is worth more than serde's of an untagged enum.
fn named_or_null<'de, D, T>(from: D) -> Result<Option<Named<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    let value = Option::<T>::deserialize(from)?;
    Ok(Some(value.map_or(Named::Away(()), Named::As)))
}

fn whole(metadata: Metadata) -> Merge {
    metadata.into_iter().map(|(k, v)| (k, Some(v))).collect()
}

/// `PUT` of a service: all of its settings.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceBody {
    #[serde(default)]
    protect_threshold: f64,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default, deserialize_with = "named")]
    checked_by: Option<PanelBody>,
    #[serde(default, deserialize_with = "named")]
    same_labels: Option<Vec<String>>,
    #[serde(default)]
    clusters: BTreeMap<String, ClusterBody>,
}

/// A cluster's settings, whole.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterBody {
    #[serde(default, deserialize_with = "named")]
    checker: Option<CheckerBody>,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default, deserialize_with = "named")]
    checked_by: Option<PanelBody>,
}

impl ServiceBody {
    pub(super) fn edit(self) -> Result<ServiceEdit, Problem> {
        let mut metadata = whole(self.metadata);
        place(&mut metadata, self.checked_by.map(Named::As))?;
        let mut clusters = BTreeMap::new();
        for (name, cluster) in self.clusters {
            let mut metadata = whole(cluster.metadata);
            place(&mut metadata, cluster.checked_by.map(Named::As))?;
            let checker = cluster.checker.map(CheckerBody::checker).transpose()?;
            clusters.insert(cluster_name(&name)?, Some(ClusterEdit { checker, metadata }));
        }
        let selector = self.same_labels.as_deref().map(selector).transpose()?;
        Ok(ServiceEdit { protect_threshold: Some(self.protect_threshold), selector, metadata, clusters })
    }
}

/// A selector of these labels.
fn selector(labels: &[String]) -> Result<ServiceSelector, Problem> {
    let read = LabelSelector::of(labels.iter().map(String::as_str));
    read.map(ServiceSelector::Label).map_err(|e| Problem::param("same_labels", format!("same_labels: {}", e.problem)))
}

/// `PATCH` of a service (RFC 7396): what is named changes, `null` takes it away.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServicePatch {
    #[serde(default, deserialize_with = "named")]
    protect_threshold: Option<f64>,
    #[serde(default)]
    metadata: Merge,
    #[serde(default, deserialize_with = "named_or_null")]
    checked_by: Option<Named<PanelBody>>,
    #[serde(default, deserialize_with = "named_or_null")]
    same_labels: Option<Named<Vec<String>>>,
    #[serde(default)]
    clusters: BTreeMap<String, Option<ClusterPatch>>,
}

/// A cluster's part of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterPatch {
    #[serde(default, deserialize_with = "named_or_null")]
    checker: Option<Named<CheckerBody>>,
    #[serde(default)]
    metadata: Merge,
    #[serde(default, deserialize_with = "named_or_null")]
    checked_by: Option<Named<PanelBody>>,
}

impl ServicePatch {
    pub(super) fn edit(self) -> Result<ServiceEdit, Problem> {
        let mut metadata = self.metadata;
        place(&mut metadata, self.checked_by)?;
        let mut clusters = BTreeMap::new();
        for (name, cluster) in self.clusters {
            let edit = cluster.map(ClusterPatch::edit).transpose()?;
            clusters.insert(cluster_name(&name)?, edit);
        }
        let selector = match self.same_labels {
            None => None,
            Some(Named::Away(())) => Some(ServiceSelector::None),
            Some(Named::As(labels)) => Some(selector(&labels)?),
        };
        Ok(ServiceEdit { protect_threshold: self.protect_threshold, selector, metadata, clusters })
    }
}

impl ClusterPatch {
    pub(super) fn edit(self) -> Result<ClusterEdit, Problem> {
        let mut metadata = self.metadata;
        place(&mut metadata, self.checked_by)?;
        let checker = match self.checker {
            None => None,
            Some(Named::Away(())) => Some(Checker::default()),
            Some(Named::As(body)) => Some(body.checker()?),
        };
        Ok(ClusterEdit { checker, metadata })
    }
}

/// `PUT` of an instance: all of it, and what is to be asked of its cluster.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InstanceBody {
    #[serde(default)]
    pub(super) ephemeral: bool,
    #[serde(default = "weight")]
    pub(super) weight: f64,
    #[serde(default = "yes")]
    pub(super) enabled: bool,
    #[serde(default = "yes")]
    pub(super) healthy: bool,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default, deserialize_with = "named")]
    checked_by: Option<PanelBody>,
    #[serde(default, deserialize_with = "named")]
    checker: Option<CheckerBody>,
}

fn weight() -> f64 {
    crate::model::WEIGHT_DEFAULT
}

fn yes() -> bool {
    true
}

impl InstanceBody {
    /// The metadata of the registration, which has the checker in it.
    pub(super) fn take_metadata(&mut self) -> Result<Metadata, Problem> {
        let mut pairs = whole(std::mem::take(&mut self.metadata));
        place(&mut pairs, self.checked_by.take().map(Named::As))?;
        let mut metadata: Metadata = pairs.into_iter().filter_map(|(k, v)| Some((k, v?))).collect();
        if let Some(checker) = self.checker.take() {
            metadata.insert(CHECKER_KEY.into(), crate::checker::write(&checker.checker()?));
        }
        Ok(metadata)
    }
}

/// `PATCH` of an instance (RFC 7396).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InstancePatch {
    #[serde(default, deserialize_with = "named")]
    weight: Option<f64>,
    #[serde(default, deserialize_with = "named")]
    enabled: Option<bool>,
    #[serde(default)]
    metadata: Merge,
    #[serde(default, deserialize_with = "named_or_null")]
    checked_by: Option<Named<PanelBody>>,
}

impl InstancePatch {
    pub(super) fn edit(self) -> Result<InstanceEdit, Problem> {
        let mut metadata = self.metadata;
        place(&mut metadata, self.checked_by)?;
        Ok(InstanceEdit { weight: self.weight, enabled: self.enabled, metadata })
    }
}
