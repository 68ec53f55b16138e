//! A registry and an engine, and nothing else: for trying an SDK against. Loopback only.
//!
//! ```text
//! cargo run -p ringspan-registry --example serve -- [LISTEN [STORE]]      default 127.0.0.1:8848, in memory; gRPC at + 1000
//! ```

use ringspan_engine::engine::{Engine, Options as EngineOptions};
use ringspan_registry::grpc::{Clients, GrpcServer, Limits};
use ringspan_registry::push::Hub;
use ringspan_registry::push::udp::UdpPusher;
use ringspan_registry::{Options, Registry, http, prober};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:8848".into());
    let registry = Registry::open(&Options { path: args.next().map(Into::into), ..Options::default() })?;

    let bell = prober::Bell::default();
    let options = EngineOptions { workers: 1, pin: false, ..EngineOptions::default() };
    let (engine, feed) = Engine::start(&options, Arc::new(bell.clone()), |_| Vec::new())?;
    let engine = Arc::new(engine);
    let probes = engine.probes();
    let stats: http::ProbeStats = Arc::new(move || engine.stats());
    let (hub, clients) = (Hub::default(), Clients::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let address: SocketAddr = listen.parse().map_err(std::io::Error::other)?;
        let udp = UdpPusher::bind(address, hub.clone())?;
        let options = http::Options {
            probe_stats: Some(stats),
            hub: hub.clone(),
            udp: Some(udp.clone()),
            clients: clients.clone(),
            ..http::Options::default()
        };
        let router = http::router(registry.clone(), options).into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(hub.clone().run(registry.clone()));
        tokio::spawn(udp.run());
        let grpc = TcpListener::bind((address.ip(), address.port() + 1000)).await?;
        let (_stop, stopping) = tokio::sync::watch::channel(false);
        tokio::spawn(GrpcServer::on(grpc).serve(registry.clone(), hub, clients, Limits::default(), stopping));
        tokio::spawn(prober::run(registry.clone(), (probes, feed), bell, prober::policy_default()));
        let listener = TcpListener::bind(address).await?;
        println!("listening on http://{}", listener.local_addr()?);
        let stop = async { drop(tokio::signal::ctrl_c().await) };
        axum::serve(listener, router).with_graceful_shutdown(stop).await
    })?;
    registry.stop();
    Ok(())
}
