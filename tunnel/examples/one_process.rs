//! A bridge and an agent in one process: what a visitor says to the bridge reaches a server that the bridge cannot
//! dial, and the answer comes back. Run it: `cargo run -p ringspan-tunnel --example one_process`.

use ringspan_tunnel::embed::{AgentConfig, AgentHost, BridgeConfig, BridgeHost};
use std::error::Error;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    println!("the server behind the tunnel said: {}", run("hello")?);
    Ok(())
}

/// Says `word` through a tunnel; the answer.
pub(crate) fn run(word: &str) -> Result<String, Box<dyn Error>> {
    // A server on some other machine, behind NAT: it answers in capitals.
    let server = TcpListener::bind("127.0.0.1:0")?;
    let backend = server.local_addr()?;
    std::thread::spawn(move || -> std::io::Result<()> {
        loop {
            let (mut visitor, _) = server.accept()?;
            let mut said = String::new();
            visitor.read_to_string(&mut said)?;
            visitor.write_all(said.to_uppercase().as_bytes())?;
        }
    });

    // The bridge, where visitors and agents can reach it. Its key stays in a folder: agents know it by that.
    let folder = tempfile::tempdir()?;
    let bridge = BridgeHost::start(&BridgeConfig {
        key_dir: Some(folder.path().to_owned()),
        listeners: vec![("shout".into(), "127.0.0.1:0".parse()?)],
        ..BridgeConfig::default()
    })?;

    // The agent, beside the server. The token tells it where the bridge is and how to know it.
    let token = bridge.token(&["shout"]);
    let _agent = AgentHost::start(AgentConfig::new(token, [("shout".to_owned(), backend)]))?;
    let started = Instant::now();
    while !bridge.is_served("shout") {
        if started.elapsed() > Duration::from_secs(60) {
            return Err("the agent did not come".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }

    // A visitor.
    let mut visitor = TcpStream::connect(bridge.address("shout").ok_or("it listens")?)?;
    visitor.write_all(word.as_bytes())?;
    visitor.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    visitor.read_to_string(&mut answer)?;
    Ok(answer)
}
