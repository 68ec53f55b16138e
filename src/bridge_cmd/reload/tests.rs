use super::*;
use crate::config::Document;
use crate::config::bridge::check;
use crate::fixed::every_key::{self, Row};

fn config(text: &str) -> Config {
    check(&Document::of("bridge.toml", text)).expect("it is right")
}

/// What runs goes on counting, under the new numbers where they differ; who comes anew has a count of its own.
#[test]
fn limiters_are_kept() {
    let text = |a: u32, b: u32, more: &str| {
        format!(
            "[[listener]]\nname = \"a\"\ntype = \"tcp\"\nlisten = \"127.0.0.1:1-3\"\nservice = \"x\"\n\
             limits = {{ connections = {a} }}\n[[service]]\nname = \"x\"\nlimits = {{ connections = {b} }}\n{more}"
        )
    };
    let old = config(&text(1, 2, ""));
    let mut new = config(&text(1, 3, "retries = 5\n"));
    let changes = keep_limiters(&old, &mut new);
    let whose: Vec<&str> = changes.iter().map(|change| change.whose.as_str()).collect();
    assert_eq!(whose, ["service \"x\""], "the listener's are the same");
    let same = |a: &Option<Arc<Limiter>>, b: &Option<Arc<Limiter>>| {
        Arc::ptr_eq(a.as_ref().expect("it has one"), b.as_ref().expect("it has one"))
    };
    assert!(same(&old.listeners[2].limiter, &new.listeners[0].limiter), "one for the whole range");
    assert!(same(&old.policies["x"].limiter, &new.policies["x"].limiter));
    let mut third = config(&text(9, 3, ""));
    let whose: Vec<String> = keep_limiters(&old, &mut third).into_iter().map(|change| change.whose).collect();
    assert_eq!(whose, ["listener \"a-1\"", "service \"x\""], "a range is told once");
}

/// Each key that stays is named with both values and the way out; the others are not.
#[test]
fn what_stays_is_named() {
    let old = config("drain = \"1s\"\n");
    let mut new = config(
        "data_dir = \"/other\"\n[http]\nlisten = \"127.0.0.1:1\"\n[link]\nlisten = \"127.0.0.1:2\"\n\
         public = \"a.example:2\"\ntls = \"off\"\nktls = \"off\"\n[engine]\nworkers = 3\nbackend = \"epoll\"\n\
         [dns]\nlisten = \"127.0.0.1:3\"\n",
    );
    let sentences = keep_fixed(&old, &mut new);
    let keys = ["data_dir", "[http] listen", "[link] listen", "[link] public", "[link] tls", "[link] ktls"];
    for key in keys.into_iter().chain(["[dns]", "[http] grpc_listen", "[engine] workers", "[engine] backend"]) {
        let sentence = sentences.iter().find(|s| s.starts_with(key)).unwrap_or_else(|| panic!("{key}"));
        assert!(sentence.contains("Try: restart"), "{sentence}");
    }
    let link = sentences.iter().find(|s| s.starts_with("[link] listen")).expect("just seen");
    assert_eq!(
        link,
        "[link] listen = \"127.0.0.1:2\" cannot be had by a running bridge: it stays \"127.0.0.1:8024\", and all \
         else holds. Try: restart (or --takeover)"
    );
    assert_eq!((sentences.len(), keep_fixed(&old, &mut new).len()), (10, 0), "the new one says what runs");
}

