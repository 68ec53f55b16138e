//! Claim: an agent reaches its bridge through the proxies that networks put in its way, and inside a WebSocket where
//! nothing else passes; all that rides the link works as it does without. Method: real processes: bridge, agents, nginx as
//! backend and as reverse proxy, tinyproxy, microsocks.

mod common;

use common::doors::{Place, address_in};
use common::world::{Nginx, get};
use common::{Running, ringspan, until};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// An agent that others do not need.
const NOTHING: &str = "[[expose]]\nservice = \"nothing\"\naddress = \"127.0.0.1:9\"\ncheck = { type = \"none\" }\n";
const CHECK: &str = "check = { type = \"tcp\", interval = \"100ms\", timeout = \"1s\" }\n";

/// A child process that listens. Killed on drop.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Started with this command at a free port.
    fn start(command: impl FnOnce(SocketAddr) -> Command) -> Server {
        let address = free_port();
        let mut command = command(address);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("it is installed: scripts/setup");
        let server = Server { child, address };
        until("a proxy to listen", || TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok());
        server
    }

    /// tinyproxy, with a login if it has this line.
    fn tinyproxy(folder: &Path, login: &str) -> Server {
        Server::start(|address| {
            let file = folder.join(format!("tinyproxy-{}.conf", address.port()));
            let log = folder.join("tinyproxy.log");
            let config = format!(
                "Port {}\nListen 127.0.0.1\nTimeout 600\nAllow 127.0.0.1\nLogFile \"{}\"\nLogLevel Connect\n{login}\n",
                address.port(),
                log.display()
            );
            std::fs::write(&file, config).expect("written");
            let mut command = Command::new("tinyproxy");
            command.arg("-d").arg("-c").arg(file);
            command
        })
    }

    fn microsocks(login: &[&str]) -> Server {
        Server::start(|address| {
            let mut command = Command::new("microsocks");
            command.args(["-i", "127.0.0.1", "-p", &address.port().to_string()]).args(login);
            command
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that stays free while whoever has it is killed and started again: none of those that the kernel gives out
/// (ip_local_port_range begins at 32768), and another one each time.
fn free_port() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 1_000) as u16 * 12;
    let ports = std::iter::repeat_with(|| first + NEXT.fetch_add(1, Ordering::Relaxed));
    let free = |port| TcpListener::bind(("127.0.0.1", port)).and_then(|free| free.local_addr()).ok();
    ports.take(500).find_map(free).expect("a free port")
}

/// An agent with these lines in its `[link]`, which exposes these.
fn agent(place: &Place, name: &str, link: &str, exposes: &str) -> Running {
    let token = place.token(&[]);
    let config = format!("[link]\ntoken = \"{token}\"\nstate_dir = \"{name}\"\n{link}\n{exposes}");
    let file = format!("{name}.toml");
    std::fs::write(place.folder.path().join(&file), config).expect("written");
    let mut command = ringspan(&["agent", "--config", &file]);
    Running::start(
        command.current_dir(place.folder.path()).env("PROXY_PASSWORD", "pass:word@/1").env("PROXY_WORD", "Word1"),
    )
}

fn expose(service: &str, address: SocketAddr) -> String {
    format!("[[expose]]\nservice = \"{service}\"\naddress = \"{address}\"\n{CHECK}")
}

fn listener(service: &str, more: &str) -> String {
    format!(
        "[[listener]]\nname = \"{service}\"\ntype = \"tcp\"\nlisten = \"127.0.0.1:0\"\nservice = \"{service}\"\n{more}\n"
    )
}

/// 4 MiB there and back through a service whose backend echoes.
fn echo(to: SocketAddr) {
    let mut stream = TcpStream::connect(to).expect("it listens");
    stream.set_read_timeout(Some(common::PATIENCE)).expect("it has one");
    let mut reader = stream.try_clone().expect("a descriptor");
    let text: Vec<u8> = (0..4u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let expected = text.clone();
    let back = std::thread::spawn(move || {
        let mut got = vec![0; expected.len()];
        reader.read_exact(&mut got).expect("it comes back");
        assert!(got == expected, "other bytes came back");
    });
    stream.write_all(&text).expect("it is taken");
    back.join().expect("no panic");
}

fn parrot() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    address
}

/// Through each proxy, with and without a login: requests, bytes in bulk on the mux and on direct carriers.
#[test]
fn through_proxies() {
    let nginx = Nginx::start("n");
    let listeners = listener("web", "") + &listener("bulk", "carrier = \"direct\"");
    let place = Place::start(&listeners, NOTHING);
    let folder = place.folder.path().to_owned();
    let (plain, login) = (Server::tinyproxy(&folder, ""), Server::tinyproxy(&folder, "BasicAuth alice Word1"));
    let (socks, socks_login) = (Server::microsocks(&[]), Server::microsocks(&["-u", "alice", "-P", "pass:word@/1"]));
    for (name, proxy) in [
        ("http", format!("http://{}", plain.address)),
        ("http-login", format!("http://alice:${{PROXY_WORD}}@{}", login.address)),
        ("socks", format!("socks5://{}", socks.address)),
        ("socks-login", format!("socks5://alice:${{PROXY_PASSWORD}}@{}", socks_login.address)),
    ] {
        let exposes = expose("web", nginx.address) + &expose("bulk", parrot());
        let before = place.bridge.line_count();
        let agent = agent(&place, name, &format!("proxy = \"{proxy}\""), &exposes);
        let up = agent.wait_line(&["agent is up"]);
        assert!(up.contains("via=") && !agent.text().contains("word") && !agent.text().contains("Word1"), "{up}");
        place.bridge.wait_line_from(before, &["backend up", "bulk"]);
        place.bridge.wait_line_from(before, &["backend up", "web"]);
        assert_eq!(get(place.listener("web"), "/").expect("it is reached"), (200, "n".into()), "{name}");
        for _ in 0..3 {
            echo(place.listener("bulk"));
        }
        agent.signal("TERM");
        place.bridge.wait_line_from(before, &["agent gone"]);
    }
    // Not past them.
    let log = std::fs::read_to_string(folder.join("tinyproxy.log")).expect("it logs");
    assert!(log.matches("CONNECT 127.0.0.1:").count() > 4, "{log}");
}

/// A proxy that wants a login is told of, with what it answered, and without the password; when there is a good one the
/// agent is through.
#[test]
fn a_proxy_that_refuses() {
    let nginx = Nginx::start("n");
    let place = Place::start(&listener("web", ""), NOTHING);
    let proxy = Server::tinyproxy(place.folder.path(), "BasicAuth alice right");
    let refused = agent(
        &place,
        "refused",
        &format!("proxy = \"http://alice:wrong-word@{}\"", proxy.address),
        &expose("web", nginx.address),
    );
    let line = refused.wait_line(&["no link: trying again", "proxy http://alice:***@", "CONNECT 127.0.0.1:"]);
    assert!(line.contains("it answered 40") && !refused.text().contains("wrong-word"), "{line}");
    // The file is put right, and the agent asked to read it again.
    let file = place.folder.path().join("refused.toml");
    let text = std::fs::read_to_string(&file).expect("written before").replace("wrong-word", "right");
    std::fs::write(&file, text).expect("written");
    refused.signal("HUP");
    refused.wait_line(&["link up"]);
    until("the visitor to be answered", || get(place.listener("web"), "/").ok());
}

/// The key of a secret service, as `db.key`.
fn secret(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("db.key");
    std::fs::write(&path, "k".repeat(44)).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
}

/// A backend that answers with what it was told, when it has been told everything.
fn late() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut told = Vec::new();
                // One that was cut off is not answered.
                if stream.read_to_end(&mut told).is_ok() {
                    let _ = stream.write_all(&told);
                }
            });
        }
    });
    address
}

