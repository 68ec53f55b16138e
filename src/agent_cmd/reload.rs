//! Another configuration for an agent that runs: what differs, and what of it cannot be had.
//! Promise: a key that takes a restart is named, and stays what it was; the others are told as they follow.

use crate::config::agent::Agent as Config;
use crate::config::agent_link::AgentLink;
use crate::config::check::Check;
use crate::config::expose::Expose;
use crate::fixed::{Fixed, quoted_or_unsaid};
use ringspan_tunnel::identity::AgentName;
use std::path::Path;

/// What a running agent cannot change stays as it was, in `new`, too: a sentence for each key. `called`: its name at the
/// bridge of this state folder.
pub(super) fn keep_fixed<'a>(
    old: &Config,
    new: &mut Config,
    called: impl Fn(&Path) -> Option<&'a AgentName>,
) -> Vec<String> {
    let mut fixed = Fixed::of("agent", "restart");
    // Who adds a key decides here what becomes of it. Those without a name follow, and are told.
    let Config { links, exposes: _, visits: _, engine, memory: _, checks: _, drain: _ } = new;
    fixed.keep_engine(&old.engine, engine);
    for (number, link) in links.iter_mut().enumerate() {
        let key = format!("{} name", section(number, link));
        let AgentLink { name, state_dir, .. } = link;
        let Some(before) = old.links.iter().find(|before| before.state_dir == *state_dir) else { continue };
        // Whoever writes down what it is called changes nothing.
        if name.is_none() || name.as_ref() != called(state_dir) {
            fixed.keep(&key, &before.name, name, |name| quoted_or_unsaid(name.as_ref()));
        }
    }
    let mut sentences = fixed.sentences();
    let visits_as = |config: &Config| config.links.first().map(|link| link.state_dir.clone());
    if let (Some(before), true) = (visits_as(old), visits_as(old) != visits_as(new) && !old.visits.is_empty()) {
        sentences.push(format!(
            "[[visit]]: ports that are open cannot be had as another agent: they stay those of state_dir {before:?}, and \
             all else holds. Try: restart"
        ));
    }
    sentences
}

/// What follows the file. A secret of a check is not looked at: it follows untold.
pub(super) fn told(old: &Config, new: &Config) -> Vec<String> {
    let mut told = Vec::new();
    for (number, link) in new.links.iter().enumerate() {
        let section = section(number, link);
        match old.links.iter().find(|before| before.state_dir == link.state_dir) {
            None => told.push(format!("{section} is new")),
            Some(before) => told_link(&section, before, link, &mut told),
        }
    }
    for (number, link) in old.links.iter().enumerate() {
        if !new.links.iter().any(|l| l.state_dir == link.state_dir) {
            told.push(format!("{} is gone", section(number, link)));
        }
    }
    told_exposes(&old.exposes, &new.exposes, &mut told);
    if old.visits != new.visits {
        told.push("[[visit]] are other ones".into());
    }
    if old.memory != new.memory {
        told.push("[memory] is another one".into());
    }
    if old.checks != new.checks {
        let all: Vec<String> = new.checks.iter().map(ToString::to_string).collect();
        told.push(format!("[checks] allow = {all:?}"));
    }
    if old.drain != new.drain {
        told.push(format!("drain is {:?}", new.drain));
    }
    told
}

fn told_link(section: &str, old: &AgentLink, new: &AgentLink, told: &mut Vec<String>) {
    // Who adds a key says here what is told of it.
    let AgentLink { name: _, token, token_file_missing: _, state_dir: _, carriers, ktls, direct_max, road } = new;
    if old.token != *token {
        told.push(match token {
            Some(_) => format!("{section} token is another one: the next session shows it"),
            None => format!("{section} token is gone: an agent that has joined needs none"),
        });
    }
    if old.carriers != *carriers {
        told.push(format!("{section} carriers = {carriers} in place of {}", old.carriers));
    }
    if old.ktls != *ktls {
        let word = |on: bool| if on { "\"auto\"" } else { "\"off\"" };
        told.push(format!("{section} ktls = {} in place of {}", word(*ktls), word(old.ktls)));
    }
    if old.direct_max != *direct_max {
        told.push(format!("{section} direct_max = {direct_max} in place of {}", old.direct_max));
    }
    if old.road != *road {
        told.push(format!("{section} leads {road} in place of {}", old.road));
    }
}

fn told_exposes(old: &[Expose], new: &[Expose], told: &mut Vec<String>) {
    let shown = |expose: &Expose| format!("[[expose]] {:?} at {}", expose.service, expose.backend);
    let same = |a: &Expose, b: &Expose| a.service == b.service && a.backend.to_string() == b.backend.to_string();
    for expose in new {
        let Some(before) = old.iter().find(|before| same(before, expose)) else {
            told.push(format!("{} is new", shown(expose)));
            continue;
        };
        // Who adds a key says here what is told of it.
        let Expose { service: _, backend, check, weight, priority, proxy_protocol, heading, listen, http_host } =
            expose;
        let Check { ask, policy } = check;
        if format!("{:?}", before.check.ask) != format!("{ask:?}") || before.check.policy != *policy {
            told.push(format!("{} has another check", shown(expose)));
        }
        let was = (&before.backend, &before.weight, &before.priority, &before.proxy_protocol, &before.heading);
        let is = (backend, weight, priority, proxy_protocol, heading);
        if was != is || (&before.listen, &before.http_host) != (listen, http_host) {
            told.push(format!("{} has other settings", shown(expose)));
        }
    }
    for expose in old.iter().filter(|before| !new.iter().any(|expose| same(before, expose))) {
        told.push(format!("{} is gone", shown(expose)));
    }
}