/// A file with every key that a bridge may have, each line once: certificates and the like are in its folder.
const WHOLE: &str = r#"
data_dir = "/one"
drain = "1s"
drain_takeover = "1h"
[http]
listen = "127.0.0.1:1001"
grpc_listen = "127.0.0.1:1002"
cert = "http.pem"
key = "http.key"
[dns]
listen = "127.0.0.1:1003"
zone = "one.example"
ttl = "1s"
answers_max = 1
rate_limit = 11
connections_max = 12
allow = ["10.0.1.0/24"]
namespaces = ["one"]
[link]
listen = "127.0.0.1:1004"
public = "a.example:1004"
tls = "auto"
ktls = "auto"
insecure = false
[engine]
workers = 2
backend = "auto"
scheduling = "batch"
affinity = CORE
[memory]
window_max = "1MiB"
windows = "2MiB"
waiting = "32MiB"
[registry]
store = "etcd"
endpoints = ["http://127.0.0.1:1005"]
prefix = "/one/"
member = "m1"
address = "10.0.0.1:1006"
user = "u1"
password = "p1"
ca = "ca.pem"
cert = "member.pem"
key = "member.key"
auth = "auto"
session = "2m"
rate_limit = 13
rate_limit_user = 14
audit = "auto"
[[registry.webhook]]
name = "pager"
url = "http://127.0.0.1:1007/"
secret = "sixteen letters!"
kinds = ["health"]
namespaces = ["two"]
groups = ["g"]
services = ["s"]
everything = false
timeout = "3s"
retries = 3
backoff = "4s"
backoff_max = "5s"
queue = 15
batch = 16
headers = { X-One = "1" }
ca = "hook.pem"
[[agent]]
name = "by-name"
[agent.limits]
connections = 21
[[agent]]
token = "d955e371504c"
[agent.limits]
connections = 22
rate = 23
burst = 24
up = "25KiB"
down = "26KiB"
[[service]]
name = "shop"
balance = "round_robin"
healthy_min = 1
panic_percent = 1
retries = 1
resend = false
[service.eject]
dials = 2
resets = 2
length = "1500ms"
length_max = "30s"
percent_max = 31
[service.limits]
connections = 32
[[listener]]
name = "plain"
type = "tcp"
listen = "127.0.0.1:1011"
service = "s-plain"
carrier = "mux"
proxy_protocol_from = ["10.0.2.0/24"]
[listener.limits]
connections = 41
rate = 42
burst = 43
up = "44KiB"
down = "45KiB"
idle = "46s"
total = "47s"
allow = ["10.0.3.0/24"]
deny = ["10.0.4.0/24"]
[listener.limits.visitor]
connections = 51
rate = 52
burst = 53
up = "54KiB"
down = "55KiB"
ipv4_bits = 24
ipv6_bits = 56
[[listener]]
name = "datagrams"
type = "udp"
listen = "127.0.0.1:1012"
service = "s-udp"
idle_timeout = "61s"
sessions_max = 62
[[listener]]
name = "socks"
type = "socks5"
listen = "127.0.0.1:1013"
service = "s-socks"
auth = "users"
users = ["a:b"]
allow = ["*:80"]
associations_max = 63
[[listener]]
name = "path"
type = "tcp"
listen = "unix:one.sock"
service = "s-path"
mode = "0600"
[[listener]]
name = "pages"
type = "http"
listen = "127.0.0.1:1014"
service = "s-pages"
[listener.http]
connections_max = 71
head_bytes_max = 9000
headers_max = 72
timeout_head = "73s"
timeout_answer = "74s"
timeout_idle = "75s"
timeout_total = "76s"
reuse = true
idle_max = 77
idle_time = "78s"
request_id = "X-Id"
access_log = false
trusted = ["10.0.5.0/24"]
forwarded = false
agents = "/link"
agent_hosts = false
body_bytes_max = 79
pages = { "404" = "page.html" }
[[listener]]
name = "moved"
type = "http"
listen = "127.0.0.1:1016"
[listener.http]
redirect_https = 443
[[listener]]
name = "secure"
type = "https"
listen = "127.0.0.1:1015"
tls = [{ cert = "site.pem", key = "site.key" }]
passthrough = false
[[listener.route]]
host = "a.example"
path = "/a"
service = "s-a"
strip_prefix = false
rewrite_host = "b.example"
request_headers = { set = ["X-A: 1"] }
response_headers = { set = ["X-B: 1"] }
basic_auth = [{ user = "u", password = "p" }]
body_bytes_max = 81
[[listener.route]]
host = "c.example"
service = "s-c"
passthrough = true
"#;

