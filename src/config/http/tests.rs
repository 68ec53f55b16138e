//! Claim: what is wrong in an http listener is named with what would be right. Method: a table of files and messages.

use super::super::*;

const SITE: &str = r#"[[listener]]
name = "site"
type = "http"
listen = "0.0.0.0:80"
service = "web"
[listener.http]
timeout_idle = "1m"
trusted = ["10.0.0.0/8", "::ffff:192.0.2.1"]
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
    assert_eq!(site.options.trusted[1], "192.0.2.1/32".parse().expect("a network"), "in plain dress");
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
            "::ffff:192.0.2.1",
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
            "set = [\"X-A: b\"]",
            "remove = [\"Cookie: y\"]",
            "bridge.toml:13: [[listener.route]] request_headers.remove = \"Cookie: y\": a name alone stands here, without a colon and a value. Try: the name of a header, as in \"X-Name\"",
        ),
        (
            "set = [\"X-A: b\"]",
            "remove = [\"Host: x\"]",
            "bridge.toml:13: [[listener.route]] request_headers.remove = \"Host: x\": a name alone stands here, without a colon and a value. Try: the name of a header, as in \"X-Name\"",
        ),
        (
            "timeout_idle = \"1m\"",
            "request_id = \"X: y\"",
            "bridge.toml:7: [listener.http] request_id = \"X: y\": a name alone stands here, without a colon and a value. Try: \"X-Request-Id\"",
        ),
        (
            ", password = \"s3cret\"",
            "",
            "bridge.toml:14: [[listener.route]] basic_auth.user = \"alice\": this user needs one password. Try: password = \"${NAME}\", or password_file = \"path\": one of them",
        ),
        (
            "\"s3cret\"",
            "7",
            "bridge.toml:14: [[listener.route]] basic_auth.password = ***: expected a string. Try: a text in quotes: \"...\"",
        ),
        (
            "host = \"*.Example.com\"\npath = \"/api/\"",
            "host = \"*\"",
            "bridge.toml:5: [[listener]] service = \"web\": a route without host and path takes all that would go there. Try: one of the two",
        ),
        (
            "timeout_idle = \"1m\"",
            "redirect_https = 443",
            "bridge.toml:7: [listener.http] redirect_https = 443: every request is sent to https: none would come to a service of this listener. Try: services on the https listener, or no redirect_https",
        ),
        (
            "type = \"http\"\nlisten = \"0.0.0.0:80\"\nservice = \"web\"\n[listener.http]\ntimeout_idle = \"1m\"",
            "type = \"https\"\nlisten = \"0.0.0.0:80\"\nservice = \"web\"\n[listener.http]\nredirect_https = 443",
            "bridge.toml:7: [listener.http] redirect_https = 443: what comes here comes over https already. Try: redirect_https on the http listener",
        ),
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
            "0.0.0.0:80",
            "unix:/x",
            "bridge.toml:4: [[listener]] listen = \"unix:/x\": a listener that speaks HTTP cannot be at a path. Try: \"0.0.0.0:80\"",
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
    for (good, bad) in [("set = [\"X-A: b\"]", "remove = [\"NAME\"]"), ("X-A: b", "NAME: b")] {
        let text = SITE.replacen(good, &bad.replace("NAME", &"x".repeat(70_000)), 1);
        let error = bridge::check(&Document::of("bridge.toml", &text)).expect_err("no such name");
        assert!(error.to_string().contains("more than 1024 bytes"), "{bad}");
    }
    for (key, value) in [("strip_prefix", "true"), ("body_bytes_max", "10")] {
        let text = format!(
            "[[listener]]\nname = \"tls\"\ntype = \"https\"\nlisten = \"0.0.0.0:443\"\npassthrough = true\n\
             [[listener.route]]\nhost = \"a.b\"\nservice = \"web\"\n{key} = {value}\n"
        );
        let error = bridge::check(&Document::of("bridge.toml", &text)).expect_err(key);
        let say = format!(
            "[[listener.route]] {key} = {value}: a route that passes TLS through cannot see or change what is inside. Try: host and service alone"
        );
        assert_eq!(error.to_string(), format!("bridge.toml:9: {say}"));
    }
    let nothing = SITE.split("[listener.http]").next().expect("a part").replace("service = \"web\"\n", "");
    let error = bridge::check(&Document::of("bridge.toml", &nothing)).expect_err("it has no route");
    assert!(error.to_string().contains("nowhere to send a request"), "{error}");
}
