//! `carrier` of a listener, `direct_max` of an agent.

use super::{Document, Error};
use ringspan_tunnel::bridge::CarrierMode;
use toml::Spanned;

/// An agent's direct carriers without a word in the file.
pub(crate) const DIRECT_MAX_DEFAULT: u16 = 256;
/// Each is a descriptor on both sides, of 65,535 ports to one bridge.
const DIRECT_MAX: i64 = 32_768;

/// Reads a listener's `carrier`.
pub(super) fn carrier(doc: &Document, raw: Option<&Spanned<String>>) -> Result<CarrierMode, Error> {
    let read = |text: &str| match text {
        "mux" => Ok(CarrierMode::Mux),
        "direct" => Ok(CarrierMode::Direct),
        "auto" => Ok(CarrierMode::Auto),
        _ => Err("no such kind of carrier".into()),
    };
    raw.map_or(Ok(CarrierMode::default()), |raw| doc.value(raw, read, "\"auto\", \"mux\" or \"direct\""))
}

/// Reads an agent's `direct_max`.
pub(super) fn direct_max(doc: &Document, raw: Option<&Spanned<i64>>) -> Result<u16, Error> {
    raw.map_or(Ok(DIRECT_MAX_DEFAULT), |raw| Ok(doc.number(raw, 0..=DIRECT_MAX)? as u16))
}