/// Each key of it: another value, and what is said.
const CHANGES: &[Row<'_>] = &[
    ("data_dir = \"/one\"", "data_dir = \"/two\"", "data_dir = \"/two\" cannot be had"),
    ("drain = \"1s\"", "drain = \"2s\"", "drain is 2s"),
    ("drain_takeover = \"1h\"", "drain_takeover = \"2h\"", "drain_takeover 7200s"),
    ("listen = \"127.0.0.1:1001\"", "listen = \"[::1]:1001\"", "[http] listen = \"[::1]:1001\" cannot be had"),
    ("grpc_listen = \"127.0.0.1:1002\"", "grpc_listen = \"off\"", "[http] grpc_listen = \"off\" cannot be had"),
    ("cert = \"http.pem\"", "cert = \"site.pem\"", "[http] cert, key = "),
    ("key = \"http.key\"", "key = \"site.key\"", "[http] cert, key = "),
    ("listen = \"127.0.0.1:1003\"", "", "[dns] listen = [\"127.0.0.1:8600\"] cannot be had"),
    ("zone = \"one.example\"", "", "it stays \"one.example.\""),
    ("ttl = \"1s\"", "ttl = \"5s\"", "[dns] ttl = \"5s\" cannot be had"),
    ("answers_max = 1", "answers_max = 2", "[dns] answers_max = 2 cannot be had"),
    ("rate_limit = 11", "rate_limit = 12", "[dns] rate_limit = 12 cannot be had"),
    ("connections_max = 12", "connections_max = 13", "[dns] connections_max = 13 cannot be had"),
    ("allow = [\"10.0.1.0/24\"]", "", "[dns] allow = unsaid cannot be had"),
    ("namespaces = [\"one\"]", "namespaces = [\"x\"]", "[dns] namespaces = [\"x\"] cannot be had"),
    ("listen = \"127.0.0.1:1004\"", "", "[link] listen = \"127.0.0.1:8024\" cannot be had"),
    ("public = \"a.example:1004\"", "", "[link] public = unsaid cannot be had"),
    ("tls = \"auto\"", "tls = \"off\"", "[link] tls = \"off\" cannot be had"),
    ("ktls = \"auto\"", "ktls = \"off\"", "[link] ktls = \"off\" cannot be had"),
    // It says what the file may say, and nothing of what the bridge does.
    ("insecure = false", "insecure = true", ""),
    ("workers = 2", "workers = 3", "[engine] workers = 3 cannot be had"),
    ("backend = \"auto\"", "backend = \"epoll\"", "[engine] backend = \"epoll\" cannot be had"),
    ("scheduling = \"batch\"", "scheduling = \"normal\"", "[engine] scheduling = \"normal\" cannot be had"),
    ("affinity = CORE", "", "[engine] affinity = unsaid cannot be had"),
    ("window_max = \"1MiB\"", "", "[memory] is another one"),
    ("windows = \"2MiB\"", "", "[memory] is another one"),
    ("waiting = \"32MiB\"", "", "[memory] is another one"),
    (STORE, "store = \"embedded\"", "[registry] store = \"embedded\" cannot be had"),
    ("endpoints = [\"http://127.0.0.1:1005\"]", "endpoints = [\"http://b:1\"]", "endpoints = [\"http://b:1\"] cannot"),
    ("prefix = \"/one/\"", "", "[registry] prefix = \"/ringspan/\" cannot be had"),
    ("member = \"m1\"", "member = \"m2\"", "[registry] member = \"m2\" cannot be had"),
    ("address = \"10.0.0.1:1006\"", "", "[registry] address = \"127.0.0.1:1001\" cannot be had"),
    ("user = \"u1\"", "user = \"u2\"", "[registry] user, password: another value cannot be had"),
    ("password = \"p1\"", "password = \"p2\"", "[registry] user, password: another value cannot be had"),
    ("ca = \"ca.pem\"", "", "[registry] ca: another value cannot be had"),
    ("cert = \"member.pem\"", "cert = \"site.pem\"", "[registry] cert, key: another value cannot be had"),
    ("key = \"member.key\"", "key = \"site.key\"", "[registry] cert, key: another value cannot be had"),
    ("auth = \"auto\"", "auth = \"off\"", "[registry] auth = \"off\" cannot be had"),
    ("session = \"2m\"", "session = \"3h\"", "[registry] session = \"3h\" cannot be had"),
    ("rate_limit = 13", "", "[registry] rate_limit = 0 cannot be had"),
    ("rate_limit_user = 14", "rate_limit_user = 9", "[registry] rate_limit_user = 9 cannot be had"),
    ("audit = \"auto\"", "audit = \"on\"", "[registry] audit = \"on\" cannot be had"),
    ("name = \"pager\"", "name = \"other\"", "webhook \"pager\""),
    ("url = \"http://127.0.0.1:1007/\"", "url = \"http://127.0.0.1:1007/x\"", "webhook \"pager\""),
    ("secret = \"sixteen letters!\"", "secret = \"seventeen letters\"", "webhook \"pager\""),
    ("kinds = [\"health\"]", "", "webhook \"pager\""),
    ("namespaces = [\"two\"]", "", "webhook \"pager\""),
    ("groups = [\"g\"]", "", "webhook \"pager\""),
    ("services = [\"s\"]", "", "webhook \"pager\""),
    ("everything = false", "everything = true", "webhook \"pager\""),
    ("timeout = \"3s\"", "", "webhook \"pager\""),
    ("retries = 3", "", "webhook \"pager\""),
    ("backoff = \"4s\"", "", "webhook \"pager\""),
    ("backoff_max = \"5s\"", "", "webhook \"pager\""),
    ("queue = 15", "", "webhook \"pager\""),
    ("batch = 16", "", "webhook \"pager\""),
    ("headers = { X-One = \"1\" }", "headers = { X-One = \"2\" }", "webhook \"pager\""),
    ("ca = \"hook.pem\"", "ca = \"ca.pem\"", "webhook \"pager\""),
    ("name = \"by-name\"", "name = \"by-other\"", "[[agent]] limits"),
    ("token = \"d955e371504c\"", "", "[[agent]] limits"),
    ("connections = 22", "", "[[agent]] limits"),
    ("rate = 23", "rate = 9", "[[agent]] limits"),
    ("burst = 24", "", "[[agent]] limits"),
    ("up = \"25KiB\"", "", "[[agent]] limits"),
    ("down = \"26KiB\"", "", "[[agent]] limits"),
    ("name = \"shop\"", "name = \"store\"", "service \"store\" has another [[service]]"),
    ("balance = \"round_robin\"", "balance = \"source_hash\"", "service \"shop\" has another [[service]]"),
    ("healthy_min = 1", "healthy_min = 2", "service \"shop\" has another [[service]]"),
    ("panic_percent = 1", "", "service \"shop\" has another [[service]]"),
    ("retries = 1", "", "service \"shop\" has another [[service]]"),
    ("resend = false", "resend = true", "service \"shop\" has another [[service]]"),
    ("dials = 2", "", "service \"shop\" has another [[service]]"),
    ("resets = 2", "", "service \"shop\" has another [[service]]"),
    ("length = \"1500ms\"", "", "service \"shop\" has another [[service]]"),
    ("length_max = \"30s\"", "", "service \"shop\" has another [[service]]"),
    ("percent_max = 31", "", "service \"shop\" has another [[service]]"),
    ("connections = 32", "connections = 33", "service \"shop\" is limited by other numbers"),
    ("[service.limits]\nconnections = 32", "", "service \"shop\" has another [[service]]"),
    ("name = \"plain\"", "name = \"fancy\"", "listener \"plain\" on 127.0.0.1:1011 is gone"),
    ("name = \"plain\"\ntype = \"tcp\"", "name = \"plain\"\ntype = \"udp\"", "listener \"plain\" has other settings"),
    ("listen = \"127.0.0.1:1011\"", "listen = \"127.0.0.1:9\"", "is on 127.0.0.1:9 in place of 127.0.0.1:1011"),
    ("service = \"s-plain\"", "service = \"s\"", "listener \"plain\" is for service \"s\" in place of \"s-plain\""),
    ("carrier = \"mux\"", "carrier = \"direct\"", "listener \"plain\" has carrier = \"direct\" in place of \"mux\""),
    ("proxy_protocol_from = [\"10.0.2.0/24\"]", "", "takes PROXY headers from nobody in place of [\"10.0.2.0/24\"]"),
    ("connections = 41", "connections = 40", "listener \"plain\" is limited by other numbers"),
    ("rate = 42", "rate = 9", "listener \"plain\" is limited by other numbers"),
    ("burst = 43", "", "listener \"plain\" is limited by other numbers"),
    ("up = \"44KiB\"", "", "listener \"plain\" is limited by other numbers"),
    ("down = \"45KiB\"", "", "listener \"plain\" is limited by other numbers"),
    ("idle = \"46s\"", "", "listener \"plain\" is limited by other numbers"),
    ("total = \"47s\"", "", "listener \"plain\" is limited by other numbers"),
    ("allow = [\"10.0.3.0/24\"]", "", "listener \"plain\" is limited by other numbers"),
    ("deny = [\"10.0.4.0/24\"]", "", "listener \"plain\" is limited by other numbers"),
    ("connections = 51", "", "listener \"plain\" is limited by other numbers"),
    ("rate = 52", "rate = 9", "listener \"plain\" is limited by other numbers"),
    ("burst = 53", "", "listener \"plain\" is limited by other numbers"),
    ("up = \"54KiB\"", "", "listener \"plain\" is limited by other numbers"),
    ("down = \"55KiB\"", "", "listener \"plain\" is limited by other numbers"),
    ("ipv4_bits = 24", "", "listener \"plain\" is limited by other numbers"),
    ("ipv6_bits = 56", "", "listener \"plain\" is limited by other numbers"),
    ("service = \"s-udp\"", "service = \"s-udp\"\nlimits = { rate = 1 }", "listener \"datagrams\" has limits"),
    ("idle_timeout = \"61s\"", "", "listener \"datagrams\" has other settings"),
    ("sessions_max = 62", "", "listener \"datagrams\" has other settings"),
    ("auth = \"users\"\nusers = [\"a:b\"]", "auth = \"none\"", "listener \"socks\" has other settings"),
    ("users = [\"a:b\"]", "users = [\"a:c\"]", "listener \"socks\" has other settings"),
    ("allow = [\"*:80\"]", "", "listener \"socks\" has other settings"),
    ("associations_max = 63", "", "listener \"socks\" has other settings"),
    ("listen = \"unix:one.sock\"", "listen = \"unix:two.sock\"", "listener \"path\" has other settings"),
    ("mode = \"0600\"", "", "listener \"path\" has other settings"),
    ("connections_max = 71", "", "listener \"pages\" [listener.http] connections_max = 8192 cannot be had"),
    ("head_bytes_max = 9000", "", "listener \"pages\" has other settings"),
    ("headers_max = 72", "", "listener \"pages\" has other settings"),
    ("timeout_head = \"73s\"", "", "listener \"pages\" has other settings"),
    ("timeout_answer = \"74s\"", "", "listener \"pages\" has other settings"),
    ("timeout_idle = \"75s\"", "", "listener \"pages\" has other settings"),
    ("timeout_total = \"76s\"", "", "listener \"pages\" has other settings"),
    ("reuse = true", "reuse = false", "listener \"pages\" has other settings"),
    ("idle_max = 77", "", "listener \"pages\" has other settings"),
    ("idle_time = \"78s\"", "", "listener \"pages\" has other settings"),
    ("request_id = \"X-Id\"", "", "listener \"pages\" has other settings"),
    ("access_log = false", "access_log = true", "listener \"pages\" has other settings"),
    ("trusted = [\"10.0.5.0/24\"]", "", "listener \"pages\" has other settings"),
    ("forwarded = false", "forwarded = true", "listener \"pages\" has other settings"),
    ("redirect_https = 443", "redirect_https = 444", "listener \"moved\" has other settings"),
    ("agents = \"/link\"", "", "listener \"pages\" has other settings"),
    ("agent_hosts = false", "agent_hosts = true", "listener \"pages\" has other settings"),
    ("body_bytes_max = 79", "", "listener \"pages\" has other settings"),
    ("pages = { \"404\" = \"page.html\" }", "", "listener \"pages\" has other settings"),
    (
        "tls = [{ cert = \"site.pem\", key = \"site.key\" }]\npassthrough = false",
        PASSED,
        "listener \"secure\" has other",
    ),
    ("host = \"a.example\"", "", "listener \"secure\" has other settings"),
    ("path = \"/a\"", "", "listener \"secure\" has other settings"),
    ("service = \"s-a\"", "service = \"s-b\"", "listener \"secure\" has other settings"),
    ("strip_prefix = false", "strip_prefix = true", "listener \"secure\" has other settings"),
    ("rewrite_host = \"b.example\"", "", "listener \"secure\" has other settings"),
    ("request_headers = { set = [\"X-A: 1\"] }", "", "listener \"secure\" has other settings"),
    ("response_headers = { set = [\"X-B: 1\"] }", "", "listener \"secure\" has other settings"),
    ("basic_auth = [{ user = \"u\", password = \"p\" }]", "", "listener \"secure\" has other settings"),
    ("body_bytes_max = 81", "", "listener \"secure\" has other settings"),
    ("service = \"s-c\"\npassthrough = true", "service = \"s-c\"", "listener \"secure\" has other settings"),
];
/// What belongs to etcd alone.
const STORE: &str = "store = \"etcd\"\nendpoints = [\"http://127.0.0.1:1005\"]\nprefix = \"/one/\"\nmember = \"m1\"\n\
                     address = \"10.0.0.1:1006\"\nuser = \"u1\"\npassword = \"p1\"\nca = \"ca.pem\"\n\
                     cert = \"member.pem\"\nkey = \"member.key\"";
