//! Answers of the registry's API as tables for people: aligned, cut at the terminal's width, with units.

use serde_json::Value;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::{SystemTime, UNIX_EPOCH};

/// Rows under a headline. Columns are as wide as what is in them; the last one is cut at the terminal's edge.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(headline: &[&str]) -> Table {
        Table { rows: vec![headline.iter().map(|h| (*h).to_owned()).collect()] }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// `width`: of the terminal; `None`: there is none.
    pub(super) fn draw(&self, width: Option<usize>) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let wide = |column: usize| self.rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(wide).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            let line = line.trim_end();
            let fits = width.is_none_or(|w| line.chars().count() <= w);
            match width {
                Some(width) if !fits => {
                    out.extend(line.chars().take(width.saturating_sub(1)));
                    out.push('…');
                }
                _ => out.push_str(line),
            }
            out.push('\n');
        }
        out
    }
}

/// How wide the terminal is that stdout goes to.
pub(super) fn width() -> Option<usize> {
    let is_terminal = std::io::stdout().is_terminal();
    is_terminal.then(crossterm::terminal::size)?.ok().map(|(columns, _)| usize::from(columns)).filter(|w| *w > 20)
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(0))
}

pub(super) fn text(value: &Value) -> String {
    match value {
        // Names and reasons are the registry's; metadata is anybody's, and a terminal obeys what it is sent.
        Value::String(text) => text.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

pub(super) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn pairs(value: &Value) -> String {
    let pairs = value.as_object().into_iter().flatten();
    let all: Vec<String> = pairs.map(|(k, v)| format!("{}={}", text(&Value::from(k.as_str())), text(v))).collect();
    if all.is_empty() { "-".into() } else { all.join(",") }
}

/// How long ago.
pub(super) fn ago(since_ms: &Value, now_ms: u64) -> String {
    let Some(since) = since_ms.as_u64() else { return "-".into() };
    let s = now_ms.saturating_sub(since) / 1000;
    match (s / 86_400, s / 3600, s / 60) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, m) => format!("{m}m{:02}s", s % 60),
        (0, h, m) => format!("{h}h{:02}m", m % 60),
        (d, h, _) => format!("{d}d{:02}h", h % 24),
    }
}

pub(super) fn rtt(us: &Value) -> String {
    match us.as_u64() {
        None | Some(0) => "-".into(),
        Some(us) if us < 1000 => format!("{us}us"),
        Some(us) => format!("{}.{:02}ms", us / 1000, us % 1000 / 10),
    }
}

