//! Claim: every header is read as proxy-protocol.txt has it, from any piece of it, and nothing else is.

use super::*;
use proptest::prelude::*;

fn address() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.into(), port)),
        (any::<[u8; 16]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.into(), port)),
    ]
}

proptest! {
    /// Any bytes are a header, a beginning of one, or an error; nothing panics, and more bytes never change a verdict.
    #[test]
    fn any_bytes(kind in 0u8..3, tail: Vec<u8>, cut in 0usize..200) {
        let mut bytes = match kind {
            0 => Vec::new(),
            1 => b"PROXY ".to_vec(),
            _ => [&SIGNATURE[..], &[0x21, 0x11, 0]].concat(),
        };
        bytes.extend(tail);
        let whole = read(&bytes);
        let part = read(&bytes[..cut.min(bytes.len())]);
        match part {
            Ok(None) => {}
            verdict => prop_assert_eq!(verdict, whole),
        }
        if let Ok(Some((_, len))) = whole {
            prop_assert!(len <= bytes.len() && len <= BYTES_MAX);
        }
        prop_assert!(bytes.len() < BYTES_MAX || whole != Ok(None), "it would wait for ever");
    }

    /// What is written is read, from the whole and from no part; what follows it is left alone.
    #[test]
    fn headers_come_back(a in address(), b in address(), v2: bool, udp: bool, rest: Vec<u8>) {
        let version = if v2 { Version::V2 } else { Version::V1 };
        let transport = if udp { Transport::Udp } else { Transport::Tcp };
        let bytes = write(version, transport, Some(a), Some(b));
        let longest = if v2 { 52 } else { V1_BYTES_MAX };
        prop_assert!(bytes.len() <= longest);
        let plain = |x: SocketAddr| SocketAddr::new(x.ip().to_canonical(), x.port());
        let (mut a, mut b) = (plain(a), plain(b));
        if a.is_ipv4() != b.is_ipv4() {
            for x in [&mut a, &mut b] {
                if let IpAddr::V4(ip) = x.ip() {
                    x.set_ip(ip.to_ipv6_mapped().into());
                }
            }
        }
        let header = if v2 || !udp { Header::From { source: a, destination: b } } else { Header::Nobody };
        for n in 0..bytes.len() {
            prop_assert_eq!(read(&bytes[..n]), Ok(None));
        }
        let len = bytes.len();
        prop_assert_eq!(read(&[bytes, rest].concat()), Ok(Some((header, len))));
    }
}

/// The text form, as the document's examples and limits have it.
#[test]
fn text_headers() {
    let from = |a: &str, b: &str| Header::From { source: a.parse().unwrap(), destination: b.parse().unwrap() };
    let longest =
        "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
    assert_eq!(longest.len(), V1_BYTES_MAX);
    let rows: &[(&str, Result<Option<Header>, Error>)] = &[
        ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\nGET", Ok(Some(from("192.0.2.1:56324", "198.51.100.2:443")))),
        ("PROXY TCP6 2001:db8::1 ::1 1 65535\r\n", Ok(Some(from("[2001:db8::1]:1", "[::1]:65535")))),
        ("PROXY UNKNOWN\r\n", Ok(Some(Header::Nobody))),
        (longest, Ok(Some(Header::Nobody))),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 443", Ok(None)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n", Err(Error::Malformed)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 1\r\n", Err(Error::Malformed)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 056324 443\r\n", Err(Error::Malformed)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n", Err(Error::Malformed)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n", Err(Error::Malformed)),
        ("PROXY TCP4 ::1 ::1 1 443\r\n", Err(Error::Malformed)),
        ("PROXY UDP4 192.0.2.1 198.51.100.2 1 443\r\n", Err(Error::Malformed)),
        ("PROXY  TCP4 192.0.2.1 198.51.100.2 1 443\r\n", Err(Error::Malformed)),
        ("GET / HTTP/1.1\r\n", Err(Error::None)),
        ("PROXXY", Err(Error::None)),
    ];
    for (text, expected) in rows {
        assert_eq!(read(text.as_bytes()).map(|found| found.map(|(header, _)| header)), *expected, "{text:?}");
    }
    assert_eq!(read(&[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat()), Err(Error::TooLong));
}