/// Visits of a secret service go through each kind of proxy, and in a WebSocket where nothing else passes, with and
/// without a proxy and a TLS of its own before it: every byte, and each half to its own end.
#[test]
fn visits_go_the_ways_of_links() {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    let edge = tempfile::tempdir().expect("a folder");
    std::fs::write(edge.path().join("edge.pem"), made.cert.pem()).expect("written");
    std::fs::write(edge.path().join("edge.key"), made.signing_key.serialize_pem()).expect("written");
    let at = edge.path().display();
    let place = Place::start_with(
        &format!(
            "[[listener]]\nname = \"db\"\ntype = \"visit\"\nlisten = \"127.0.0.1:0\"\nservice = \"db\"\n\
             [[listener]]\nname = \"plain\"\ntype = \"http\"\nlisten = \"127.0.0.1:0\"\n[listener.http]\nagents = \"/link\"\n\
             [[listener]]\nname = \"edge\"\ntype = \"https\"\nlisten = \"127.0.0.1:0\"\n\
             tls = [{{ cert = \"{at}/edge.pem\", key = \"{at}/edge.key\" }}]\n[listener.http]\nagents = \"/link\"\n"
        ),
        &format!("[[expose]]\nservice = \"db\"\naddress = \"{}\"\nsecret_file = \"db.key\"\n", late()),
        secret,
    );
    let (tinyproxy, microsocks) = (Server::tinyproxy(place.folder.path(), ""), Server::microsocks(&[]));
    let (via, plain, tls) = (place.listener("db"), place.listener("plain"), place.listener("edge"));
    let (http, socks) =
        (format!("proxy = \"http://{}\"", tinyproxy.address), format!("socks5://{}", microsocks.address));
    let (ws, wss) = (format!("websocket = \"ws://{plain}/link\""), format!("websocket = \"wss://{tls}/link\""));
    let (ca, socks) = (format!("websocket_ca = \"{at}/edge.pem\""), format!("proxy = \"{socks}\""));
    let via_line = format!("via = \"{via}\"");
    for (name, link, via) in [
        ("http", http.clone(), via_line.as_str()),
        ("socks", socks.clone(), &via_line),
        ("ws", ws, ""),
        ("wss", format!("{wss}\n{ca}"), ""),
        ("wss-http", format!("{wss}\n{ca}\n{http}"), ""),
        ("wss-socks", format!("{wss}\n{ca}\n{socks}"), ""),
    ] {
        let visit = format!("[[visit]]\nservice = \"db\"\nlisten = \"127.0.0.1:0\"\n{via}\nsecret_file = \"db.key\"\n");
        let visitor = agent(&place, name, &link, &visit);
        let port = address_in(&visitor.wait_line(&["visiting a secret service"]), "address");
        visitor.wait_line(&["link up"]);
        for bytes in [3, 4 << 20] {
            let text: Vec<u8> = (0..bytes).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
            let mut stream = TcpStream::connect(port).expect("it listens");
            stream.set_read_timeout(Some(common::PATIENCE)).expect("it has one");
            stream.write_all(&text).expect("it is taken");
            stream.shutdown(std::net::Shutdown::Write).expect("it is open");
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).expect("a clean end");
            assert!(heard == text, "{name}: {} of {bytes} bytes", heard.len());
        }
        visitor.signal("TERM");
    }
    let log = std::fs::read_to_string(place.folder.path().join("tinyproxy.log")).expect("it logs");
    assert!(log.contains(&format!("CONNECT {via}")) && log.contains(&format!("CONNECT {tls}")), "{log}");
    // A service that has no listener for visitors is not visited through a WebSocket either.
    let visit = "[[visit]]\nservice = \"web\"\nlisten = \"127.0.0.1:0\"\nsecret_file = \"db.key\"\n";
    let nowhere = agent(&place, "nowhere", &format!("{wss}\n{ca}"), visit);
    let port = address_in(&nowhere.wait_line(&["visiting a secret service"]), "address");
    nowhere.wait_line(&["link up"]);
    assert!(get(port, "/").is_err());
    nowhere.wait_line(&["the secret service was not reached", "no listener of type visit for it"]);
}

