//! What a probe run came to: the object for programs and the page for people.
//! Pure: a [`Summary`] in, text out.

use super::draw;
use hdrhistogram::Histogram;
use ringspan_engine::health::Health;
use ringspan_engine::outcome::{Code, Fault};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// Targets listed by name: all of a short list, the ones that are not up of a long one; the rest is counted.
pub(super) const NAMES_SHOWN: usize = 20;

/// Round trips below which a drawing says less than the numbers.
const DRAWN_MIN: u64 = 20;
/// Probes below which CPU per probe is the price of starting, not of probing.
const RATE_MIN: u64 = 1000;
/// Targets below which memory per target is the price of starting.
const MEMORY_MIN: u64 = 10_000;

/// One target and what is believed of it.
#[derive(Clone, Debug)]
pub(super) struct Named {
    /// As its author wrote it.
    pub(super) text: String,
    /// The belief.
    pub(super) health: Health,
    /// The outcome that decided; `None` if none did.
    pub(super) code: Option<Code>,
    /// What the protocol said, or why there is no address; empty if nothing.
    pub(super) detail: String,
    /// The deciding probe's round trip. Microseconds.
    pub(super) rtt_us: f64,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    /// Targets given.
    pub(super) targets: u64,
    /// Probes that have come out.
    pub(super) probes: u64,
    /// Targets believed up at the end.
    pub(super) up: u64,
    /// Targets believed down at the end.
    pub(super) down: u64,
    /// Targets of which nothing is known.
    pub(super) unknown: u64,
    /// Of those, targets whose name has no address.
    pub(super) unresolved: u64,
    /// How often each code came out.
    pub(super) outcomes: BTreeMap<Code, u64>,
    /// Round trips of the probes that the host answered, with yes or no. Microseconds.
    pub(super) rtt: Histogram<u64>,
    /// Actual minus scheduled start of each probe. Microseconds.
    pub(super) lateness: Histogram<u64>,
    /// Probes not started because the one before was still in flight or the prober was too late.
    pub(super) missed: u64,
    /// From the first target handed over to the last outcome.
    pub(super) duration: Duration,
    /// CPU of this process in that time, user and system.
    pub(super) cpu: Duration,
    /// "io_uring" or "epoll".
    pub(super) backend: String,
    /// Threads that probed.
    pub(super) workers: usize,
    /// Memory of the process at the end.
    pub(super) rss_bytes: u64,
    /// The first [`NAMES_SHOWN`] targets, of a long list those that are not up.
    pub(super) named: Vec<Named>,
    /// Ctrl-C ended it early.
    pub(super) interrupted: bool,
}

/// The object of `--format json`: these fields in this order, and no others.
#[derive(Serialize)]
struct Object<'a> {
    targets: u64,
    probes: u64,
    up: u64,
    down: u64,
    unknown: u64,
    unresolved: u64,
    #[serde(serialize_with = "by_name")]
    outcomes: &'a BTreeMap<Code, u64>,
    rtt_us: Quantiles,
    lateness_us: Quantiles,
    missed: u64,
    duration_s: f64,
    probes_per_s: f64,
    cpu_us_per_probe: f64,
    backend: &'a str,
    workers: usize,
    rss_bytes: u64,
}

/// Microseconds; all 0 where nothing was measured.
#[derive(Default, Serialize)]
struct Quantiles {
    min: u64,
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
    mean: f64,
}

impl Quantiles {
    fn of(h: &Histogram<u64>) -> Quantiles {
        let at = |q: f64| h.value_at_quantile(q);
        if h.is_empty() {
            return Quantiles::default();
        }
        Quantiles {
            min: h.min(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: h.max(),
            mean: rounded(h.mean()),
        }
    }
}

/// In the order of the table of codes, under their short names.
fn by_name<S: serde::Serializer>(outcomes: &&BTreeMap<Code, u64>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(outcomes.iter().map(|(code, n)| (code.as_str(), n)))
}

/// Three digits after the point.
fn rounded(value: f64) -> f64 {
    if value.is_finite() { (value * 1e3).round() / 1e3 } else { 0.0 }
}

impl Summary {
    fn probes_per_s(&self) -> f64 {
        rounded(self.probes as f64 / self.duration.as_secs_f64())
    }

