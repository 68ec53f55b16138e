//! A visitor's TLS greeting at an https listener, in pieces; the first byte says how long they are.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringspan::fuzz::greeting(data));
