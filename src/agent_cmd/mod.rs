//! `ringspan agent`: checks its backends with the engine, tells the bridge, carries visitors to them.
//!
//! ```text
//! workers: prober ── transitions ──► set_health ──► data path: health feed, carriers, dials
//! ```
//! How it ends: a signal, 0; a token or an exposed service that the bridge refuses, 2; an identity that the bridge has
//! revoked or does not know, 1. A bridge that is away, busy, or of another version is tried again for ever.

mod checks;
mod link;
mod reload;
mod uplink;
mod watches;

use crate::config::agent::Agent as Config;
use crate::config::agent::Secret;
use crate::config::agent_link::AgentLink;
use crate::config::bridge::Engine as EngineConfig;
use crate::config::check::CHECK_DEFAULT;
use crate::config::drain::DRAIN_DEFAULT;
use crate::config::expose::Expose;
use crate::doors::secret::visit::Visits;
use crate::machine::Signals;
use crate::watch_file::{WatchFile, Why};
use crate::{Ending, Failure, cli, machine};
use checks::Checks;
use link::Link;
use ringspan_engine::engine::{Engine, Feed};
use ringspan_engine::health::Health;
use ringspan_engine::mailbox::Wake;
use ringspan_engine::target::Transition;
use ringspan_engine::worker::RESIDENTS_MAX;
use ringspan_tunnel::fingerprint::Trust;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use uplink::{House, Uplink};

/// How often the workers are looked at.
const WATCH: Duration = Duration::from_millis(500);
/// How often an agent that leaves looks whether it is alone.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// Runs the subcommand until a signal or a refusal.
pub(crate) fn run(args: &cli::Agent) -> Result<Ending, Failure> {
    let config = match &args.config {
        Some(file) => Config::read(file)?,
        None => of_flags(args)?,
    };
    machine::prepare();
    let runtime = machine::runtime()?;
    runtime.block_on(async {
        let mut signals = Signals::catch();
        let watch = args.config.as_ref().map(|path| (WatchFile::new(Some(path)), path.clone()));
        let mut server = AgentServer::start(config).await?;
        let ending = tokio::select! {
            () = signals.caught() => Ok(Ending::Good),
            failure = server.serve(watch) => Err(failure),
        };
        if ending.is_ok() {
            let patience = server.config.drain;
            crate::machine::notify_stopping();
            tracing::info!(visitors = server.visitors(), ?patience, "agent drains; a second signal ends it at once");
            tokio::select! {
                () = server.drain(patience) => {}
                () = signals.caught() => tracing::info!(visitors = server.visitors(), "ended by a second signal"),
            }
        }
        server.stop().await;
        ending
    })
}

fn of_flags(args: &cli::Agent) -> Result<Config, Failure> {
    if args.expose.is_empty() {
        return Err(Failure::Usage(
            "nothing to offer. Try: --expose web=127.0.0.1:8080, or --config agent.toml".into(),
        ));
    }
    let expose = |(service, address): &(String, std::net::SocketAddr)| {
        Expose::new(service.clone(), (*address).into(), CHECK_DEFAULT)
    };
    let state_dir = args.state_dir.clone().unwrap_or_else(|| cli::STATE_DIR_DEFAULT.into());
    let token = args.token.as_ref().map(|t| Secret(t.trim().to_owned()));
    Ok(Config {
        links: vec![AgentLink { token, ..AgentLink::at(state_dir) }],
        exposes: args.expose.iter().map(expose).collect(),
        visits: Vec::new(),
        engine: EngineConfig::default(),
        memory: ringspan_tunnel::memory::MemoryLimits::default(),
        drain: DRAIN_DEFAULT,
        checks: Vec::new(),
    })
}

/// Rung by the workers: verdicts have changed, or the link has.
#[derive(Default)]
struct Bell(Notify);

impl Wake for Bell {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// A running agent.
pub(crate) struct AgentServer {
    engine: Engine,
    feed: Feed,
    bell: Arc<Bell>,
    house: House,
    checks: Checks,
    uplinks: Vec<Uplink>,
    /// Of bridges that are left, with their last visitors.
    leaving: Vec<Uplink>,
    config: Config,
    visits: Visits,
    transitions: Vec<Transition>,
}

impl AgentServer {
    /// Settles who we are, starts the workers and the checks; the links come up by themselves. Needs a runtime.
    pub(crate) async fn start(config: Config) -> Result<AgentServer, Failure> {
        let run = |text: String| Failure::Run(text);
        let engine_options = config.engine.options();
        let bell = Arc::new(Bell::default());
        let (engine, feed) =
            Engine::start(&engine_options, bell.clone(), |_| Vec::new()).map_err(|e| run(e.to_string()))?;
        let lodging = engine.lodging().expect("it was started a moment ago");
        let allowed = watches::Allowed::new(arc_swap::ArcSwap::from_pointee(config.checks.clone()));
        let house = House { lodging, bell: bell.clone(), memory: config.memory, probes: engine.probes(), allowed };
        let mut checks = Checks::new(engine.probes());
        let mut uplinks = Vec::new();
        for link in &config.links {
            let uplink = Uplink::start(link, &config.exposes, &mut checks, house.clone()).await?;
            tell_up(uplink.link(), link, &config, &engine);
            if uplink.link().trust != Trust::Plain {
                machine::tell_ktls(link.ktls);
            }
            uplinks.push(uplink);
        }
        let mut visits = Visits::default();
        visit(&mut visits, &config, &uplinks)?;
        Ok(AgentServer {
            engine,
            feed,
            bell,
            house,
            checks,
            uplinks,
            leaving: Vec::new(),
            config,
            visits,
            transitions: Vec::new(),
        })
    }

