//! etcd processes, members of a cluster on them, and what the tests ask them.
//! Promise: no process outlives its test; what is waited for, is waited for until it is so or [`PATIENCE`] ends.

use ringspan_engine::health::Health;
use ringspan_registry::cluster::{EtcdOptions, Options as ClusterOptions};
use ringspan_registry::health::Reason;
use ringspan_registry::model::{Instance, InstanceId, ServiceKey};
use ringspan_registry::table::{Command, Delta};
use ringspan_registry::{Options, Registry};
use std::net::TcpListener;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// No claim about speed: the end of patience on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One etcd process or three of them.
pub(crate) struct Etcd {
    pub(crate) nodes: Vec<Node>,
    pub(crate) _folder: TempDir,
}

pub(crate) struct Node {
    pub(crate) client: String,
    pub(crate) args: Vec<String>,
    pub(crate) process: Option<Child>,
}

impl Node {
    pub(crate) fn start(&mut self) {
        let log = Stdio::null;
        let etcd = Process::new("etcd").args(&self.args).stdout(log()).stderr(log()).spawn();
        self.process = Some(etcd.expect("etcd is there: scripts/setup"));
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Etcd {
    pub(crate) fn start(n: usize) -> Etcd {
        let folder = tempfile::tempdir().unwrap();
        // Ports that are free now: etcd takes no socket of ours.
        let held: Vec<_> = (0..2 * n).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let urls: Vec<_> = held.iter().map(|l| format!("http://{}", l.local_addr().unwrap())).collect();
        drop(held);
        let (clients, peers) = urls.split_at(n);
        let cluster: Vec<_> = peers.iter().enumerate().map(|(i, url)| format!("e{i}={url}")).collect();
        let node = |i: usize| {
            let data = folder.path().join(format!("e{i}"));
            let args = [
                ("name", format!("e{i}")),
                ("data-dir", data.display().to_string()),
                ("listen-client-urls", clients[i].clone()),
                ("advertise-client-urls", clients[i].clone()),
                ("listen-peer-urls", peers[i].clone()),
                ("initial-advertise-peer-urls", peers[i].clone()),
                ("initial-cluster", cluster.join(",")),
            ];
            let args = args.into_iter().map(|(key, value)| format!("--{key}={value}")).collect();
            let mut node = Node { client: clients[i].clone(), args, process: None };
            node.start();
            node
        };
        let nodes = (0..n).map(node).collect();
        Etcd { nodes, _folder: folder }
    }

    /// Asks etcdctl of those nodes that run.
    pub(crate) fn ctl(&self, args: &[&str]) -> String {
        let running: Vec<_> = self.nodes.iter().filter(|n| n.process.is_some()).map(|n| n.client.as_str()).collect();
        let output = Process::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", running.join(",")))
            .args(args)
            .output()
            .expect("etcdctl is there: scripts/setup");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn member(&self, name: &str) -> Registry {
        let etcd =
            EtcdOptions { endpoints: self.nodes.iter().map(|n| n.client.clone()).collect(), ..Default::default() };
        let cluster =
            ClusterOptions { etcd, prefix: "/test/".into(), member: name.into(), address: format!("{name}:8848") };
        Registry::open(&Options { cluster: Some(cluster), ..Options::default() }).unwrap()
    }

    /// These members, when each knows of all.
    pub(crate) async fn members(&self, names: &[&str]) -> Vec<Registry> {
        let all: Vec<_> = names.iter().map(|name| self.member(name)).collect();
        for registry in &all {
            until("everybody to know everybody", || registry.members().len() == names.len()).await;
        }
        all
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.nodes.iter_mut().for_each(Node::kill);
    }
}

pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn service(name: &str) -> ServiceKey {
    ServiceKey::public(name).unwrap()
}

pub(crate) fn id(n: u16) -> InstanceId {
    InstanceId::new("", &format!("10.0.0.{}", n % 250 + 1), 80 + n / 250).unwrap()
}

pub(crate) fn register(name: &str, n: u16, weight: f64) -> Command {
    Command::Register { service: service(name), instance: Instance { weight, ..Instance::new(id(n)) } }
}

pub(crate) fn ephemeral(name: &str, n: u16) -> Command {
    Command::Register { service: service(name), instance: Instance { ephemeral: true, ..Instance::new(id(n)) } }
}

pub(crate) fn deregister(name: &str, n: u16) -> Command {
    Command::Deregister { service: service(name), id: id(n), ephemeral: None }
}

pub(crate) fn heard(name: &str, n: u16, health: Health) -> Command {
    let code = if health == Health::Up { "L4OK" } else { "L4CON" };
    let code = *ringspan_engine::outcome::Code::ALL.iter().find(|c| c.as_str() == code).unwrap();
    let reason = Reason::Probe { code, errno: 0 };
    Command::Heard {
        deltas: vec![Delta { service: service(name), id: id(n), health, reason, rtt_ns: 5_000, due: None }],
    }
}

pub(crate) fn weight(registry: &Registry, name: &str, n: u16) -> Option<f64> {
    Some(registry.snapshot().service(&service(name))?.instance(&id(n))?.record.weight)
}

pub(crate) fn health(registry: &Registry, name: &str, n: u16) -> Option<Health> {
    Some(registry.snapshot().service(&service(name))?.instance(&id(n))?.health().health)
}

pub(crate) fn stop(all: Vec<Registry>) {
    all.iter().for_each(Registry::stop);
}