/// Another certificate.
const PASSED: &str = "tls = [{ cert = \"http.pem\", key = \"http.key\" }]\npassthrough = false";

/// All that is said of a reload, as it is said; `new` is what runs then.
fn said(old: &Config, new: &mut Config) -> Vec<String> {
    let mut said = keep_fixed(old, new);
    for change in keep_limiters(old, new) {
        said.push(change.told());
        change.limiter.change((*change.rules).clone());
    }
    said.extend(listeners::told(&old.listeners, &new.listeners));
    said.extend(told_rest(old, new));
    // They go by this (hooks.rs).
    let digests = |c: &Config| c.webhooks.iter().map(|w| (w.hook.name.clone(), w.digest)).collect::<BTreeSet<_>>();
    said.extend(digests(old).symmetric_difference(&digests(new)).map(|(name, _)| format!("webhook {name:?}")));
    said
}

/// Whatever key of the file has another value: it is done and told, or it stays and is named, as often as the file is
/// read. And no key that a file may have is without its row.
#[test]
fn every_key_is_done_or_named() {
    let folder = tempfile::tempdir().expect("a folder");
    for stem in ["http", "site", "member", "ca", "hook"] {
        let made = rcgen::generate_simple_self_signed(vec![format!("{stem}.example.com")]).expect("a certificate");
        std::fs::write(folder.path().join(format!("{stem}.pem")), made.cert.pem()).expect("written");
        std::fs::write(folder.path().join(format!("{stem}.key")), made.signing_key.serialize_pem()).expect("written");
    }
    std::fs::write(folder.path().join("page.html"), "gone").expect("written");
    let core = ringspan_engine::cores::Cores::allowed().as_slice()[0];
    let file = folder.path().join("bridge.toml");
    let read = |text: &str| {
        let text = text.replace("CORE", &format!("[{core}]"));
        check(&Document::of(file.to_str().expect("UTF-8"), &text)).map_err(|error| error.to_string())
    };
    let good = |text: &str| read(text).unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(said(&good(WHOLE), &mut good(WHOLE)), [""; 0], "the same is the same");
    assert_eq!(every_key::forgotten(WHOLE, CHANGES, |text| read(text).err()), [""; 0]);
    for (from, to, says) in CHANGES {
        let from = format!("\n{from}\n");
        assert_eq!(WHOLE.matches(&from).count(), 1, "{from}");
        let text = WHOLE.replace(&from, &format!("\n{to}\n"));
        let (old, mut new) = (good(WHOLE), good(&text));
        let first = said(&old, &mut new);
        match *says {
            "" => assert_eq!(first, [""; 0], "{from}"),
            says => assert!(first.iter().any(|line| line.contains(says)), "{from}: {first:?}"),
        }
        // What was done is no news; what stays is named until the file says what runs.
        let stays: Vec<_> = first.into_iter().filter(|line| line.contains("cannot be had")).collect();
        assert_eq!(said(&new, &mut good(&text)), stays, "{from}: again");
    }
}
