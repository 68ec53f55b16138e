//! Claim: what is not a plain TCP server is carried as well, and what is denied is denied with its reason. Method: bridge and agents as child processes, real clients and servers.

mod common;

use common::doors::{Place, address_in};
use common::world::{Nginx, get};
use common::{PATIENCE, Running, parts, ringspan, run_with, until};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A server that speaks first, and then says back what it hears.
fn parrot() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let _ = stream.write_all(b"HELLO");
                let mut reader = stream.try_clone().expect("a descriptor");
                let _ = std::io::copy(&mut reader, &mut stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    address
}

fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port()
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("it has one");
    stream
}

/// Asks a SOCKS server without a login: the code of its reply, and the connection.
fn socks(to: SocketAddr, host: &str, port: u16) -> (u8, TcpStream) {
    let mut stream = connect(to);
    stream.write_all(&[5, 1, 0]).expect("it reads");
    let mut method = [0; 2];
    stream.read_exact(&mut method).expect("it answers");
    assert_eq!(method, [5, 0]);
    let request = [&[5, 1, 0, 3, host.len() as u8], host.as_bytes(), &port.to_be_bytes()].concat();
    stream.write_all(&request).expect("it reads");
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).expect("it answers");
    (reply[1], stream)
}

/// The status of an answer to CONNECT.
fn http_connect(to: SocketAddr, request: &str) -> String {
    let mut stream = connect(to);
    stream.write_all(request.as_bytes()).expect("it reads");
    let (mut answer, mut byte) = (String::new(), [0]);
    while !answer.ends_with("\r\n") {
        stream.read_exact(&mut byte).expect("it answers");
        answer.push(byte[0].into());
    }
    answer.trim().to_owned()
}

