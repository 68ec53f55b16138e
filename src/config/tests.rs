//! Claim: whatever is wrong in a file, the message names file, line, key, value and what would be right.
//! Method: a table of files and their exact messages.

use super::*;
use std::time::Duration;

const BRIDGE: &str = r#"data_dir = "/var/lib/ringspan"
[http]
listen = "127.0.0.1:8848"
[link]
listen = "0.0.0.0:8024"
tls = "auto"
[[listener]]
name = "web"
type = "tcp"
listen = "0.0.0.0:8080"
service = "web"
"#;

const AGENT: &str = r#"[link]
token = "t"
state_dir = "/var/lib/ringspan-agent"
carriers = 2
[[expose]]
service = "web"
address = "127.0.0.1:8081"
check = { type = "tcp", interval = "1s", timeout = "500ms", rise = 2, fall = 3 }
"#;

/// The files of the manual are good, and say what they say.
#[test]
fn the_manual_is_right() {
    let b = bridge::check(&Document::of("bridge.toml", BRIDGE)).expect("the manual's bridge.toml is good");
    assert_eq!(b.data_dir, Path::new("/var/lib/ringspan"));
    assert_eq!((b.link.listen.port(), b.link.tls), (8024, bridge::Tls::Auto));
    assert_eq!((b.listeners.len(), b.listeners[0].service.as_str()), (1, "web"));
    let a = agent::check(&Document::of("agent.toml", AGENT)).expect("the manual's agent.toml is good");
    assert_eq!((a.links[0].carriers, a.exposes.len()), (2, 1));
    assert_eq!(a.exposes[0].check.policy, check::CHECK_DEFAULT.policy);
    assert!(!format!("{a:?}").contains("\"t\""), "a token is never printed");
}

/// An empty file is a bridge of defaults; an agent has to offer something.
#[test]
fn empty_is_default() {
    let b = bridge::check(&Document::of("bridge.toml", "")).expect("nothing is required");
    assert_eq!((b.http_listen, b.link.listen), (bridge::HTTP_LISTEN_DEFAULT, bridge::LINK_LISTEN_DEFAULT));
    let error = agent::check(&Document::of("agent.toml", "")).expect_err("it offers nothing");
    assert_eq!(
        error.to_string(),
        "agent.toml: there is no [[expose]]: the agent would have nothing to offer. Try: add [[expose]] with service = \
         \"web\" and address = \"127.0.0.1:8081\""
    );
}

