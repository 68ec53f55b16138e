//! Claim: every form of a target means what the manual says; what is none is quoted with what would be right; no
//! password is ever shown. Method: tables, and random pieces put together.

use super::*;

fn one(text: &str) -> Written {
    parse(text).unwrap_or_else(|e| panic!("{}", e.of(text)))
}

/// Every form of "host:port", and the address it means.
#[test]
fn plain_forms() {
    for (text, address) in [
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("tcp://127.0.0.1:80", "127.0.0.1:80"),
        ("tcp://127.0.0.1:80/", "127.0.0.1:80"),
        ("[::1]:80", "[::1]:80"),
        ("tcp://[fe80::1]:65535", "[fe80::1]:65535"),
        ("http://[::1]", "[::1]:80"),
        ("https://10.0.0.1", "10.0.0.1:443"),
        ("mysql://10.0.0.1", "10.0.0.1:3306"),
        ("tls://10.0.0.1", "10.0.0.1:443"),
        ("udp://[fe80::1]:53", "[fe80::1]:53"),
        ("icmp://10.0.0.1", "10.0.0.1:0"),
    ] {
        assert_eq!(one(text).address(), Some(address.parse().expect(address)), "{text}");
    }
    assert_eq!(one("localhost:7").host, Host::Name("localhost".into()));
    assert_eq!(one("tcp://127.0.0.1:80").text, "127.0.0.1:80");
}

/// Every kind with all that its URL can say.
#[test]
fn kinds() {
    let http = |is_tls, path: &str| Kind::Http { is_tls, path: path.into(), login: None };
    assert_eq!(one("http://a").kind, http(false, "/"));
    assert_eq!(one("HTTP://a:8080/x/../y?a=b#top").kind, http(false, "/y?a=b"));
    assert_eq!(one("https://a/h%20h").kind, http(true, "/h%20h"));
    let login = Some(("us".to_owned(), Secret("p:w".into())));
    assert_eq!(one("http://us:p%3aw@a/").kind, Kind::Http { is_tls: false, path: "/".into(), login });
    assert_eq!(one("tcp://a:1?").kind, Kind::Tcp);
    assert_eq!(
        one("tcp://a:25?send=EHLO%20x%5cr\\n&expect=\\x32").kind,
        Kind::Expect { send: b"EHLO x\r\n".to_vec(), expect: b"2".to_vec() }
    );
    assert_eq!(
        one("udp://a:53?send=%00%ff&silence=ok").kind,
        Kind::Udp { send: vec![0, 255], expect: vec![], is_silence_good: true }
    );
    assert_eq!((one("tls://a:1").kind, one("icmp://a").kind), (Kind::Tls, Kind::Icmp));
    let mysql = Mysql {
        user: "mo".into(),
        password: Secret("s/c".into()),
        query: Some("select 1 = 1".into()),
        expect: Some("1".into()),
        is_primary: false,
        takes_server_key: true,
        tls: MysqlTls::Require,
        database: "a b".into(),
    };
    assert_eq!(
        one("mysql://mo:s%2Fc@a/a%20b?query=select+1+%3d+1&expect=1&tls=require&server_key=ok").kind,
        Kind::Mysql(mysql)
    );
    let Kind::Mysql(primary) = one("mysql://mo@a/db?mode=primary").kind else { panic!("mysql is mysql") };
    assert!(primary.is_primary && primary.user == "mo");
}