/// What both kinds of proxy answer, and why: reached, refused, denied by the agent, by the address behind a name, by the
/// listener; without a backend; without a login.
#[test]
fn proxies_say_the_true_reason() {
    let (parrot, closed, secret) = (parrot(), closed_port(), TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let secret = secret.local_addr().expect("bound").port();
    let open = parrot.port();
    let place = Place::start(
        "[[listener]]\nname = \"socks\"\ntype = \"socks5\"\nauth = \"none\"\nlisten = \"127.0.0.1:0\"\nservice = \"net\"\n\
         [[listener]]\nname = \"narrow\"\ntype = \"socks5\"\nauth = \"none\"\nallow = [\"*.lan:*\"]\nlisten = \"127.0.0.1:0\"\nservice = \"net\"\n\
         [[listener]]\nname = \"nobody\"\ntype = \"socks5\"\nauth = \"none\"\nlisten = \"127.0.0.1:0\"\nservice = \"nobody\"\n\
         [[listener]]\nname = \"http\"\ntype = \"connect\"\nusers = [\"alice:se:cret\"]\nlisten = \"127.0.0.1:0\"\nservice = \"net\"\n",
        &format!(
            "[[expose]]\nservice = \"net\"\ntype = \"proxy\"\n\
             allow = [\"127.0.0.1:{open},{closed}\", \"localhost:{secret}\", \"*.invalid:80\"]\n"
        ),
    );
    let (to, http) = (place.listener("socks"), place.listener("http"));
    let login = "Proxy-Authorization: Basic YWxpY2U6c2U6Y3JldA==\r\n";
    for (host, port, code, status) in [
        ("127.0.0.1", open, 0, "200"),
        ("localhost", open, 0, "200"),
        ("127.0.0.1", closed, 5, "502"),
        // The name is on the list; what it means is not.
        ("localhost", secret, 2, "403"),
        ("127.0.0.1", secret, 2, "403"),
        ("127.0.0.2", open, 2, "403"),
        ("elsewhere.lan", 81, 2, "403"),
        ("127.1", open, 4, "400"),
    ] {
        assert_eq!(socks(to, host, port).0, code, "{host}:{port}");
        let answer = http_connect(http, &format!("CONNECT {host}:{port} HTTP/1.1\r\n{login}\r\n"));
        assert_eq!(answer.split(' ').nth(1), Some(status), "{host}:{port}: {answer}");
    }
    assert_eq!(socks(to, "nowhere.invalid", 80).0, 4);
    assert_eq!(socks(place.listener("narrow"), "127.0.0.1", open).0, 2);
    assert_eq!(socks(place.listener("nobody"), "127.0.0.1", open).0, 1);
    let stranger = http_connect(http, &format!("CONNECT 127.0.0.1:{open} HTTP/1.1\r\n\r\n"));
    assert!(stranger.contains(" 407 "), "{stranger}");
    assert!(http_connect(http, "GET / HTTP/1.1\r\n\r\n").contains(" 405 "));
    place.bridge.wait_line(&["proxy: refused", "target_denied"]);
    place.agent.wait_line(&["proxy: not connected", "target_denied"]);
}

/// The reply comes before the first word of a target that speaks first, and what the visitor said too early arrives.
#[test]
fn the_reply_comes_first() {
    let parrot = parrot();
    let place = Place::start(
        "[[listener]]\nname = \"socks\"\ntype = \"socks5\"\nauth = \"none\"\nlisten = \"127.0.0.1:0\"\nservice = \"net\"\n",
        "[[expose]]\nservice = \"net\"\ntype = \"proxy\"\nallow = [\"127.0.0.1:*\"]\n",
    );
    for round in 0..100 {
        let mut stream = connect(place.listener("socks"));
        let port = parrot.port().to_be_bytes();
        // All at once: greeting, request, and words for the target.
        let all = [&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1][..], &port, format!("early {round}").as_bytes()].concat();
        stream.write_all(&all).expect("it reads");
        stream.shutdown(Shutdown::Write).expect("it is open");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("a clean end");
        let wanted =
            [&[5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"HELLO", format!("early {round}").as_bytes()].concat();
        assert_eq!(answer, wanted);
    }
}

/// curl, through SOCKS and CONNECT, with a login and names that the agent looks up.
#[test]
fn curl_goes_through_both() {
    let nginx = Nginx::start("n");
    let place = Place::start(
        "[[listener]]\nname = \"socks\"\ntype = \"socks5\"\nusers = [\"alice:secret\"]\nlisten = \"127.0.0.1:0\"\nservice = \"net\"\n\
         [[listener]]\nname = \"http\"\ntype = \"connect\"\nusers = [\"alice:secret\"]\nlisten = \"127.0.0.1:0\"\nservice = \"net\"\n",
        &format!(
            "[[expose]]\nservice = \"net\"\ntype = \"proxy\"\nallow = [\"127.0.0.0/8:{}\"]\n",
            nginx.address.port()
        ),
    );
    let curl = |proxy: &str, more: &[&str]| {
        let url = format!("http://localhost:{}/", nginx.address.port());
        let mut args = vec!["-s", "-S", "--max-time", "30", "-x", proxy];
        args.extend(more);
        args.push(&url);
        parts(&run_with(&mut place.command("curl", &args), ""))
    };
    let (socks, http) = (place.listener("socks"), place.listener("http"));
    assert_eq!(curl(&format!("socks5h://alice:secret@{socks}"), &[]), (0, "n".into(), String::new()));
    assert_eq!(curl(&format!("http://alice:secret@{http}"), &["-p"]), (0, "n".into(), String::new()));
    assert_ne!(curl(&format!("socks5h://alice:wrong@{socks}"), &[]).0, 0);
    let (code, _, err) = curl(&format!("http://alice:wrong@{http}"), &["-p"]);
    assert!(code != 0 && err.contains("407"), "{err}");
}

/// An nginx that listens at a path.
fn nginx_at(folder: &Path, path: &Path) -> Child {
    let at = folder.display();
    let config = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\nevents {{ }}\n\
         http {{ access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p;\n\
         fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
         server {{ listen unix:{}; location / {{ return 200 \"by path\"; }} }} }}\n",
        path.display()
    );
    std::fs::write(folder.join("nginx.conf"), config).expect("written");
    let debian = Path::new("/usr/sbin/nginx");
    let program = if debian.exists() { debian } else { Path::new("nginx") };
    let mut command = Command::new(program);
    command.arg("-p").arg(folder).args(["-e", "error.log", "-c", "nginx.conf"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("nginx is installed: scripts/setup")
}

/// From a path to a path: a listener's socket at the bridge, an nginx's at the agent, which is checked and comes back.
#[test]
fn unix_sockets_at_both_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("n.sock");
    let mut nginx = nginx_at(folder.path(), &path);
    until("nginx to listen", || std::os::unix::net::UnixStream::connect(&path).ok());
    let place = Place::start(
        "[[listener]]\nname = \"at\"\ntype = \"tcp\"\nlisten = \"unix:web.sock\"\nservice = \"web\"\n",
        &format!(
            "[[expose]]\nservice = \"web\"\naddress = \"unix:{}\"\ncheck = {{ interval = \"100ms\" }}\n",
            path.display()
        ),
    );
    let curl = || {
        let args = ["-s", "-S", "--max-time", "30", "--unix-socket", "web.sock", "http://any/"];
        parts(&run_with(&mut place.command("curl", &args), ""))
    };
    assert_eq!(curl(), (0, "by path".into(), String::new()));
    nginx.kill().expect("it runs");
    nginx.wait().expect("it ends");
    place.bridge.wait_line(&["backend down", "L4CON"]);
    assert_ne!(curl().0, 0);
    std::fs::remove_file(&path).expect("it was left behind");
    let mut nginx = nginx_at(folder.path(), &path);
    until("visitors to be answered", || (curl().0 == 0).then_some(()));
    nginx.kill().expect("it runs");
    nginx.wait().expect("it ends");
    // A clean end takes the file along; after a hard one the next bridge replaces it.
    let socket = place.folder.path().join("web.sock");
    assert!(socket.exists());
    place.bridge.signal("TERM");
    until("the file to go", || (!socket.exists()).then_some(()));
}

/// As configured: nginx hears in a PROXY header who asks, over TCP and over a Unix socket; a listener that trusts us is
/// told it by us; and who is denied hears nothing.
#[test]
fn headers_and_lists() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, local) = (folder.path().join("web.sock"), SocketAddr::from(([127, 0, 0, 1], closed_port())));
    let nginx = Nginx::start_server(
        SocketAddr::from(([127, 0, 0, 1], closed_port())),
        &format!(
            "listen {local} proxy_protocol; listen unix:{} proxy_protocol;\n\
             location / {{ return 200 \"$proxy_protocol_addr to $proxy_protocol_server_port\"; }}",
            path.display()
        ),
    );
    let listener = |name: &str, service: &str, more: &str| {
        format!(
            "[[listener]]\nname = \"{name}\"\ntype = \"tcp\"\nlisten = \"127.0.0.1:0\"\nservice = \"{service}\"\n{more}\n"
        )
    };
    let listeners = [
        listener("plain", "tcp", "limits = { deny = [\"127.0.0.2\"] }"),
        listener("unix", "unix", ""),
        listener("behind", "tcp", "proxy_protocol_from = [\"127.0.0.1\"]"),
    ];
    let exposes = format!(
        "[[expose]]\nservice = \"tcp\"\naddress = \"{local}\"\nproxy_protocol = \"v2\"\n\
         [[expose]]\nservice = \"unix\"\naddress = \"unix:{}\"\nproxy_protocol = \"v1\"\n",
        path.display()
    );
    let place = Place::start(&listeners.concat(), &exposes);
    let (plain, unix, behind) = (place.listener("plain"), place.listener("unix"), place.listener("behind"));
    for at in [plain, unix] {
        assert_eq!(get(at, "/"), Ok((200, format!("127.0.0.1 to {}", at.port()))));
    }
    let mut stream = connect(behind);
    let request = "PROXY TCP4 203.0.113.9 198.51.100.1 1000 443\r\nGET / HTTP/1.0\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("it is open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("a whole answer");
    assert!(answer.ends_with("203.0.113.9 to 443"), "{answer}");
    let curl = ["-sS", "--max-time", "60", "--interface", "127.0.0.2", &format!("http://{plain}/")];
    let (code, text, _) = parts(&run_with(Command::new("curl").args(curl), ""));
    assert!(code != 0 && text.is_empty(), "{text}");
    place.bridge.wait_line(&["denied", "plain"]);
    drop(nginx);
}

/// Behind a load balancer: http, https by name, proxies and the bridge's other doors take who comes from the header, for their lists, for
/// what the backend is told, and on to the backend's own header; who brings none, or is not believed, is reset and counted.
#[test]
fn doors_behind_a_balancer() {
    let local = SocketAddr::from(([127, 0, 0, 1], closed_port()));
    let nginx = Nginx::start_server(
        SocketAddr::from(([127, 0, 0, 1], closed_port())),
        &format!(
            "listen {local} proxy_protocol;\n\
             location / {{ return 200 \"$proxy_protocol_addr to $proxy_protocol_server_port $http_x_forwarded_for\"; }}"
        ),
    );
    let listener = |kind: &str, service: &str, more: &str| {
        format!(
            "[[listener]]\nname = \"{kind}\"\ntype = \"{kind}\"\nlisten = \"127.0.0.1:0\"\nservice = \"{service}\"\n\
             proxy_protocol_from = [\"127.0.0.1\"]\nlimits = {{ deny = [\"203.0.113.66\"] }}\n{more}"
        )
    };
    let open = "auth = \"none\"\n";
    let listeners =
        [listener("http", "web", ""), listener("socks5", "net", open), listener("connect", "net", open)].concat();
    let elsewhere = "[[listener]]\nname = \"else\"\ntype = \"http\"\nlisten = \"127.0.0.1:0\"\nservice = \"web\"\n\
                     proxy_protocol_from = [\"192.0.2.1\"]\n";
    let target = TcpListener::bind("127.0.0.1:0").expect("a port");
    let there = target.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in target.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(b"hello"));
        }
    });
    let exposes = format!(
        "[[expose]]\nservice = \"web\"\naddress = \"{local}\"\nproxy_protocol = \"v1\"\ncheck = {{ interval = \"100ms\" }}\n\
         [[expose]]\nservice = \"net\"\ntype = \"proxy\"\nallow = [\"127.0.0.1:*\"]\n"
    );
    let place = Place::start(&format!("{listeners}{elsewhere}"), &exposes);
    let say = |at: &str, header: &str, words: &[u8]| {
        let mut stream = connect(place.listener(at));
        let mut answer = Vec::new();
        // Who is reset at once may hear of it before it has said all.
        let said = stream.write_all(&[header.as_bytes(), words].concat());
        let end = said.and_then(|()| stream.read_to_end(&mut answer));
        (String::from_utf8_lossy(&answer).into_owned(), end.map_err(|e| e.kind()).err())
    };
    let (from, denied) =
        ("PROXY TCP4 203.0.113.9 198.51.100.1 1000 443\r\n", "PROXY TCP4 203.0.113.66 198.51.100.1 1000 443\r\n");
    let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    until("visitors to be answered", || say("http", from, request).0.starts_with("HTTP/1.1 200").then_some(()));
    let (answer, end) = say("http", from, request);
    assert!(answer.ends_with("203.0.113.9 to 443 203.0.113.9") && end.is_none(), "{answer}");
    // Through proxies to somebody who says hello and goes.
    let connect_to = format!("CONNECT {there} HTTP/1.1\r\n\r\n");
    let socks_to = [&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1][..], &there.port().to_be_bytes()].concat();
    until("the proxy to be ready", || say("connect", from, connect_to.as_bytes()).0.contains(" 200 ").then_some(()));
    let (answer, _) = say("socks5", from, &socks_to);
    assert!(answer.as_bytes().starts_with(&[5, 0, 5, 0]) && answer.ends_with("hello"), "{answer:?}");
    let reset = Some(ErrorKind::ConnectionReset);
    let before = place.metric("ringspan_door_bad_headers_total");
    for (at, words) in [("http", &request[..]), ("connect", connect_to.as_bytes()), ("socks5", &socks_to)] {
        assert_eq!(say(at, denied, words), (String::new(), reset), "{at}: denied");
        assert_eq!(say(at, "", words), (String::new(), reset), "{at}: no header");
    }
    assert_eq!(say("else", from, request), (String::new(), reset), "not believed");
    assert_eq!(place.metric("ringspan_door_bad_headers_total"), before + 4);
    place.bridge.wait_line(&["no visitor", "else", "proxy_protocol_from does not have it"]);
    drop(nginx);
}