/// One change to a good file, and the exact message.
#[test]
fn bridge_errors() {
    let rows: &[(&str, &str, &str)] = &[
        (
            "listen = \"0.0.0.0:8024\"",
            "lisen = \"0.0.0.0:8024\"",
            "bridge.toml:5: [link] lisen: unknown key. Try: listen",
        ),
        ("[http]", "[htpp]", "bridge.toml:2: [htpp]: unknown key. Try: http"),
        (
            "[http]",
            "[wormhole]",
            "bridge.toml:2: [wormhole]: unknown key. Try: one of data_dir, http, link, engine, memory, listener, service, agent, drain, drain_takeover",
        ),
        ("service = \"web\"\n", "", "bridge.toml:7: [[listener]]: \"service\" is missing. Try: add service = ..."),
        (
            "0.0.0.0:8080",
            "0.0.0.0",
            "bridge.toml:10: [[listener]] listen = \"0.0.0.0\": it has no port, as in 127.0.0.1:8080 or [::1]:8080. Try: \"0.0.0.0:8080\"",
        ),
        (
            "0.0.0.0:8080",
            "::1:80",
            "bridge.toml:10: [[listener]] listen = \"::1:80\": an IPv6 address stands in brackets, as in [::1]:8080. Try: \"0.0.0.0:8080\"",
        ),
        (
            "0.0.0.0:8080",
            "0.0.0.0:8024",
            "bridge.toml:10: [[listener]] listen = \"0.0.0.0:8024\": [link] listen has this address already (0.0.0.0:8024). Try: another port",
        ),
        (
            "0.0.0.0:8080",
            "127.0.0.1:8024",
            "bridge.toml:10: [[listener]] listen = \"127.0.0.1:8024\": [link] listen has this address already (0.0.0.0:8024). Try: another port",
        ),
        (
            "type = \"tcp\"",
            "type = \"sctp\"",
            "bridge.toml:9: [[listener]] type = \"sctp\": no such type of listener. Try: \"tcp\", \"udp\", \"http\", \"https\", \"socks5\", \"connect\" or \"visit\"",
        ),
        (
            "name = \"web\"",
            "name = \"w b\"",
            "bridge.toml:8: [[listener]] name = \"w b\": a name has letters, digits, '.', '_' and '-' only. Try: \"web\"",
        ),
        (
            "tls = \"auto\"",
            "tls = \"on\"",
            "bridge.toml:6: [link] tls = \"on\": no such way to protect the link. Try: \"auto\", \"off\", or { cert = \"cert.pem\", key = \"key.pem\" }",
        ),
        (
            "tls = \"auto\"",
            "tls = \"off\"",
            "bridge.toml:6: [link] tls = \"off\": the link listens on 0.0.0.0:8024, which others can reach, and would carry tokens in the clear. Try: \"auto\"; or insecure = true in [link] if another layer encrypts",
        ),
        (
            "tls = \"auto\"",
            "tls = { cert = \"/nowhere/c.pem\", key = \"/nowhere/k.pem\" }",
            "bridge.toml:6: [link] tls = { cert = \"/nowhere/c.pem\", key = \"/nowhere/k.pem\" }: cert file /nowhere/c.pem: No such file or directory (os error 2). Try: the path of a readable PEM file, or tls = \"auto\"",
        ),
        (
            "tls = \"auto\"",
            "tls = { cert = \"c\" , kye = \"k\" }",
            "bridge.toml:6: [link] tls = { cert = \"c\" , kye = \"k\" }: unknown key \"kye\". Try: \"auto\", \"off\", or { cert = \"cert.pem\", key = \"key.pem\" }",
        ),
        (
            "tls = \"auto\"",
            "public = \"bridge\"",
            "bridge.toml:6: [link] public = \"bridge\": it has no port, as in bridge.example.com:8024. Try: \"bridge.example.com:8024\"",
        ),
        (
            "tls = \"auto\"",
            "public = 8024",
            "bridge.toml:6: [link] public = 8024: invalid type: integer `8024`, expected a string",
        ),
        (
            "tls = \"auto\"",
            "[engine]\nworkers = 0",
            "bridge.toml:7: [engine] workers = 0: below the minimum of 1. Try: 1 to 1024",
        ),
        (
            "tls = \"auto\"",
            "[engine]\nbackend = \"iouring\"",
            "bridge.toml:7: [engine] backend = \"iouring\": no such backend. Try: \"auto\", \"io_uring\" or \"epoll\"",
        ),
        (
            "/var/lib/ringspan",
            "${HOME}/x",
            "bridge.toml:1: data_dir = \"${HOME}/x\": ${...} is replaced in secrets only. Try: \"/var/lib/ringspan\"",
        ),
    ];
    for (good, bad, message) in rows {
        assert!(BRIDGE.contains(good), "{good}");
        let error = bridge::check(&Document::of("bridge.toml", &BRIDGE.replacen(good, bad, 1))).expect_err(bad);
        assert_eq!(error.to_string(), *message);
    }
}

/// Two listeners with one name.
#[test]
fn listener_names_are_unique() {
    let text =
        format!("{BRIDGE}[[listener]]\nname = \"web\"\ntype = \"tcp\"\nlisten = \"0.0.0.0:1\"\nservice = \"x\"\n");
    let error = bridge::check(&Document::of("bridge.toml", &text)).expect_err("the name is taken");
    assert_eq!(
        error.to_string(),
        "bridge.toml:13: [[listener]] name = \"web\": another listener has this name. Try: a name of its own"
    );
}