/// A WebSocket behind a real nginx that ends the TLS, straight and through a proxy; nginx dies and comes back, and so does
/// the link.
#[test]
fn a_websocket_behind_nginx() {
    let backend = Nginx::start("n");
    let agents = "[[listener]]\nname = \"agents\"\ntype = \"http\"\nlisten = \"127.0.0.1:0\"\n\
                  [listener.http]\nagents = \"/link\"\ntrusted = [\"127.0.0.1\"]\n";
    let listeners = listener("web", "") + &listener("bulk", "carrier = \"auto\"") + agents;
    let place = Place::start(&listeners, NOTHING);
    let folder = place.folder.path().to_owned();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    std::fs::write(folder.join("edge.pem"), made.cert.pem()).expect("written");
    std::fs::write(folder.join("edge.key"), made.signing_key.serialize_pem()).expect("written");
    let (plain, tls) = (free_port(), free_port());
    let server = format!(
        "listen {tls} ssl; ssl_certificate {at}/edge.pem; ssl_certificate_key {at}/edge.key;\n\
         location /link {{ proxy_pass http://{}; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;\n\
         proxy_set_header Connection \"upgrade\"; proxy_set_header Host $host;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }}",
        place.listener("agents"),
        at = folder.display(),
    );
    let mut edge = Nginx::start_server(plain, &server);
    let proxy = Server::tinyproxy(&folder, "");
    let exposes = expose("web", backend.address) + &expose("bulk", parrot());
    let link = format!("websocket = \"wss://{tls}/link\"\nwebsocket_ca = \"edge.pem\"");
    for (name, more) in [("straight", String::new()), ("proxied", format!("\nproxy = \"http://{}\"", proxy.address))] {
        let before = place.bridge.line_count();
        let agent = agent(&place, name, &(link.clone() + &more), &exposes);
        agent.wait_line(&["link up"]);
        place.bridge.wait_line_from(before, &["backend up", "bulk"]);
        place.bridge.wait_line_from(before, &["backend up", "web"]);
        assert_eq!(get(place.listener("web"), "/").expect("it is reached"), (200, "n".into()), "{name}");
        echo(place.listener("bulk"));

        edge.kill();
        agent.wait_line(&["link lost"]);
        edge = Nginx::start_server(plain, &server);
        until("the link to be back", || get(place.listener("web"), "/").ok());
        agent.signal("TERM");
        place.bridge.wait_line_from(before, &["agent gone"]);
        until("nginx to have logged the end", || (!edge.access_log().is_empty()).then_some(()));
        edge.kill();
        edge = Nginx::start_server(plain, &server);
    }
    // Somebody with a browser gets a sentence, somebody at another path nothing.
    let (status, text) = get(place.listener("agents"), "/link").expect("it answers");
    assert_eq!(status, 426, "{text}");
    assert_eq!(get(place.listener("agents"), "/else").expect("it answers").0, 404);
}

