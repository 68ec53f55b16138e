//! Bridges and agents inside another program: the example does what it says, and who may not come in does not.

#[path = "../examples/one_process.rs"]
#[expect(dead_code, reason = "its main is the example's")]
mod one_process;

use ringspan_tunnel::embed::{AgentConfig, AgentHost, BridgeConfig, BridgeHost};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Reached only by a bug.
const PATIENCE: Duration = Duration::from_secs(60);

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < PATIENCE, "never: {what}");
        std::thread::yield_now();
    }
}

/// The words go there and come back changed.
#[test]
fn the_example_runs() {
    assert_eq!(one_process::run("hello, tunnel").expect("it runs"), "HELLO, TUNNEL");
}

/// A server that says its name to everybody.
fn server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(name.as_bytes()));
        }
    });
    address
}

fn visit(bridge: &BridgeHost) -> String {
    let mut stream = TcpStream::connect(bridge.address("web").unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // It may be reset already.
    let _ = stream.shutdown(Shutdown::Write);
    let mut name = String::new();
    match stream.read_to_string(&mut name) {
        Ok(_) => name,
        Err(error) => format!("{:?}", error.kind()),
    }
}

/// A token lets in for its services alone; an agent's backends get visitors while they are up and it is there.
#[test]
fn tokens_and_health_decide() {
    let listeners = vec![("web".to_owned(), "127.0.0.1:0".parse().unwrap())];
    let bridge = BridgeHost::start(&BridgeConfig { listeners, ..BridgeConfig::default() }).unwrap();
    let start = |token: String| AgentHost::start(AgentConfig::new(token, [("web".to_owned(), server("a"))])).unwrap();
    let stranger = start(bridge.token(&["mail"]));
    let agent = start(bridge.token(&["web"]));
    until("the service is there", || bridge.is_served("web"));
    assert_eq!(visit(&bridge), "a");
    assert!(!stranger.is_linked());
    agent.set_up(0, false);
    until("the backend is down", || !bridge.is_served("web"));
    assert_eq!(visit(&bridge), "ConnectionReset");
    agent.set_up(0, true);
    until("the backend is up", || bridge.is_served("web"));
    assert_eq!(visit(&bridge), "a");
    drop(agent);
    until("the agent is gone", || !bridge.is_served("web"));
}

/// What cannot start says why.
#[test]
fn mistakes_are_named() {
    let agent = |token: &str, service: &str| {
        let exposes = [(service.to_owned(), SocketAddr::from(([127, 0, 0, 1], 1)))];
        AgentHost::start(AgentConfig::new(token, exposes)).err().expect("it cannot start").to_string()
    };
    assert!(agent("ringspan1.x", "web").contains("no @host:port"));
    let bridge = BridgeHost::start(&BridgeConfig::default()).unwrap();
    assert!(agent(&bridge.token(&[]), "a b").contains("a service's name"));
    let taken = BridgeConfig { link: bridge.link_address(), ..BridgeConfig::default() };
    let error = BridgeHost::start(&taken).err().expect("it is taken").to_string();
    assert!(error.contains("link") && error.contains("cannot listen"), "{error}");
}

/// What docs/library.md shows is the example that is run.
#[test]
fn the_document_shows_the_example() {
    let document = include_str!("../../docs/library.md");
    let (_, rest) = document.split_once("```rust\n").expect("it has an example");
    let (shown, _) = rest.split_once("```\n").expect("it ends");
    assert!(include_str!("../examples/one_process.rs").ends_with(shown), "docs/library.md shows another program");
}
