//! A TLS handshake and an HTTPS conversation whose server says whatever it likes: no panic, bounded memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringspan_engine::fuzzing::tls(data));
