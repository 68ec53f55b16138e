//! `ringspan demo`: a bridge, an agent that joins with a fresh token, two HTTP backends and visitors, all in one process
//! and on loopback; then a backend dies and comes back, and the visitors judge.
//!
//! ```text
//! ready ──1 s──► kill ──► ejected ──1 s──► bring back ──► up again, visited again ──► (once more after a pause)
//! ```
//! What is promised, and what the exit code stands for: visitors fail between the death and the ejection at most, never
//! before and never after; the ejection comes after `fall` checks; the backend gets visitors again when it is back.

mod backend;
mod visitors;

use crate::agent_cmd::AgentServer;
use crate::bridge_cmd::BridgeServer;
use crate::config::access::Access;
use crate::config::agent::{Agent as AgentConfig, Secret};
use crate::config::agent_link::AgentLink;
use crate::config::bridge::{Bridge as BridgeConfig, Engine as EngineConfig, Link, Listener, Tls};
use crate::config::check::{CHECK_DEFAULT, Check};
use crate::config::doors::Door;
use crate::config::expose::Expose;
use crate::machine::Signals;
use crate::office::{Answer, Request};
use crate::{Ending, Failure, cli, machine};
use backend::Backend;
use ringspan_engine::health::{Health, Thresholds};
use ringspan_engine::target::Policy;
use ringspan_tunnel::bridge::CarrierMode;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use visitors::{Log, Visit};

/// What both backends belong to, and the listener's name.
const SERVICE: &str = "web";
/// From check to check: short, so that the story is.
const INTERVAL: Duration = Duration::from_millis(250);
/// Quiet stretches of the story: visitors before the death, and with one backend.
const STRETCH: Duration = Duration::from_secs(1);
/// Between one death and the next, when the demo goes on.
const PAUSE: Duration = Duration::from_secs(8);
/// Nothing in the story takes longer; on a loaded machine checks and timers come late.
const STEP_MAX: Duration = Duration::from_secs(20);
/// How often the story looks whether what it waits for has happened.
const LOOK: Duration = Duration::from_millis(5);

/// Runs the subcommand.
pub(crate) fn run(args: &cli::Demo) -> Result<Ending, Failure> {
    machine::prepare();
    let runtime = machine::runtime()?;
    runtime.block_on(async {
        let mut signals = Signals::catch();
        let mut demo = Demo::start().await?;
        let (end, mut told) = (args.seconds.map(Duration::from_secs), demo.told.subscribe());
        let over = async {
            match end {
                Some(end) => {
                    tokio::time::sleep(end).await;
                    // The story is told to its end at least once.
                    let _ = told.wait_for(|stories| *stories > 0).await;
                }
                None => std::future::pending().await,
            }
        };
        // The borrow of `demo` ends with the select.
        let failure = {
            let story = demo.tell_stories();
            tokio::select! {
                failure = story => Some(failure),
                () = signals.caught() => None,
                () = over => None,
            }
        };
        demo.end(failure).await
    })
}

struct Demo {
    started: Instant,
    folder: Folder,
    bridge: BridgeServer,
    agent: tokio::task::JoinHandle<Failure>,
    backends: [Backend; 2],
    visitors: Option<tokio::task::JoinSet<()>>,
    log: Log,
    tally: Tally,
    /// Stories told to their end.
    told: watch::Sender<u32>,
}

/// Removed with all that is in it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What the visitors met.
#[derive(Default)]
struct Tally {
    answered: BTreeMap<String, u64>,
    /// Failures that the promise allows: they overlap the time from a death to its ejection.
    excused: u64,
    /// Failures that it does not, and an example.
    unexcused: u64,
    example: Option<String>,
    /// From death to ejection, `None` while it lasts.
    windows: Vec<(Instant, Option<Instant>)>,
}

impl Tally {
    fn count(&mut self, visits: Vec<Visit>) {
        for visit in visits {
            match visit.result {
                Ok(name) => *self.answered.entry(name).or_default() += 1,
                Err(error) => {
                    let overlaps = |(death, ejection): &(Instant, Option<Instant>)| {
                        visit.ended >= *death && ejection.is_none_or(|ejection| visit.started <= ejection)
                    };
                    if self.windows.iter().any(overlaps) {
                        self.excused += 1;
                    } else {
                        self.unexcused += 1;
                        self.example.get_or_insert(error);
                    }
                }
            }
        }
    }

    fn text(&self) -> String {
        let answered: Vec<_> = self.answered.iter().map(|(name, n)| format!("{n} by {name}")).collect();
        let failed = self.excused + self.unexcused;
        format!("visitors so far: {} answered, {failed} failed", answered.join(", "))
    }
}