/// A range of ports leads to a range of backends, each port to its own.
#[test]
fn a_range_of_ports_is_many_listeners() {
    // Two free ports that are neighbours, at both ends.
    let first = (20_000..60_000u16).step_by(2).find(|port| {
        let free =
            |port| TcpListener::bind(("127.0.0.1", port)).is_ok() && TcpListener::bind(("127.0.0.2", port)).is_ok();
        free(*port) && free(*port + 1)
    });
    let (first, last) = (first.expect("two of forty thousand"), first.expect("as above") + 1);
    let names =
        ["one", "two"].map(|name| (name, TcpListener::bind(("127.0.0.2", if name == "one" { first } else { last }))));
    for (name, listener) in names {
        let listener = listener.expect("it was free");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.and_then(|mut stream| stream.write_all(name.as_bytes()));
            }
        });
    }
    let place = Place::start(
        &format!(
            "[[listener]]\nname = \"g\"\ntype = \"tcp\"\nlisten = \"127.0.0.1:{first}-{last}\"\nservice = \"g-*\"\n"
        ),
        &format!("[[expose]]\nservice = \"g-*\"\naddress = \"127.0.0.2:{first}-{last}\"\n"),
    );
    for port in [first, last] {
        place.bridge.wait_line(&["backend up", &format!("127.0.0.2:{port}")]);
    }
    for (port, name) in [(first, "one"), (last, "two"), (first, "one")] {
        let mut text = String::new();
        connect(([127, 0, 0, 1], port).into()).read_to_string(&mut text).expect("a clean end");
        assert_eq!(text, name);
    }
}