/// How visitors are spread and limited, and from whom a header is taken: read as it is written, and what does not fit
/// is an error that says so.
#[test]
fn visitors_are_spread_and_limited() {
    use ringspan_tunnel::routes::Balance;
    let all = "limits = { connections = 3, rate = 5, up = \"1MiB\", idle = \"10m\", allow = [\"10.0.0.0/8\"], \
               visitor = { connections = 1, ipv6_bits = 56 } }\nproxy_protocol_from = [\"10.0.0.1\"]\n\
               [[service]]\nname = \"web\"\nbalance = \"source_hash\"\nretries = 0\nresend = true\n\
               eject = { dials = 2, length = \"5s\" }\nlimits = { total = \"1h\" }\n";
    let read = |more: &str| {
        let text = format!("{BRIDGE}{more}");
        bridge::check(&Document::of("bridge.toml", &text)).map_err(|e| e.to_string())
    };
    let b = read(all).expect("it is good");
    let rules = b.listeners[0].limiter.as_ref().expect("it has limits").rules();
    let numbers = (rules.all.connections_max, rules.all.rate, rules.all.up_bytes, rules.visitor.connections_max);
    assert_eq!((numbers, rules.visitor_bits), ((3, 5, 1 << 20, 1), Some((32, 56))));
    assert_eq!((rules.idle, rules.lists.allow.len()), (Some(Duration::from_secs(600)), 1));
    assert_eq!(b.listeners[0].proxy_from.as_deref(), Some(&["10.0.0.1/32".parse().expect("a network")][..]));
    let policy = &b.policies["web"];
    assert_eq!((policy.balance, policy.retries, policy.resend), (Balance::SourceHash, 0, true));
    assert_eq!((policy.eject.dials, policy.eject.length), (2, Duration::from_secs(5)));
    assert!(policy.limiter.is_some());
    assert!(read("").expect("it is good").listeners[0].limiter.is_none(), "nothing is limited that is not asked for");
    let udp = "[[listener]]\nname = \"dns\"\ntype = \"udp\"\nlisten = \"0.0.0.0:53\"\nservice = \"dns\"\n";
    let limited = read(&format!("{udp}limits = {{ connections = 3 }}\n")).expect("every type of listener keeps them");
    assert_eq!(
        limited.listeners.last().and_then(|l| l.limiter.as_ref()).map(|l| l.rules().all.connections_max),
        Some(3)
    );
    let nothing = "limits = { connections = 0, rate = 0, up = \"0\", down = \"0\", visitor = { connections = 0 } }\n";
    let free = read(&format!("{udp}{nothing}")).expect("0 is a number");
    let rules = free.listeners.last().and_then(|l| l.limiter.as_ref()).map(|l| (l.rules().all, l.rules().visitor));
    assert!(rules.is_none_or(|(all, visitor)| all.is_none() && visitor.is_none()), "0 limits nothing");
    for (more, say) in [
        (
            format!("{}auth = \"none\"\nproxy_protocol_from = [\"10.0.0.1\"]\n", udp.replace("\"udp\"", "\"socks5\"")),
            "only listeners of type \"tcp\" and \"udp\" read it. Try: remove",
        ),
        ("limits = { burst = 3 }\n".into(), "a burst of what rate?"),
        ("limits = { up = \"100B\" }\n".into(), "limits.up = \"100B\": it needs a unit"),
        ("limits = { deny = [\"10.0.0.0/33\"] }\n".into(), "no address or network"),
        ("[[service]]\nname = \"web\"\nbalance = \"random\"\n".into(), "no such way to balance"),
        ("[[service]]\nname = \"a\"\n[[service]]\nname = \"a\"\n".into(), "this service has a section already"),
    ] {
        let error = read(&more).expect_err(&more);
        assert!(error.contains(say), "{more}: {error}");
    }
}

/// In the clear is fine on loopback, and where the file says that it knows.
#[test]
fn tls_off() {
    for good in
        ["listen = \"127.0.0.1:8024\"\ntls = \"off\"", "listen = \"0.0.0.0:8024\"\ninsecure = true\ntls = \"off\""]
    {
        let text = BRIDGE.replacen("listen = \"0.0.0.0:8024\"\ntls = \"auto\"", good, 1);
        let b = bridge::check(&Document::of("bridge.toml", &text)).expect(good);
        assert_eq!(b.link.tls, bridge::Tls::Off);
    }
}

