//! Claim: whatever a server says, and however the network cuts it, the finding is the one the protocol asks for, and
//! whoever logs in says goodbye. Method: servers' words built by mysql_common's server-side packets, tables, every cut, noise;
//! the SHA-256 proof against `ring`, the RSA one against `openssl`. A real server: `engine/tests/mysql.rs`.

use super::*;
use crate::io::{Errno, Leg};
use crate::probe::talk::tests::{Step as Does, converse};
use mysql_common::constants::{CapabilityFlags, ColumnType, StatusFlags};
use mysql_common::io::ParseBuf;
use mysql_common::packets::{
    AuthMoreData, AuthPlugin, AuthSwitchRequest, Column, ErrPacket, HandshakePacket, HandshakeResponse, ServerError,
    SqlState,
};
use mysql_common::proto::MySerialize;
use proptest::prelude::*;
use ring::digest::{SHA256, digest};
use std::num::NonZeroU16;

const NONCE: &[u8; 20] = b"abcdefghijklmnopqrst";
const NATIVE: &str = "mysql_native_password";
const SHA2: &str = "caching_sha2_password";

/// What a server says, packet by packet, numbered in turn with ours.
#[derive(Clone)]
struct Server {
    sequence: u8,
    words: Vec<u8>,
}

impl Server {
    fn silent() -> Server {
        Server { sequence: 0, words: Vec::new() }
    }

    fn greets(plugin: &str) -> Server {
        Server::greets_with(plugin, CapabilityFlags::all())
    }

    fn greets_with(plugin: &str, capabilities: CapabilityFlags) -> Server {
        let scramble_1: [u8; 8] = NONCE[..8].try_into().unwrap();
        let scramble_2 = [&NONCE[8..], &[0]].concat();
        let status = StatusFlags::SERVER_STATUS_AUTOCOMMIT;
        let plugin = Some(plugin.as_bytes());
        let greeting =
            HandshakePacket::new(10, &b"8.0.36"[..], 7, scramble_1, Some(scramble_2), capabilities, 45, status, plugin);
        let mut words = bytes_of(&greeting);
        words.push(0);
        Server::silent().says(&words)
    }

    fn says(mut self, payload: &[u8]) -> Server {
        let length = u32::try_from(payload.len()).unwrap();
        self.words.extend_from_slice(&(length | u32::from(self.sequence) << 24).to_le_bytes());
        self.words.extend_from_slice(payload);
        self.sequence = self.sequence.wrapping_add(1);
        self
    }

    /// We have said one.
    fn hears(mut self) -> Server {
        self.sequence += 1;
        self
    }

    /// We have asked a question.
    fn answering(mut self) -> Server {
        self.sequence = 1;
        self
    }

    /// A whole login that succeeds at once.
    fn lets_in() -> Server {
        Server::greets(NATIVE).hears().says(OK)
    }

    fn answers(self, columns: &[&str], rows: &[&[Option<&str>]]) -> Server {
        let mut server = self.answering().says(&[u8::try_from(columns.len()).unwrap()]);
        for name in columns {
            server = server.says(&column(name));
        }
        server = server.says(EOF);
        for row in rows {
            server = server.says(&row_of(row));
        }
        server.says(EOF)
    }
}

const OK: &[u8] = &[0, 0, 0, 2, 0, 0, 0];
const EOF: &[u8] = &[0xfe, 0, 0, 2, 0];

fn bytes_of(packet: &impl MySerialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet.serialize(&mut bytes);
    bytes
}

fn error(number: u16) -> Vec<u8> {
    bytes_of(&ErrPacket::Error(ServerError::new(number, Some(SqlState::new(*b"28000")), &b"no"[..])))
}

/// As before the login: without SQL state.
fn early_error(number: u16) -> Vec<u8> {
    bytes_of(&ErrPacket::Error(ServerError::new(number, None, &b"no"[..])))
}

fn switch(plugin: &str) -> Vec<u8> {
    bytes_of(&AuthSwitchRequest::new(plugin.as_bytes(), [&NONCE[..], &[0]].concat()))
}

fn more(data: &[u8]) -> Vec<u8> {
    bytes_of(&AuthMoreData::new(data))
}

fn column(name: &str) -> Vec<u8> {
    bytes_of(&Column::new(ColumnType::MYSQL_TYPE_VAR_STRING).with_name(name.as_bytes()))
}