/// Who comes over IPv6 and is led to an IPv4 address, or the other way round, is told all the same.
#[test]
fn two_families() {
    let (six, four) = ("[2001:db8::9]:1000".parse().unwrap(), "198.51.100.1:443".parse().unwrap());
    let text = |a, b| String::from_utf8(write(Version::V1, Transport::Tcp, Some(a), Some(b))).unwrap();
    assert_eq!(text(six, four), "PROXY TCP6 2001:db8::9 ::ffff:c633:6401 1000 443\r\n");
    assert_eq!(text(four, six), "PROXY TCP6 ::ffff:c633:6401 2001:db8::9 443 1000\r\n");
    let binary = write(Version::V2, Transport::Udp, Some(six), Some(four));
    assert_eq!((binary[13], binary.len()), (0x22, 52));
    assert_eq!(binary[32..48], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, 100, 1]);
}

fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&SIGNATURE[..], &[command, family], &len, body].concat()
}

/// The binary form: LOCAL, unknown families, TLVs, checksums, lengths.
#[test]
fn binary_headers() {
    let four = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 4, 1, 0xbb];
    let from =
        Header::From { source: "192.0.2.1:56324".parse().unwrap(), destination: "198.51.100.2:443".parse().unwrap() };
    let with = |tlvs: &[u8]| [&four[..], tlvs].concat();
    let rows: &[(Vec<u8>, Result<Header, Error>)] = &[
        (v2(0x21, 0x11, &four), Ok(from)),
        (v2(0x20, 0x11, &four), Ok(Header::Nobody)),
        (v2(0x20, 0x00, &[]), Ok(Header::Nobody)),
        (v2(0x21, 0x00, &[1, 2, 3]), Ok(Header::Nobody)),
        (v2(0x21, 0x31, &[0; 216]), Ok(Header::Nobody)),
        (v2(0x21, 0x11, &with(&[4, 0, 2, 9, 9])), Ok(from)),
        (v2(0x21, 0x11, &with(&[4, 0, 3, 9, 9])), Err(Error::Malformed)),
        (v2(0x21, 0x11, &with(&[4, 0])), Err(Error::Malformed)),
        (v2(0x21, 0x11, &four[..11]), Err(Error::Malformed)),
        (v2(0x21, 0x21, &four), Err(Error::Malformed)),
        (v2(0x22, 0x11, &four), Err(Error::Malformed)),
        (v2(0x21, 0x41, &four), Err(Error::Malformed)),
        (v2(0x21, 0xf0, &[]), Err(Error::Malformed)),
        (v2(0x21, 0x13, &four), Err(Error::Malformed)),
        (v2(0x21, 0x3f, &[0; 216]), Err(Error::Malformed)),
        (v2(0x20, 0xff, &four), Ok(Header::Nobody)),
        (v2(0x11, 0x11, &four), Err(Error::Malformed)),
        (v2(0x21, 0x11, &[0; BYTES_MAX]), Err(Error::TooLong)),
    ];
    for (bytes, expected) in rows {
        assert_eq!(read(bytes).map(|found| found.expect("it is whole").0), *expected, "{bytes:02x?}");
    }
    let mut summed = v2(0x21, 0x11, &with(&[TLV_CRC32C, 0, 4, 0, 0, 0, 0]));
    let at = summed.len() - 4;
    let sum = crc32c(&summed).to_be_bytes();
    summed[at..].copy_from_slice(&sum);
    assert_eq!(read(&summed), Ok(Some((from, summed.len()))));
    summed[at - 8] ^= 1;
    assert_eq!(read(&summed), Err(Error::Checksum));
    // RFC 3720, appendix B.4: 32 bytes of zeroes.
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
}