/// The outer certificate is not believed blindly, and what answers there instead of a bridge is named.
#[test]
fn a_websocket_that_leads_nowhere() {
    let place = Place::start(&listener("web", ""), NOTHING);
    let nginx = Nginx::start("no bridge");
    let exposes = expose("web", nginx.address);
    let lost = agent(&place, "lost", &format!("websocket = \"ws://{}/link\"", nginx.address), &exposes);
    lost.wait_line(&["no link: trying again", "ws://127.0.0.1:", "WebSocket upgrade: it answered 200"]);
    let refused = agent(&place, "closed", &format!("websocket = \"ws://{}/link\"", free_port()), &exposes);
    refused.wait_line(&["no link: trying again", "connect: Connection refused"]);
}

/// An agent's own listeners and hosts, as far as its token goes: opened when it comes and when its file changes, closed
/// when it drops them; what is beyond the token, taken, or the bridge's own is refused with a reason at both ends.
#[test]
fn listeners_opened_by_agents() {
    let (a, b) = (Nginx::start("a"), Nginx::start("b"));
    let door = "[[listener]]\nname = \"sites\"\ntype = \"http\"\nlisten = \"127.0.0.1:0\"\n\
                [[listener.route]]\nhost = \"own.example.org\"\nservice = \"own\"\n\
                [listener.http]\nagent_hosts = true\n";
    let place = Place::start(&(listener("own", "") + door), NOTHING);
    let (one, two, three) = (free_port(), free_port(), free_port());
    let token = |more: &[&str]| {
        let own = place.listener("own").to_string();
        let link = address_in(&place.bridge.wait_line(&["bridge is up"]), "link").to_string();
        let mut args = vec!["--http-host", "*.example.org", "--listen", &own, "--listen", &link];
        args.extend(more);
        place.token(&args)
    };
    let start = |name: &str, token: &str, exposes: &str| {
        let config = format!("[link]\ntoken = \"{token}\"\nstate_dir = \"{name}\"\n{exposes}");
        let file = format!("{name}.toml");
        std::fs::write(place.folder.path().join(&file), config).expect("written");
        Running::start(ringspan(&["agent", "--config", &file]).current_dir(place.folder.path()))
    };
    let at = |service: &str, to: SocketAddr, more: &str| {
        format!("[[expose]]\nservice = \"{service}\"\naddress = \"{to}\"\n{more}\n{CHECK}")
    };
    let host = |host: &str| {
        let mut stream = TcpStream::connect(place.listener("sites")).expect("it listens");
        stream.set_read_timeout(Some(common::PATIENCE)).expect("it has one");
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it is taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    };

    let link = address_in(&place.bridge.wait_line(&["bridge is up"]), "link");
    // Both are opened; a second agent gets neither under another service's name, and a share under the same.
    let ranges = [one.to_string(), two.to_string(), three.to_string()];
    let listens = ["--listen", &ranges[0], "--listen", &ranges[1]];
    let wants = at("mine", a.address, &format!("listen = \"{one}\"\nhttp_host = \"A.example.org\""));
    let first = start("first", &token(&listens), &wants);
    first.wait_line(&["the bridge listens for us", &ranges[0], "mine"]);
    first.wait_line(&["the bridge listens for us", "a.example.org"]);
    until("a visitor to be answered", || get(one, "/").is_ok_and(|(_, name)| name == "a").then_some(()));
    assert!(host("a.example.org").ends_with("a"), "{}", host("a.example.org"));
    assert!(host("b.example.org").starts_with("HTTP/1.1 404"));
    let own = place.listener("own");
    let greedy = at("other", b.address, &format!("listen = \"{one}\"\nhttp_host = \"own.example.org\""))
        + &at("steal", b.address, &format!("listen = \"{link}\""))
        + &at("more", b.address, &format!("listen = \"{own}\"\nhttp_host = \"b.example.org\""));
    let second = start("second", &token(&listens), &greedy);
    second.wait_line(&["the bridge does not listen for us", &ranges[0], "agent ", "for service"]);
    second.wait_line(&["the bridge does not listen for us", "own.example.org", "listener \\\"sites\\\" has it"]);
    second.wait_line(&["the bridge does not listen for us", &own.to_string(), "listener \\\"own\\\" has it"]);
    second.wait_line(&["the bridge does not listen for us", &link.to_string(), "link port has it"]);
    place.bridge.wait_line(&["an agent's listener is not opened", &ranges[0]]);
    second.wait_line(&["the bridge listens for us", "b.example.org"]);
    until("the second's host to be served", || host("b.example.org").ends_with('b').then_some(()));

    // Beyond the token: refused as a whole, at both ends.
    let beyond = at("mine", a.address, &format!("listen = \"{three}\""));
    let mut third = start("third", &token(&listens), &beyond);
    assert_eq!(third.wait(), 2, "{}", third.text());
    let allowed = third.wait_line(&["allows", &ranges[0], &format!("not {three}")]);
    assert!(allowed.contains("token create --listen"), "{allowed}");
    place.bridge.wait_line(&["agent refused", &format!("not {three}")]);

    // Another file, without a restart: one is dropped, one comes.
    let config = std::fs::read_to_string(place.folder.path().join("first.toml")).expect("written before");
    let config = config.replace(&ranges[0], &ranges[1]);
    std::fs::write(place.folder.path().join("first.toml"), config).expect("written");
    first.signal("HUP");
    first.wait_line(&["the bridge listens for us", &ranges[1]]);
    until("the new one to be served", || get(two, "/").is_ok_and(|(_, name)| name == "a").then_some(()));
    until("the old one to be closed", || TcpStream::connect(one).is_err().then_some(()));
}