fn row_of(values: &[Option<&str>]) -> Vec<u8> {
    let mut row = Vec::new();
    for value in values {
        match value {
            None => row.push(0xfb),
            Some(text) => {
                row.push(u8::try_from(text.len()).unwrap());
                row.extend_from_slice(text.as_bytes());
            }
        }
    }
    row
}

fn user() -> MysqlCheck {
    MysqlCheck::new("monitor", Secret::new("sesame")).unwrap()
}

fn primary() -> MysqlCheck {
    user().asking(MysqlAsk::IsPrimary).unwrap()
}

fn asking(expect: Option<(MysqlColumn, &str)>) -> MysqlCheck {
    let expect = expect.map(|(column, value)| MysqlValue { column, value: value.into() });
    user().asking(MysqlAsk::Statement { sql: "select 1".into(), expect }).unwrap()
}

fn number(place: u16) -> MysqlColumn {
    MysqlColumn::Number(NonZeroU16::new(place).unwrap())
}

fn name(name: &str) -> MysqlColumn {
    MysqlColumn::Name(name.into())
}

/// Our packets: sequence and payload.
fn packets(mut said: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut packets = Vec::new();
    while let [a, b, c, sequence, rest @ ..] = said {
        let (payload, after) = rest.split_at(u32::from_le_bytes([*a, *b, *c, 0]) as usize);
        packets.push((*sequence, payload.to_vec()));
        said = after;
    }
    packets
}

/// Holds the conversation packet by packet, as a server does that waits for us.
fn run(check: MysqlCheck, server: &Server) -> (Finding, Vec<(u8, Vec<u8>)>) {
    let mut words = &server.words[..];
    let mut script = Vec::new();
    while let [a, b, c, _, rest @ ..] = words {
        let length = u32::from_le_bytes([*a, *b, *c, 0]) as usize;
        let (packet, after) = words.split_at(4 + length.min(rest.len()));
        script.push(Does::Says(packet));
        words = after;
    }
    script.push(Does::Closes);
    let (finding, said) = converse(&mut LoggingIn::new(Arc::new(check)), &script);
    (finding, packets(&said))
}