/// One change to a good file, and the exact message.
#[test]
fn agent_errors() {
    let rows: &[(&str, &str, &str)] = &[
        (
            "interval = \"1s\"",
            "interval = \"5ms\"",
            "agent.toml:8: [[expose]] check.interval = \"5ms\": below the minimum of 100ms. Try: \"100ms\" to \"1h\"",
        ),
        (
            "interval = \"1s\"",
            "intervall = \"1s\"",
            "agent.toml:8: [[expose]] check.intervall: unknown key. Try: interval",
        ),
        (
            "timeout = \"500ms\"",
            "timeout = \"500\"",
            "agent.toml:8: [[expose]] check.timeout = \"500\": it needs a unit, as in 500ms, 1s or 5m. Try: \"1ms\" to \"60s\"",
        ),
        (
            "timeout = \"500ms\"",
            "timeout = \"2m\"",
            "agent.toml:8: [[expose]] check.timeout = \"2m\": above the maximum of 1m. Try: \"1ms\" to \"60s\"",
        ),
        ("rise = 2", "rise = 0", "agent.toml:8: [[expose]] check.rise = 0: below the minimum of 1. Try: 1 to 255"),
        (
            "fall = 3",
            "fall = 256",
            "agent.toml:8: [[expose]] check.fall = 256: above the maximum of 255. Try: 1 to 255",
        ),
        (
            "fall = 3",
            "fall = \"3\"",
            "agent.toml:8: [[expose]] check.fall = \"3\": invalid type: string \"3\", expected i64",
        ),
        (
            "type = \"tcp\"",
            "type = \"icmp\"",
            "agent.toml:8: [[expose]] check.type = \"icmp\": no such type of check. Try: \"tcp\", \"http\", \"https\", \"tls\", \"mysql\", \"expect\", \"udp\" or \"none\"",
        ),
        ("carriers = 2", "carriers = 99", "agent.toml:4: [link] carriers = 99: above the maximum of 16. Try: 1 to 16"),
        (
            "127.0.0.1:8081",
            "localhost:8081",
            "agent.toml:7: [[expose]] address = \"localhost:8081\": it must be IP:PORT, as in 127.0.0.1:8080 or [::1]:8080. Try: \"127.0.0.1:8081\"",
        ),
        (
            "127.0.0.1:8081",
            "127.0.0.1:0",
            "agent.toml:7: [[expose]] address = \"127.0.0.1:0\": nothing can listen on port 0. Try: the backend's port",
        ),
        (
            "token = \"t\"",
            "token = \"${RINGSPAN_NO_SUCH}\"",
            "agent.toml:2: [link] token = ***: the environment has no variable \"RINGSPAN_NO_SUCH\". Try: set it before the start, or use token_file",
        ),
        (
            "token = \"t\"",
            "token = \"t\"\ntoken_file = \"f\"",
            "agent.toml:2: [link] token = ***: token_file is there, too. Try: one of the two",
        ),
        (
            "token = \"t\"",
            "token = 12345",
            "agent.toml:2: [link] token = ***: it is no string. Try: \"${RINGSPAN_TOKEN}\", or use token_file",
        ),
        (
            "token = \"t\"",
            "token = \"\"",
            "agent.toml:2: [link] token = ***: it is empty. Try: what `ringspan token create` prints",
        ),
    ];
    for (good, bad, message) in rows {
        assert!(AGENT.contains(good), "{good}");
        let error = agent::check(&Document::of("agent.toml", &AGENT.replacen(good, bad, 1))).expect_err(bad);
        assert_eq!(error.to_string(), *message);
    }
}

/// What is no TOML at all still has a file and a line.
#[test]
fn syntax_errors_have_a_line() {
    let error = bridge::check(&Document::of("bridge.toml", "[http]\nlisten = 127.0.0.1:8848\n")).expect_err("no TOML");
    assert!(error.to_string().starts_with("bridge.toml:2: "), "{error}");
    let error =
        bridge::check(&Document::of("bridge.toml", "[http]\nlisten = \"a\"\nlisten = \"b\"\n")).expect_err("twice");
    assert!(error.to_string().starts_with("bridge.toml:3: "), "{error}");
}