/// Which section of the file it is.
fn section(number: usize, link: &AgentLink) -> String {
    match number {
        0 => "[link]".into(),
        _ => format!("[[bridge]] of {}", link.state_dir.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;
    use crate::config::agent::check;
    use crate::fixed::every_key::{self, Row};
    use std::os::unix::fs::PermissionsExt;

    /// A file with every key that an agent may have, each line once, but for those of single types of check, which are one
    /// value (tests/probe_kinds.rs has them).
    const WHOLE: &str = r#"
drain = "1s"
[link]
name = "edge-1"
token = "t1"
state_dir = "one"
ktls = "auto"
carriers = 2
direct_max = 3
proxy = "http://proxy.example:3128"
websocket = "wss://b.example/link"
websocket_pin = "key:0000000000000000000000000000000000000000000000000000000000000001"
[[bridge]]
name = "edge-2"
token_file = "join.token"
state_dir = "two"
ktls = "off"
carriers = 4
direct_max = 5
proxy = "socks5://proxy.example:1080"
websocket = "wss://c.example/link"
websocket_ca = "ca.pem"
[engine]
workers = 2
backend = "auto"
scheduling = "batch"
affinity = CORE
[memory]
window_max = "1MiB"
windows = "2MiB"
waiting = "32MiB"
[checks]
allow = ["10.0.1.0/24"]
[[expose]]
service = "web"
address = "127.0.0.1:1001"
weight = 2
priority = 1
proxy_protocol = "v1"
listen = "127.0.0.1:1002"
http_host = "a.example"
check = { interval = "2s", timeout = "1s", rise = 3, fall = 4 }
[[expose]]
service = "names"
type = "udp"
address = "127.0.0.1:1003"
proxy_protocol = "v2"
[[expose]]
service = "out"
type = "proxy"
allow = ["*:80"]
[[expose]]
service = "db"
address = "127.0.0.1:1004"
secret_file = "db.key"
[[expose]]
service = "path"
address = "unix:/run/a.sock"
check = { interval = "3s" }
[[visit]]
service = "far"
listen = "127.0.0.1:1005"
via = "b.example:1"
secret_file = "far.key"
"#;

    /// Each key of it: another value, and what is said.
    const CHANGES: &[Row<'_>] = &[
        ("drain = \"1s\"", "drain = \"2s\"", "drain is 2s"),
        ("name = \"edge-1\"", "name = \"other\"", "[link] name = \"other\" cannot be had by a running agent"),
        ("token = \"t1\"", "token = \"t2\"", "[link] token is another one"),
        ("token = \"t1\"", "", "[link] token is gone"),
        ("state_dir = \"one\"", "state_dir = \"three\"", "[[visit]]: ports that are open cannot be had as another"),
        ("state_dir = \"one\"", "state_dir = \"four\"", "[link] is new"),
        ("ktls = \"auto\"", "ktls = \"off\"\n#", "[link] ktls = \"off\" in place of \"auto\""),
        ("carriers = 2", "", "[link] carriers = 1 in place of 2"),
        ("direct_max = 3", "", "[link] direct_max = 256 in place of 3"),
        ("proxy = \"http://proxy.example:3128\"", "", "[link] leads wss://b.example"),
        (
            "websocket = \"wss://b.example/link\"",
            "websocket = \"wss://d.example/link\"",
            "[link] leads wss://d.example",
        ),
        (PIN, "", "[link] leads wss://b.example"),
        ("name = \"edge-2\"", "", "two name = unsaid cannot be had by a running agent: it stays \"edge-2\""),
        ("token_file = \"join.token\"", "", "two token is gone"),
        ("websocket_ca = \"ca.pem\"", "", "two leads wss://c.example"),
        ("workers = 2", "workers = 3", "[engine] workers = 3 cannot be had by a running agent"),
        ("backend = \"auto\"", "backend = \"epoll\"", "[engine] backend = \"epoll\" cannot be had"),
        ("scheduling = \"batch\"", "scheduling = \"normal\"", "[engine] scheduling = \"normal\" cannot be had"),
        ("affinity = CORE", "", "[engine] affinity = unsaid cannot be had"),
        ("window_max = \"1MiB\"", "", "[memory] is another one"),
        ("windows = \"2MiB\"", "", "[memory] is another one"),
        ("waiting = \"32MiB\"", "", "[memory] is another one"),
        ("allow = [\"10.0.1.0/24\"]", "allow = [\"10.0.2.0/24\"]", "[checks] allow = [\"10.0.2.0/24\"]"),
        ("service = \"web\"", "service = \"shop\"", "[[expose]] \"shop\" at 127.0.0.1:1001 is new"),
        ("address = \"127.0.0.1:1001\"", "address = \"127.0.0.1:9\"", "[[expose]] \"web\" at 127.0.0.1:1001 is gone"),
        ("weight = 2", "", "[[expose]] \"web\" at 127.0.0.1:1001 has other settings"),
        ("priority = 1", "", "[[expose]] \"web\" at 127.0.0.1:1001 has other settings"),
        ("proxy_protocol = \"v1\"", "", "[[expose]] \"web\" at 127.0.0.1:1001 has other settings"),
        ("listen = \"127.0.0.1:1002\"", "", "[[expose]] \"web\" at 127.0.0.1:1001 has other settings"),
        ("http_host = \"a.example\"", "", "[[expose]] \"web\" at 127.0.0.1:1001 has other settings"),
        (CHECK, "check = { fall = 4 }", "[[expose]] \"web\" at 127.0.0.1:1001 has another check"),
        (CHECK, "check = { type = \"http\" }", "[[expose]] \"web\" at 127.0.0.1:1001 has another check"),
        ("type = \"udp\"", "type = \"tcp\"", "[[expose]] \"names\" at 127.0.0.1:1003 is new"),
        ("proxy_protocol = \"v2\"", "proxy_protocol = \"v2-each\"", "at udp://127.0.0.1:1003 has other settings"),
        ("allow = [\"*:80\"]", "allow = [\"*:443\"]", "[[expose]] \"out\" at proxy has other settings"),
        (
            "secret_file = \"db.key\"",
            "secret_file = \"far.key\"",
            "[[expose]] \"db\" at secret://127.0.0.1:1004 has other",
        ),
        ("check = { interval = \"3s\" }", "", "[[expose]] \"path\" at unix:/run/a.sock has another check"),
        ("service = \"far\"", "service = \"near\"", "[[visit]] are other ones"),
        ("listen = \"127.0.0.1:1005\"", "listen = \"127.0.0.1:9\"", "[[visit]] are other ones"),
        ("via = \"b.example:1\"", "", "[[visit]] are other ones"),
        ("secret_file = \"far.key\"", "secret_file = \"db.key\"", "[[visit]] are other ones"),
    ];
    const PIN: &str = "websocket_pin = \"key:0000000000000000000000000000000000000000000000000000000000000001\"";
    const CHECK: &str = "check = { interval = \"2s\", timeout = \"1s\", rise = 3, fall = 4 }";

    /// Whatever key of the file has another value: it follows and is told, or it stays and is named, as often as the file
    /// is read. And no key that a file may have is without its row.
    #[test]
    fn every_key_is_done_or_named() {
        let folder = tempfile::tempdir().expect("a folder");
        for (file, text) in [("db.key", "d"), ("far.key", "f"), ("join.token", "t"), ("ca.pem", "")] {
            let path = folder.path().join(file);
            std::fs::write(&path, text.repeat(44)).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
        }
        let made = rcgen::generate_simple_self_signed(vec!["c.example".to_owned()]).expect("a certificate");
        std::fs::write(folder.path().join("ca.pem"), made.cert.pem()).expect("written");
        let core = ringspan_engine::cores::Cores::allowed().as_slice()[0];
        let file = folder.path().join("agent.toml");
        let read = |text: &str| {
            let text = text.replace("CORE", &format!("[{core}]"));
            check(&Document::of(file.to_str().expect("UTF-8"), &text)).map_err(|error| error.to_string())
        };
        let good = |text: &str| read(text).unwrap_or_else(|why| panic!("{why}"));
        let said = |old: &Config, new: &mut Config| {
            let mut said = keep_fixed(old, new, |_| None);
            said.extend(told(old, new));
            said
        };
        assert_eq!(said(&good(WHOLE), &mut good(WHOLE)), [""; 0], "the same is the same");
        assert_eq!(every_key::forgotten(WHOLE, CHANGES, |text| read(text).err()), [""; 0]);
        for (from, to, says) in CHANGES {
            let from = format!("\n{from}\n");
            assert_eq!(WHOLE.matches(&from).count(), 1, "{from}");
            let text = WHOLE.replace(&from, &format!("\n{to}\n"));
            let (old, mut new) = (good(WHOLE), good(&text));
            let first = said(&old, &mut new);
            assert!(first.iter().any(|line| line.contains(says)), "{from}: {first:?}");
            // What was done is no news; what stays is named until the file says what runs.
            let stays: Vec<_> = first.into_iter().filter(|line| line.contains("by a running agent")).collect();
            assert_eq!(said(&new, &mut good(&text)), stays, "{from}: again");
        }
        // The name that it has already is no other one.
        let (old, runs) = (good(&WHOLE.replace("name = \"edge-1\"", "")), AgentName::try_from("edge-1".to_owned()));
        let runs = runs.expect("a name");
        assert_eq!(keep_fixed(&old, &mut good(WHOLE), |_| Some(&runs)), [""; 0]);
    }
}
