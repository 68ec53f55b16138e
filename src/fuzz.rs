//! Doors for the fuzzer (scripts/fuzz): whatever people may write, read as the command reads it.
//! Promise: a text is read or refused with a message; nothing here panics, whatever the text, and no message shows a
//! password.

use crate::config::{Document, agent, bridge, probe};
use crate::doors::http::tls;
use crate::probe_cmd::roster::Roster;
use crate::probe_cmd::target;
use ringspan_engine::engine::GROUPS_MAX;

/// Reads a text as one of four: the first byte says which. Devices are left alone: configurations name files, and some
/// of those have no end.
pub fn text(data: &[u8]) {
    let Some((which, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    if text.contains("/dev") || text.contains("/proc") {
        return;
    }
    let doc = Document::of("fuzz.toml", text);
    match which % 4 {
        0 => drop(bridge::check(&doc).map_err(|e| e.to_string())),
        1 => drop(agent::check(&doc).map_err(|e| e.to_string())),
        2 => drop(probe::check(&doc, &mut Roster::default(), GROUPS_MAX).map_err(|e| e.to_string())),
        _ => one_target(text),
    }
}

/// A TLS greeting in pieces, as an https listener reads it.
pub fn greeting(data: &[u8]) {
    tls::fuzz_greeting(data);
}

/// What is shown of a target reads back as the same place, and its password is not in it.
fn one_target(text: &str) {
    match target::parse(text) {
        Err(wrong) => drop(wrong.of(text)),
        Ok(written) => {
            let again = target::parse(&written.text).expect("what a target is shown as is a target");
            assert_eq!((again.host, again.port), (written.host, written.port), "{text:?}");
        }
    }
}
