//! What people write: bridge.toml, agent.toml, probe.toml, and targets. The first byte says which.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringspan::fuzz::text(data));
