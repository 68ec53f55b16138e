//! Claim: the command says clearly what is wrong, and its exit code says whose turn it is: 0 good, 1 something is down,
//! 2 usage or configuration. Method: the real binary, on files and loopback listeners of our own.

mod common;

use common::{Running, parts, ringspan, run, run_with};
use std::net::TcpListener;
use std::path::Path;

fn in_folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// An address nobody listens on, held so that nobody will: a listener has the port on another address.
fn closed() -> (TcpListener, String) {
    let holder = TcpListener::bind("127.255.0.1:0").expect("loopback is large");
    let port = holder.local_addr().expect("bound").port();
    (holder, format!("127.0.0.1:{port}"))
}

fn open() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    (listener, address)
}

#[test]
fn usage() {
    let folder = in_folder();
    for (args, code, say) in [
        (&["--help"][..], 0, "Exit codes: 0 good, 1 something is down"),
        (&["probe", "--help"], 0, "ringspan probe --file targets.txt --format json"),
        (&["--version"], 0, "ringspan 0."),
        (&[], 2, "Usage: ringspan"),
        (&["prob"], 2, "a similar subcommand exists: 'probe'"),
        (&["probe"], 2, "no targets. Try: ringspan probe 127.0.0.1:80"),
        (&["probe", "localhost"], 2, "target \"localhost\": it has no port. Try: localhost:80"),
        (&["probe", "a:1", "--interval", "5ms"], 2, "below the minimum of 100ms"),
        (&["probe", "gopher://a:1"], 2, "no such kind of probe as \"gopher\""),
        (&["probe", "127.0.0.1:1", "--hlog", "no/such/folder/x"], 2, "--hlog no/such/folder/x: No such file"),
        (&["bridge", "--config", "none.toml"], 2, "none.toml: cannot be read: No such file"),
        (&["agent", "--config", "none.toml"], 2, "none.toml: cannot be read: No such file"),
        (&["token", "list"], 2, "data_dir ringspan-data: there is none. Try: --config"),
        (&["token", "create", "--service", "a b"], 2, "--service \"a b\": a name has letters"),
        (&["token", "create", "--address", "x"], 2, "--address: \"x\" has no port"),
    ] {
        let (got, out, err) = parts(&run(args, folder.path()));
        assert!(got == code && (out.contains(say) || err.contains(say)), "{args:?}: {got}\n{out}\n{err}");
    }
}

#[test]
fn check_config() {
    let folder = in_folder();
    let file = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    file("good.toml", "[[listener]]\nname = \"web\"\ntype = \"tcp\"\nlisten = \"127.0.0.1:1\"\nservice = \"web\"\n");
    file("agent.toml", "[link]\ncarriers = 3\n[[expose]]\nservice = \"web\"\naddress = \"127.0.0.1:80\"\n");
    file("typo.toml", "[link]\n\nlisten = \"127.0.0.1:1\"\ntsl = \"off\"\n");
    file("nopem.toml", "[link]\ntls = { cert = \"good.toml\", key = \"good.toml\" }\n");
    file("probe.toml", "[policy.slow]\ninterval = \"30s\"\n[[target]]\nurl = \"10.0.0.1:80\"\npolicy = \"slow\"\n");
    file("badprobe.toml", "[[target]]\nurl = \"http://a:0/\"\n");
    file("joins.toml", "[link]\ntoken_file = \"none\"\n[[expose]]\nservice = \"web\"\naddress = \"127.0.0.1:80\"\n");
    let (code, _, err) = parts(&run(&["agent", "--config", "joins.toml"], folder.path()));
    assert!(code == 2 && err.contains("has no token: token_file none is not there or empty"), "{err}");
    for (name, code, say) in [
        ("nopem.toml", 2, "[link] tls: good.toml: holds no PEM certificate"),
        ("good.toml", 0, "good.toml: a good bridge configuration"),
        ("good.toml", 0, "listener  web on 127.0.0.1:1 for service web"),
        ("agent.toml", 0, "checked every 1s (timeout 500ms), up after 2, down after 3"),
        ("typo.toml", 2, "ringspan: typo.toml:4: [link] tsl: unknown key. Try: tls"),
        ("probe.toml", 0, "probe.toml: a good probe configuration"),
        ("badprobe.toml", 2, "ringspan: badprobe.toml:2: [[target]] url = \"http://a:0/\": its port is not a number"),
    ] {
        let (got, out, err) = parts(&run(&["check-config", name], folder.path()));
        assert!(got == code && (out.contains(say) || err.contains(say)), "{name}: {got}\n{out}\n{err}");
    }
}

