//! A reverse tunnel: bridge, agents, a multiplexed link that splices.
//!
//! ```text
//! visitor ─▶ bridge ═link (1 to 16 carriers)═▶ agent ─▶ backend
//!            plane: carriers, streams' sockets, movers ── mux ── credit, frame
//! ```
//! Who and how, all of it pure or sans-IO: [`token`], [`identity`], [`tls`], [`hello`], [`backoff`], [`health_feed`],
//! [`routes`]. The bytes: [`frame`], [`credit`], [`memory`], [`mux`], [`moving`] (pure) and `plane` (sockets, on the
//! engine's workers). The two
//! programs: [`bridge`] and [`agent`]; both inside another program, in a few lines: [`embed`].
//!
//! ```
//! use ringspan_tunnel::embed::{AgentConfig, AgentHost, BridgeConfig, BridgeHost};
//! use std::io::{Read, Write};
//!
//! // Some server that only the agent can reach.
//! let server = std::net::TcpListener::bind("127.0.0.1:0")?;
//! let backend = server.local_addr()?;
//! std::thread::spawn(move || server.accept().and_then(|(mut visitor, _)| visitor.write_all(b"welcome")));
//!
//! let listeners = vec![("web".to_owned(), "127.0.0.1:0".parse()?)];
//! let bridge = BridgeHost::start(&BridgeConfig { listeners, ..BridgeConfig::default() })?;
//! let _agent = AgentHost::start(AgentConfig::new(bridge.token(&["web"]), [("web".to_owned(), backend)]))?;
//! while !bridge.is_served("web") {
//!     std::thread::yield_now();
//! }
//! let mut visitor = std::net::TcpStream::connect(bridge.address("web").expect("it listens"))?;
//! let mut answer = String::new();
//! visitor.read_to_string(&mut answer)?;
//! assert_eq!(answer, "welcome");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod address;
pub mod agent;
pub mod backoff;
pub mod bridge;
pub mod credit;
pub mod embed;
pub mod fingerprint;
pub mod frame;
pub mod health_feed;
pub mod hello;
pub mod identity;
pub mod keys;
pub mod limits;
pub mod memory;
pub mod moving;
pub mod mux;
pub mod outliers;
mod plane;
mod private_file;
pub mod proxy_header;
pub mod rights;
pub mod routes;
mod slots;
pub mod stats;
pub mod tls;
pub mod token;
pub mod watch_feed;