/// What is no target, and what is said of it.
#[test]
fn mistakes() {
    for (text, say) in [
        ("localhost", "target \"localhost\": it has no port. Try: localhost:80"),
        ("::1", "target \"::1\": an IPv6 address stands in brackets. Try: [:]:1"),
        ("fe80::a", "target \"fe80::a\": it has no port. Try: [fe80::a]:80"),
        ("[::1]", "target \"[::1]\": its port is not a number from 1 to 65535. Try: [::80"),
        ("a:0", "target \"a:0\": its port is not a number from 1 to 65535. Try: a:80"),
        (":80", "target \":80\": it has no host. Try: 127.0.0.1:80"),
        ("[x]:80", "target \"[x]:80\": what stands in brackets is no IPv6 address. Try: [::1]:80"),
        ("a:80/x", "target \"a:80/x\": it is more than a host and a port. Try: tcp://host:port"),
        (
            "gopher://a:80",
            "target \"gopher://a:80\": no such kind of probe as \"gopher\". Try: tcp://a:80, or one of tcp, http, https, mysql, tls, udp, icmp",
        ),
        ("http://", "target \"http://\": it has no host. Try: http://10.0.0.7:8080/health"),
        (
            "http://a:99999/",
            "target \"http://a:99999/\": its port is not a number from 1 to 65535. Try: http://10.0.0.7:8080/health",
        ),
        (
            "http://a b/",
            "target \"http://a b/\": it has a space or a control character in it. Try: %20 for a space, %0d%0a for a new line",
        ),
        ("udp://a", "target \"udp://a\": it has no port. Try: udp://10.0.0.7:53?send=ping&expect=pong"),
        ("udp://a:1?snd=x", "target \"udp://a:1?snd=x\": it has no \"snd\" to set. Try: send, expect, silence"),
        (
            "udp://a:1?silence=gold",
            "target \"udp://a:1?silence=gold\": silence=gold is not known. Try: silence=ok or silence=bad",
        ),
        ("icmp://a:7", "target \"icmp://a:7\": icmp has no ports. Try: icmp://10.0.0.7"),
        ("icmp://a/x", "target \"icmp://a/x\": icmp has no paths. Try: icmp://10.0.0.7"),
        ("tls://u@a:1", "target \"tls://u@a:1\": tls has no users. Try: tls://10.0.0.7:443"),
        (
            "tcp://a:1?send=\\q",
            "target \"tcp://a:1?send=\\\\q\": no such escape as \\q. Try: \\r \\n \\t \\0 \\\\ or \\xHH",
        ),
        (
            "mysql://a?mode=primary",
            "target \"mysql://a?mode=primary\": a question needs a user. Try: mysql://user:***@host/?mode=primary",
        ),
        (
            "mysql://u:pw@a?expect=1",
            "target \"mysql://u:***@a?expect=1\": expect= has no query= to answer. Try: query=select+1&expect=1",
        ),
        (
            "mysql://u:pw@a?mode=x",
            "target \"mysql://u:***@a?mode=x\": mode=x is not known. Try: mode=liveness or mode=primary",
        ),
        ("u:pw@a:80", "target \"u:***@a:80\": it is more than a host and a port. Try: tcp://host:port"),
    ] {
        assert_eq!(parse(text).map_err(|wrong| wrong.of(text)), Err(say.to_owned()), "{text}");
    }
}

/// A password is in no text that is shown, wherever it stands and whatever is wrong with the rest.
#[test]
fn passwords_are_hidden() {
    for text in [
        "mysql://root:hunter2@a/",
        "mysql://root:hunter2@a:x/",
        "http://root:hunter2@a/x@y",
        "mysql://root:hun/hunter2@a/",
        "root:hunter2@a:80",
        "gopher://root:hunter2@a",
        "mysql://root:hunter2@",
    ] {
        let shown = match parse(text) {
            Ok(written) => format!("{written:?}"),
            Err(error) => error.of(text),
        };
        assert!(!shown.contains("hunter2"), "{text}: {shown}");
        assert!(!masked(text).contains("hunter2"), "{text}: {}", masked(text));
    }
}

/// Whatever the text, it is a target or an error that quotes it, never a panic; and what a target is shown as reads
/// back as the same place.
#[test]
fn no_text_panics() {
    use proptest::prelude::*;
    let piece = prop::sample::select(vec![
        "tcp://",
        "http://",
        "https://",
        "mysql://",
        "udp://",
        "tls://",
        "icmp://",
        "a",
        ":",
        "80",
        "[",
        "]",
        "::1",
        "é",
        "/",
        "127.0.0.1",
        "@",
        "%",
        "?",
        "send=",
        "\\x",
        "%0",
        "&",
        "#",
        "expect=",
        "xn--",
        "mode=primary",
        "\u{0}",
    ]);
    let text = prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat());
    proptest!(|(text in text)| {
        match parse(&text) {
            Ok(read) => {
                let again = parse(&read.text);
                prop_assert!(again.is_ok(), "{:?} shown as {:?}: {:?}", text, read.text, again);
                let again = again.expect("just seen");
                prop_assert_eq!((&again.text, again.host, again.port), (&read.text, read.host, read.port));
            }
            Err(wrong) => {
                let (said, quoted) = (wrong.of(&text), format!("{:?}", masked(&text)));
                prop_assert!(said.contains(&quoted), "{}", said);
            }
        }
    });
}