/// A second agent reaches a secret service through the bridge, which sees none of its bytes; without the secret, or
/// without a scope that covers the service, nobody does, and the backend hears of neither.
#[test]
fn a_secret_service_is_for_who_holds_the_secret() {
    let nginx = Nginx::start("secret words");
    let place = Place::start_with(
        "[[listener]]\nname = \"db\"\ntype = \"visit\"\nlisten = \"127.0.0.1:0\"\nservice = \"db\"\n",
        &format!("[[expose]]\nservice = \"db\"\naddress = \"{}\"\nsecret_file = \"db.key\"\n", nginx.address),
        |folder| secret(folder, "db.key", 'k'),
    );
    let via = place.listener("db");
    secret(place.folder.path(), "other.key", 'x');
    let visitor = |name: &str, scope: &str, key: &str| visitor(&place, name, &["--service", scope], key);
    let (_good, port) = visitor("good", "db", "db.key");
    for _ in 0..20 {
        assert_eq!(get(port, "/").expect("it is reached"), (200, "secret words".into()));
    }
    let before = nginx.access_log().lines().count();
    let (stranger, port) = visitor("stranger", "db", "other.key");
    assert!(get(port, "/").is_err());
    stranger.wait_line(&["the secret service was not reached"]);
    place.agent.wait_line(&["a visitor of a secret service was not taken in"]);
    let (narrow, port) = visitor("narrow", "web", "db.key");
    assert!(get(port, "/").is_err());
    narrow.wait_line(&["the secret service was not reached", "does not cover"]);
    place.bridge.wait_line(&["visiting agent refused", "does not cover"]);
    assert_eq!(nginx.access_log().lines().count(), before);
    // Whoever comes to the listener without being an agent gets nowhere.
    assert!(get(via, "/").is_err());
}

