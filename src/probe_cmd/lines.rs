//! One line for one thing that happened: a probe as JSON, a change for people.
//! Pure but for the time of day.

use super::draw;
use super::roster::{Belief, Roster};
use ringspan_engine::check::Detail;
use ringspan_engine::health::Health;
use ringspan_engine::outcome::Code;
use ringspan_engine::target::{Sample, Transition};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// As it is called in JSON, metrics and lines.
pub(super) fn health(health: Health) -> &'static str {
    match health {
        Health::Unknown => "unknown",
        Health::Up => "up",
        Health::Down => "down",
    }
}

/// What the protocol said, for people: "status 503", "error 1045", "alert 40", "certificate 12 d"; empty if nothing.
pub(super) fn detail(kind: &str, detail: Detail) -> String {
    let number = match (kind, detail.number) {
        (_, 0) => String::new(),
        ("http", n) if n >= 100 => format!("status {n}"),
        ("mysql", n) => format!("error {n}"),
        ("tls" | "http", n) => format!("alert {n}"),
        (_, n) => n.to_string(),
    };
    match detail.cert_days {
        None => number,
        Some(days) if number.is_empty() => format!("certificate {days} d"),
        Some(days) => format!("{number}, certificate {days} d"),
    }
}

/// One probe as a JSON line.
pub(super) fn probe(roster: &Roster, row: u32, s: &Sample) -> String {
    let us = |ns: u64| ns as f64 / 1e3;
    let mut line = serde_json::json!({
        "target": roster.shown(row),
        "kind": roster.check(row).as_str(),
        "address": roster.address(row).map(|a| a.to_string()),
        "code": s.code.as_str(),
        "errno": s.errno,
        "rtt_us": us(s.rtt_ns),
        "lateness_us": us(s.lateness_ns),
        "health": health(s.health),
        "last": s.last,
    });
    let map = line.as_object_mut().expect("it was made as one");
    let mut set = |key: &str, value: u32| {
        if value > 0 {
            map.insert(key.into(), value.into());
        }
    };
    set("number", s.detail.number);
    set("connect_us", s.phases.connect_us);
    set("tls_us", s.phases.tls_us);
    set("first_byte_us", s.phases.first_byte_us);
    set("kernel_rtt_us", s.kernel_rtt_us);
    set("syn_retransmits", s.syn_retransmits.into());
    if let Some(days) = s.detail.cert_days {
        map.insert("cert_days".into(), days.into());
    }
    line.to_string()
}

/// A change of mind, for people and for grep: time, target, from, to, reason, how long it had been so.
pub(super) fn change(roster: &Roster, row: u32, t: &Transition, before: &Belief, now_cs: u32) -> String {
    let mut reason = t.code.as_str().to_owned();
    let said = detail(roster.check(row).as_str(), t.detail);
    if !said.is_empty() {
        reason += &format!(" ({said})");
    }
    if t.streak > 1 {
        reason += &format!(", {} in a row", t.streak);
    }
    if t.code.is_up() {
        reason += &format!(", {}", draw::time(t.rtt_ns as f64 / 1e3));
    }
    let lasted = match before.health {
        Health::Unknown => String::new(),
        _ => format!(", after {}", draw::span(u64::from(now_cs.saturating_sub(before.since_cs)) / 100)),
    };
    format!("{} {}: {} -> {}, {reason}{lasted}", now(), roster.shown(row), health(t.from), health(t.to))
}

/// What decided, shortly, with its detail.
pub(super) fn reason(kind: &str, code: Option<Code>, said: Detail) -> String {
    match (code, detail(kind, said)) {
        (None, _) => String::new(),
        (Some(code), said) if said.is_empty() => code.as_str().to_owned(),
        (Some(code), said) => format!("{} {said}", code.as_str()),
    }
}

/// The time of day, RFC 3339 in UTC.
pub(super) fn now() -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}
