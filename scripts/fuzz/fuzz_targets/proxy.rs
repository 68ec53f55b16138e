//! What visitors of proxies say, and what a link says of datagrams: no panic, however it is cut.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringspan::fuzz::proxy(data));
