//! `ringspan bridge`: keeps a bridge running until a signal, lets it read its file again, and lets another take its place.
//!
//! ```text
//! file changed, SIGHUP ──▶ reload     SIGUSR2 ──▶ a successor starts     admin socket: "takeover" ──▶ retired
//! ```
//! [`BridgeServer`] is all of it without flags and signals; `ringspan demo` runs the same one.

pub(crate) mod access;
mod bind;
mod hooks;
mod leases;
mod listeners;
mod listening;
mod metrics;
mod pump;
mod reload;
mod retired;
mod scouts;
mod server;
mod sessions;
mod takeover;

use crate::config::bridge::Bridge as Config;
use crate::machine::Signals;
use crate::watch_file::{WatchFile, Why};
use crate::{Ending, Failure, cli, machine};
pub(crate) use bind::cannot_listen;
use retired::start_successor;
use ringspan_tunnel::identity::{AgentId, AgentName};
pub(crate) use server::{BridgeServer, REGISTRY_FILE, registry_options};
use takeover::Predecessor;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Runs the subcommand until a signal.
pub(crate) fn run(args: &cli::Bridge) -> Result<Ending, Failure> {
    let config = match &args.config {
        Some(file) => Config::read(file)?,
        None => Config::default(),
    };
    machine::prepare();
    let runtime = machine::runtime()?;
    runtime.block_on(async {
        let mut signals = Signals::catch();
        let mut watch = WatchFile::new(args.config.as_deref());
        let mut upgrade = signal(SignalKind::user_defined2()).expect("a runtime with signals can listen for them");
        crate::inherit::put(ringspan_engine::kernel::handover::listen_fds());
        let folder = config.data_dir.clone();
        let predecessor = match args.takeover {
            false => None,
            true => tokio::task::spawn_blocking(move || Predecessor::ask(&folder)).await.map_err(panicked)??,
        };
        let mut server =
            BridgeServer::start_with(&config, predecessor.as_ref().map(|predecessor| &predecessor.estate))?;
        if args.config.is_none() {
            tracing::info!(
                data_dir = %config.data_dir.display(),
                "no --config: data in this folder, listening on loopback alone. Try: ringspan token create"
            );
        }
        if let Some(mut predecessor) = predecessor {
            predecessor.say("ready");
            takeover::agents_are_here(&server, &predecessor.estate).await;
            predecessor.say("settled");
            tokio::task::spawn_blocking(|| predecessor.wait_left()).await.map_err(panicked)?;
            server.let_in()?;
            tracing::info!("taken over: visitors are accepted");
        }
        for waiting in crate::inherit::rest() {
            tracing::warn!(address = %waiting.address, udp = waiting.is_udp, "an inherited socket that nobody wants");
        }
        machine::notify_supervisor();
        let mut successors = server.successors.take();
        // Of successors that died: what we were before we started over, with its visitors.
        let mut earlier = JoinSet::new();
        let ending = loop {
            let event = tokio::select! {
                () = signals.caught() => break Ending::Good,
                () = server.broken() => break Ending::Down,
                why = watch.due() => Event::Reload(why),
                _ = upgrade.recv() => Event::Upgrade,
                Some(stream) = recv(&mut successors) => Event::Successor(stream),
            };
            match event {
                Event::Reload(why) => {
                    if let Some(file) = &args.config {
                        // It has been told.
                        let _ = server.reload(file, why).await;
                    }
                }
                Event::Upgrade => start_successor(),
                Event::Successor(stream) => {
                    let now = server.real_config();
                    let estate = server.estate();
                    let drain = now.drain;
                    let (mut retired, result) = server.hand_over(stream).await;
                    let Err(error) = result else {
                        tokio::select! {
                            () = async { retired.drained().await; all_end(&mut earlier).await } => {}
                            // A signal is a matter of `drain` here too, and the second one of nothing.
                            () = async { signals.caught().await; signals.patience(drain).await } => {}
                        }
                        retired.stop().await;
                        return Ok(Ending::Good);
                    };
                    tracing::error!(%error, "whoever was to take over did not: starting over, with the same sockets");
                    let (sockets, paths) = retired.sockets()?;
                    crate::inherit::put(sockets);
                    crate::inherit::put_paths(paths);
                    server = BridgeServer::start_with(&now, Some(&estate))?;
                    successors = server.successors.take();
                    retired.handle.call_over("the bridge starts over");
                    takeover::agents_are_here(&server, &estate).await;
                    retired.leave().await;
                    server.let_in()?;
                    earlier.spawn(async move {
                        let mut retired = retired;
                        retired.drained().await;
                        retired.stop().await;
                    });
                }
            }
        };
        if ending == Ending::Good {
            let (patience, visitors) = (server.drain_max(), server.visitors());
            let until = Instant::now() + patience;
            machine::notify_stopping();
            tracing::info!(visitors, ?patience, "bridge drains; a second signal ends it at once");
            tokio::select! {
                () = async {
                    server.drain(patience).await;
                    let _ = tokio::time::timeout_at(until, all_end(&mut earlier)).await;
                } => {}
                () = signals.caught() => tracing::info!(visitors = server.visitors(), "ended by a second signal"),
            }
        }
        server.stop().await;
        Ok(ending)
    })
}

/// What a running bridge is asked for.
enum Event {
    Reload(Why),
    Upgrade,
    Successor(std::os::unix::net::UnixStream),
}

async fn recv<T>(queue: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    queue.as_mut()?.recv().await
}

async fn all_end(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

fn panicked(error: tokio::task::JoinError) -> Failure {
    Failure::Run(error.to_string())
}

/// The registry's cluster of an agent.
pub(crate) fn cluster(name: &AgentName, agent: AgentId) -> String {
    sessions::cluster(name, agent)
}