    /// Serves until no bridge wants us any more, or a worker dies. `watch`: reads this configuration again when it is
    /// due.
    pub(crate) async fn serve(&mut self, mut watch: Option<(WatchFile, PathBuf)>) -> Failure {
        let mut tick = tokio::time::interval(WATCH);
        loop {
            self.tell_health();
            if let Some(failure) = self.take_events() {
                return failure;
            }
            tokio::select! {
                () = self.bell.0.notified() => {}
                why = due(&mut watch) => {
                    let path = watch.as_ref().map(|(_, path)| path.clone()).expect("there is something to watch");
                    self.reload(why, &path).await;
                }
                _ = tick.tick() => {
                    self.uplinks.iter_mut().for_each(Uplink::tick);
                    self.leaving.iter_mut().for_each(Uplink::tick);
                    self.leaving.retain(|uplink| !uplink.is_drained());
                    let keys: Vec<u64> = self.uplinks.iter().chain(&self.leaving).flat_map(Uplink::keys).collect();
                    self.checks.keep(&keys).await;
                    if !self.engine.is_whole() {
                        return Failure::Run("a worker has died; its panic stands above in the log".into());
                    }
                }
            }
        }
    }

    /// Visitors and backends that are connected.
    fn visitors(&self) -> u64 {
        self.uplinks.iter().chain(&self.leaving).map(Uplink::visitors).sum()
    }

    /// Takes no more visitors, and carries those there are, for at most `patience`.
    pub(crate) async fn drain(&mut self, patience: Duration) {
        let until = tokio::time::Instant::now() + patience;
        self.uplinks.iter().for_each(Uplink::drain);
        self.visits.drain();
        while tokio::time::Instant::now() < until
            && !(self.uplinks.iter().chain(&self.leaving).all(Uplink::is_drained) && self.visits.is_drained())
        {
            // Asks of the last visitors are still answered, and what is known of backends is told.
            self.tell_health();
            let _ = self.take_events();
            let _ = tokio::time::timeout(DRAIN_LOOK, self.bell.0.notified()).await;
        }
    }

    /// Stops the workers: streams end, bridges hear a clean end.
    pub(crate) async fn stop(mut self) {
        tracing::info!("agent stops");
        let _ = tokio::task::spawn_blocking(move || self.engine.stop()).await;
    }

    /// Reads the configuration again and does what it says. A bad one changes nothing.
    async fn reload(&mut self, why: Why, path: &Path) {
        let mut config = match Config::read(path) {
            Ok(config) => config,
            Err(error) => return tracing::error!(%error, ?why, "configuration not read again: the old one stays"),
        };
        let called = |dir: &Path| self.uplinks.iter().find(|uplink| *uplink.state_dir() == dir).map(Uplink::name);
        let stays = reload::keep_fixed(&self.config, &mut config, called);
        let told = reload::told(&self.config, &config);
        // Each session has a place on each worker, beside the prober.
        let sessions: usize = self.uplinks.iter().chain(&self.leaving).map(Uplink::sessions).sum();
        if sessions + config.links.len() >= RESIDENTS_MAX {
            return tracing::error!(
                sessions,
                "configuration not read again: too many older ones still carry visitors. Send SIGHUP when they are done"
            );
        }
        match self.apply(&config).await {
            Ok(()) => {
                stays.iter().for_each(|sentence| tracing::warn!("{sentence}"));
                told.iter().for_each(|line| tracing::info!("{line}"));
                self.config = config;
                if told.is_empty() {
                    tracing::info!(file = %path.display(), ?why, "configuration read again: the same");
                } else {
                    tracing::info!(file = %path.display(), ?why, changes = told.len(), "configuration read again");
                }
            }
            Err(failure) => tracing::error!(%failure, ?why, "configuration not read again: the old one stays"),
        }
    }