/// A token for visits lets visit, and nothing else.
#[test]
fn a_token_for_visits() {
    let nginx = Nginx::start("secret words");
    let place = Place::start_with(
        "[[listener]]\nname = \"db\"\ntype = \"visit\"\nlisten = \"127.0.0.1:0\"\nservice = \"db\"\n",
        &format!("[[expose]]\nservice = \"db\"\naddress = \"{}\"\nsecret_file = \"db.key\"\n", nginx.address),
        secret,
    );
    let via = place.listener("db");
    let visit =
        format!("[[visit]]\nservice = \"db\"\nlisten = \"127.0.0.1:0\"\nvia = \"{via}\"\nsecret_file = \"db.key\"\n");
    let start = |name: &str, scope: &[&str], more: &str| {
        let config = format!("[link]\ntoken = \"{}\"\nstate_dir = \"{name}\"\n{more}", place.token(scope));
        let file = format!("{name}.toml");
        std::fs::write(place.folder.path().join(&file), config).expect("written");
        Running::start(ringspan(&["agent", "--config", &file]).current_dir(place.folder.path()))
    };
    let good = start("good", &["--visit", "db"], &visit);
    let port = address_in(&good.wait_line(&["visiting a secret service"]), "address");
    good.wait_line(&["link up"]);
    assert_eq!(get(port, "/").expect("it is reached"), (200, "secret words".into()));
    let other = start("other", &["--visit", "mail", "--service", "web"], &visit);
    let port = address_in(&other.wait_line(&["visiting a secret service"]), "address");
    other.wait_line(&["link up"]);
    assert!(get(port, "/").is_err());
    other.wait_line(&["the secret service was not reached", "token create --visit db"]);
    let mut exposing = start("exposing", &["--visit", "db"], &expose("db", nginx.address));
    assert_eq!(exposing.wait(), 2, "{}", exposing.text());
}