/// `${NAME}` in a secret is the environment's value, wherever it stands.
#[test]
fn secrets_read_the_environment() {
    let home = std::env::var("PATH").expect("every test has a PATH");
    let text = AGENT.replacen("\"t\"", "\"a${PATH}b\"", 1);
    let a = agent::check(&Document::of("agent.toml", &text)).expect("PATH is set");
    assert_eq!(a.links[0].token.clone().expect("it has one").0, format!("a{home}b"));
}

/// Whatever the text, reading it ends in a value or an error, never in a panic.
#[test]
fn no_text_panics() {
    use proptest::prelude::*;
    let piece = prop::sample::select(vec![
        "[link]\n",
        "[[expose]]\n",
        "[[listener]]\n",
        "tls",
        " = ",
        "\"off\"",
        "{ ",
        " }",
        "\n",
        "check",
        ".",
        "interval",
        "é",
        "'",
        "\"",
        "1",
        ",",
        "# x\n",
        "[",
        "]",
        "=",
    ]);
    let text = prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat());
    proptest!(|(text in text)| {
        let _ = bridge::check(&Document::of("b", &text)).map_err(|e| e.to_string());
        let _ = agent::check(&Document::of("a", &text)).map_err(|e| e.to_string());
    });
}

const SITE: &str = r#"[[listener]]
name = "site"
type = "http"
listen = "0.0.0.0:80"
service = "web"
[listener.http]
timeout_idle = "1m"
trusted = ["10.0.0.0/8", "192.0.2.1"]
[[listener.route]]
host = "*.Example.com"
path = "/api/"
service = "api"
request_headers = { set = ["X-A: b"] }
basic_auth = [{ user = "alice", password = "s3cret" }]
"#;

/// An http listener says what it says, and its secrets are not printed.
#[test]
fn http_listeners() {
    let b = bridge::check(&Document::of("bridge.toml", SITE)).expect("it is good");
    let doors::Door::Http(site) = &b.listeners[0].door else { panic!("an http listener") };
    let routes: Vec<_> = site.routes.iter().map(|r| (r.label.as_str(), r.path.as_str(), r.service.as_str())).collect();
    assert_eq!(routes, [("*.Example.com/api", "/api", "api"), ("*", "/", "web")]);
    assert_eq!(site.routes[0].host, http::HostPattern::Below(".example.com".into()));
    assert_eq!(site.options.trusted.len(), 2);
    assert!(!format!("{b:?}").contains("s3cret"));
}

/// One change to a good http listener, and the exact message.
#[test]
fn http_errors() {
    let rows: &[(&str, &str, &str)] = &[
        (
            "timeout_idle = \"1m\"",
            "timeout_idel = \"1m\"",
            "bridge.toml:7: [listener.http] timeout_idel: unknown key. Try: timeout_idle",
        ),
        (
            "\"1m\"",
            "\"1ms\"",
            "bridge.toml:7: [listener.http] timeout_idle = \"1ms\": below the minimum of 1s. Try: \"1s\" to \"1d\"",
        ),
        (
            "192.0.2.1",
            "192.0.2",
            "bridge.toml:8: [listener.http] trusted = \"192.0.2\": it is neither an address nor a network. Try: \"10.0.0.0/8\"",
        ),
        (
            "*.Example.com",
            "a.b:80",
            "bridge.toml:10: [[listener.route]] host = \"a.b:80\": a host has no port here: the listener has one. Try: \"www.example.com\" or \"*.example.com\"",
        ),
        (
            "/api/",
            "/a/../b",
            "bridge.toml:11: [[listener.route]] path = \"/a/../b\": a path has no empty segments, no . and no ... Try: \"/api\"",
        ),
        (
            "X-A: b",
            "Content-Length: 5",
            "bridge.toml:13: [[listener.route]] request_headers.set = ***: Content-Length belongs to the connection, not to the message. Try: another header",
        ),
        (
            ", password = \"s3cret\"",
            "",
            "bridge.toml:14: [[listener.route]] basic_auth.user = \"alice\": this user needs one password. Try: password = \"${NAME}\", or password_file = \"path\": one of them",
        ),
        ("\"s3cret\"", "7", "bridge.toml:14: [[listener.route]] basic_auth.password = ***: expected a string"),
        (
            "path = \"/api/\"",
            "passthrough = true",
            "bridge.toml:11: [[listener.route]] passthrough = true: only TLS can be passed through. Try: type = \"https\", or no passthrough",
        ),
        (
            "type = \"http\"",
            "type = \"https\"",
            "bridge.toml:2: [[listener]] name = \"site\": an https listener needs a certificate. Try: tls = [{ cert = \"site.pem\", key = \"site.key\" }], or passthrough = true",
        ),
        (
            "type = \"http\"",
            "type = \"tcp\"",
            "bridge.toml:6: [listener.http]: this type of listener reads no HTTP. Try: type = \"http\" or \"https\"",
        ),
    ];
    for (good, bad, say) in rows {
        let text = SITE.replacen(good, bad, 1);
        assert_ne!(text, SITE, "{good}");
        let error = bridge::check(&Document::of("bridge.toml", &text)).expect_err(bad);
        assert_eq!(error.to_string(), *say, "{bad}");
    }
    let nothing = SITE.split("[listener.http]").next().expect("a part").replace("service = \"web\"\n", "");
    let error = bridge::check(&Document::of("bridge.toml", &nothing)).expect_err("it has no route");
    assert!(error.to_string().contains("nowhere to send a request"), "{error}");
}