pub(super) fn address(instance: &Value) -> String {
    let (host, port) = (text(&instance["host"]), text(&instance["port"]));
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// `group@@name`, without the default group.
pub(super) fn service(namespace: &Value, group: &Value, name: &Value) -> String {
    let group = match text(group).as_str() {
        "DEFAULT_GROUP" => String::new(),
        other => format!("{other}@@"),
    };
    match text(namespace).as_str() {
        "public" => format!("{group}{}", text(name)),
        other => format!("{other}/{group}{}", text(name)),
    }
}

/// Services of a page.
pub(super) fn services(page: &Value) -> Table {
    let mut table = Table::new(&["SERVICE", "INSTANCES", "UP", "DOWN", "UNKNOWN", "PROTECT", "METADATA"]);
    for s in items(&page["services"]) {
        let count = |key: &str| text(&s[key]);
        table.row([
            service(&s["namespace"], &s["group"], &s["name"]),
            count("instance_count"),
            count("up"),
            count("down"),
            count("unknown"),
            if s["protect_threshold"] == 0.0 { "-".into() } else { text(&s["protect_threshold"]) },
            pairs(&s["metadata"]),
        ]);
    }
    table
}

/// Instances; `of_many`: of more than one service.
pub(super) fn instances(list: &[Value], of_many: bool) -> Table {
    let now = now_ms();
    let first = if of_many { "SERVICE" } else { "KIND" };
    let mut table = Table::new(&[
        first,
        "INSTANCE",
        "CLUSTER",
        "HEALTH",
        "REASON",
        "SINCE",
        "RTT",
        "WEIGHT",
        "SEEN FROM",
        "METADATA",
    ]);
    for i in list {
        let kind = if i["ephemeral"] == true { "ephemeral" } else { "persistent" };
        let weight = text(&i["weight"]);
        table.row([
            if of_many { service(&i["namespace"], &i["group"], &i["service"]) } else { kind.into() },
            address(i),
            text(&i["cluster"]),
            text(&i["health"]),
            text(&i["reason"]),
            ago(&i["since_ms"], now),
            rtt(&i["rtt_us"]),
            if i["enabled"] == false { format!("{weight} (disabled)") } else { weight },
            seen_from(i),
            pairs(&i["metadata"]),
        ]);
    }
    table
}

fn seen_from(instance: &Value) -> String {
    items(&instance["vantages"]).iter().map(|v| text(&v["vantage"])).collect::<Vec<_>>().join(",")
}

/// What each vantage found.
pub(super) fn voices(instance: &Value) -> Table {
    let now = now_ms();
    let mut table = Table::new(&["SEEN FROM", "HEALTH", "REASON", "SINCE", "RTT", "WHY"]);
    for v in items(&instance["vantages"]) {
        table.row([
            text(&v["vantage"]),
            text(&v["health"]),
            text(&v["reason"]),
            ago(&v["since_ms"], now),
            rtt(&v["rtt_us"]),
            text(&v["why"]),
        ]);
    }
    table
}

/// What one of those who were asked to probe has found.
pub(super) fn finding(v: &Value) -> String {
    let [vantage, health, reason, why] = ["vantage", "health", "reason", "why"].map(|key| text(&v[key]));
    format!("{vantage} finds it {health}: {why} ({reason}, {})\n", rtt(&v["rtt_us"]))
}

/// What is unwell: a line for each vantage that does not find it well.
pub(super) fn unwell(list: &[Value]) -> Table {
    let now = now_ms();
    let mut table = Table::new(&["HEALTH", "SERVICE", "INSTANCE", "CLUSTER", "SINCE", "SEEN FROM", "REASON", "WHY"]);
    for i in list {
        let mut name = service(&i["namespace"], &i["group"], &i["service"]);
        let (mut at, mut cluster, mut health) = (address(i), text(&i["cluster"]), text(&i["health"]));
        let mut since = ago(&i["since_ms"], now);
        for v in items(&i["vantages"]).iter().filter(|v| v["health"] != "up" || items(&i["vantages"]).len() == 1) {
            let cells = [&mut health, &mut name, &mut at, &mut cluster, &mut since].map(std::mem::take);
            let [health, name, at, cluster, since] = cells;
            table.row([health, name, at, cluster, since, text(&v["vantage"]), text(&v["reason"]), text(&v["why"])]);
        }
    }
    table
}

/// Agents of a page.
pub(super) fn agents(page: &Value) -> Table {
    let now = now_ms();
    let mut table = Table::new(&[
        "AGENT", "STATE", "SINCE", "FROM", "LINKS", "EXPOSES", "UP", "DOWN", "UNKNOWN", "WATCHES", "SERVICES",
    ]);
    for a in items(&page["agents"]) {
        table.row([
            text(&a["name"]),
            if a["connected"] == true { "connected".into() } else { "away".into() },
            ago(&a["link"]["since_ms"], now),
            text(&a["link"]["peer"]),
            text(&a["link"]["carriers"]),
            text(&a["exposes"]),
            text(&a["up"]),
            text(&a["down"]),
            text(&a["unknown"]),
            text(&a["watches"]),
            items(&a["services"]).iter().map(text).collect::<Vec<_>>().join(","),
        ]);
    }
    table
}

/// Namespaces of a page.
pub(super) fn namespaces(page: &Value) -> Table {
    let mut table = Table::new(&["NAMESPACE", "SERVICES", "INSTANCES", "UP", "DOWN", "UNKNOWN"]);
    for n in items(&page["namespaces"]) {
        table.row(["name", "services", "instances", "up", "down", "unknown"].map(|key| text(&n[key])));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Columns line up, blanks do not trail, and a line is no longer than the terminal is wide.
    #[test]
    fn tables_fit() {
        let mut table = Table::new(&["A", "LONG", "C"]);
        table.row(["1".into(), "2".into(), "three".into()]);
        table.row(["öäü".into(), "x".into(), String::new()]);
        assert_eq!(table.draw(None), "A    LONG  C\n1    2     three\nöäü  x\n");
        assert_eq!(table.draw(Some(14)), "A    LONG  C\n1    2     th…\nöäü  x\n");
    }

    /// Units are those that a reader would choose, and what could steer a terminal does not reach it.
    #[test]
    fn units() {
        let ago_of = |s: u64| ago(&json!(1_000_000_000 - s * 1000), 1_000_000_000);
        assert_eq!([0, 59, 60, 3_599, 3_600, 90_000].map(ago_of), ["0s", "59s", "1m00s", "59m59s", "1h00m", "1d01h"]);
        assert_eq!([0, 999, 1_000, 12_345].map(|us| rtt(&json!(us))), ["-", "999us", "1.00ms", "12.34ms"]);
        assert_eq!(address(&json!({ "host": "::1", "port": 80 })), "[::1]:80");
        assert_eq!(service(&json!("public"), &json!("DEFAULT_GROUP"), &json!("web")), "web");
        assert_eq!(service(&json!("dev"), &json!("g"), &json!("web")), "dev/g@@web");
        assert_eq!(pairs(&json!({ "a": "\u{1b}[2J" })), "a=?[2J");
    }
}
