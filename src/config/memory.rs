//! `[memory]` of either file: what the streams of the process may take together.

use super::{Document, Error, unit};
use ringspan_tunnel::memory::MemoryLimits;
use serde::Deserialize;
use std::ops::RangeInclusive;
use toml::Spanned;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Below the smallest window that a handshake agrees on, nothing could be granted.
const WINDOW_MAX: RangeInclusive<u64> = 64 * KIB..=256 * MIB;
const WINDOWS: RangeInclusive<u64> = 0..=1024 * GIB;
/// Less than one full window of a stream would reset the first slow visitor.
const WAITING: RangeInclusive<u64> = 16 * MIB..=1024 * GIB;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMemory {
    window_max: Option<Spanned<String>>,
    windows: Option<Spanned<String>>,
    waiting: Option<Spanned<String>>,
}

/// The `[memory]` section.
pub(super) fn check_memory(doc: &Document, raw: Option<&RawMemory>) -> Result<MemoryLimits, Error> {
    let mut limits = MemoryLimits::default();
    let Some(raw) = raw else { return Ok(limits) };
    let read = |raw: &Option<Spanned<String>>, default: u64, range: RangeInclusive<u64>, example: &str| match raw {
        Some(raw) => doc.value(raw, |text| unit::bytes_within(text, range), example),
        None => Ok(default),
    };
    let window_max = read(&raw.window_max, limits.window_bytes_max.into(), WINDOW_MAX, "\"16MiB\"")?;
    limits.window_bytes_max = u32::try_from(window_max).expect("at most 256 MiB");
    limits.growth_bytes_max = read(&raw.windows, limits.growth_bytes_max, WINDOWS, "\"256MiB\"")?;
    limits.held_bytes_max = read(&raw.waiting, limits.held_bytes_max, WAITING, "\"512MiB\"")?;
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{agent, bridge};

    /// Both files have the section; without a word in it, the defaults; what is wrong is named with what would be right.
    #[test]
    fn memory_is_read() {
        let text = "[memory]\nwindow_max = \"4MiB\"\nwindows = \"0\"\nwaiting = \"1GiB\"\n";
        let want = MemoryLimits {
            window_bytes_max: 4 << 20,
            growth_bytes_max: 0,
            held_bytes_max: 1 << 30,
            ..MemoryLimits::default()
        };
        assert_eq!(bridge::check(&Document::of("b.toml", text)).expect("good").memory, want);
        let expose = "[[expose]]\nservice = \"web\"\naddress = \"127.0.0.1:1\"\n";
        let agent = agent::check(&Document::of("a.toml", &format!("{text}{expose}"))).expect("good");
        assert_eq!(agent.memory, want);
        let empty = bridge::check(&Document::of("b.toml", "[memory]\n")).expect("nothing is required");
        assert_eq!(empty.memory, MemoryLimits::default());
        let rows = [
            ("window_max = \"4\"", "[memory] window_max = \"4\": it needs a unit, as in 64KiB, 16MiB or 1GiB"),
            ("window_max = \"1KiB\"", "[memory] window_max = \"1KiB\": below the minimum of 64KiB"),
            ("window_max = \"1GiB\"", "[memory] window_max = \"1GiB\": above the maximum of 256MiB"),
            ("waiting = \"MiB\"", "[memory] waiting = \"MiB\": it must be a whole number with a unit, as in 16MiB"),
            ("waiting = \"99999999999GiB\"", "[memory] waiting = \"99999999999GiB\": it is more than 64 bits hold"),
        ];
        for (line, want) in rows {
            let error = bridge::check(&Document::of("b.toml", &format!("[memory]\n{line}\n"))).expect_err(line);
            let want = format!("b.toml:2: {want}. Try: ");
            assert!(error.to_string().starts_with(&want), "{error}");
        }
    }
}