/// A listener of every type that a door opens, with this after its name.
fn door(kind: &str, rest: &str) -> Result<Vec<bridge::Listener>, String> {
    let text =
        format!("[[listener]]\nname = \"d\"\ntype = \"{kind}\"\nlisten = \"127.0.0.1:7\"\nservice = \"s\"\n{rest}\n");
    bridge::check(&Document::of("b", &text)).map(|b| b.listeners).map_err(|e| e.to_string())
}

/// An agent with this `[[expose]]`.
fn expose(text: &str) -> Result<Vec<expose::Expose>, String> {
    let text = format!("[[expose]]\nservice = \"s\"\n{text}\n");
    agent::check(&Document::of("a", &text)).map(|a| a.exposes).map_err(|e| e.to_string())
}

/// What doors say, and what is said of keys that are not theirs, of lists that are wrong, of proxies for everybody.
#[test]
fn doors_of_the_bridge() {
    use doors::Door;
    let udp = door("udp", "idle_timeout = \"5s\"\nsessions_max = 9").expect("good").remove(0);
    assert!(matches!(udp.door, Door::Udp(udp) if udp.idle_timeout.as_secs() == 5 && udp.sessions_max == 9));
    assert!(matches!(&door("visit", "").expect("good")[0].door, Door::Visit));
    let proxy = door("socks5", "users = [\"alice:a:b\"]\nallow = [\"*.lan:80\"]").expect("good").remove(0);
    assert!(matches!(&proxy.door, Door::Proxy(proxy) if proxy.users.is_some() && proxy.allow.is_some()));
    assert!(!format!("{proxy:?}").contains("a:b"), "a password is never printed");
    for (kind, rest, say) in [
        ("socks5", "", "users = [\"alice:${PASSWORD}\"]; or auth = \"none\" if it is meant"),
        ("connect", "users = []", "a proxy that everybody may use is a way in for everybody"),
        ("connect", "auth = \"none\"\nusers = [\"a:b\"]", "auth = \"none\" is there, too"),
        ("connect", "users = [\"nobody\"]", "users = ***: it is no user and password"),
        ("connect", "auth = \"no\"", "[[listener]] auth = \"no\": no such way"),
        ("socks5", "auth = \"none\"\nallow = [\"10.0.0.0/8\"]", "it has no ports"),
        ("socks5", "auth = \"none\"\nallow = [\"10.0.0.1/8:80\"]", "10.0.0.0/8 would be right"),
        ("tcp", "idle_timeout = \"5s\"", "idle_timeout is not of this listener"),
        ("tcp", "users = [\"a:secret\"]", "users = ***: users is not of this listener"),
        ("udp", "idle_timeout = \"2h\"", "above the maximum of 1h"),
        ("udp", "sessions_max = 0", "below the minimum of 1"),
        ("udp", "mode = \"0600\"", "remove it, or listen = \"unix:...\""),
    ] {
        let error = door(kind, rest).expect_err(rest);
        assert!(error.contains(say), "{kind} {rest}: {error}");
    }
    let at = |listen: &str, more: &str| {
        let text =
            format!("[[listener]]\nname = \"d\"\ntype = \"tcp\"\nlisten = \"{listen}\"\nservice = \"s\"\n{more}");
        bridge::check(&Document::of("/etc/b", &text)).map(|b| b.listeners).map_err(|e| e.to_string())
    };
    let unix = at("unix:run/s.sock", "mode = \"600\"").expect("good").remove(0).door;
    let wanted = doors::UnixListener { path: "/etc/run/s.sock".into(), mode: 0o600 };
    assert_eq!(unix, Door::Unix(wanted));
    assert!(at("unix:", "").expect_err("no path").contains("there is no path"));
    assert!(at(&format!("unix:{}", "x".repeat(101)), "").expect_err("long").contains("at most 100 bytes"));
    assert!(at("unix:s", "mode = \"0888\"").expect_err("no mode").contains("it is no mode of a file"));
}

