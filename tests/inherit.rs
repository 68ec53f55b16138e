//! Claim: sockets that wait for visitors come from whoever had them before: from a supervisor (sd_listen_fds(3)), or, for
//! each kind of door, from the bridge that ran before, which ends in its time.
//! Method: real processes, nginx and a UDP echo on loopback, visitors without a pause.

mod common;

use common::site::free;
use common::world::{Nginx, World, get};
use common::{Running, load::Load, parts, ringspan, run_with, until};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

const TAKEOVER: &[&str] = &["bridge", "--config", "bridge.toml", "--takeover"];

/// Sends each datagram back, as long as there is a test.
fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("bound");
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    });
    address
}

/// One question by datagram, asked until it is answered: a datagram may be lost.
fn ask(to: SocketAddr, socket: &UdpSocket, text: &[u8]) {
    let mut buffer = [0; 2048];
    until("a datagram's answer", || {
        socket.send_to(text, to).expect("loopback takes it");
        // An older one may come late.
        let (n, from) = socket.recv_from(&mut buffer).ok()?;
        assert_eq!(from, to, "answers come from where was asked");
        (&buffer[..n] == text).then_some(())
    });
}

fn udp_visitor() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("it has one");
    socket
}

/// One visit to who listens at a path.
fn visit(path: &Path) -> Result<(), String> {
    let ask = || {
        let mut stream = UnixStream::connect(path)?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    let answer = ask().map_err(|error| error.to_string())?;
    if answer.starts_with("HTTP/1.1 200") && answer.ends_with('a') { Ok(()) } else { Err(answer) }
}

/// Starts an agent with these backends, and waits until all are up.
fn agent(world: &World, exposes: &str) -> Running {
    let config = format!("[link]\ntoken = \"{}\"\nstate_dir = \"agent\"\n{exposes}", world.token(&[]));
    std::fs::write(world.folder.path().join("agent.toml"), config).expect("written");
    let agent = Running::start(&mut world.command(&["agent", "--config", "agent.toml"]));
    let all = exposes.matches("[[expose]]").count();
    until("all backends to be up", || (world.bridge.text().matches("backend up").count() == all).then_some(()));
    agent
}

/// What a program said in a visitor's ear, through the proxy.
fn by_proxy(world: &World, proxy: SocketAddr, to: SocketAddr) -> (i32, String, String) {
    let proxy = format!("socks5h://alice:secret@{proxy}");
    let args = ["-s", "-S", "--max-time", "30", "-x", &proxy, &format!("http://{to}/")];
    parts(&run_with(Command::new("curl").args(args).current_dir(world.folder.path()), ""))
}

/// An http, a udp, a socks5 door, one at a path, and one of tcp: twice they go to the next bridge, and nobody is turned away.
#[test]
fn each_kind_of_door_goes_over() {
    let (nginx, echo) = (Nginx::start("a"), udp_echo());
    let (site, dns, socks) = (free(), free(), free());
    let mut world = World::start_with(&format!(
        "[[listener]]\nname = \"site\"\ntype = \"http\"\nlisten = \"{site}\"\nservice = \"web\"\n\
         [[listener]]\nname = \"dns\"\ntype = \"udp\"\nlisten = \"{dns}\"\nservice = \"dns\"\n\
         [[listener]]\nname = \"socks\"\ntype = \"socks5\"\nlisten = \"{socks}\"\nservice = \"net\"\n\
         users = [\"alice:secret\"]\n\
         [[listener]]\nname = \"at\"\ntype = \"tcp\"\nlisten = \"unix:at.sock\"\nservice = \"web\"\n"
    ));
    let _agent = agent(
        &world,
        &format!(
            "[[expose]]\nservice = \"web\"\naddress = \"{}\"\n[[expose]]\nservice = \"dns\"\ntype = \"udp\"\naddress = \"{echo}\"\n\
         [[expose]]\nservice = \"net\"\ntype = \"proxy\"\nallow = [\"127.0.0.1:*\"]\n",
            nginx.address
        ),
    );
    let visitor = udp_visitor();
    ask(dns, &visitor, b"before");
    let (load, at_tcp) = (Load::start(site), Load::start(world.web));
    // A takeover closes the store before it opens it again: who asks the registry meanwhile waits.
    let at_registry = Load::start_for(world.http, "/nacos/v1/ns/instance/list?serviceName=web");
    let path = world.folder.path().join("at.sock");
    let at_path = Load::of(move || visit(&path));
    for round in 0..2 {
        load.more(20);
        at_tcp.more(20);
        at_registry.more(20);
        at_path.more(20);
        let next = Running::start(&mut world.command(TAKEOVER));
        next.wait_line(&["taken over"]);
        let mut old = std::mem::replace(&mut world.bridge, next);
        ask(dns, &visitor, format!("after {round}").as_bytes());
        ask(dns, &udp_visitor(), b"new here");
        assert_eq!(old.wait(), 0, "{}", old.text());
        load.more(20);
        at_tcp.more(20);
        at_registry.more(20);
        at_path.more(20);
        ask(dns, &visitor, format!("alone {round}").as_bytes());
        assert_eq!(by_proxy(&world, socks, nginx.address), (0, "a".into(), String::new()));
        let text = world.bridge.text();
        for line in text.lines().filter(|line| line.contains("nobody wants")) {
            let lost = [site, dns, socks, world.web].iter().any(|at| line.contains(&format!("{at} ")));
            assert!(!lost, "{line}");
        }
    }
    load.end();
    at_tcp.end();
    at_registry.end();
    at_path.end();
}

/// The old bridge waits for its visitors as long as it was told to, and not longer.
#[test]
fn the_old_one_has_its_time() {
    let echo = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut world = World::start();
    let _agent =
        agent(&world, &format!("[[expose]]\nservice = \"web\"\naddress = \"{}\"\n", echo.local_addr().expect("bound")));
    let path = world.folder.path().join("bridge.toml");
    let text = std::fs::read_to_string(&path).expect("it is there");
    std::fs::write(&path, format!("drain_takeover = \"1s\"\n{text}")).expect("written");
    world.bridge.wait_line(&["drain_takeover 1s"]);
    let mut visitor = TcpStream::connect(world.web).expect("it listens");
    visitor.write_all(b"?").expect("said");
    let mut backend = until("the visitor at the backend", || {
        let (mut stream, _) = echo.accept().expect("it listens");
        // The agent's checks say nothing.
        matches!(stream.read(&mut [0]), Ok(1)).then_some(stream)
    });
    let next = Running::start(&mut world.command(TAKEOVER));
    next.wait_line(&["taken over"]);
    let mut old = std::mem::replace(&mut world.bridge, next);
    // Still served when another has taken over.
    backend.write_all(b"!").expect("said");
    visitor.read_exact(&mut [0]).expect("heard");
    assert_eq!(old.wait(), 0, "{}", old.text());
    assert!(!matches!(visitor.read(&mut [0]), Ok(1)), "it is over for it");
}

/// Binds what it is told, and becomes the program that is told: what a supervisor does.
const SUPERVISOR: &str = "
import os, socket, sys
kinds = {'tcp': socket.SOCK_STREAM, 'udp': socket.SOCK_DGRAM}
sockets = []
for word in sys.argv[1].split(','):
    kind, port = word.split(':')
    s = socket.socket(socket.AF_INET, kinds[kind])
    s.bind(('127.0.0.1', int(port)))
    if kind == 'tcp':
        s.listen()
    sockets.append(os.dup2(s.fileno(), 100 + len(sockets), inheritable=False))
for n, fd in enumerate(sockets):
    os.dup2(fd, 3 + n)
os.environ['LISTEN_FDS'] = str(len(sockets))
os.environ['LISTEN_PID'] = str(os.getpid())
os.execvp(sys.argv[2], sys.argv[2:])
";

/// Its link, http, and two doors have been bound by somebody else, who keeps the ports: nobody could bind them again.
/// What nobody wants is told, and closed.
#[test]
fn a_supervisor_s_sockets() {
    let (nginx, echo) = (Nginx::start("a"), udp_echo());
    let (web, dns, http, link, other) = (free(), free(), free(), free(), free());
    let folder = tempfile::tempdir().expect("a folder");
    let config = format!(
        "data_dir = \"data\"\n[http]\nlisten = \"{http}\"\n[link]\nlisten = \"{link}\"\n[engine]\nworkers = 2\n\
         [[listener]]\nname = \"web\"\ntype = \"tcp\"\nlisten = \"{web}\"\nservice = \"web\"\n\
         [[listener]]\nname = \"dns\"\ntype = \"udp\"\nlisten = \"{dns}\"\nservice = \"dns\"\n"
    );
    std::fs::write(folder.path().join("bridge.toml"), config).expect("written");
    let program = ringspan(&["bridge", "--config", "bridge.toml"]);
    let sockets =
        format!("tcp:{},tcp:{},tcp:{},udp:{},tcp:{}", web.port(), http.port(), link.port(), dns.port(), other.port());
    let mut supervised = Command::new("python3");
    supervised.args(["-c", SUPERVISOR, &sockets]).arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => supervised.env(name, value),
            None => supervised.env_remove(name),
        };
    }
    let bridge = Running::start(supervised.current_dir(folder.path()));
    bridge.wait_line(&["an inherited socket that nobody wants", &other.to_string()]);
    bridge.wait_line(&["bridge is up"]);
    assert_eq!(bridge.text().matches("nobody wants").count(), 1, "all others are used: {}", bridge.text());
    let (code, token, err) =
        parts(&run_with(ringspan(&["token", "create", "--config", "bridge.toml"]).current_dir(folder.path()), ""));
    assert_eq!(code, 0, "{err}");
    let agent = format!(
        "[link]\ntoken = \"{}\"\nstate_dir = \"state\"\n[[expose]]\nservice = \"web\"\naddress = \"{}\"\n\
         [[expose]]\nservice = \"dns\"\ntype = \"udp\"\naddress = \"{echo}\"\n",
        token.trim(),
        nginx.address
    );
    std::fs::write(folder.path().join("agent.toml"), agent).expect("written");
    let _agent = Running::start(ringspan(&["agent", "--config", "agent.toml"]).current_dir(folder.path()));
    until("a visitor to be answered", || get(web, "/").ok().filter(|answer| answer == &(200, "a".into())));
    ask(dns, &udp_visitor(), b"by a supervisor's socket");
    assert!(TcpStream::connect(other).is_err(), "it was closed");
}
