//! Doors for the fuzzer (scripts/fuzz): whatever people may write, read as the command reads it.
//! Promise: a text is read or refused with a message; nothing here panics, whatever the text.

use crate::config::{Document, agent, bridge};

/// Reads a bridge.toml.
pub fn bridge(text: &str) {
    let _ = bridge::check(&Document::of("fuzz.toml", text)).map_err(|e| e.to_string());
}

/// Reads an agent.toml.
pub fn agent(text: &str) {
    let _ = agent::check(&Document::of("fuzz.toml", text)).map_err(|e| e.to_string());
}