/// Ranges become listeners and backends of single ports, with the port where the service has a `*`.
#[test]
fn ranges_of_ports() {
    let text = "[[listener]]\nname = \"g\"\ntype = \"tcp\"\nlisten = \"127.0.0.1:6000-6002\"\nservice = \"g-*\"\n";
    let b = bridge::check(&Document::of("b", text)).expect("good");
    let all: Vec<String> = b.listeners.iter().map(|l| format!("{} {} {}", l.name, l.listen, l.service)).collect();
    assert_eq!(all[2], "g-6002 127.0.0.1:6002 g-6002");
    assert_eq!(all.len(), 3);
    let again = text.replace("\"g\"", "\"h\"").replace("6000-6002", "6002-6003");
    let error = bridge::check(&Document::of("b", &format!("{text}{again}"))).expect_err("6002 is taken");
    assert!(error.to_string().contains("has this address already"), "{error}");
    let one = text.replace("-6002", "");
    let error = bridge::check(&Document::of("b", &one)).expect_err("no range");
    assert!(error.to_string().contains("a * stands for a port of several"), "{error}");
    let a = expose("address = \"127.0.0.1:6000-6002\"").expect("good");
    assert_eq!((a.len(), a[2].service.as_str(), a[2].backend.to_string()), (3, "s", "127.0.0.1:6002".into()));
}

