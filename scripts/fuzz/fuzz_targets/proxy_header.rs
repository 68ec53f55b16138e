//! What stands before a visitor's own bytes where a PROXY header is expected: no panic, no waiting for more than a header
//! may be long, the same answer whatever comes behind it, and what it says is written so that it reads back.
#![no_main]

use ringspan_tunnel::proxy_header::{BYTES_MAX, Header, Transport, Version, read, write};

libfuzzer_sys::fuzz_target!(|data: &[u8]| match read(data) {
    Err(error) => drop(error.to_string()),
    Ok(None) => assert!(data.len() < BYTES_MAX, "waits for more than the longest header"),
    Ok(Some((header, length))) => {
        assert!(length <= data.len() && length <= BYTES_MAX);
        assert_eq!(read(&data[..length]), Ok(Some((header, length))));
        assert!(!matches!(read(&data[..length - 1]), Ok(Some(_))), "a header that is not whole");
        if let Header::From { source, destination } = header {
            for version in [Version::V1, Version::V2] {
                let written = write(version, Transport::Tcp, Some(source), Some(destination));
                let Ok(Some((_, n))) = read(&written) else { panic!("{version:?} of {header:?} does not read back") };
                assert_eq!(n, written.len());
            }
        }
    }
});