/// What is cut short does not look whole: a reset at one end, or an agent that is killed, is a reset at the other end. A
/// half that ends is the end of that half alone.
#[test]
fn a_secret_service_that_is_cut_is_reset() {
    let backend = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = backend.local_addr().expect("bound");
    let place = Place::start_with(
        "[[listener]]\nname = \"db\"\ntype = \"visit\"\nlisten = \"127.0.0.1:0\"\nservice = \"db\"\n",
        &format!(
            "[[expose]]\nservice = \"db\"\naddress = \"{address}\"\nsecret_file = \"db.key\"\ncheck = {{ type = \"none\" }}\n"
        ),
        |folder| secret(folder, "db.key", 'k'),
    );
    let visitor = |name: &str| visitor(&place, name, &["--visit", "db"], "db.key");
    // Both ends of a conversation in which a word has passed each way.
    let begin = |port: SocketAddr| {
        let mut client = connect(port);
        client.write_all(b"part").expect("it reads");
        let (mut server, _) = backend.accept().expect("it is reached");
        server.set_read_timeout(Some(PATIENCE)).expect("it has one");
        server.write_all(b"part").expect("it reads");
        for end in [&mut client, &mut server] {
            end.read_exact(&mut [0; 4]).expect("it arrives");
        }
        (client, server)
    };
    let rest = |mut stream: TcpStream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text).map_err(|error| error.kind())
    };
    let reset = |stream: TcpStream| socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("it can");
    let (quick, port) = visitor("quick");
    for turned in [false, true] {
        let ends = || {
            let (client, server) = begin(port);
            if turned { (server, client) } else { (client, server) }
        };
        let (mut first, mut second) = ends();
        first.write_all(b"asked").expect("it reads");
        first.shutdown(Shutdown::Write).expect("it is open");
        assert_eq!(rest(second.try_clone().expect("a descriptor")), Ok("asked".into()));
        second.write_all(b"answered").expect("the other half is open");
        drop(second);
        assert_eq!(rest(first), Ok("answered".into()));
        let (first, second) = ends();
        reset(first);
        assert_eq!(rest(second), Err(ErrorKind::ConnectionReset), "turned: {turned}");
    }
    let (client, server) = begin(port);
    quick.kill();
    assert_eq!((rest(client), rest(server)), (Err(ErrorKind::ConnectionReset), Err(ErrorKind::ConnectionReset)));
    let (_slow, port) = visitor("slow");
    let (client, server) = begin(port);
    place.agent.signal("KILL");
    assert_eq!((rest(client), rest(server)), (Err(ErrorKind::ConnectionReset), Err(ErrorKind::ConnectionReset)));
}

/// An agent that visits the secret service `db`, and its port.
fn visitor(place: &Place, name: &str, rights: &[&str], key: &str) -> (Running, SocketAddr) {
    let (token, via) = (place.token(rights), place.listener("db"));
    let config = format!(
        "[link]\ntoken = \"{token}\"\nstate_dir = \"{name}-state\"\n[[visit]]\nservice = \"db\"\n\
         listen = \"127.0.0.1:0\"\nvia = \"{via}\"\nsecret_file = \"{key}\"\n"
    );
    let file = format!("{name}.toml");
    std::fs::write(place.folder.path().join(&file), config).expect("written");
    let agent = Running::start(ringspan(&["agent", "--config", &file]).current_dir(place.folder.path()));
    let port = address_in(&agent.wait_line(&["visiting a secret service"]), "address");
    agent.wait_line(&["link up"]);
    (agent, port)
}

fn secret(folder: &Path, name: &str, letter: char) {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(name);
    std::fs::write(&path, letter.to_string().repeat(44)).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
}
