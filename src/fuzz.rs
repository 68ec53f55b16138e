//! Doors for the fuzzer (scripts/fuzz): whatever people may write, read as the command reads it.
//! Promise: a text is read or refused with a message; nothing here panics, whatever the text, and no message shows a
//! password.

use crate::config::{Document, agent, bridge, probe};
use crate::doors::http::tls;
use crate::doors::proxy::Step;
use crate::doors::proxy::allow::{Rule, Target};
use crate::doors::proxy::connect::Connect;
use crate::doors::proxy::socks::Socks;
use crate::doors::proxy::users::Users;
use crate::doors::udp::frames;
use crate::probe_cmd::roster::Roster;
use crate::probe_cmd::target;
use ringspan_engine::engine::GROUPS_MAX;

/// Reads a text as one of four: the first byte says which. Devices are left alone: configurations name files, and some
/// of those have no end.
pub fn text(data: &[u8]) {
    let Some((which, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    if text.contains("/dev") || text.contains("/proc") {
        return;
    }
    let doc = Document::of("fuzz.toml", text);
    match which % 4 {
        0 => drop(bridge::check(&doc).map_err(|e| e.to_string())),
        1 => drop(agent::check(&doc).map_err(|e| e.to_string())),
        2 => drop(probe::check(&doc, &mut Roster::default(), GROUPS_MAX).map_err(|e| e.to_string())),
        _ => one_target(text),
    }
}

/// A request to an http listener, as far as the listener itself reads it.
pub fn http_request(data: &[u8]) {
    crate::doors::http::fuzzing::request(data);
}

/// A TLS greeting in pieces, as an https listener reads it.
pub fn greeting(data: &[u8]) {
    tls::fuzz_greeting(data);
}

/// What a visitor of a proxy says (SOCKS 5, HTTP CONNECT, with and without a login), in pieces whose length the first
/// byte says, and what a link says of datagrams: no panic, bounded memory, however it is cut.
pub fn proxy(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    let users = Users::new(vec![("a".into(), "b".into())]);
    let users = (how & 1 == 1).then_some(&users);
    let cut = usize::from(how >> 2) + 1;
    if how & 2 == 0 {
        let mut socks = Socks::new(users);
        let _ = rest.chunks(cut).find(|piece| !matches!(socks.on_bytes(piece), Step::More { .. }));
    } else {
        let mut connect = Connect::new(users);
        let _ = rest.chunks(cut).find(|piece| !matches!(connect.on_bytes(piece), Step::More { .. }));
    }
    let (mut left, mut gathered) = (rest, Vec::new());
    while let Ok(Some(run)) = frames::run(left, cut, 1472, &mut gathered) {
        left = &left[run.taken..];
    }
    if let Ok(text) = std::str::from_utf8(rest) {
        let _ = text.parse::<Rule>();
        if let Ok(target) = text.parse::<Target>() {
            assert_eq!(target.to_string().parse(), Ok(target), "{text:?}");
        }
    }
}

/// What is shown of a target reads back as the same place, and its password is not in it.
fn one_target(text: &str) {
    match target::parse(text) {
        Err(wrong) => drop(wrong.of(text)),
        Ok(written) => {
            let again = target::parse(&written.text).expect("what a target is shown as is a target");
            assert_eq!((again.host, again.port), (written.host, written.port), "{text:?}");
        }
    }
}
