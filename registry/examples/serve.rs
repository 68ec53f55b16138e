//! A registry and an engine, and nothing else: for trying an SDK against. Loopback only.
//!
//! ```text
//! cargo run -p ringspan-registry --example serve -- [LISTEN [STORE]]      default 127.0.0.1:8848, in memory
//! ```

use ringspan_engine::engine::{Engine, Options as EngineOptions};
use ringspan_registry::{Options, Registry, http, prober};
use std::error::Error;
use std::sync::Arc;

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
    let router = http::router(registry.clone(), http::Options { probe_stats: Some(stats), ..http::Options::default() });

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        tokio::spawn(prober::run(registry.clone(), (probes, feed), bell, prober::policy_default()));
        let listener = tokio::net::TcpListener::bind(&listen).await?;
        println!("listening on http://{}", listener.local_addr()?);
        let stop = async { drop(tokio::signal::ctrl_c().await) };
        axum::serve(listener, router).with_graceful_shutdown(stop).await
    })?;
    registry.stop();
    Ok(())
}