/// What an agent exposes, how the bridge is told of it, how it is checked by default, and what does not fit together.
#[test]
fn backends_of_the_agent() {
    for (text, shown, asked) in [
        ("address = \"127.0.0.1:53\"\ntype = \"udp\"", "udp://127.0.0.1:53", "none"),
        (
            "address = \"127.0.0.1:53\"\ntype = \"udp\"\ncheck = { type = \"udp\", send = \"a\", expect = \"b\" }",
            "udp://127.0.0.1:53",
            "udp",
        ),
        ("address = \"unix:/run/x\"", "unix:/run/x", "tcp"),
        ("type = \"unix\"\naddress = \"unix:/run/x\"\ncheck = { type = \"none\" }", "unix:/run/x", "none"),
        ("type = \"proxy\"\nallow = []", "proxy", "none"),
        (
            "address = \"127.0.0.1:80\"\ncheck = { type = \"http\", path = \"/up\", status = \"200\" }",
            "127.0.0.1:80",
            "http",
        ),
        ("address = \"127.0.0.1:80\"\ncheck = { type = \"https\", insecure = true }", "127.0.0.1:80", "http"),
        (
            "address = \"127.0.0.1:80\"\ncheck = { type = \"tls\", insecure = true, cert_days = 9 }",
            "127.0.0.1:80",
            "tls",
        ),
        (
            "address = \"127.0.0.1:80\"\ncheck = { type = \"mysql\", user = \"u\", password = \"p\", primary = true }",
            "127.0.0.1:80",
            "mysql",
        ),
        (
            "address = \"127.0.0.1:80\"\ncheck = { type = \"expect\", send = \"PING\", expect = \"PONG\" }",
            "127.0.0.1:80",
            "expect",
        ),
    ] {
        let e = expose(text).unwrap_or_else(|e| panic!("{text}: {e}")).remove(0);
        assert_eq!((e.backend.to_string().as_str(), e.check.ask.as_str()), (shown, asked), "{text}");
    }
    let heard = expose("address = \"127.0.0.1:80\"\nproxy_protocol = \"v2\"\nweight = 3\npriority = 1").expect("good");
    assert_eq!((heard[0].weight, heard[0].priority), (3, 1));
    assert_eq!(heard[0].proxy_protocol, Some(ringspan_tunnel::proxy_header::Version::V2));
    let folder = tempfile::tempdir().expect("a place");
    let key = folder.path().join("key");
    std::fs::write(&key, "0123456789abcdef0123456789abcdef\n").expect("room");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is ours");
    let secret = format!("address = \"127.0.0.1:1\"\nsecret_file = {:?}", key.to_str().expect("plain"));
    expose(&secret).expect("good");
    let error = expose(&format!("{secret}\nproxy_protocol = \"v1\"")).expect_err("it would break the secret's TLS");
    assert!(error.contains("only a TCP, UDP or Unix backend without a secret hears a header"), "{error}");
    for (text, say) in [
        ("type = \"udp\"\naddress = \"127.0.0.1:53\"\ncheck = { type = \"tcp\" }", "the backend is no TCP server"),
        ("type = \"proxy\"", "where may it go? Nothing is allowed that allow does not say"),
        ("type = \"proxy\"\nallow = [\"*:80\"]\naddress = \"127.0.0.1:1\"", "a proxy has no address of its own"),
        ("type = \"proxy\"\nallow = [\"*:80\"]\ncheck = { type = \"tcp\" }", "a proxy is nothing that can be asked"),
        ("address = \"127.0.0.1:1\"\nallow = [\"*:80\"]", "only a proxy is asked where to"),
        ("type = \"sctp\"\naddress = \"127.0.0.1:1\"", "no such type of backend"),
        ("type = \"tcp\"\naddress = \"unix:/x\"", "the address is a path"),
        ("address = \"unix:/x\"\ncheck = { type = \"http\" }", "a socket at a path is only connected to"),
        ("type = \"tcp\"", "its backend has no address"),
        (
            "address = \"127.0.0.1:1\"\ncheck = { path = \"/\" }",
            "check.path = ***: path is not of a check of type \"tcp\"",
        ),
        ("address = \"127.0.0.1:1\"\ncheck = { type = \"http\", path = \"up\" }", "a path starts with /"),
        ("address = \"127.0.0.1:1\"\ncheck = { type = \"http\", status = \"99\" }", "check.status"),
        ("address = \"127.0.0.1:1\"\nsecret_file = \"/nowhere/key\"", "/nowhere/key: No such file"),
        ("type = \"udp\"\naddress = \"127.0.0.1:1\"\nsecret_file = \"k\"", "a secret service is of type \"tcp\""),
        ("address = \"127.0.0.1:1\"\nproxy_protocol = \"v3\"", "no such version. Try: \"v1\", \"v2\" or \"v2-each\""),
        ("type = \"udp\"\naddress = \"127.0.0.1:53\"\nproxy_protocol = \"v1\"", "version 1 has no word for UDP"),
        ("address = \"127.0.0.1:1\"\nproxy_protocol = \"v2-each\"", "a stream has one header"),
        (
            "type = \"proxy\"\nallow = [\"*:80\"]\nproxy_protocol = \"v2\"",
            "only a TCP, UDP or Unix backend without a secret hears a header",
        ),
        ("address = \"127.0.0.1:1\"\nweight = 0", "below the minimum of 1"),
        ("address = \"127.0.0.1:1\"\npriority = 256", "above the maximum of 255"),
    ] {
        let error = expose(text).expect_err(text);
        assert!(error.contains(say), "{text}: {error}");
    }
}