/// Every way a server can end it that is not about rows: code, number, and whether we said goodbye.
fn logins() -> Vec<(&'static str, MysqlCheck, Server, Code, u32, bool)> {
    let greeting = Server::greets(NATIVE).hears();
    let in_by = |proofs: &[Vec<u8>]| {
        let mut server = Server::greets(NATIVE).hears();
        for proof in proofs {
            server = server.says(proof).hears();
        }
        server
    };
    let with_key = || user().taking_server_key(true);
    let key = include_str!("key-for-tests.pem").as_bytes();
    let many = vec![switch(NATIVE); 9];
    vec![
        ("in", user(), Server::lets_in(), Code::L7Ok, 0, true),
        ("too many", user(), Server::silent().says(&early_error(1040)), Code::L7Status, 1040, false),
        ("blocked", user(), Server::silent().says(&early_error(1129)), Code::L7Status, 1129, false),
        ("host", user(), Server::silent().says(&early_error(1130)), Code::L7Status, 1130, false),
        ("odd number", user(), Server::silent().hears().says(&error(1040)), Code::L7Status, 1040, false),
        ("denied", user(), greeting.clone().says(&error(1045)), Code::L7OkLogin, 1045, false),
        ("no right", user(), greeting.clone().says(&error(1044)), Code::L7OkLogin, 1044, false),
        ("socket only", user(), greeting.clone().says(&error(1698)), Code::L7OkLogin, 1698, false),
        ("no such db", user(), greeting.clone().says(&error(1049)), Code::L7Status, 1049, false),
        ("broken", user(), greeting.clone().says(&error(1043)), Code::L7Status, 1043, false),
        ("denied a question", primary(), greeting.clone().says(&error(1045)), Code::L7Status, 1045, false),
        ("short error", user(), greeting.clone().says(&[0xff, 1]), Code::L7Response, 0, false),
        ("nothing", user(), Server::silent().says(b""), Code::L7Response, 0, false),
        ("ssh", user(), Server { sequence: 0, words: b"SSH-2.0-OpenSSH_9\r\n".to_vec() }, Code::L7Response, 0, false),
        ("version 9", user(), Server::silent().says(&[9, b'3', 0, 1, 2, 3]), Code::L7Response, 0, false),
        ("3.23", user(), Server::greets_with(NATIVE, CapabilityFlags::empty()), Code::L7Response, 0, false),
        ("out of turn", user(), Server::greets(NATIVE).says(OK), Code::L7Response, 0, false),
        ("not a login", user(), greeting.clone().says(b"\x30abc"), Code::L7Response, 0, false),
        ("switch", user(), in_by(&[switch(NATIVE)]).says(OK), Code::L7Ok, 0, true),
        ("switch to sha2", user(), in_by(&[switch(SHA2)]).says(&more(&[3])).says(OK), Code::L7Ok, 0, true),
        ("switch, denied", user(), in_by(&[switch(NATIVE)]).says(&error(1045)), Code::L7OkLogin, 1045, false),
        ("for ever", user(), in_by(&many).says(OK), Code::L7Response, 0, false),
        ("clear", user(), in_by(&[switch("mysql_clear_password")]).says(&error(1045)), Code::L7OkLogin, 2059, false),
        ("ed25519", user(), in_by(&[switch("client_ed25519")]).says(&error(1045)), Code::L7OkLogin, 2059, false),
        ("other", user(), in_by(&[switch("x"), switch("y")]).says(&error(1045)), Code::L7OkLogin, 2059, false),
        ("other, primary", primary(), in_by(&[switch("x")]).says(&error(1045)), Code::L7Status, 2059, false),
        ("declined, yet in", user(), in_by(&[switch("x")]).says(OK), Code::L7OkLogin, 2059, true),
        ("1999", user(), in_by(&[vec![0xfe]]).says(&error(1045)), Code::L7OkLogin, 2059, false),
        ("full", user(), in_by(&[switch(SHA2), more(&[4])]).says(&error(1045)), Code::L7OkLogin, 2061, false),
        (
            "full, primary",
            primary(),
            in_by(&[switch(SHA2), more(&[4])]).says(&error(1045)),
            Code::L7Status,
            2061,
            false,
        ),
        ("sha256", user(), in_by(&[switch("sha256_password")]).says(&error(1045)), Code::L7OkLogin, 2061, false),
        ("unasked key", user(), in_by(&[switch(SHA2), more(key)]).says(OK), Code::L7Response, 0, false),
        ("key", with_key(), in_by(&[switch(SHA2), more(&[4]), more(key)]).says(OK), Code::L7Ok, 0, true),
        (
            "bad key",
            with_key(),
            in_by(&[switch(SHA2), more(&[4]), more(&key[..80])]).says(OK),
            Code::L7Response,
            0,
            false,
        ),
        ("sha256 key", with_key(), in_by(&[switch("sha256_password"), more(key)]).says(OK), Code::L7Ok, 0, true),
        ("odd state", user(), in_by(&[switch(SHA2), more(&[9])]).says(OK), Code::L7Response, 0, false),
    ]
}