/// With a file the doctor says what a program with it would have here: who encrypts by the file and by the environment, which
/// interface, which workers. A file that is wrong is refused as its program would refuse it.
#[test]
fn doctor_reads_a_configuration() {
    let folder = in_folder();
    let file = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    file("clear.toml", "[link]\ntls = \"off\"\n[engine]\nworkers = 3\nbackend = \"epoll\"\n");
    file("ours.toml", "[link]\nlisten = \"127.0.0.1:0\"\nktls = \"off\"\n");
    file("auto.toml", "[link]\nlisten = \"127.0.0.1:0\"\n");
    file("agent.toml", "[link]\ncarriers = 1\n[[expose]]\nservice = \"web\"\naddress = \"127.0.0.1:80\"\n");
    file("typo.toml", "[link]\nktls = \"yes\"\n");
    file("probe.toml", "[[target]]\nurl = \"10.0.0.1:80\"\n");
    let doctor = |name: &str| {
        let mut command = ringspan(&["doctor", "--config", name]);
        parts(&run_with(command.current_dir(folder.path()).env("RINGSPAN_KTLS", "off"), ""))
    };
    for (name, says) in [
        ("clear.toml", &["[link] in the clear", "3, on any core, scheduling batch", "epoll (asked for)"][..]),
        ("ours.toml", &["[link] encrypted by this process", "ktls = \"off\""]),
        ("auto.toml", &["[link] encrypted by this process", "RINGSPAN_KTLS = \"off\"", "what this bridge would have"]),
        ("agent.toml", &["if the bridge has TLS: this agent has neither joined nor a token", "what this agent would"]),
    ] {
        let (code, out, err) = doctor(name);
        // What else this machine lacks is not the file's.
        assert!(code < 2 && says.iter().all(|says| out.contains(says)), "{name}: {code}\n{out}\n{err}");
    }
    for (name, says) in [
        ("typo.toml", "typo.toml:2: [link] ktls = \"yes\": it is neither. Try: \"auto\" or \"off\""),
        ("probe.toml", "probe.toml: a probe configuration has no links"),
        ("none.toml", "none.toml: cannot be read: No such file"),
    ] {
        let (code, out, err) = doctor(name);
        assert!(code == 2 && out.is_empty() && err.contains(says), "{name}: {code}\n{out}\n{err}");
    }
    let (_, out, _) = parts(&run(&["doctor"], folder.path()));
    assert!(out.contains("one worker thread each") && !out.contains("[link]"), "{out}");
}

/// Up is 0, down is 1, and what was asked for on stdin is what is probed.
#[test]
fn probe_exit_codes() {
    let folder = in_folder();
    let ((_listener, up), (_holder, down)) = (open(), closed());
    for (targets, code, say) in [
        (vec![up.as_str()], 0, "1 target: 1 up, 0 down. 1 probe in"),
        (vec![&up, &down], 1, "2 targets: 1 up, 1 down. 2 probes in"),
        (vec![&down], 1, "L4CON    The host answered that nothing listens on the port."),
    ] {
        let mut args = vec!["probe"];
        args.extend(targets);
        let (got, out, err) = parts(&run(&args, folder.path()));
        assert!(got == code && out.contains(say), "{args:?}: {got}\n{out}\n{err}");
    }
    let stdin = format!("# two\n{up}\n\ntcp://{down} # refused\n");
    let (code, out, _) = parts(&run_with(&mut ringspan(&["probe", "--file", "-", "--format", "json"]), &stdin));
    assert!(code == 1 && out.contains("\"targets\":2,\"probes\":2,\"up\":1,\"down\":1"), "{out}");
    let (code, _, err) = parts(&run_with(&mut ringspan(&["probe", "--file", "-"]), &format!("{up}\ngopher://{up}\n")));
    assert!(code == 2 && err.contains("-:2: target \"gopher://"), "{err}");
}

