//! The head of a request to an http listener, as far as the listener itself reads it: host, path, headers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringspan::fuzz::http_request(data));
