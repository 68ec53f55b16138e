//! Claim: a good probe.toml means what the manual says; whatever is wrong in one is named with file, line, key, value
//! and what would be right; a password is in no message. Method: tables of files.

use super::*;
use ringspan_engine::engine::GROUPS_MAX;
use ringspan_engine::target::Timeouts;

const GOOD: &str = r#"[probe]
workers = 2
in_flight_max = 1000
rate = 5000
rate_per_net = 100
mass_flip = "hold"
listen = "127.0.0.1:9100"
hlog = "run.hlog"

[policy.default]
interval = "30s"

[policy.db]
interval = "5s"
interval_fast = "1s"
interval_down = "10s"
jitter = 10
timeout = "3s"
timeout_connect = "500ms"
rise = 1
fall = 2
backoff_max = 8
damping = { half_life = "1m", suppress = 3000, reuse = 750 }
refusal_is_final = true
proxy = "v2"
source = "127.0.0.2"
port = 3307

[[target]]
urls = ["http://10.0.0.1/health", "https://10.0.0.2/health"]
service = "web"
cluster = "a"
status = "200-299,301"
headers = ["X-Probe: 1"]
body_regex = "ok|well"
insecure = true

[[target]]
url = "mysql://monitor@10.0.0.3/?mode=primary"
name = "db-1"
password = "hun:ter/2"
policy = "db"
group = "dbs"
initial = "up"
"#;

fn load(text: &str) -> Result<(Roster, Probe), Error> {
    let mut roster = Roster::default();
    let probe = check(&Document::of("probe.toml", text), &mut roster, GROUPS_MAX)?;
    roster.close();
    Ok((roster, probe))
}

/// The manual's file is good, and says what it says.
#[test]
fn the_manual_is_right() {
    let (roster, probe) = load(GOOD).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((roster.count(), roster.groups.clone()), (3, vec!["web/a".to_owned(), "dbs".to_owned()]));
    assert_eq!((probe.workers.map(NonZeroU16::get), probe.mass_flip), (Some(2), Some(MassFlip::Hold)));
    assert_eq!(probe.hlog, Some(PathBuf::from("run.hlog")));
    let (web, db) = (roster.sheet_of(0), roster.sheet_of(2));
    assert_eq!((web.policy.interval, web.group, web.initial), (Duration::from_secs(30), 1, Health::Unknown));
    assert_eq!(web.settings.http.status.to_string(), "200-299,301");
    assert_eq!((db.group, db.initial, roster.shown(2)), (2, Health::Up, "db-1"));
    let policy = &db.policy;
    assert_eq!((policy.interval_fast, policy.port, policy.backoff_max), (Some(Duration::from_secs(1)), Some(3307), 8));
    assert_eq!(policy.timeouts, Timeouts { connect: Some(Duration::from_millis(500)), tls: None, answer: None });
    assert_eq!(policy.damping.map(|d| (d.suppress, d.reuse)), Some((3000, 750)));
    assert_eq!((policy.proxy, policy.refusal_is_final), (Some(Proxy::V2), true));
    assert!(!roster.url(2).contains("hun") && roster.url(2).contains("***"), "{}", roster.url(2));
}

/// Where the prober stands is the last part of every group's name.
#[test]
fn a_vantage_is_in_every_group() {
    let text = GOOD.replace("hlog = \"run.hlog\"", "vantage = \"edge-1\"");
    let (roster, _) = load(&text).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(roster.groups, ["web/a/edge-1", "dbs/edge-1"]);
}

/// One change to the good file, and the exact message.
#[test]
fn mistakes() {
    for (from, to, say) in [
        ("rate = 5000", "rte = 5000", "probe.toml:4: [probe] rte: unknown key. Try: rate"),
        ("[policy.db]", "[polcy.db]", "probe.toml:13: [polcy.db]: unknown key. Try: policy"),
        (
            "interval = \"5s\"",
            "interval = \"5ms\"",
            "probe.toml:14: [policy.db] interval = \"5ms\": below the minimum of 100ms. Try: \"100ms\" to \"1h\"",
        ),
        ("jitter = 10", "jitter = 51", "probe.toml:17: [policy.db] jitter = 51: above the maximum of 50. Try: 0 to 50"),
        (
            "reuse = 750",
            "reuse = 3000",
            "probe.toml:23: [policy.db] damping.reuse = 3000: above the maximum of 2999. Try: 1 to 2999",
        ),
        (
            "proxy = \"v2\"",
            "proxy = \"v3\"",
            "probe.toml:25: [policy.db] proxy = \"v3\": not known here. Try: \"v1\", \"v2\"",
        ),
        (
            "policy = \"db\"",
            "policy = \"bd\"",
            "probe.toml:42: [[target]] policy = \"bd\": there is no such [policy]. Try: \"db\", \"default\"",
        ),
        (
            "mysql://monitor@10.0.0.3/?mode=primary",
            "mysql://monitor@10.0.0.3/?mode=secondary",
            "probe.toml:39: [[target]] url = \"mysql://monitor@10.0.0.3/?mode=secondary\": mode=secondary is not known. Try: mode=liveness or mode=primary",
        ),
        (
            "\"X-Probe: 1\"",
            "\"X-Probe\"",
            "probe.toml:34: [[target]] headers = ***: it must be \"Name: value\". Try: \"X-Probe: 1\"",
        ),
        (
            "insecure = true",
            "insecure = true\nca = \"ca.pem\"",
            "probe.toml:37: [[target]] ca = \"ca.pem\": one of insecure, ca and pin is enough. Try: one of the three",
        ),
        (
            "name = \"db-1\"",
            "name = \"db\\u0007\"",
            "probe.toml:40: [[target]] name = \"db\\u0007\": a control character is in it. Try: \"db-1\"",
        ),
        (
            "password = \"hun:ter/2\"",
            "password = \"${RINGSPAN_NO_SUCH}\"",
            "probe.toml:41: [[target]] password = ***: the environment has no variable \"RINGSPAN_NO_SUCH\". Try: set it before the start",
        ),
        (
            "url = \"mysql://monitor@10.0.0.3/?mode=primary\"",
            "",
            "probe.toml: a [[target]] has no url. Try: url = \"http://10.0.0.7/health\", urls = [...] or file = ...",
        ),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let error = load(&GOOD.replacen(from, to, 1)).err().unwrap_or_else(|| panic!("{to} is wrong")).to_string();
        assert_eq!(error, say, "{to}");
        assert!(!error.contains("ter/2"), "{error}");
    }
    let leak = GOOD.replace("monitor@10.0.0.3", "monitor:hunter2@10.0.0.3:x");
    assert!(!load(&leak).err().expect("no such port").to_string().contains("hunter2"));
    let leak =
        GOOD.replace("url = \"mysql://monitor@10.0.0.3/?mode=primary\"", "url = [\"mysql://m:hunter2@10.0.0.3\"]");
    let error = load(&leak).err().expect("no string").to_string();
    assert!(!error.contains("hunter2") && error.contains("probe.toml:39: [[target]] url = ***"), "{error}");
}

/// Groups that the engine does not know are told of, and counted in none.
#[test]
fn groups_are_given() {
    let mut roster = Roster::default();
    roster.groups = vec!["dbs".into()];
    let probe = check(&Document::of("probe.toml", GOOD), &mut roster, 0).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((roster.sheet_of(0).group, roster.sheet_of(2).group), (0, 1));
    assert_eq!(probe.groups_unknown, ["web/a"]);
}
