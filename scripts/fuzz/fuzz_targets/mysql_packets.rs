//! A whole MySQL conversation: no server makes it panic, say more than fits, or depend on where the pieces are cut.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringspan_engine::fuzzing::mysql(data));