/// Answers to questions.
fn answers() -> Vec<(&'static str, MysqlCheck, Server, Code, u32, bool)> {
    let lets_in = Server::lets_in;
    let read_only = |value| lets_in().answers(&["Variable_name", "Value"], &[&[Some("read_only"), Some(value)]]);
    let two = || lets_in().answers(&["a", "B"], &[&[Some("1"), None], &[Some("9"), Some("9")]]);
    let long = || {
        let row = row_of(&[Some(&"x".repeat(250))]);
        let server = lets_in().answering().says(&[1]).says(&column("a")).says(EOF);
        (0..300).fold(server, |server, _| server.says(&row))
    };
    let row_cut = lets_in().answering().says(&[2]).says(&column("a")).says(&column("b")).says(EOF).says(b"\x01x");
    let row_long = lets_in().answering().says(&[1]).says(&column("a")).says(EOF).says(b"\x01x\x01y");
    vec![
        ("primary", primary(), read_only("OFF"), Code::L7Ok, 0, true),
        ("replica", primary(), read_only("ON"), Code::L7Content, 0, true),
        ("read only in another way", primary(), read_only("NO_LOCK"), Code::L7Content, 0, true),
        ("no such variable", primary(), lets_in().answers(&["Variable_name", "Value"], &[]), Code::L7Content, 0, true),
        ("no second column", primary(), lets_in().answers(&["a"], &[&[Some("OFF")]]), Code::L7Content, 0, true),
        ("no rows", asking(None), lets_in().answering().says(OK), Code::L7Ok, 0, true),
        ("no rows, wanted", asking(Some((number(1), "1"))), lets_in().answering().says(OK), Code::L7Content, 0, true),
        ("rows", asking(None), two(), Code::L7Ok, 0, true),
        ("first", asking(Some((number(1), "1"))), two(), Code::L7Ok, 0, true),
        ("second row does not count", asking(Some((number(1), "9"))), two(), Code::L7Content, 0, true),
        ("null", asking(Some((number(2), ""))), two(), Code::L7Content, 0, true),
        ("by name", asking(Some((name("A"), "1"))), two(), Code::L7Ok, 0, true),
        ("no such name", asking(Some((name("c"), "1"))), two(), Code::L7Content, 0, true),
        ("error", asking(None), lets_in().answering().says(&error(1146)), Code::L7Status, 1146, true),
        (
            "error in rows",
            asking(None),
            lets_in().answering().says(&[1]).says(&column("a")).says(EOF).says(&error(1317)),
            Code::L7Status,
            1317,
            true,
        ),
        ("our files", asking(None), lets_in().answering().says(b"\xfb/etc/passwd"), Code::L7Response, 0, false),
        ("too many columns", asking(None), lets_in().answering().says(b"\xfc\x01\x10"), Code::L7Response, 0, false),
        ("not a column", asking(None), lets_in().answering().says(&[1]).says(b"abc"), Code::L7Response, 0, false),
        (
            "no end of columns",
            asking(None),
            lets_in().answering().says(&[1]).says(&column("a")).says(b"\x01x"),
            Code::L7Response,
            0,
            false,
        ),
        ("short row", asking(None), row_cut, Code::L7Response, 0, false),
        ("long row", asking(None), row_long, Code::L7Response, 0, false),
        ("more than is read", asking(None), long(), Code::L7Content, 0, false),
        (
            "a packet longer than is read",
            asking(None),
            lets_in().answering().says(&[b'x'; 17_000]),
            Code::L7Content,
            0,
            false,
        ),
        ("breaks off", asking(None), lets_in().answering().says(&[1]), Code::L7Response, 0, false),
    ]
}

/// Each way of a login and of an answer is found as what it is, and whoever is in says goodbye.
#[test]
fn every_way_it_can_go() {
    for (row, check, server, code, number, says_goodbye) in logins().into_iter().chain(answers()) {
        let (finding, said) = run(check, &server);
        assert_eq!((finding.code, finding.detail.number, finding.end), (code, number, End::Reset), "{row}");
        assert_eq!(said.last() == Some(&(0, vec![COM_QUIT])), says_goodbye, "{row}: {said:?}");
    }
}

/// A packet that is announced with 16 MB is not waited for.
#[test]
fn lengths_are_not_believed() {
    for length in [b"\xff\xff\xff\0".as_slice(), b"\x01\x40\0\0"] {
        let finding = converse(&mut LoggingIn::new(Arc::new(user())), &[Does::Says(length)]).0;
        assert_eq!(finding.code, Code::L7Response);
    }
}

/// Silence and resets: what they mean depends on what is known by then.
#[test]
fn silence_and_resets_count_until_the_verdict_is_known() {
    let greeting = Server::greets(NATIVE);
    let declined = greeting.clone().hears().says(&switch("x"));
    let asked = Server::lets_in();
    let table = [
        (user(), Server::silent(), Code::L7Timeout, Code::L7Response),
        (user(), greeting, Code::L7Timeout, Code::L7Response),
        (primary(), asked, Code::L7Timeout, Code::L7Response),
        (user(), Server::lets_in(), Code::L7Ok, Code::L7Ok),
        (user(), declined, Code::L7OkLogin, Code::L7OkLogin),
    ];
    for (position, (check, server, at_deadline, on_reset)) in table.into_iter().enumerate() {
        for (ending, code) in [(Does::Deadline, at_deadline), (Does::Reset, on_reset)] {
            let script = [Does::Says(&server.words), ending];
            let script = if server.words.is_empty() { &script[1..] } else { &script[..] };
            let finding = converse(&mut LoggingIn::new(Arc::new(check.clone())), script).0;
            assert_eq!(finding.code, code, "row {position}, {ending:?}");
        }
    }
    let refused = Trouble { leg: Leg::Connect, errno: Errno(libc::ECONNREFUSED) };
    assert_eq!(LoggingIn::new(Arc::new(user())).on_trouble(refused).code, Code::L4Refused);
}