/// JSON ends with one object of exactly these fields; ndjson has a line for each probe before it; the interval log is
/// there.
#[test]
fn probe_formats() {
    let folder = in_folder();
    let (_listener, up) = open();
    let names = |path: &[&str], value: &serde_json::Value| {
        let at = path.iter().fold(value, |v, k| &v[k]);
        at.as_object().expect("an object").keys().cloned().collect::<std::collections::BTreeSet<_>>()
    };
    let set = |list: &str| list.split(' ').map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let args = ["probe", &up, "--count", "3", "--interval", "100ms", "--format", "ndjson", "--hlog", "run.hlog"];
    let (code, out, err) = parts(&run(&args, folder.path()));
    assert_eq!(code, 0, "{out}{err}");
    let lines: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(lines.len(), 4, "{out}");
    assert!(lines[..3].iter().all(|l| l["target"] == up && l["code"] == "L4OK" && l["health"] == "up"), "{out}");
    assert_eq!(lines.iter().map(|l| l["last"] == true).collect::<Vec<_>>(), [false, false, true, false]);
    let fields = "targets probes up down unknown unresolved outcomes rtt_us lateness_us missed duration_s probes_per_s cpu_us_per_probe backend workers rss_bytes";
    assert_eq!(names(&[], &lines[3]), set(fields));
    for histogram in ["rtt_us", "lateness_us"] {
        assert_eq!(names(&[histogram], &lines[3]), set("min p50 p90 p99 p999 max mean"));
    }
    let hlog = std::fs::read_to_string(folder.path().join("run.hlog")).expect("written");
    assert!(hlog.contains("HISTF") && hlog.contains("Tag=lateness"), "{hlog}");
}

/// Ctrl-C ends a long run early, and the report still comes.
#[test]
fn probe_ends_on_interrupt() {
    let (listener, up) = open();
    let mut probe =
        Running::start(&mut ringspan(&["probe", &up, "--count", "100000", "--mode", "full", "--interval", "100ms"]));
    // The first probe has been seen: the run is under way.
    let _seen = listener.accept().expect("a probe connects");
    probe.signal("INT");
    probe.wait_line(&["1 target: 1 up, 0 down.", "ended early."]);
    assert_eq!(probe.wait(), 0);
}

/// The environment can hold the engine at epoll; the report says which backend it was.
#[test]
fn probe_backends() {
    let folder = in_folder();
    let (_listener, up) = open();
    let mut held = ringspan(&["probe", &up, "--format", "json"]);
    held.env("RINGSPAN_IO_TIER", "epoll").current_dir(folder.path());
    let (code, out, _) = parts(&run_with(&mut held, ""));
    assert!(code == 0 && out.contains("\"backend\":\"epoll\""), "{out}");
    let mut nonsense = ringspan(&["probe", &up]);
    nonsense.env("RINGSPAN_IO_TIER", "ring-9").current_dir(folder.path());
    let (code, _, err) = parts(&run_with(&mut nonsense, ""));
    assert!(code == 1 && err.contains("\"ring-9\" is not a tier"), "{err}");
}

/// Tokens without a bridge: the command keeps the keyring itself. The token alone is on stdout.
#[test]
fn tokens_without_a_bridge() {
    let folder = in_folder();
    let at = |args: &[&str]| parts(&run(args, folder.path()));
    let (code, token, say) = at(&["token", "create", "--service", "web", "--address", "bridge.example.com:8024"]);
    assert_eq!(code, 0, "{say}");
    assert!(token.starts_with("ringspan1.") && token.ends_with("@bridge.example.com:8024\n"), "{token}");
    assert_eq!(token.lines().count(), 1);
    let id = token.split('.').nth(1).expect("an id").to_owned();
    assert!(!say.contains(token.trim()), "the secret is on stdout alone");
    let (_, list, _) = at(&["token", "list"]);
    assert!(list.contains(&id) && list.contains("good for") && list.contains("web"), "{list}");
    assert_eq!(at(&["token", "revoke", &id]).0, 0);
    let (_, list, _) = at(&["token", "list", "--format", "json"]);
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    assert_eq!((&list["tokens"][0]["id"], &list["tokens"][0]["revoked"]), (&id.into(), &true.into()));
    let (code, _, err) = at(&["token", "revoke", "0123456789ab"]);
    assert!(code == 2 && err.contains("no token and no agent has the id"), "{err}");
    assert_private(folder.path().join("ringspan-data").as_path());
}

fn assert_private(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(folder).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "others may not look into {}", folder.display());
}