    /// Does what it says. The bridges that have to hear of it do.
    async fn apply(&mut self, config: &Config) -> Result<(), Failure> {
        // First what may fail.
        visit(&mut self.visits, config, &self.uplinks)?;
        for link in &config.links {
            match self.uplinks.iter_mut().find(|uplink| *uplink.state_dir() == link.state_dir) {
                Some(uplink) => uplink.change(link, &config.exposes, &mut self.checks).await?,
                None => {
                    let house = self.house.clone();
                    let uplink = Uplink::start(link, &config.exposes, &mut self.checks, house).await?;
                    tell_up(uplink.link(), link, config, &self.engine);
                    self.uplinks.push(uplink);
                }
            }
        }
        for uplink in &mut self.uplinks {
            uplink.is_in_file = config.links.iter().any(|link| link.state_dir == *uplink.state_dir());
        }
        self.let_go();
        self.house.allowed.store(Arc::new(config.checks.clone()));
        self.uplinks.iter_mut().chain(&mut self.leaving).for_each(Uplink::reconsider);
        self.house.memory = config.memory;
        self.uplinks.iter().for_each(|uplink| uplink.set_memory(config.memory));
        Ok(())
    }

    /// Leaves the bridges that the file does not name, once one that it names has let us in: a file whose bridges refuse us changes
    /// nothing.
    fn let_go(&mut self) {
        self.uplinks.iter_mut().for_each(Uplink::look);
        let is_over = self.uplinks.iter().any(|uplink| !uplink.is_in_file);
        if !is_over || !self.uplinks.iter().any(|uplink| uplink.is_in_file && uplink.was_up) {
            return;
        }
        let (stay, go): (Vec<_>, Vec<_>) = std::mem::take(&mut self.uplinks).into_iter().partition(|u| u.is_in_file);
        self.uplinks = stay;
        for uplink in go {
            tracing::info!(bridge = %uplink.link().bridge, "a bridge is gone from the file: it gets no more visitors");
            uplink.drain();
            self.leaving.push(uplink);
        }
    }

    fn tell_health(&mut self) {
        self.feed.transitions(&mut self.transitions);
        for t in std::mem::take(&mut self.transitions) {
            self.uplinks.iter().for_each(|uplink| uplink.tell_sight(&t));
            if let Some((expose, _)) = self.checks.on_transition(&t) {
                log_transition(expose, &t);
                self.uplinks.iter().for_each(|uplink| uplink.tell_health(t.key, &self.checks));
            }
        }
    }

    /// One bridge that is lost for good is left; the last one is the end.
    fn take_events(&mut self) -> Option<Failure> {
        let mut at = 0;
        while at < self.uplinks.len() {
            let Some(failure) = self.uplinks[at].take_events() else {
                at += 1;
                continue;
            };
            if self.uplinks.len() == 1 {
                return Some(failure);
            }
            let lost = self.uplinks.remove(at);
            lost.drain();
            self.leaving.push(lost);
            if self.uplinks.iter().any(|uplink| uplink.is_in_file) {
                tracing::error!(%failure, "a bridge is left; the others go on");
            } else {
                tracing::error!(%failure, "no bridge of the file wants us: those of the file before stay");
                self.uplinks.iter_mut().for_each(|uplink| uplink.is_in_file = true);
            }
        }
        self.let_go();
        for uplink in &mut self.leaving {
            // Whatever its bridge says now, it is left already.
            let _ = uplink.take_events();
        }
        None
    }
}

/// Opens the ports of secret services, and closes those that are not wanted any more. They are visited as the agent of
/// the first bridge.
fn visit(visits: &mut Visits, config: &Config, uplinks: &[Uplink]) -> Result<(), Failure> {
    let (Some(uplink), Some(first)) = (uplinks.first(), config.links.first()) else { return Ok(()) };
    let Link { identity, trust, .. } = uplink.link();
    visits
        .apply(&config.visits, identity, *trust, &first.road)
        .map_err(|(address, error)| Failure::Run(crate::bridge_cmd::cannot_listen("[[visit]] listen", address, &error)))
}

/// Ends when the file is to be read; without one, never.
async fn due(watch: &mut Option<(WatchFile, PathBuf)>) -> Why {
    match watch {
        Some((watch, _)) => watch.due().await,
        None => std::future::pending().await,
    }
}

fn tell_up(link: &Link, its: &AgentLink, config: &Config, engine: &Engine) {
    tracing::info!(
        agent = %link.identity.id(),
        name = %link.identity.name,
        bridge = %link.bridge,
        via = %its.road,
        tls = link.trust != Trust::Plain,
        backends = config.exposes.len(),
        io = %engine.capabilities(),
        "agent is up"
    );
}

fn log_transition(expose: &Expose, t: &Transition) {
    let thresholds = expose.check.policy.thresholds;
    let needed = match (t.from, t.to) {
        (Health::Unknown, _) => 1,
        (_, Health::Up) => thresholds.rise.get(),
        (_, Health::Down | Health::Unknown) => thresholds.fall.get(),
    };
    let (service, address, code) = (&expose.service, &expose.backend, t.code.as_str());
    let (after, last_us) = (format!("{} of {needed}", t.streak), t.rtt_ns / 1000);
    match t.to {
        Health::Up => tracing::info!(service, %address, after, last_us, "backend up {code}"),
        Health::Down => {
            tracing::warn!(service, %address, after, last_us, why = t.code.sentence(), "backend down {code}");
        }
        Health::Unknown => tracing::info!(service, %address, "backend unknown {code}"),
    }
}