/// What we say is what a server expects: number, name, database, plugin; the question; and no password anywhere.
#[test]
fn a_server_can_read_us() {
    let check = primary().in_database("shop").unwrap();
    let server = Server::lets_in().answers(&["Variable_name", "Value"], &[&[Some("read_only"), Some("OFF")]]);
    let (_, said) = run(check, &server);
    assert_eq!(said.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), [1, 0, 0]);
    let response: HandshakeResponse<'_> = ParseBuf(&said[0].1).parse(()).unwrap();
    assert_eq!((response.user(), response.db_name()), (&b"monitor"[..], Some(&b"shop"[..])));
    assert_eq!(response.auth_plugin(), Some(&AuthPlugin::MysqlNativePassword));
    assert_eq!(response.connect_attributes().unwrap()["program_name"], "ringspan");
    assert_eq!(response.scramble_buf().len(), 20);
    let never = CapabilityFlags::CLIENT_LOCAL_FILES
        | CapabilityFlags::CLIENT_MULTI_STATEMENTS
        | CapabilityFlags::CLIENT_COMPRESS
        | CapabilityFlags::CLIENT_SSL;
    assert!(!response.capabilities().intersects(never));
    assert_eq!(said[1].1, [&[COM_QUERY], MysqlCheck::READ_ONLY_SQL.as_bytes()].concat());
    assert!(!said.iter().any(|(_, payload)| payload.windows(6).any(|window| window == b"sesame")));
}

/// A server that should speak TLS and does not is not told who we are.
#[test]
fn required_tls_is_required() {
    let client = TlsClient::new(crate::probe::tls::TlsSettings {
        trust: crate::probe::tls::Trust::Insecure,
        ..Default::default()
    })
    .unwrap();
    let no_tls = Server::greets_with(NATIVE, CapabilityFlags::all() - CapabilityFlags::CLIENT_SSL).hears();
    let (finding, said) = run(user().over(MysqlTls::Required(client.clone())), &no_tls.clone().says(&error(1045)));
    assert_eq!((finding.code, finding.detail.number), (Code::L6Response, NO_TLS));
    assert_eq!(said.len(), 1);
    let response: HandshakeResponse<'_> = ParseBuf(&said[0].1).parse(()).unwrap();
    assert_eq!((response.user(), response.scramble_buf()), (&b""[..], &b""[..]));
    let (finding, said) = run(user().over(MysqlTls::Required(client.clone())), &no_tls.clone().says(OK));
    assert_eq!((finding.code, said.last()), (Code::L6Response, Some(&(0, vec![COM_QUIT]))));

    let (finding, _) = run(user().over(MysqlTls::Preferred(client.clone())), &no_tls.says(OK));
    assert_eq!(finding.code, Code::L7Ok);
    // Words that came with the greeting, unprotected, are nobody's.
    let mut talk = LoggingIn::new(Arc::new(user().over(MysqlTls::Preferred(client.clone()))));
    let (finding, said) = converse(&mut talk, &[Does::Says(&Server::lets_in().words)]);
    assert_eq!((finding.code, said.len()), (Code::L7Response, 0));
    // A plain answer to the request for TLS is no TLS.
    let greeting = Server::greets(NATIVE);
    let plain = Server { sequence: 2, words: Vec::new() }.says(OK);
    let mut talk = LoggingIn::new(Arc::new(user().over(MysqlTls::Required(client.clone()))));
    let script = [Does::Says(&greeting.words), Does::Says(&plain.words), Does::Closes];
    assert_eq!(converse(&mut talk, &script).0.code, Code::L6Response);
    let mut talk = LoggingIn::new(Arc::new(user().over(MysqlTls::Required(client))));
    let (finding, said) = converse(&mut talk, &[Does::Says(&greeting.words), Does::Deadline]);
    assert_eq!((finding.code, packets(&said[..36]).len()), (Code::L6Timeout, 1));
}