    fn cpu_us_per_probe(&self) -> f64 {
        rounded(self.cpu.as_secs_f64() * 1e6 / self.probes as f64)
    }

    /// Whether every target is known to be up.
    pub(super) fn all_up(&self) -> bool {
        self.up == self.targets
    }

    /// The object, on one line.
    pub(super) fn json(&self) -> String {
        let object = Object {
            targets: self.targets,
            probes: self.probes,
            up: self.up,
            down: self.down,
            unknown: self.unknown,
            unresolved: self.unresolved,
            outcomes: &self.outcomes,
            rtt_us: Quantiles::of(&self.rtt),
            lateness_us: Quantiles::of(&self.lateness),
            missed: self.missed,
            duration_s: rounded(self.duration.as_secs_f64()),
            probes_per_s: self.probes_per_s(),
            cpu_us_per_probe: self.cpu_us_per_probe(),
            backend: &self.backend,
            workers: self.workers,
            rss_bytes: self.rss_bytes,
        };
        serde_json::to_string(&object).expect("numbers and strings are JSON")
    }

    /// The page.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let early = if self.interrupted { ", ended early" } else { "" };
        let _ = writeln!(
            out,
            "{}: {} up, {} down{}. {} in {:.1} s{early}.",
            plural(self.targets, "target"),
            draw::count(self.up),
            draw::count(self.down),
            if self.unknown > 0 { format!(", {} not judged", draw::count(self.unknown)) } else { String::new() },
            plural(self.probes, "probe"),
            self.duration.as_secs_f64(),
        );
        self.write_names(&mut out);
        if !self.outcomes.is_empty() {
            let _ = writeln!(out, "\nOutcomes");
            for (code, n) in &self.outcomes {
                let _ = writeln!(out, "  {:>10}  {:<8} {}", draw::count(*n), code.as_str(), code.sentence());
            }
        }
        if !self.rtt.is_empty() {
            let _ = writeln!(out, "\nRound trip of the {} that answered", draw::count(self.rtt.len()));
            if self.rtt.len() >= DRAWN_MIN {
                out.push_str(&draw::histogram(&self.rtt));
            }
            let _ = writeln!(out, "  {}", quantiles(&self.rtt));
        }
        if !self.lateness.is_empty() {
            let _ = writeln!(out, "\nLateness of the prober itself (actual minus scheduled start)");
            let missed = if self.missed > 0 { format!("; {} missed", draw::count(self.missed)) } else { String::new() };
            let _ = writeln!(out, "  {}{missed}", quantiles(&self.lateness));
        }
        let how = format!("{} on {}", self.backend, plural(self.workers as u64, "worker"));
        let _ = match self.probes {
            RATE_MIN.. => writeln!(
                out,
                "\n{} probes/s, {:.1} µs of CPU each, {how}.",
                draw::count(self.probes_per_s() as u64),
                self.cpu_us_per_probe()
            ),
            _ => writeln!(out, "\nProbed by {how}."),
        };
        if self.targets >= MEMORY_MIN && self.rss_bytes > 0 {
            let each = self.rss_bytes / self.targets;
            let _ = writeln!(out, "{} MiB of memory, {each} bytes a target.", self.rss_bytes >> 20);
        }
        out
    }

    fn write_names(&self, out: &mut String) {
        for named in &self.named {
            let verdict = match named.health {
                Health::Up => "up",
                Health::Down => "down",
                Health::Unknown => "?",
            };
            let code = named.code.map_or("", Code::as_str);
            let rtt = if named.health == Health::Up { draw::time(named.rtt_us) } else { String::new() };
            let line = format!("  {verdict:<6}{code:<9}{:<40} {rtt:<10} {}", named.text, named.detail);
            let _ = writeln!(out, "{}", line.trim_end());
        }
        let shown = self.named.len() as u64;
        let not_up = self.targets - self.up;
        if self.targets > NAMES_SHOWN as u64 && not_up > shown {
            let _ = writeln!(out, "  ... and {} more that are not up", draw::count(not_up - shown));
        }
        if self.outcomes.keys().any(|code| code.fault() == Fault::Prober) {
            let _ = writeln!(out, "  Some probes failed on our side: see ringspan doctor.");
        }
    }
}

