//! Claim: every kind of target comes out as what it is; a configuration is read again without a restart; /metrics and
//! report show what was counted; passwords are shown nowhere. Method: the real binary against nginx and sockets of our own.

mod common;

use common::world::Nginx;
use common::{Running, parts, ringspan, run, until};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;

/// Answers each connection with a line, and each datagram with itself; as long as the test's process lives.
fn chatty() -> (SocketAddr, SocketAddr) {
    let (tcp, udp) =
        (TcpListener::bind("127.0.0.1:0").expect("a port"), UdpSocket::bind("127.0.0.1:0").expect("a port"));
    let addresses = (tcp.local_addr().expect("bound"), udp.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let _ = stream.write_all(b"220 ready\r\n");
            let _ = stream.read(&mut [0; 64]);
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((n, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&buffer[..n], from);
        }
    });
    addresses
}

/// A port that nobody listens on, held so that nobody will.
fn closed() -> (TcpListener, u16) {
    let holder = TcpListener::bind("127.255.0.1:0").expect("loopback is large");
    let port = holder.local_addr().expect("bound").port();
    (holder, port)
}

/// Every scheme at once: each target's code is its own, and one that has no address costs nobody else.
#[test]
fn every_kind() {
    let folder = tempfile::tempdir().expect("a folder");
    let (nginx, (tcp, udp), (_holder, port)) = (Nginx::start("here"), chatty(), closed());
    let web = nginx.address;
    let table = [
        (format!("{web}"), "L4OK"),
        (format!("127.0.0.1:{port}"), "L4CON"),
        (format!("http://{web}/"), "L7OK"),
        (format!("http://localhost:{}/", web.port()), "L7OK"),
        (format!("http://127.0.0.1:{port}/"), "L4CON"),
        (format!("https://{web}/"), "L6RSP"),
        (format!("tls://{web}"), "L6RSP"),
        (format!("tcp://{tcp}?expect=220&send=QUIT%0d%0a"), "L7OK"),
        (format!("tcp://{web}?send=nonsense%0d%0a%0d%0a&expect=220"), "L7RSP"),
        (format!("udp://{udp}?send=ping&expect=ping"), "L7OK"),
        (format!("udp://127.0.0.1:{port}?send=ping"), "L4CON"),
        (format!("mysql://monitor:hunter2@{web}/"), ""),
    ];
    let mut args = vec!["probe", "--insecure", "--timeout", "5s", "--format", "ndjson", "nobody.invalid:80"];
    args.extend(table.iter().map(|(target, _)| target.as_str()));
    let (code, out, err) = parts(&run(&args, folder.path()));
    assert_eq!(code, 1, "{out}{err}");
    assert!(!out.contains("hunter2") && !err.contains("hunter2"), "{out}{err}");
    let lines: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let (summary, probes) = lines.split_last().expect("a summary");
    let codes: HashMap<&str, &str> =
        probes.iter().filter_map(|l| Some((l["target"].as_str()?, l["code"].as_str()?))).collect();
    for (target, code) in &table[..table.len() - 1] {
        assert_eq!(codes.get(target.as_str()), Some(code), "{target}\n{out}");
    }
    let mysql = format!("mysql://monitor:***@{web}/");
    assert!(codes.get(mysql.as_str()).is_some_and(|code| code.starts_with("L7")), "nginx is no MySQL: {out}");
    assert_eq!((&summary["unresolved"], &summary["targets"]), (&1.into(), &(table.len() + 1).into()));
    let http = probes.iter().find(|l| l["target"] == table[2].0.as_str()).expect("just seen");
    assert_eq!((&http["number"], &http["kind"]), (&200.into(), &"http".into()));
    assert!(http["first_byte_us"].as_u64() >= http["connect_us"].as_u64() && http["connect_us"].is_u64(), "{http}");
}

/// The flags of http targets decide.
#[test]
fn http_flags() {
    let folder = tempfile::tempdir().expect("a folder");
    let nginx = Nginx::start("here");
    let target = format!("http://{}/", nginx.address);
    for (flags, code, say) in [
        (&["--status", "200-299"][..], 0, "L7OK"),
        (&["--status", "201,300-399"], 1, "status 200"),
        (&["--body", "here"], 0, "L7OK"),
        (&["--body", "elsewhere"], 1, "L7CONT"),
        (&["--body-regex", "^h.re"], 0, "L7OK"),
        (&["--method", "HEAD", "--header", "X-A: 1", "--host", "a.example"], 0, "L7OK"),
        (&["--status", "20"], 2, "statuses"),
        (&["--header", "nonsense"], 2, "Name: value"),
        (&["--body-regex", "("], 2, "regular expression"),
        (&["--insecure", "--pin", "cert:00"], 2, "--pin"),
        (&["--redirects", "21"], 2, "--redirects"),
    ] {
        let mut args = vec!["probe", target.as_str(), "--timeout", "5s"];
        args.extend(flags);
        let (got, out, err) = parts(&run(&args, folder.path()));
        assert!(got == code && (out.contains(say) || err.contains(say)), "{flags:?}: {got}\n{out}{err}");
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).expect("written");
}

