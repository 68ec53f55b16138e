//! Claim: listeners and backends of every type are read as they are written, and what does not fit is named with what
//! would be right. Method: tables of files and messages.

use super::super::*;

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
        ("tcp", "idle_timeout = \"5s\"", "idle_timeout = \"5s\": idle_timeout is not of this listener"),
        ("tcp", "sessions_max = 5", "sessions_max = 5: sessions_max is not of this listener"),
        ("tcp", "allow = [\"*:80\"]", "allow = [\"*:80\"]: allow is not of this listener"),
        (
            "socks5",
            "users = [\"a:${RINGSPAN_NO_SUCH}\"]",
            "users = ***: the environment has no variable \"RINGSPAN_NO_SUCH\". Try: set it before the start",
        ),
        ("socks5", "users = \"alice:secret\"", "users = ***: expected a sequence"),
        ("tcp", "users = [\"a:secret\"]", "users = ***: users is not of this listener"),
        ("udp", "idle_timeout = \"2h\"", "above the maximum of 1h"),
        ("udp", "sessions_max = 0", "below the minimum of 1"),
        ("udp", "mode = \"0600\"", "remove it, or listen = \"unix:...\""),
    ] {
        let error = door(kind, rest).expect_err(rest);
        assert!(error.contains(say), "{kind} {rest}: {error}");
        assert!(!error.contains("token_file") && !error.contains("secret"), "{error}");
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
    let many = |last: u16| {
        expose(&format!("address = \"127.0.0.1:6000-{last}\"\n[[expose]]\nservice = \"t\"\naddress = \"127.0.0.1:1\""))
    };
    assert_eq!(many(6254).expect("256 may be").len(), 256);
    let error = many(6255).expect_err("one too many");
    let say = "a:6: [[expose]] address = \"127.0.0.1:1\": 257 backends up to here: an agent has at most 256";
    assert!(error.starts_with(say), "{error}");
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
    let visit = |listen: &str| {
        let text = format!(
            "[[visit]]\nservice = \"s\"\nlisten = \"{listen}\"\nvia = \"a:1\"\nsecret_file = {:?}\n",
            key.to_str().expect("plain")
        );
        agent::check(&Document::of("a", &text)).map(|a| a.visits.len()).map_err(|e| e.to_string())
    };
    assert_eq!(visit("127.0.0.1:1"), Ok(1));
    let error = visit("unix:a").expect_err("a path");
    assert!(error.contains("listen = \"unix:a\": it is a path, and a visit is at an address and a port"), "{error}");
    let error = expose(&secret.replace("127.0.0.1:1", "unix:/x")).expect_err("a path");
    assert!(error.contains("address = \"unix:/x\": the backend of a secret service is no path"), "{error}");
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
