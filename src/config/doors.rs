//! What a `[[listener]]` of bridge.toml speaks, beyond plain TCP: its keys, ranges and defaults.

use super::{Document, Error, unit};
use std::time::Duration;
use toml::Spanned;

/// What a listener speaks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Door {
    /// Whatever it is, over TCP: visitors go to the workers as they come.
    #[default]
    Tcp,
    /// Datagrams.
    Udp(UdpListener),
}

/// Conversations of one UDP listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UdpListener {
    /// One that is silent for this long is over. Default 60 s, 1 s to 1 h: NATs on the way forget a UDP mapping after 30 s
    /// to 5 min (RFC 4787, REQ-5 asks for 2), so keep-alives are mostly closer than that; DNS needs a few seconds.
    pub(crate) idle_timeout: Duration,
    /// At once, 1 to 65,000. Default 10,000: two descriptors and about 10 KiB each. More are not served, and counted.
    pub(crate) sessions_max: usize,
    /// Bytes of datagrams that wait for the link, per conversation. More are dropped and counted.
    pub(crate) queue_bytes: usize,
}

impl Default for UdpListener {
    fn default() -> UdpListener {
        UdpListener {
            idle_timeout: Duration::from_secs(60),
            sessions_max: 10_000,
            queue_bytes: super::expose::UDP_QUEUE_BYTES,
        }
    }
}

/// The keys of all types, as they stand in the file.
#[derive(Clone, Copy, Default)]
pub(super) struct Keys<'a> {
    pub(super) idle_timeout: Option<&'a Spanned<String>>,
    pub(super) sessions_max: Option<&'a Spanned<i64>>,
}

/// The types there are.
const TYPES: &str = "\"tcp\" or \"udp\"";

/// Checks what a listener of this type says.
pub(super) fn check_door(doc: &Document, kind: &Spanned<String>, keys: Keys<'_>) -> Result<Door, Error> {
    let door = match kind.get_ref().as_str() {
        "tcp" => Door::Tcp,
        "udp" => {
            let mut udp = UdpListener::default();
            if let Some(raw) = keys.idle_timeout {
                let read = |text: &str| unit::duration_within(text, Duration::from_secs(1), Duration::from_secs(3600));
                udp.idle_timeout = doc.value(raw, read, "\"1s\" to \"1h\"")?;
            }
            if let Some(raw) = keys.sessions_max {
                udp.sessions_max = doc.number(raw, 1..=65_000)? as usize;
            }
            Door::Udp(udp)
        }
        _ => return doc.value(kind, |_| Err("no such type of listener".into()), TYPES),
    };
    let is_udp = matches!(door, Door::Udp(_));
    for (key, span) in
        [("idle_timeout", keys.idle_timeout.map(Spanned::span)), ("sessions_max", keys.sessions_max.map(Spanned::span))]
    {
        if let (Some(span), false) = (span, is_udp) {
            let problem = format!("{key} is not of a listener of type {:?}", kind.get_ref());
            return Err(doc.wrong(span, problem, "remove it, or type = \"udp\""));
        }
    }
    Ok(door)
}