/// A changed file adds, removes and leaves alone; a bad one changes nothing; SIGHUP reads at once.
#[test]
fn a_configuration_is_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let ((tcp, _), (_holder, port)) = (chatty(), closed());
    let head = "[policy.default]\ninterval = \"100ms\"\n";
    let stays = format!("[[target]]\nurl = \"{tcp}\"\nname = \"stays\"\n");
    write(folder.path(), "probe.toml", &format!("{head}{stays}"));
    let (code, out, err) = parts(&run(&["check-config", "probe.toml"], folder.path()));
    assert!(code == 0 && out.contains("a good probe configuration") && out.contains("targets   1"), "{out}{err}");
    let mut command = ringspan(&["probe", "--config", "probe.toml"]);
    let mut probe = Running::start(command.current_dir(folder.path()));
    probe.wait_line(&["stays: unknown -> up, L4OK"]);
    let comes = format!("[[target]]\nurl = \"127.0.0.1:{port}\"\nname = \"comes\"\n");
    write(folder.path(), "probe.toml", &format!("{head}{stays}{comes}"));
    probe.wait_line(&["comes: unknown -> down, L4CON"]);
    write(folder.path(), "probe.toml", &format!("{head}{stays}[[target]]\nurl = \"mysql://a:hunter2@b:x\"\n"));
    probe.signal("HUP");
    probe.wait_line(&["targets not read again", "probe.toml:7", "mysql://a:***@b:x"]);
    let again = comes.replace("comes", "again");
    write(folder.path(), "probe.toml", &format!("{head}{again}"));
    probe.signal("HUP");
    probe.wait_line(&["again: unknown -> down"]);
    probe.signal("INT");
    probe.wait_line(&["1 target: 0 up, 1 down."]);
    assert_eq!(probe.wait(), 1);
    let text = probe.text();
    assert!(!text.contains("hunter2"), "{text}");
    assert_eq!(text.matches("stays: unknown -> up").count(), 1, "who stays is left alone\n{text}");
}

fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// What is counted is on /metrics, by group too; a limit of targets is a limit of series.
#[test]
fn metrics_are_scraped() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tcp, _) = chatty();
    let config = format!(
        "[policy.default]\ninterval = \"100ms\"\n[[target]]\nurls = [\"{tcp}\"]\nservice = \"web\"\ncluster = \"a\"\n"
    );
    write(folder.path(), "probe.toml", &config);
    for (limit, has_series) in [("1", true), ("0", false)] {
        let args = ["probe", "--config", "probe.toml", "--listen", "127.0.0.1:0", "--metrics-targets", limit];
        let mut probe = Running::start(ringspan(&args).current_dir(folder.path()));
        let line = probe.wait_line(&["metrics on http://"]);
        let address =
            line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address").to_owned();
        let page = until("a probe to be counted", || {
            let page = get(&address, "/metrics")?;
            page.contains("ringspan_probe_targets{health=\"up\"} 1.0").then_some(page)
        });
        for say in [
            "ringspan_probe_outcomes_total{code=\"L4OK\"}",
            "ringspan_probe_rtt_seconds_bucket{le=\"+Inf\"}",
            "ringspan_probe_group_outcomes_total{group=\"web/a\",code=\"L4OK\"}",
            "ringspan_probe_workers_frozen 0.0",
        ] {
            assert!(page.contains(say), "{say}\n{page}");
        }
        assert_eq!(page.contains("ringspan_probe_target_up{"), has_series, "{page}");
        assert!(get(&address, "/healthz").expect("an answer").ends_with("ok\n"));
        probe.signal("TERM");
        assert_eq!(probe.wait(), 0);
    }
}

/// A run ends with its time, tells how it stands when asked, and its log becomes a page.
#[test]
fn a_log_becomes_a_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tcp, _) = chatty();
    let target = tcp.to_string();
    let args = ["probe", &target, "--interval", "100ms", "--duration", "3s", "--hlog", "run.hlog"];
    let mut probe = Running::start(ringspan(&args).current_dir(folder.path()));
    until("the log's first interval", || {
        let log = std::fs::read_to_string(folder.path().join("run.hlog")).ok()?;
        log.contains("Tag=lateness").then_some(())
    });
    probe.signal("USR1");
    let (first, _) = probe.wait_line_from(0, &["1 target: 1 up, 0 down."]);
    probe.wait_line_from(first + 1, &["1 target: 1 up, 0 down."]);
    assert_eq!(probe.wait(), 0);
    let args = ["report", "run.hlog", "--html", "run.html", "--svg", "run.svg", "--title", "A <run>"];
    let (code, out, err) = parts(&run(&args, folder.path()));
    assert!(code == 0 && out.contains("lateness") && out.contains("p99.9"), "{out}{err}");
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("written");
    let (html, svg) = (read("run.html"), read("run.svg"));
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && html.contains("A &lt;run&gt;"));
    for say in ["Round trip over time", "Percentiles", "Lateness of the prober"] {
        assert!(html.contains(say) && svg.contains(say), "{say}");
    }
    write(folder.path(), "no.hlog", "hello\n");
    let (code, _, err) = parts(&run(&["report", "no.hlog", "--svg", "x.svg"], folder.path()));
    assert!(code == 1 && err.contains("no.hlog:1: not the four fields of an interval"), "{err}");
}
