//! A whole HTTP conversation: no answer makes it panic, hold more than it may, or depend on where the pieces are cut.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringspan_engine::fuzzing::http(data));