fn plural(n: u64, what: &str) -> String {
    format!("{} {what}{}", draw::count(n), if n == 1 { "" } else { "s" })
}

fn quantiles(h: &Histogram<u64>) -> String {
    let at = |q: f64| draw::time(h.value_at_quantile(q) as f64);
    format!(
        "min {}, p50 {}, p90 {}, p99 {}, p99.9 {}, max {}, mean {}",
        draw::time(h.min() as f64),
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        draw::time(h.max() as f64),
        draw::time(h.mean())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        let mut rtt = Histogram::new(3).expect("three digits");
        rtt.record(1500).expect("in range");
        Summary {
            targets: 4,
            probes: 3,
            up: 1,
            down: 2,
            unknown: 1,
            unresolved: 1,
            outcomes: BTreeMap::from([(Code::L4Ok, 1), (Code::L4Refused, 1), (Code::L4Timeout, 1)]),
            rtt,
            lateness: Histogram::new(3).expect("three digits"),
            missed: 0,
            duration: Duration::from_secs(2),
            cpu: Duration::from_micros(45),
            backend: "io_uring".into(),
            workers: 2,
            rss_bytes: 9 << 20,
            named: vec![
                Named {
                    text: "db:0".into(),
                    health: Health::Up,
                    code: Some(Code::L4Ok),
                    detail: String::new(),
                    rtt_us: 1500.0,
                },
                Named {
                    text: "db:2".into(),
                    health: Health::Down,
                    code: Some(Code::L4Timeout),
                    detail: "status 503".into(),
                    rtt_us: 1e6,
                },
                Named { text: "db:3".into(), health: Health::Unknown, code: None, detail: String::new(), rtt_us: 0.0 },
            ],
            interrupted: false,
        }
    }

    /// The object has exactly the fields that programs rely on, in this order.
    #[test]
    fn json_fields() {
        assert_eq!(
            summary().json(),
            r#"{"targets":4,"probes":3,"up":1,"down":2,"unknown":1,"unresolved":1,"outcomes":{"L4OK":1,"L4CON":1,"L4TOUT":1},"#.to_owned()
                + r#""rtt_us":{"min":1500,"p50":1500,"p90":1500,"p99":1500,"p999":1500,"max":1500,"mean":1500.0},"#
                + r#""lateness_us":{"min":0,"p50":0,"p90":0,"p99":0,"p999":0,"max":0,"mean":0.0},"#
                + r#""missed":0,"duration_s":2.0,"probes_per_s":1.5,"cpu_us_per_probe":15.0,"backend":"io_uring","workers":2,"rss_bytes":9437184}"#
        );
        let nothing = Summary { probes: 0, duration: Duration::ZERO, ..summary() };
        assert!(nothing.json().contains("\"probes_per_s\":0.0,\"cpu_us_per_probe\":0.0"), "no probe is no NaN");
    }

    /// The page says what was up, what was down and why, in words.
    #[test]
    fn page() {
        let text = summary().text();
        for say in [
            "4 targets: 1 up, 2 down, 1 not judged. 3 probes in 2.0 s.",
            "1  L4CON    The host answered that nothing listens on the port.",
            "\n  up    L4OK     db:0                                     1.50 ms\n",
            "\n  down  L4TOUT   db:2                                                status 503\n",
            "\n  ?              db:3\n",
            "Probed by io_uring on 2 workers.",
            "p50 1.50 ms",
        ] {
            assert!(text.contains(say), "{say:?} is not in\n{text}");
        }
        assert!(!summary().all_up());
    }
}