impl Demo {
    async fn start() -> Result<Demo, Failure> {
        let started = Instant::now();
        let io = |what: &str, e: std::io::Error| Failure::Run(format!("{what}: {e}. Try: ringspan doctor"));
        let path = std::env::temp_dir().join(format!("ringspan-demo-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(|e| io(&path.display().to_string(), e))?;
        let folder = Folder(path);
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let config = BridgeConfig {
            access: Access::default(),
            data_dir: folder.0.join("bridge"),
            http_listen: loopback,
            grpc_listen: Some(loopback),
            dns: None,
            link: Link { listen: loopback, public: None, tls: Tls::Auto, ktls: true },
            policies: Default::default(),
            agents: Default::default(),
            drain: Default::default(),
            drain_takeover: Default::default(),
            listeners: vec![Listener {
                name: SERVICE.into(),
                listen: loopback,
                service: SERVICE.into(),
                door: Door::Tcp,
                carrier: CarrierMode::default(),
                limiter: None,
                proxy_from: None,
            }],
            engine: EngineConfig::default(),
            memory: ringspan_tunnel::memory::MemoryLimits::default(),
            ..BridgeConfig::default()
        };
        let bridge = BridgeServer::start(&config)?;
        let visit = bridge.listener_address(SERVICE).expect("the listener was just bound");
        let say = |text: String| say(started, &text);
        say(format!("bridge     visitors http://{visit}, agents {} (TLS), io {}", bridge.link_address(), bridge.io()));
        say(format!(
            "registry   http://{0}/nacos/v1/ns/instance/list?serviceName={SERVICE}, http://{0}/metrics",
            bridge.http_address()
        ));
        let backends = [
            Backend::start("A").await.map_err(|e| io("backend A", e))?,
            Backend::start("B").await.map_err(|e| io("backend B", e))?,
        ];
        say(format!(
            "backends   A at {}, B at {}: only the agent knows them",
            backends[0].address, backends[1].address
        ));

        let office = bridge.office();
        let request = Request::Create {
            services: vec![SERVICE.into()],
            expires_s: 60,
            uses: 1,
            address: None,
            rights: ringspan_tunnel::rights::Rights::default(),
        };
        let answer = tokio::task::spawn_blocking(move || office.answer(request)).await;
        let token = match answer {
            Ok(Answer::Created { token, id, .. }) => {
                say(format!("token      {id} for service {SERVICE}: one use, good for a minute"));
                token
            }
            Ok(other) => return Err(Failure::Run(format!("no token: {other:?}"))),
            Err(error) => return Err(Failure::Run(format!("no token: {error}"))),
        };
        let policy = Policy { interval: INTERVAL, timeout: INTERVAL, ..Policy::DEFAULT };
        let check = Check { policy, ..CHECK_DEFAULT };
        let expose = |backend: &Backend| Expose::new(SERVICE.into(), backend.address.into(), check.clone());
        let mut agent = AgentServer::start(AgentConfig {
            links: vec![AgentLink { token: Some(Secret(token)), ..AgentLink::at(folder.0.join("agent")) }],
            exposes: backends.iter().map(expose).collect(),
            visits: Vec::new(),
            engine: EngineConfig::default(),
            memory: ringspan_tunnel::memory::MemoryLimits::default(),
            drain: Default::default(),
            checks: Vec::new(),
        })
        .await?;
        let agent = tokio::spawn(async move { agent.serve(None).await });
        let (log, tally, told) = (Log::default(), Tally::default(), watch::Sender::new(0));
        let mut demo = Demo { started, folder, bridge, agent, backends, visitors: None, log, tally, told };
        demo.wait_health(0, Health::Up).await?;
        demo.wait_health(1, Health::Up).await?;
        demo.say("agent      joined with the token; it has checked A and B: both up");
        demo.visitors = Some(visitors::send(visit, &demo.log));
        Ok(demo)
    }

    fn say(&self, text: &str) {
        say(self.started, text);
    }

    /// Tells the story again and again; ends only if something was not as promised.
    async fn tell_stories(&mut self) -> Failure {
        loop {
            let stories = *self.told.borrow();
            if let Err(failure) = self.tell_story(stories as usize % 2).await {
                return failure;
            }
            self.told.send_replace(stories + 1);
            if stories == 0 {
                self.say("that was the story. It goes on with the other backend until Ctrl-C or --seconds");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn tell_story(&mut self, victim: usize) -> Result<(), Failure> {
        let name = self.backends[victim].name;
        tokio::time::sleep(STRETCH).await;
        self.count();
        self.say(&format!("           {}", self.tally.text()));

        let death = Instant::now();
        self.tally.windows.push((death, None));
        self.backends[victim].kill();
        self.say(&format!("KILL       backend {name} is dead: its connections are reset, its port is closed"));
        let ejected = self.wait_health(victim, Health::Down).await?;
        self.tally.windows.last_mut().expect("it was just pushed").1 = Some(ejected);
        let excused = self.tally.excused;
        // What failed may still be on its way into the log: visitors of that time end soon.
        tokio::time::sleep(STRETCH).await;
        self.count();
        let (fall, took) = (Thresholds::default().fall, ejected.duration_since(death));
        self.say(&format!(
            "EJECTED    {} ms after its death, by {fall} failed checks; {} visitors met the corpse before, none after",
            took.as_millis(),
            self.tally.excused - excused
        ));
        self.say(&format!("           {}", self.tally.text()));
        self.promise()?;

        let before = self.tally.answered.get(name).copied().unwrap_or(0);
        let back = self.backends[victim].bring_back().await;
        back.map_err(|e| Failure::Run(format!("backend {name} at {}: {e}", self.backends[victim].address)))?;
        self.say(&format!("BACK       backend {name} listens again"));
        let up = self.wait_health(victim, Health::Up).await?;
        self.say(&format!("UP         it passed {} checks and gets visitors again", Thresholds::default().rise));
        let deadline = up + STEP_MAX;
        while self.tally.answered.get(name).copied().unwrap_or(0) <= before {
            if Instant::now() > deadline {
                return Err(Failure::Run(format!("backend {name} is up again, but no visitor reached it")));
            }
            tokio::time::sleep(LOOK).await;
            self.count();
        }
        self.say(&format!("           {}", self.tally.text()));
        self.promise()
    }

    fn count(&mut self) {
        self.tally.count(self.log.take());
    }

    fn promise(&self) -> Result<(), Failure> {
        match (self.tally.unexcused, &self.tally.example) {
            (0, _) => Ok(()),
            (n, example) => {
                let example = example.as_deref().unwrap_or_default();
                Err(Failure::Run(format!("{n} visitors failed that should not have; the first: {example}")))
            }
        }
    }

    /// Waits until the bridge believes so; when it was seen to.
    async fn wait_health(&self, backend: usize, health: Health) -> Result<Instant, Failure> {
        let deadline = Instant::now() + STEP_MAX;
        let Backend { name, address, .. } = &self.backends[backend];
        while self.bridge.health(SERVICE, *address) != Some(health) {
            if self.agent.is_finished() {
                return Err(Failure::Run("the agent has ended: RINGSPAN_LOG=info shows why".into()));
            }
            if Instant::now() > deadline {
                return Err(Failure::Run(format!("backend {name} is not {health:?} after {STEP_MAX:?}")));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(Instant::now())
    }

    /// The verdict.
    async fn end(mut self, failure: Option<Failure>) -> Result<Ending, Failure> {
        self.visitors = None;
        self.count();
        self.say(&format!("END        {}", self.tally.text()));
        self.agent.abort();
        let _ = (&mut self.agent).await;
        let (promise, stories) = (self.promise(), *self.told.borrow());
        self.bridge.stop().await;
        drop(self.folder);
        match failure {
            Some(failure) => return Err(failure),
            None => promise?,
        }
        if stories == 0 {
            return Err(Failure::Run(
                "interrupted before the story was over: one death and return take about 4 s".into(),
            ));
        }
        crate::say("All went as promised.\n");
        Ok(Ending::Good)
    }
}

fn say(started: Instant, text: &str) {
    crate::say(&format!("{:>8.3}s  {text}\n", started.elapsed().as_secs_f64()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failure is excused if it overlaps the time from a death to its ejection, and not otherwise.
    #[test]
    fn excuses() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        for (started, ended, excused) in
            [(0, 9, false), (0, 10, true), (12, 13, true), (20, 30, true), (21, 30, false), (40, 50, true)]
        {
            let mut tally = Tally { windows: vec![(at(10), Some(at(20))), (at(40), None)], ..Tally::default() };
            tally.count(vec![Visit { started: at(started), ended: at(ended), result: Err("x".into()) }]);
            assert_eq!((tally.excused, tally.unexcused), if excused { (1, 0) } else { (0, 1) }, "{started} {ended}");
        }
    }
}