/// The proof of caching_sha2_password is XOR(SHA256(p), SHA256(SHA256(SHA256(p)), nonce)), with the nonce asked last.
#[test]
fn the_sha2_proof_is_right() {
    let once = digest(&SHA256, b"sesame");
    let twice = digest(&SHA256, once.as_ref());
    let salted = digest(&SHA256, &[twice.as_ref(), NONCE].concat());
    let proof: Vec<u8> = once.as_ref().iter().zip(salted.as_ref()).map(|(a, b)| a ^ b).collect();
    let (_, said) = run(user(), &Server::greets(SHA2).hears().says(&more(&[3])).says(OK));
    let response: HandshakeResponse<'_> = ParseBuf(&said[0].1).parse(()).unwrap();
    assert_eq!(response.auth_plugin(), Some(&AuthPlugin::CachingSha2Password));
    assert_eq!(response.scramble_buf(), proof);
    assert_eq!(said.len(), 2, "the proof and the goodbye");

    let other = b"ABCDEFGHIJKLMNOPQRST";
    let switch = bytes_of(&AuthSwitchRequest::new(SHA2.as_bytes(), [&other[..], &[0]].concat()));
    let salted = digest(&SHA256, &[twice.as_ref(), other].concat());
    let proof: Vec<u8> = once.as_ref().iter().zip(salted.as_ref()).map(|(a, b)| a ^ b).collect();
    let (_, said) = run(user(), &Server::greets(NATIVE).hears().says(&switch).hears().says(&more(&[3])).says(OK));
    assert_eq!(said[1], (3, proof));
}

/// The RSA proof, decrypted by openssl, is the password and a zero byte, mixed with the nonce asked last.
#[test]
fn the_rsa_proof_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let openssl = |args: &[&str]| {
        let output = std::process::Command::new("openssl").args(args).current_dir(folder.path()).output();
        let output = output.expect("openssl runs; scripts/setup installs it");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    openssl(&["genrsa", "-out", "key", "2048"]);
    let key = openssl(&["rsa", "-in", "key", "-pubout"]);
    let other = b"ABCDEFGHIJKLMNOPQRST";
    let switch = bytes_of(&AuthSwitchRequest::new(SHA2.as_bytes(), [&other[..], &[0]].concat()));
    let server =
        Server::greets(NATIVE).hears().says(&switch).hears().says(&more(&[4])).hears().says(&more(&key)).hears();
    let (finding, said) = run(user().taking_server_key(true), &server.says(OK));
    assert_eq!(finding.code, Code::L7Ok);
    assert_eq!(said[2], (5, vec![2]), "asks for the key");
    std::fs::write(folder.path().join("proof"), &said[3].1).unwrap();
    let mixed = openssl(&["pkeyutl", "-decrypt", "-inkey", "key", "-in", "proof", "-pkeyopt", "rsa_padding_mode:oaep"]);
    let password: Vec<u8> = mixed.iter().zip(other.iter().cycle()).map(|(a, b)| a ^ b).collect();
    assert_eq!(password, b"sesame\0");
}

/// Cuts a server's words into pieces of these lengths, again and again.
fn cut<'a>(mut words: &'a [u8], lengths: &[usize]) -> Vec<Does<'a>> {
    let mut pieces = Vec::new();
    for length in lengths.iter().cycle() {
        let (piece, rest) = words.split_at((*length).min(words.len()));
        if !piece.is_empty() {
            pieces.push(Does::Says(piece));
        }
        words = rest;
        if words.is_empty() {
            break;
        }
    }
    pieces.push(Does::Closes);
    pieces
}

/// Every cut in two of every script gives the same finding, and the same words of ours where they come to a goodbye.
#[test]
fn every_cut_gives_the_same_finding() {
    for (row, check, server, ..) in logins().into_iter().chain(answers()) {
        // Proofs by RSA differ each time; rows by the hundred take long.
        if check.takes_server_key || server.words.len() > 2000 {
            continue;
        }
        let check = Arc::new(check);
        let whole = converse(&mut LoggingIn::new(check.clone()), &cut(&server.words, &[usize::MAX]));
        for at in 1..server.words.len() {
            let script = cut(&server.words, &[at, usize::MAX]);
            let in_two = converse(&mut LoggingIn::new(check.clone()), &script);
            assert_eq!(in_two.0, whole.0, "{row}, cut at {at}");
            if packets(&whole.1).last() == Some(&(0, vec![COM_QUIT])) {
                assert_eq!(in_two.1, whole.1, "{row}, cut at {at}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Words with errors in them, cut anyhow, lead to some finding and never to a panic.
    #[test]
    fn noise_is_survived(
        row in any::<prop::sample::Index>(),
        errors in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        lengths in proptest::collection::vec(1usize..200, 1..8),
    ) {
        let mut all = logins();
        all.extend(answers());
        let (_, check, mut server, ..) = all.swap_remove(row.index(all.len()));
        for (at, value) in errors {
            let at = at.index(server.words.len().max(1));
            if let Some(byte) = server.words.get_mut(at) {
                *byte = value;
            }
        }
        converse(&mut LoggingIn::new(Arc::new(check)), &cut(&server.words, &lengths));
    }
}
