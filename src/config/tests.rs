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
            "bridge.toml:2: [wormhole]: unknown key. Try: one of data_dir, http, dns, link, engine, memory, registry, listener, service, agent, drain, drain_takeover",
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
            "bridge.toml:6: [link] public = 8024: invalid type: integer `8024`, expected a string. Try: a text in quotes: \"...\"",
        ),
        (
            "tls = \"auto\"",
            "[engine]\nworkers = 0",
            "bridge.toml:7: [engine] workers = 0: below the minimum of 1. Try: 1 to 256",
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
    let dressed = read("limits = { deny = [\"::ffff:192.0.2.9/120\", \"::ffff:192.0.2.9\", \"2001:db8::1/32\"] }\n")
        .expect("good");
    let rules = dressed.listeners[0].limiter.as_ref().expect("it has limits").rules();
    let shown = rules.lists.deny.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(shown, "192.0.2.0/24 192.0.2.9/32 2001:db8::/32");
    for (more, say) in [
        (
            "[[listener]]\nname = \"path\"\ntype = \"tcp\"\nlisten = \"unix:/run/web.sock\"\nservice = \"web\"\n\
             proxy_protocol_from = [\"10.0.0.1\"]\n"
                .to_owned(),
            "who comes to a Unix socket has no address. Try: listen = \"IP:PORT\", or remove it",
        ),
        ("limits = { burst = 3 }\n".into(), "a burst of what rate?"),
        ("limits = { up = \"100B\" }\n".into(), "limits.up = \"100B\": it needs a unit"),
        ("limits = { deny = [\"10.0.0.0/33\"] }\n".into(), "no address or network"),
        ("limits = { deny = [\"::ffff:10.0.0.0/8\"] }\n".into(), "/8 of an IPv4 address in IPv6 dress: 96 to 128 bits"),
        (
            "limits = { allow = [] }\n".into(),
            "limits.allow = []: it allows nobody, and no list would be everybody. Try: remove it to let everybody in",
        ),
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
            "agent.toml:8: [[expose]] check.fall = \"3\": invalid type: string \"3\", expected i64. Try: a whole number without quotes",
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
